"""KLG001."""

from klguard.rules.programs import ppo
from klguard.rules.rule import Example, Rule


class SyntaxErrorInFile(Rule):
    """A file that cannot be parsed.

    ## What it does
    Reports a file that is not valid Python, with the place of the error. The other files are still checked.

    ## Why it breaks the KL
    It does not, but a file that was not read was not checked: silence about it would look like a clean
    bill.

    ## Example
    ```text
    response = model.generate(**inputs, do_sample=True,
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True)
    ```
    Templates and files for another Python belong into `exclude`.

    ## References
    - [Full grammar specification of Python](https://docs.python.org/3/reference/grammar.html)
    """

    code = "KLG001"
    name = "syntax-error"

    VALID = (Example(ppo("do_sample=True, top_k=0, max_new_tokens=32")),)
    INVALID = (Example("def rollout(model, inputs):\n    return model.generate(**inputs, do_sample=True,\n"),)
