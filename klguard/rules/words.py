"""How rules speak: values, where they came from, engines and their neutral values, as text for messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from klguard.engines import ENGINES, NEWEST, Engine
from klguard.rules.rule import Verdict
from klguard.settings import Default, HopKind, Known, Opaque, Settings, SiteKind, Value

MAX_SHOWN = 40


def engine_of(settings: Settings) -> Engine:
    """The engine whose tables hold for this site; names nobody knows are read as a project's own sampler."""
    return ENGINES.get(settings.engine) or ENGINES["local"]


def release(settings: Settings, library: str = "") -> str:
    """`transformers 5.23.0`: the library, by default the one that samples here, in the version judged for."""
    library = library or ("transformers" if _delegates(settings) else settings.engine)
    version = settings.versions.get(library) or NEWEST.get(library, "")
    return f"{library} {version}".strip()


def _delegates(settings: Settings) -> bool:
    """Whether the call goes through a trainer to transformers, whose names and values then hold."""
    return settings.kind is SiteKind.GENERATE and settings.engine in ("trl", "trlx")


def show(value: object) -> str:
    """A plain value as one would write it, shortened."""
    text = value.text if isinstance(value, Opaque) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def one_of(texts: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`, each once."""
    *most, last = dict.fromkeys(texts)
    return f"{', '.join(most)} or {last}" if most else last


def all_of(texts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`, each once."""
    *most, last = dict.fromkeys(texts)
    return f"{', '.join(most)} and {last}" if most else last


def shown(values: Iterable[Value]) -> str:
    """The plain values, as alternatives."""
    return one_of(show(v.value) for v in values if isinstance(v, Known | Default))


def provenance(settings: Settings, value: Value) -> str:
    """Where a value came from that nobody wrote in the code at hand: a default, a file, a command line."""
    if isinstance(value, Default):
        return f"the default of {release(settings, value.library)}" if value.library else "a default"
    for hop in value.hops:
        where = PurePosixPath(hop.place.path).name if hop.place else "a file"
        if hop.kind is HopKind.CHECKPOINT:
            return "from the checkpoint"
        if hop.kind is HopKind.DOCUMENT:
            return f"from {where}"
        if hop.kind is HopKind.ARGPARSE:
            return "the default of a command-line option"
        if hop.kind is HopKind.FLAG:
            return "from the command line"
    return ""


def subject(settings: Settings, name: str, verdict: Verdict) -> str:
    """The start of a sentence that goes on with a verb: the setting, its value, and whose value that is."""
    whose = provenance(settings, verdict.offenders[0]) if len(verdict.offenders) == 1 else ""
    values = shown(verdict.offenders)
    if verdict.certain and " or " not in values:
        return f"`{name}={values}`, {whose}," if whose else f"`{name}={values}`"
    verb = "is" if verdict.certain else "may be"
    return f"`{name}` {verb} {values}{f' ({whose})' if whose else ''}, which"


def safe(settings: Settings, name: str) -> str | None:
    """Source text of the neutral value in this engine and version, None where no single one is neutral."""
    return engine_of(settings).safe(name, settings.versions) or None


def neutral(settings: Settings, name: str, verb: str = "write") -> str:
    """What to write instead."""
    text = safe(settings, name)
    if text is None:
        return f"leave `{name}` out of rollouts"
    where = "" if settings.engine == "local" else f" in {release(settings)}"
    return f"{verb} `{name}={text}`, which is off{where}"
