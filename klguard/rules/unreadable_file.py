"""KLG002."""

from klguard.rules.programs import ppo
from klguard.rules.rule import Example, Rule


class UnreadableFile(Rule):
    """A file that cannot be read.

    ## What it does
    Reports a file that was asked for and could not be read: no permission, bytes that are not text in the
    declared encoding, a notebook that is not one, a file over the size limit. The other files are still
    checked.

    ## Why it breaks the KL
    It does not, but a file that was not read was not checked.

    ## Example
    ```text
    $ klguard check train.ipynb     # an empty file, or half of one
    ```

    ## Use instead
    ```text
    $ jupyter nbconvert --to notebook --stdout train.ipynb > /dev/null     # says what is wrong with it
    ```
    Files that are not meant to be checked belong into `exclude`.

    ## References
    - [PEP 263, defining Python source code encodings](https://peps.python.org/pep-0263/)
    - [The notebook file format](https://nbformat.readthedocs.io/)
    """

    code = "KLG002"
    name = "unreadable-file"

    VALID = (Example(ppo("do_sample=True, top_k=0, max_new_tokens=32")),)
    INVALID = (Example('{"cells": [', filename="example.ipynb"),)
