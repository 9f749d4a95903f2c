"""Writes the pages of the rules: `python -m klguard.rules.pages docs/rules`."""

from __future__ import annotations

import sys
from pathlib import Path

from klguard.rules import RULES, page


def index() -> str:
    """The list of all rules, with the hazard of each in one sentence."""
    rows = (
        f"| [{rule.code}]({rule.name}.md) | {rule.name} | {rule.severity.value} | "
        f"{summary(rule.__doc__ or '')} |"
        for rule in RULES.values()
    )
    return "\n".join(
        ["# Rules", "", "| code | name | severity | what it reports |", "|---|---|---|---|", *rows, ""]
    )


def summary(docstring: str) -> str:
    """The first sentence of a page."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"index.md": index(), **{f"{rule.name}.md": page(rule) for rule in RULES.values()}}


def write(folder: Path) -> None:
    """Write every page into `folder`, and remove those of rules that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = pages()
    for stale in folder.glob("*.md"):
        if stale.name not in texts:
            stale.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/rules"))
