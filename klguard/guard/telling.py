"""What becomes of a judged step: findings, the reaction to them, the journal and the loop's own logger."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from os import PathLike
from typing import Any

from klguard.findings import Finding
from klguard.guard.journal import Journal
from klguard.guard.metrics import flat, sink
from klguard.guard.records import step_record, violation_record
from klguard.guard.shield import LOG, Shielded, callers
from klguard.guard.violation import Reaction, Reporter, Violation
from klguard.guard.works import Outcome, Works


class Telling(Shielded):
    """Tells what the works found. Only rank 0 writes the journal and the metrics; every rank reacts."""

    def __init__(
        self,
        works: Works,
        *,
        strict: bool,
        on_violation: Reaction,
        ignore: Collection[str],
        logger: Any,
        journal: str | PathLike[str] | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(strict=strict)
        self._works = works
        self._reporter = Reporter(on_violation, ignore)
        first = works.ranks.rank == 0
        self._sink = sink(logger) if logger is not None and first else None
        self._journal_path = journal if first else None
        self._journal_settings = settings
        self._journal: Journal | None = None
        self._metrics: dict[str, float] = {}
        self._left = False
        self._open_journal()

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        """Tell what was found in the steps that arrived, and react to it."""
        new = self._absorb(outcomes)
        try:
            self._reporter.react(new)
        except Violation:
            raise
        except Exception as error:  # what the user's own function, or a warning turned into an error, raised
            raise callers(error) from None

    def _absorb(self, outcomes: Iterable[Outcome]) -> list[Finding]:
        new: list[Finding] = []
        for outcome in outcomes:
            if outcome.failed:
                self._left = True
                raise RuntimeError("the guard of another rank failed")
            fresh = self._reporter.take(outcome.findings)
            new += fresh
            self._record(outcome, fresh)
        return new

    def _record(self, outcome: Outcome, fresh: Sequence[Finding]) -> None:
        if outcome.counted:
            record = step_record(self._works, outcome, self.seconds)
            self._metrics = flat(record)
            self._log(outcome.step)
            if journal := self._open_journal():
                journal.step(record)
        for item in fresh:
            if journal := self._open_journal():
                journal.violation(item, violation_record(item))

    def _log(self, step: int) -> None:
        """Hand the step's figures to the loop's logger. One that raises costs the figures there, and not the run:
        it is not called again."""
        if self._sink is None:
            return
        try:
            self._sink(self._metrics, step)
        except Exception as error:  # noqa: BLE001  whatever the user's own logger raises
            self._sink = None
            LOG.warning(
                "klguard no longer hands its figures to the logger, which raised %s: %s",
                type(error).__name__, error, exc_info=error,
            )  # fmt: skip

    def _open_journal(self) -> Journal | None:
        """The journal, opened again when the guard is used on after `close`."""
        if self._journal is None and self._journal_path is not None:
            self._journal = Journal(self._journal_path, settings=self._journal_settings)
        return self._journal

    def _note_failure(self, finding: Finding) -> None:
        self._reporter.findings.append(finding)
        with contextlib.suppress(Exception):  # perhaps it is the journal that failed
            if self._journal is not None:
                self._journal.violation(finding)

    def close(self, outcome: str = "finished") -> None:
        """End the journal. `with guard:` and the decorator do it by themselves, also where the guard stepped aside."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            journal.close(outcome)
        except Exception as error:  # noqa: BLE001  a full disk does not end the run
            self._step_aside(error)
