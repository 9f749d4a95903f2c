"""Suppressions: `# klguard: ignore[KLG101, top-p] reason` in the code, and those that suppress nothing.

A comment counts on every line that a finding touches: where the value was written, the whole call, and each
step in between. On a line of its own it also counts for the statement below it; on the first or last line of
a statement, for all of it. There is no form without rules: it would hide what nobody has seen yet.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from klguard.config import OWN_RULES, matching, nearest_rule
from klguard.findings import Confidence, Finding, Severity
from klguard.read.files import SourceText
from klguard.settings import Place

UNUSED = "KLG004"

_GATE = re.compile(r"(?i)klguard\s*:")
_COMMENT = re.compile(
    r"""
      \# \s* klguard \s* : \s* ([\w-]+)      # the verb
      [ \t]* (?: \[ ([^\]\n]*) \] )?          # the rules
      ((?: (?! \s\#\s | \#\s*klguard ) . )*)  # the reason, up to the next comment (`see #12` is none)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_BLANK = " \t\f"  # what Python skips; str.strip would take more
_ELSEWHERE = ("disable", "noqa", "nosec", "off", "skip", "allow")
"""What other linters call it. Words that are close to none of these are prose, not an instruction."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """One comment.

    place   of the comment itself, from its # to its end
    rules   codes and names as they were written
    lines   (first, last) line, in the cell, of what it covers; None for the whole file
    reason  the text after it
    fault   what is wrong with the form of the comment, in words; such a comment suppresses nothing
    """

    place: Place
    rules: tuple[str, ...] = ()
    lines: tuple[int, int] | None = None
    reason: str = ""
    fault: str = ""

    def covers(self, place: Place) -> bool:
        """Whether what stands at `place` is covered."""
        if place.path != self.place.path or self.lines is None:
            return place.path == self.place.path
        first, last = self.lines
        return place.cell == self.place.cell and place.line <= last and place.end_line >= first


@dataclass
class Applied:
    """The findings that are left, how many are not, and a KLG004 for each comment that is at fault."""

    kept: list[Finding] = field(default_factory=list)
    suppressed: int = 0
    unused: list[Finding] = field(default_factory=list)


# --- reading ---------------------------------------------------------------------------------------------


def read_suppressions(source: SourceText) -> list[Suppression]:
    """The suppressions in a file, in order."""
    if not _GATE.search(source.text):
        return []
    try:
        return list(_from_tokens(source))
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        return list(_from_lines(source))


@dataclass(frozen=True, slots=True)
class _Found:
    """A comment at a line and column of the text, with the lines that it covers there."""

    line: int
    column: int
    text: str
    first: int
    last: int


def _from_tokens(source: SourceText) -> Iterator[Suppression]:
    """With the tokenizer, so that strings are not taken for comments and statements have an extent."""
    for found in _comments(source.text):
        yield from _suppressions(source, found)


def _from_lines(source: SourceText) -> Iterator[Suppression]:
    """Without it, for text that is not Python or is broken: each line for itself and the one above."""
    lines = source.text.split("\n")
    for number, line in enumerate(lines, 1):
        if found := _COMMENT.search(line):
            start = found.start()
            alone = not line[:start].strip(_BLANK)
            yield from _suppressions(source, _Found(number, start + 1, line[start:], number, number + alone))


def _comments(text: str) -> Iterator[_Found]:
    """The comments in Python source, one statement after the other."""
    lines = text.split("\n")
    above: list[tokenize.TokenInfo] = []
    inside: list[tokenize.TokenInfo] = []
    first = 0  # the line on which the statement began, 0 between statements
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            (inside if first else above).append(token)
        elif token.type == tokenize.NEWLINE:
            yield from _in_statement(above, inside, first, line, lines)
            above, inside, first = [], [], 0
        elif token.type == tokenize.NL and not first and not lines[line - 1].strip(_BLANK):
            yield from (_alone(comment, comment.start[0]) for comment in above)
            above = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            first = first or line
    yield from (_alone(comment, comment.start[0]) for comment in above)


def _alone(comment: tokenize.TokenInfo, last: int) -> _Found:
    """A comment on a line of its own, which counts down to line `last`."""
    line, column = comment.start
    return _Found(line, column + 1, comment.string, line, last)


def _in_statement(
    above: Sequence[tokenize.TokenInfo],
    inside: Sequence[tokenize.TokenInfo],
    first: int,
    last: int,
    lines: Sequence[str],
) -> Iterator[_Found]:
    """What the comments above and in the statement on lines `first` to `last` cover."""
    yield from (_alone(comment, last) for comment in above)
    alone = {c.start[0] for c in inside if not lines[c.start[0] - 1][: c.start[1]].strip(_BLANK)}
    for comment in inside:
        line, column = comment.start
        if line in alone:
            below = next((number for number in range(line, last + 1) if number not in alone), line)
            yield _alone(comment, below)
        else:
            covered = (first, last) if line in (first, last) else (line, line)
            yield _Found(line, column + 1, comment.string, *covered)


def _suppressions(source: SourceText, found: _Found) -> Iterator[Suppression]:
    for match in _COMMENT.finditer(found.text):
        verb, rules, reason = match[1].lower(), match[2], match[3].strip()
        if verb not in ("ignore", "ignore-file") and not _is_meant(verb):
            continue
        cell, line = source.locate(found.line)
        column = found.column + match.start()
        text = match[0].rstrip()
        place = Place(source.path, cell, line, column, line, column + len(text))
        shift = line - found.line
        lines = None if verb == "ignore-file" else (found.first + shift, found.last + shift)
        names = tuple(name.strip() for name in (rules or "").split(",") if name.strip())
        yield Suppression(place, names, lines, reason, _fault(verb, names, text))


def _is_meant(verb: str) -> bool:
    from difflib import get_close_matches

    return verb in _ELSEWHERE or bool(get_close_matches(verb, ("ignore", "ignore-file"), n=1, cutoff=0.75))


def _fault(verb: str, names: Sequence[str], text: str) -> str:
    if verb not in ("ignore", "ignore-file"):
        return f"`{text}` is not understood: write `# klguard: ignore[top-k] reason`"
    if not names:
        return f"`{text}` names no rule: write `# klguard: {verb}[top-k] reason`"
    return ""


# --- applying --------------------------------------------------------------------------------------------


def apply(
    findings: Iterable[Finding],
    suppressions: Mapping[str, Sequence[Suppression]],
    *,
    rules: Mapping[str, str],
    checked: Collection[str],
    enabled_for: Callable[[str], Collection[str]],
) -> Applied:
    """Take away the findings that are suppressed, and report the suppressions that are not needed.

    rules        code -> name of all rules
    checked      paths whose findings are complete. (Of a file that could not be read or parsed, which its
                 findings tell, the comments are not judged.)
    enabled_for  path -> codes of the rules that are looked for in it: a comment for another rule may be
                 needed in another run.
    """
    codes = {**{name: code for code, name in rules.items()}, **{code: code for code in rules}}
    used: set[tuple[Place, str]] = set()
    broken: set[str] = set()
    applied = Applied()
    for finding in findings:
        if finding.code in ("KLG001", "KLG002"):
            broken.add(finding.place.path)
        hits = set(_hits(finding, suppressions, codes))
        used |= hits
        applied.suppressed += bool(hits)
        if not hits:
            applied.kept.append(finding)
    for path in sorted(set(suppressions).intersection(checked) - broken):
        enabled = enabled_for(path)
        for finding in _faults(suppressions[path], rules, codes, enabled, used) if UNUSED in enabled else ():
            silenced = any(_hits(finding, suppressions, codes))
            applied.suppressed += silenced
            if not silenced:
                applied.unused.append(finding)
    return applied


def _hits(
    finding: Finding, suppressions: Mapping[str, Sequence[Suppression]], codes: Mapping[str, str]
) -> Iterator[tuple[Place, str]]:
    """(comment, rule as written) for everything that suppresses a finding."""
    places = list(_places(finding))
    own_files = {finding.place.path, finding.site.place.path if finding.site else finding.place.path}
    for path in dict.fromkeys(place.path for place in places):
        for suppression in suppressions.get(path, ()):
            if suppression.fault or (suppression.lines is None and path not in own_files):
                continue
            if any(map(suppression.covers, places)):
                for written in suppression.rules:
                    if _code(written, codes) == finding.code:
                        yield suppression.place, written


def _places(finding: Finding) -> Iterator[Place]:
    """Everywhere that a finding touches."""
    yield finding.place
    if finding.site:
        yield finding.site.place
    yield from (hop.place for hop in finding.origin if hop.place)
    yield from finding.related


def _code(written: str, codes: Mapping[str, str]) -> str | None:
    return codes.get(written.upper()) or codes.get(written.lower())


def _faults(
    suppressions: Iterable[Suppression],
    rules: Mapping[str, str],
    codes: Mapping[str, str],
    enabled: Collection[str],
    used: Collection[tuple[Place, str]],
) -> Iterator[Finding]:
    """What is wrong with the comments of one file."""
    for suppression in suppressions:
        if suppression.fault:
            yield _finding(suppression.place, suppression.fault)
            continue
        unused: list[str] = []
        for written in suppression.rules:
            code = _code(written, codes)
            if code is None:
                yield _finding(suppression.place, _unknown(written, rules))
            elif code in enabled and code != UNUSED and (suppression.place, written) not in used:
                unused.append(written)
        if unused:
            names = " and ".join(f"`{written}`" for written in unused)
            verb = "suppresses" if len(unused) == 1 else "suppress"
            where = "in this file" if suppression.lines is None else "here"
            yield _finding(suppression.place, f"{names} {verb} nothing {where}")


def _unknown(written: str, rules: Mapping[str, str]) -> str:
    if matching(written, rules):
        return f"`{written}` is more than one rule: name each that is meant"
    nearest = nearest_rule(written, rules)
    return f"unknown rule `{written}`" + (f"; did you mean `{nearest}`?" if nearest else "")


def _finding(place: Place, message: str) -> Finding:
    return Finding(
        code=UNUSED,
        name=OWN_RULES[UNUSED],
        severity=Severity.WARNING,
        confidence=Confidence.HIGH,
        message=message,
        place=place,
    )
