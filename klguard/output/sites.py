"""Every site with what is in force there: what to open when a finding, or its absence, is in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from klguard.literals import default_text, value_text
from klguard.output.terminal import Paint, clean, plural
from klguard.settings import Context, Default, Place, Site, Unknown, Value, join, members

CONTEXT_STYLES = {
    Context.ROLLOUT: ("red", "bold"),
    Context.EVALUATION: ("green",),
    Context.INFERENCE: ("green",),
    Context.UNKNOWN: ("yellow",),
}

MANY = 8
"""More settings than this with one text and one history are told together."""


def render(sites: Iterable[Site], codes: Mapping[Place, Iterable[str]], paint: Paint) -> Iterator[str]:
    """The lines for all sites; an empty one after each."""
    for site in sites:
        yield from _site(site, sorted(codes.get(site.place, ())), paint)
        yield ""


def _site(site: Site, codes: list[str], paint: Paint) -> Iterator[str]:
    settings = site.settings
    context = paint(settings.context.value, *CONTEXT_STYLES[settings.context])
    version = settings.versions.get(settings.engine, "")
    yield f"{paint(clean(str(site.place)), 'bold')} {clean(site.call)}(...)"
    yield f"  {context}{': ' if site.why else ''}{clean(site.why)}"
    kind = settings.kind.value.replace("_", " ")
    yield f"  {kind}, {' '.join(filter(None, (settings.engine, version)))}" + (
        f", in {clean(site.enclosing)}" if site.enclosing else ""
    )
    yield from _settings(settings.values, paint)
    for name, words in sorted(settings.mitigations.items()):
        yield f"  {paint('harmless:', 'green')} {name}, {clean(words)}"
    for name, fact in sorted(settings.facts.items()):
        yield f"  {paint('also:', 'cyan')} {name} = {clean(value_text(fact))}"
    for layer in settings.layers:
        if layer.rest is not None:
            origin = paint(clean(_origin(layer.rest)), "dim")
            yield f"  {paint('may hold more:', 'yellow')} {clean(str(layer.rest))}  {origin}".rstrip()
    if codes:
        yield f"  {paint('findings:', 'red')} {', '.join(codes)}"


def _settings(values: Mapping[str, Value], paint: Paint) -> Iterator[str]:
    """What was written, a line each with its history, and in one line all those of which the same unknown dict decides;
    then the defaults together, by whose they are."""
    written = {name: value for name, value in sorted(values.items()) if not isinstance(value, Default)}
    alike: dict[tuple[str, str], list[str]] = {}
    for name, value in written.items():
        alike.setdefault(_told(value), []).append(name)
    rest = "others" if any(len(sharing) <= MANY for sharing in alike.values()) else "settings"
    lines = {name: told for told, sharing in alike.items() if len(sharing) <= MANY for name in sharing} | {
        f"{len(sharing)} {rest}": told for told, sharing in alike.items() if len(sharing) > MANY
    }
    names = max(map(len, lines), default=0)
    widest = min(max((len(text) for text, _ in lines.values()), default=0), 32)
    for name in sorted(lines, key=lambda name: (name not in written, name)):
        text, origin = lines[name]
        yield f"  {name:<{names}} = {text:<{widest}}  {paint(origin, 'dim')}".rstrip()
    defaults: dict[str, list[str]] = {}
    for name, default in sorted(values.items()):
        if isinstance(default, Default) and default.value is not None:
            defaults.setdefault(default_text(default), []).append(f"{name}={value_text(default)}")
    for whose, texts_of in sorted(defaults.items()):
        yield paint(f"  {whose}: {clean(', '.join(texts_of))}", "dim")


def _told(value: Value) -> tuple[str, str]:
    """(The text of a value, its history). Of what is unknown, or else as by default, each default is not told."""
    kinds = {type(member) for member in members(value)}
    if kinds != {Unknown, Default}:
        return clean(value_text(value)), clean(_origin(value))
    unknown = join(member for member in members(value) if isinstance(member, Unknown))
    return clean(f"{value_text(unknown)} or by default"), clean(_origin(unknown))


def _origin(value: Value) -> str:
    """The history of each possibility: `literal at a.py:3:5 -> **kw`."""
    chains = []
    for member in members(value):
        steps = [f"{hop.text} at {hop.place}" if hop.place else hop.text for hop in member.hops]
        if isinstance(member, Default):
            steps.append(default_text(member))
        if steps:
            chains.append(" -> ".join(steps))
    return "; or ".join(dict.fromkeys(chains))


def summary(sites: Iterable[Site], files: int) -> str:
    """One sentence: how many sites of which use, in how many files."""
    counts: dict[Context, int] = dict.fromkeys(Context, 0)
    for site in sites:
        counts[site.settings.context] += 1
    parts = ", ".join(f"{count} {context.value}" for context, count in counts.items() if count)
    total = plural(sum(counts.values()), "site")
    return f"{total} in {plural(files, 'file')}{': ' if parts else ''}{parts}."
