"""The command line. Thin: options become a Config, check.py does the work, output/ writes it down.

Imports of what does the work are inside the commands, so that `klguard --version` and a run without
anything to read cost no more than click.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from klguard import __version__

if TYPE_CHECKING:
    from klguard.check import Report
    from klguard.config import Config, ConfigError
    from klguard.guard.journal import Run
    from klguard.output.terminal import Paint
    from klguard.report.violations import Reported

CLEAN, FINDINGS, UNUSABLE, NOTHING_CHECKED, INTERRUPTED = 0, 1, 2, 3, 130

CONTEXTS = ("rollout", "evaluation", "inference", "unknown", "all")


class _Rules(Mapping[str, str]):
    """Code -> name of every rule, loaded when somebody looks: a run that finds no site never does."""

    @cached_property
    def _known(self) -> dict[str, str]:
        from klguard.config import known_rules

        return known_rules()

    def __getitem__(self, code: str) -> str:
        return self._known[code]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True)
class Options:
    """What `check` and `sites` have in common."""

    paths: tuple[str, ...]
    output_format: str
    contexts: tuple[str, ...]
    stdin_filename: str | None
    config: Path | None
    target_versions: tuple[str, ...]
    force_exclude: bool
    jobs: int | None
    cache: bool
    cache_dir: Path | None
    color: str


def main() -> None:
    """The console script. Status 1 means findings and nothing else: an interruption or a fault of klguard's
    own has another one."""
    # Nearly all that is made here lives until a share of the files is read (trees, states), so the collector would
    # go over it in vain again and again: a fifth of a run. `reading` calls it between two shares.
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Messages quote source code; a terminal that cannot show a character gets its escape.
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli(prog_name="klguard", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("klguard: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        click.echo("klguard: internal error; please report the lines above", err=True)
        sys.exit(UNUSABLE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Finds what makes RLHF rollouts differ from the policy: in code, and in the journal of a guarded run."""


def _shared(formats: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of `check` and `sites`, gathered into one Options argument."""
    declared = [
        click.argument("paths", nargs=-1, metavar="[PATHS]..."),
        click.option("--output-format", type=click.Choice(formats), default=formats[0], show_default=True),
        click.option(
            "--context",
            "contexts",
            multiple=True,
            type=click.Choice(CONTEXTS),
            help="Which uses of the generated tokens are looked at; may be repeated.",
        ),
        click.option(
            "--stdin-filename", metavar="PATH", help="Read standard input, as if it were this file."
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="A pyproject.toml or klguard.toml to use instead of the nearest one.",
        ),
        click.option(
            "--target-version",
            "target_versions",
            multiple=True,
            metavar="LIB=VERSION",
            help="A library version to assume, as in transformers=4.57.1; may be repeated.",
        ),
        click.option("--force-exclude", is_flag=True, help="Exclude also files that are named one by one."),
        click.option(
            "-j", "--jobs", type=click.IntRange(min=1), help="Processes to use.  [default: one per core]"
        ),
        click.option(
            "--no-cache", "cache", is_flag=True, flag_value=False, default=True, help="Read everything anew."
        ),
        click.option(
            "--cache-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where answers are kept.  [default: .klguard_cache in the project]",
        ),
        click.option(
            "--color", type=click.Choice(("auto", "always", "never")), default="auto", show_default=True
        ),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def gathered(**given: Any) -> None:
            shared = {name: given.pop(name) for name in Options.__dataclass_fields__}
            command(Options(**shared), **given)

        gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
        gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(declared):
            gathered = option(gathered)
        return gathered

    return decorate


def _selectors(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
    """`--select A,B --select C` as one list; None when the option was not given."""
    return [part.strip() for text in given for part in text.split(",") if part.strip()] if given else None


# --- commands -------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--select",
    multiple=True,
    callback=_selectors,
    metavar="RULES",
    help="Report only these rules: codes, names or prefixes, comma-separated.",
)
@click.option(
    "--extend-select", multiple=True, callback=_selectors, metavar="RULES", help="Report these rules too."
)
@click.option(
    "--ignore", multiple=True, callback=_selectors, metavar="RULES", help="Do not report these rules."
)
@click.option("--statistics", is_flag=True, help="Show how often each rule was broken instead of where.")
@click.option("--exit-zero", is_flag=True, help="Exit with status 0 also when there are findings.")
@_shared(("full", "concise", "json"))
def check(
    options: Options,
    select: list[str] | None,
    extend_select: list[str] | None,
    ignore: list[str] | None,
    statistics: bool,
    exit_zero: bool,
) -> None:
    """Report generation settings that make rollouts differ from the policy.

    PATHS are files and directories, by default the current one; - is standard input.

    Exit status: 0 nothing to report, 1 findings, 2 klguard could not run as asked, 3 nothing was checked.
    """
    if statistics and options.output_format == "json":
        raise click.UsageError("--statistics is for people: use it with --output-format full or concise.")
    report = _run(
        options,
        lambda config: config.override(
            select=select, extend_select=extend_select or (), ignore=ignore or (), **_overrides(options)
        ),
    )
    _write(_check_lines(report, options, statistics))
    _finish(report, FINDINGS if report.fails and not exit_zero else CLEAN)


@cli.command()
@_shared(("full", "json"))
def sites(options: Options) -> None:
    """Show every site with the settings in force, where they come from, and what becomes of the tokens.

    What to look at when a finding, or the absence of one, is in doubt.
    """
    wanted = options.contexts or ("all",)
    report = _run(options, lambda config: config.override(**{**_overrides(options), "context": wanted}))
    _write(_sites_lines(report, options, wanted))
    _finish(report, CLEAN)


@cli.command()
@click.argument("rule", required=False, metavar="[CODE|NAME]")
@click.option("--all", "every", is_flag=True, help="List all rules.")
@click.option("--output-format", type=click.Choice(("full", "json")), default="full", show_default=True)
@click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto", show_default=True)
def rule(rule: str | None, every: bool, output_format: str, color: str) -> None:
    """Explain a rule or a code of the guard, or list them all."""
    from klguard.guard import catalogue
    from klguard.output import rules as output
    from klguard.rules import RULES, find

    if rule and every:
        raise click.UsageError("Name a rule, or ask for --all.")
    found = (find(rule) or catalogue.find(rule)) if rule else None
    if rule and found is None:
        from klguard.config import known_rules, nearest_rule

        codes = {entry.code: entry.name for entry in catalogue.CATALOGUE}
        nearest = nearest_rule(rule, known_rules() | codes)
        raise click.UsageError(f"unknown rule `{rule}`" + (f"; did you mean `{nearest}`?" if nearest else ""))
    chosen = [found] if found else [*RULES.values(), *catalogue.CATALOGUE]
    if output_format == "json":
        _write([output.as_json(chosen)])
    else:
        paint = _paint(color)
        _write(output.explain(found, paint) if found else output.listing(chosen, paint))


@cli.command()
@click.argument("journal", type=click.Path(path_type=Path))
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with interactive plots that needs no network, instead of the tables and plots here.",
)
@click.option("--output-format", type=click.Choice(("full", "json")), default="full", show_default=True)
@click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto", show_default=True)
def report(journal: Path, page: Path | None, output_format: str, color: str) -> None:
    """Show a run that the guard watched: its figures, KL and reward over steps, and what was violated.

    JOURNAL is the file given to klguard.Guard(journal=...).

    Exit status: 0 no violations, 1 violations, 2 klguard could not run as asked, 3 the journal has no step.
    """
    from klguard.guard.journal import JournalError, read
    from klguard.report.violations import fails, violations

    try:
        run = read(journal)
    except OSError as error:
        _refuse(f"{journal}: {error.strerror or error}")
    except JournalError as error:
        _refuse(str(error))
    found = violations(run)
    if page is not None:
        _write_page(page, run, found)
    _write(_report_lines(run, found, output_format, color, whole=page is None))
    if not run.steps and not found:
        click.echo(f"klguard: {journal} has no step", err=True)
        sys.exit(NOTHING_CHECKED)
    sys.exit(FINDINGS if fails(found) else CLEAN)


@cli.command()
@click.option(
    "--setting",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A keyword of generate() for the unsafe run; may be repeated.  [default: min_new_tokens=16]",
)
@click.option("--guard", type=click.Choice(("on", "off")), default="on", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("klguard-demo"),
    show_default=True,
    help="Where the picture, the page and the guard's journals go.",
)
@click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto", show_default=True)
def demo(settings: tuple[str, ...], guard: str, seed: int, output: Path, color: str) -> None:
    """Show how a sampling setting makes KL negative, in a minute on a CPU.

    A small GPT-2 learns a grammar; then PPO trains it with a reward that never changes, once with pure sampling and
    once with the setting. What the guard and TRL's rule say is shown beside it.

    Exit status: 0 it ran, 2 klguard could not run as asked.
    """
    from klguard.lab.settings import missing, parsed

    if lacking := missing():
        _refuse(f"the demonstration needs {', '.join(lacking)}: pip install 'klguard[demo]'")
    try:
        sampling = parsed(settings or ("min_new_tokens=16",))
        from klguard.lab import demo as laboratory

        laboratory.quiet()
        laboratory.demo(sampling, guarded=guard == "on", seed=seed, output=output, color=color)
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or output}: cannot be written: {error.strerror or error}")


# --- running --------------------------------------------------------------------------------------


def _run(options: Options, configure: Callable[[Config], Config]) -> Report:
    from klguard.check import MissingPaths, check_paths
    from klguard.config import ConfigError, load, load_file
    from klguard.output.progress import Progress
    from klguard.roots import common_directory

    paths, text = _inputs(options)
    try:
        start, rules = common_directory(paths), _Rules()
        file = options.config
        config = configure(load_file(file, rules=rules) if file else load(start, rules=rules))
    except ConfigError as error:
        _unusable(error, options)
    jobs = options.jobs or _cores()
    try:
        with Progress(sys.stderr) as progress:
            return check_paths(
                paths,
                config,
                text=text,
                jobs=jobs,
                cache=options.cache and not text,
                progress=progress.update,
            )
    except MissingPaths as error:
        click.echo("\n".join(f"klguard: {line}" for line in str(error).splitlines()), err=True)
        sys.exit(UNUSABLE)


def _inputs(options: Options) -> tuple[list[str], dict[str, bytes]]:
    """The paths to check, and the content of those that come from standard input."""
    from klguard.read.files import reported

    paths = list(options.paths)
    if "-" not in paths and options.stdin_filename is None:
        return paths or ["."], {}
    if [path for path in paths if path != "-"]:
        raise click.UsageError("Standard input is checked on its own: leave out the other paths.")
    name = reported(options.stdin_filename) if options.stdin_filename else "<stdin>"
    return [name], {name: sys.stdin.buffer.read()}


def _overrides(options: Options) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for text in options.target_versions:
        library, equals, version = text.partition("=")
        if not equals:
            raise click.UsageError(
                f"--target-version needs LIB=VERSION, as in transformers=4.57.1, not `{text}`."
            )
        versions[library.strip()] = version.strip("= ")
    return {
        "context": options.contexts or None,
        "target_versions": versions,
        "force_exclude": options.force_exclude or None,
        "cache_dir": options.cache_dir,
    }


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- writing --------------------------------------------------------------------------------------


def _paint(color: str) -> Paint:
    from klguard.output.terminal import painter, wants_color

    return painter(wants_color(color, sys.stdout))


def _check_lines(report: Report, options: Options, statistics: bool) -> Iterable[str]:
    if options.output_format == "json":
        from klguard.output import json

        return [json.findings(report.findings)]
    from klguard.output import groups

    found = groups.grouped(report.findings)
    last = groups.summary(found, report.files, report.rollouts, len(report.sites), report.suppressed)
    if statistics:
        return [*groups.statistics(found), last]
    if not found:
        return [last]
    from klguard.output import concise, text

    paint = _paint(options.color)
    if options.output_format == "concise":
        return [*concise.render(found, paint), last]
    return [*text.render(found, report.sources.lines, paint), last]


def _sites_lines(report: Report, options: Options, wanted: Sequence[str]) -> Iterable[str]:
    shown = [site for site in report.sites if "all" in wanted or site.settings.context.value in wanted]
    if options.output_format == "json":
        from klguard.output import json

        return [json.sites(shown, report.codes)]
    from klguard.output import sites

    return [*sites.render(shown, report.codes, _paint(options.color)), sites.summary(shown, report.files)]


def _report_lines(
    run: Run, found: Sequence[Reported], output_format: str, color: str, *, whole: bool
) -> Iterable[str]:
    """The report of a journal: all of it, or what run it is and the last sentence, where a page has the rest."""
    if output_format == "json":
        from klguard.report.summary import dumps

        return [dumps(run, found)]
    import shutil

    from klguard.report import plot, terminal
    from klguard.report.summary import verdict

    paint = _paint(color)
    if not whole:
        return [*terminal.heading(run, paint), "", verdict(run, found)]
    using = plot.alphabet(sys.stdout.encoding)
    return terminal.render(run, found, width=shutil.get_terminal_size().columns, paint=paint, using=using)


def _write_page(page: Path, run: Run, found: Sequence[Reported]) -> None:
    from klguard.report.html import MissingPlotly, write

    try:
        write(page, run, found)
    except MissingPlotly as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{page}: cannot be written: {error.strerror or error}")
    click.echo(f"klguard: wrote {page}", err=True)


def _write(lines: Iterable[str]) -> None:
    """Print lines. A reader that has seen enough (`klguard check | head`) is no error."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not be tried again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finish(report: Report, status: int) -> None:
    """Exit. A run that looked at nothing is never a success, unless everything named is excluded on
    request."""
    if report.files or report.findings:
        sys.exit(status)
    if report.excluded:
        click.echo("klguard: everything that was named is excluded", err=True)
        sys.exit(CLEAN)
    click.echo("klguard: no Python file or notebook to check", err=True)
    sys.exit(NOTHING_CHECKED)


def _refuse(words: str) -> NoReturn:
    """Say why klguard cannot run as asked, and exit."""
    from klguard.output.terminal import clean

    click.echo(f"klguard: {clean(words)}", err=True)
    sys.exit(UNUSABLE)


def _unusable(error: ConfigError, options: Options) -> NoReturn:
    """Say what is wrong with the configuration, and exit."""
    if options.output_format == "json":
        from klguard.output import json

        _write([json.findings(error.findings)])
    else:
        for finding in error.findings:
            where = "klguard" if finding.place.path == "<command line>" else str(finding.place)
            click.echo(f"{where}: {finding.code} [{finding.name}] {finding.message}", err=True)
    sys.exit(UNUSABLE)
