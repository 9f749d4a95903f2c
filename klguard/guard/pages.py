"""Writes the page of the invariants: `python -m klguard.guard.pages docs/invariants.md`.

Free of torch: what is checked, and at which events, is read from the source of the invariants.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from klguard.guard.catalogue import BY_CODE, BY_ROW, CATALOGUE, SETTINGS_ROW, UNCHECKED, Entry

HERE = Path(__file__).parent
ROWS = 58

_SETTINGS = (
    "sampling settings are neutral, or mirrored in scoring",
    "exact",
    "first rollout",
    "checked by the rules for settings (KLG1xx to KLG5xx), read from the live objects",
)
"""Row 5: what holds, its tolerance, when, and the state."""


def checked() -> dict[str, tuple[str, ...]]:
    """Code -> the events its invariant watches, and "evidence", for every code that can be reported."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted((HERE / "invariants").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in classes.values():
            code = _attribute(node, "code", classes)
            if isinstance(code, ast.Constant) and code.value in BY_CODE:
                found[code.value] = tuple(_names(_attribute(node, "watches", classes)))
    verdict = ast.parse((HERE / "verdict.py").read_text(encoding="utf-8"))
    for node in ast.walk(verdict):
        if isinstance(node, ast.Constant) and node.value in BY_CODE:
            found[node.value] = ("evidence", *found.get(node.value, ()))
    return found


def state(entry: Entry, watched: dict[str, tuple[str, ...]]) -> str:
    """How a code is checked, in words."""
    events = watched.get(entry.code)
    if events is None:
        return "not checked"
    spoken = dict.fromkeys("the evidence" if event == "evidence" else f"`{event}`" for event in events)
    return "checked by " + (", ".join(spoken) or "the pass over scored logits")


def table() -> Iterator[str]:
    """One line for each of the 58 rows."""
    watched = checked()
    yield "| row | code | what holds | tolerance | when | state |"
    yield "|---|---|---|---|---|---|"
    for row in range(1, ROWS + 1):
        if entry := BY_ROW.get(row):
            cells = [f"[{entry.code}](#{_anchor(entry)})", entry.holds, entry.tolerance, entry.when]
            cells.append(state(entry, watched))
        elif row == SETTINGS_ROW:
            cells = ["settings", *_SETTINGS]
        else:
            holds, why = UNCHECKED[row]
            cells = ["", holds, "", "", f"not checked: {why}"]
        yield "| " + " | ".join([str(row), *(_cell(cell) for cell in cells)]) + " |"


def section(entry: Entry) -> str:
    """What a code says, as Markdown: the page `klguard rule` prints."""
    row = f" Row {entry.row} of the table of invariants." if entry.row else ""
    lines = [
        f"{entry.name} ({entry.code})",
        "",
        f"Severity: {entry.severity.value}. Checked by the guard while a loop runs, {_when(entry)}.{row}",
        "",
        f"Holds: {entry.holds}.",
        "",
        f"Tolerance: {entry.tolerance}.",
        "",
        f"When it does not hold: {entry.means}.",
        "",
        f"What to do: {entry.help}.",
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [
        "# Invariants of a correct loop",
        "",
        "What `klguard.Guard` checks while a loop runs. `guard.exercised` is the set of codes that really looked"
        " at something: what the loop does not tell the guard cannot be checked. `klguard rule CODE` explains a"
        " code on the command line.",
        "",
        *table(),
    ]
    for entry in CATALOGUE:
        parts += ["", f"## {section(entry)}"]
    return "\n".join(parts) + "\n"


def _when(entry: Entry) -> str:
    """As an adverb."""
    return {"every step": "in every step", "first rollout": "at the first rollout"}.get(
        entry.when, entry.when if entry.when.startswith(("before", "now")) else f"at the {entry.when}"
    )


def _attribute(node: ast.ClassDef, name: str, classes: dict[str, ast.ClassDef]) -> ast.expr | None:
    """The value a class gives to `name` in its body, or inherits from a class of the same file."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        ):
            return statement.value
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            inherited = _attribute(classes[base.id], name, classes)
            if inherited is not None:
                return inherited
    return None


def _names(value: ast.expr | None) -> Iterable[str]:
    return [item.id for item in getattr(value, "elts", ()) if isinstance(item, ast.Name)]


def _anchor(entry: Entry) -> str:
    """The anchor that Markdown makes of the section's heading."""
    return f"{entry.name}-{entry.code}".lower()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/invariants.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8", newline="\n")
