"""KLG004."""

from klguard.findings import Severity
from klguard.rules.programs import ppo
from klguard.rules.rule import Example, Rule

_LOOP = ppo("do_sample=True, top_k={k}, max_new_tokens=32").replace(
    "\nfor batch", "  # klguard: ignore[KLG101] to repeat an old run\nfor batch"
)


class UnusedSuppression(Rule):
    """A suppression that suppresses nothing.

    ## What it does
    Reports a `# klguard: ignore[...]` whose rule finds nothing where it stands.

    ## Why it breaks the KL
    It does not. But a suppression that outlives its reason hides the next finding of the same rule.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0}  # klguard: ignore[top-k] to repeat an old run
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0}
    ```

    ## References
    - The comment may stand on any line of the call, or on the line of the value.
    """

    code = "KLG004"
    name = "unused-suppression"
    severity = Severity.WARNING

    VALID = (Example(_LOOP.format(k=50)),)
    INVALID = (Example(_LOOP.format(k=0)),)
