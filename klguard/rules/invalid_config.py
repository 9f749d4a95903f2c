"""KLG005."""

from klguard.rules.rule import Example, Rule


class InvalidConfig(Rule):
    """A configuration of klguard with an option, a rule or a type that does not exist.

    ## What it does
    Reports keys of `[tool.klguard]` that klguard does not know, rules that do not exist, and values of a
    wrong type. It names the nearest valid one.

    ## Why it breaks the KL
    It does not. But a misspelled `select` checks something else than was meant, and silence would look like
    a clean bill.

    ## Example
    ```toml
    [tool.klguard]
    selct = ["top-k"]
    ```

    ## Use instead
    ```toml
    [tool.klguard]
    select = ["top-k"]
    ```

    ## References
    - `klguard rule --all` lists the rules
    """

    code = "KLG005"
    name = "invalid-config"

    VALID = (Example('[tool.klguard]\nselect = ["top-k"]\n', filename="pyproject.toml"),)
    INVALID = (Example('[tool.klguard]\nselct = ["top-k"]\n', filename="pyproject.toml"),)
