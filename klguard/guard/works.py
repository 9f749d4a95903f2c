"""The guard's works: events go in, figures are measured on the device, one vector a step is judged on the host.

Nothing here catches errors or reacts to findings: that is guard.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Finding, Severity
from klguard.guard import kl, mirrored, shares
from klguard.guard.banned import hypotheses
from klguard.guard.catalogue import BY_CODE, CATALOGUE, Entry
from klguard.guard.courier import Courier
from klguard.guard.events import Event, Rollout, Scoring, StepEnd
from klguard.guard.evidence import Evidence
from klguard.guard.invariants import INVARIANTS, Breach, Invariant, Run
from klguard.guard.ledger import Ledger, Readings
from klguard.guard.ranks import Ranks
from klguard.guard.scoring import tested
from klguard.guard.shield import LOG
from klguard.guard.thinning import Thinning
from klguard.guard.verdict import verdict
from klguard.guard.violation import finding
from klguard.guard.vocabulary import DEFAULT_BUDGET
from klguard.rules import RULES
from klguard.settings import Known, Place, Site

ROLLOUTS = 8
"""Rollouts of one step whose scored rows are counted apart; later ones share the counters."""

FIGURES = ("rewards", "loss", "grad_norm", "lengths", "truncated", "explained_variance")
"""The loop's own figures whose means go into the journal."""

DROPPED = (
    "klguard no longer tests whether the tokens come from the policy: rows of a rollout (%.0f) were dropped before the"
    " policy had scored them, or scored where they are not recognised (packed with others into one row), and which ones"
    " may depend on what they say. Score all rows, then choose; or tell of all of them by guard.logprobs(...)"
)

_KL = frozenset({"KLG603", "KLG604", "KLG605", "KLG606"})
"""Codes that carry the harm and the cause."""

_LOCAL = tuple(entry.code for entry in CATALOGUE) + tuple(RULES)


@dataclass
class Pending:
    """What a step knows on the host, kept until its figures arrive."""

    step: int
    place: Place | None = None
    breaches: list[tuple[Entry, Breach, Place | None]] = field(default_factory=list)
    sites: list[tuple[int | None, Site, list[Finding]]] = field(default_factory=list)
    widths: tuple[int, ...] = ()
    counted: bool = True
    scored_by_hand: bool = False


@dataclass(frozen=True)
class Outcome:
    """A judged step: what was found, its figures by name, and whether some rank's guard had failed."""

    step: int
    findings: list[Finding]
    readings: Readings
    failed: bool
    counted: bool


class Works:
    """Measures and judges. `stop` are the ids that end a response, `vocabulary` the number of tokens, where
    known before the first logits; it has to be known for the banned-token test under several ranks."""

    def __init__(
        self, run: Run, *, sample_tokens: int, patient: bool, ranks: Ranks, vocabulary: int | None = None
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.invariants: list[Invariant] = [kind(run) for kind in INVARIANTS]
        self._by_code = {invariant.code: invariant for invariant in self.invariants}
        sums, maxima = ["failed", "unscored_rows"], []
        sums += [f"local.{code}" for code in _LOCAL]
        sums += [f"rollout.{number}" for number in range(ROLLOUTS)]
        sums += [f"{figure}.{part}" for figure in FIGURES for part in ("sum", "count")]
        for invariant in self.invariants:
            own_sums, own_maxima = invariant.slots()
            sums += own_sums
            maxima += own_maxima
        self.ledger = Ledger(sums, maxima)
        for invariant in self.invariants:
            invariant.attach(self.ledger)
        self.evidence = Evidence(vocabulary=vocabulary, alpha=run.alpha * shares.EVIDENCE)
        self.vocabulary = vocabulary
        self.thinning = Thinning(sample_tokens, run.seed + ranks.rank)
        self.courier = Courier(patient=patient)
        self.pending = Pending(run.step)
        self.scored_by_hand = False
        self.sites: list[Site] = []
        self.sends = 0

    # ------------------------------------------------------------------------------------------- while a step runs

    def dispatch(self, event: Event) -> None:
        """Let every invariant that watches such events look at it."""
        if isinstance(event, StepEnd):
            self._note_figures(event)
        for invariant in self.invariants:
            if isinstance(event, invariant.watches):
                for breach in invariant.inspect(event):
                    self.breach(invariant.entry, breach, event.place)
                invariant.measure(event)

    def _note_figures(self, event: StepEnd) -> None:
        for name in FIGURES:
            value = getattr(event, name)
            if value is not None:
                self.ledger.add(f"{name}.sum", value)
                self.ledger.add(f"{name}.count", value.numel() if isinstance(value, Tensor) else 1.0)

    def breach(self, entry: Entry, breach: Breach, place: Place | None) -> None:
        """Remember something found on this rank alone: every rank hears of it when the step is judged."""
        self.pending.breaches.append((entry, breach, place))
        self.ledger.add(f"local.{entry.code}", 1.0)

    def rollout(
        self, event: Rollout, site: Site | None, found: list[Finding], *, dispatch: bool = True
    ) -> None:
        """A rollout; what the settings rules say of it counts once its tokens were scored (at once where the
        rollout has no handle)."""
        if site is not None:
            self.pending.sites.append((event.handle, site, found))
            for item in found if event.handle is None else ():
                self.ledger.add(f"local.{item.code}", 1.0)
        if dispatch:
            self.dispatch(event)

    def score(self, event: Scoring, eps: float) -> None:
        """Evidence from scored tokens, with a tolerance of `eps` nats per token."""
        if event.logits is not None:
            self._score_rows(event, eps)
            return
        self.evidence.gather_scalars(
            logprob=event.logprobs,
            valid=event.mask,
            reference=event.reference_logprobs,
            sampler=event.sampler_logprobs,
            stale=event.stale_logprobs,
            eps=eps,
        )

    def discard_evidence(self) -> None:
        """Forget what was scored in this step."""
        self.evidence.discard()
        self.thinning.discard()

    def _score_rows(self, event: Scoring, eps: float) -> None:
        batch, time = event.tokens.shape
        stop = self.run.stop_ids
        ends = None if stop is None else torch.tensor(stop).to(event.logits.device, non_blocking=True)
        for part in tested(event, self.thinning.choose(batch, time), ends, DEFAULT_BUDGET):
            self.evidence.gather(part.rows, eps=eps)
            if part.reference_logits is not None:
                exact, variance = kl.moments_against(
                    part.rows.log_probs,
                    part.rows.spectrum.probabilities,
                    part.reference_logits,
                    part.rows.workspace,
                )
                chosen = part.rows.log_probs.gather(-1, part.rows.tokens[:, None]).squeeze(-1)
                self._by_code["KLG601"].token_kls(exact, part.rows.valid)
                self._by_code["KLG605"].tested(chosen - part.rows.reference, exact, variance, part.rows.valid)

    def look_at_mask(self, mask: Tensor) -> None:
        """A mask, (B, T), as the loop handed it over, before it was taken for bool."""
        self._by_code["KLG838"].masked(mask)

    @staticmethod
    def recognised(readings: Readings) -> bool:
        """Whether tokens of a rollout were scored in a step, as far as passes of the models were watched."""
        return any(readings[f"rollout.{number}"] > 0 for number in range(ROLLOUTS))

    def matched(self, handle: int, mask: Tensor) -> None:
        """Tokens of the rollout with this handle were scored: `mask` (B, T) says which."""
        self.ledger.add(f"rollout.{handle % ROLLOUTS}", mask.sum())

    # ------------------------------------------------------------------------------------------- when a step ends

    def close(self, place: Place | None, *, counted: bool = True) -> Iterator[Outcome]:
        """Send the step's figures off and judge what has arrived. Every rank has to call it.

        `counted` is False for what is settled between steps.
        """
        self.pending.place, self.pending.counted = place, counted
        self.pending.scored_by_hand = self.scored_by_hand
        vector, self.pending.widths = self._pack(counted)
        self.sends += 1
        label, self.pending = self.pending, Pending(self.run.step + counted)
        arrived = self.courier.send(vector, label)
        if counted:
            self.run.step += 1
            self.thinning.end_step()
        for earlier, numbers in arrived:
            yield self._judge(earlier, numbers)

    def announce_failure(self) -> bool:
        """Take part in the reduction with nothing but the news that this rank's guard failed. True once the
        others have read it: they step aside at the same call."""
        device = self.ranks.device()
        sums, maxima = self.ledger.widths
        length = sums + self.evidence.width + hypotheses(self.vocabulary or 0)
        news = torch.zeros(length, dtype=torch.float64, device=device)
        news[self.ledger.slot("failed")] = 1.0
        nothing = torch.full((maxima,), -torch.inf, dtype=torch.float64, device=device)
        total, _ = self.ranks.combine(news, nothing)
        self.sends += 1
        arrived = self.courier.send(total, None)
        return any(label is None for label, _ in arrived)

    def flush(self) -> Iterator[Outcome]:
        """Judge what is still under way."""
        for earlier, numbers in self.courier.flush():
            yield self._judge(earlier, numbers)

    def _pack(self, counted: bool) -> tuple[Tensor, tuple[int, ...]]:
        """One vector: sums, evidence, three figures of the banned-token test, maxima. One all-reduce."""
        if self.ranks.active:
            self.evidence.place(self.ranks.device(), self.vocabulary)
        if counted:
            evidence, banned = self.evidence.take_pending()
        else:  # evidence waits for its step; the vector has the same length all the same
            evidence, banned = map(_zeros, (self.evidence.pending, self.evidence.pending_banned))
        sums, maxima = self.ledger.close(evidence.device)
        parts = [sums, evidence.to(sums.device)]
        if self.ranks.active and self.vocabulary:
            parts.append(banned.to(sums.device))
        total, maxima = self.ranks.combine(torch.cat(parts), maxima)
        fixed = sums.numel() + evidence.numel()
        summary = total.new_empty(0)
        if self.ranks.active:
            banned = total[fixed:] if self.vocabulary else None
        if banned is not None and counted:
            summary = self.evidence.advance_banned(banned).to(total.device)
        widths = (sums.numel(), evidence.numel(), summary.numel(), maxima.numel())
        return torch.cat([total[:fixed], summary, maxima.to(total.device)]), widths

    def _judge(self, label: Pending, numbers: Tensor) -> Outcome:
        sums, evidence, banned, maxima = numbers.split(label.widths)
        readings = self.ledger.readings(sums, maxima)
        if readings["failed"]:
            return Outcome(label.step, [], readings, True, label.counted)
        found: list[Finding] = []
        sites = self._judged_sites(label, readings)
        self.sites = [site for site, _ in sites] or self.sites
        for _, settings_findings in sites:
            found += self._told_of_settings(label, settings_findings)
        if label.counted:
            if readings["unscored_rows"] and not self.evidence.closed:
                self.evidence.close()
                LOG.warning(DROPPED, readings["unscored_rows"])
            self.evidence.advance(evidence, tuple(banned.tolist()) if banned.numel() else None)
            found += self._judge_figures(label, readings)
        found += [finding(e, b, step=label.step, place=p or label.place) for e, b, p in label.breaches]
        found += self._elsewhere(label, readings, found)
        return Outcome(label.step, self._specific(found), readings, False, label.counted)

    def _judge_figures(self, label: Pending, readings: Readings) -> list[Finding]:
        # a row that was scored by hand says where the logits stand, which weights of causes can only suggest
        self.evidence.aligned = self.evidence.aligned or self._by_code["KLG703"].aligned(
            readings.of("KLG703")
        )
        said = verdict(self.evidence, self.run.alpha)
        self.run.rejected = self.run.rejected or said is not None
        found = []
        for invariant in self.invariants:
            for breach in invariant.judge(readings.of(invariant.code)):
                cause = {"cause": said.cause, "weight": said.weight} if said and invariant.code in _KL else {}
                harm = self.run.harm if invariant.code in _KL else None
                found.append(
                    finding(invariant.entry, breach, step=label.step, place=label.place, harm=harm, **cause)
                )
        if said is not None and said.code != "KLG603":
            hops = self._written(said.setting)
            place = next((hop.place for hop in hops if hop.place), label.place)
            found.insert(
                0,
                finding(
                    BY_CODE[said.code], replace(said.breach, key=said.code), step=label.step, place=place,
                    harm=self.run.harm, cause=said.cause, weight=said.weight, origin=hops,
                ),
            )  # fmt: skip
        return found

    def _written(self, setting: str) -> tuple:
        """Where the live settings say that the cause's setting was written."""
        for site in reversed(self.sites):
            value = site.settings.get(setting) if setting else None
            if isinstance(value, Known) and value.hops:
                return value.hops
        return ()

    def _judged_sites(self, label: Pending, readings: Readings) -> list[tuple[Site, list[Finding]]]:
        """The settings whose tokens were scored: a generate() for evaluation in the same loop is left alone."""
        return [
            (site, found)
            for handle, site, found in label.sites
            if handle is None or readings[f"rollout.{handle % ROLLOUTS}"] > 0
        ]

    @staticmethod
    def _told_of_settings(label: Pending, found: list[Finding]) -> list[Finding]:
        """What is said of the settings. A temperature is judged on the tokens where the loop hands over what it
        scored, with the logits divided or not (the evidence, KLG705)."""
        if label.scored_by_hand:
            return [item for item in found if item.code != mirrored.CODE]
        return mirrored.unseen(found)

    def _elsewhere(self, label: Pending, readings: Readings, found: list[Finding]) -> Iterator[Finding]:
        """Findings of other ranks: all ranks have to decide alike."""
        here = {item.code for item in found}
        for code in _LOCAL:
            if not readings[f"local.{code}"] or code in here or not self.ranks.active:
                continue
            if code == mirrored.CODE and label.scored_by_hand:
                continue
            entry = BY_CODE.get(code)
            if entry is None:
                rule = RULES[code]
                severity = Severity.WARNING if code == mirrored.CODE else rule.severity
                entry = Entry(code, rule.name, None, "", "", "", "", "", "", severity)
            yield finding(
                entry,
                Breach("found on another rank, whose own report has the details"),
                step=label.step,
                place=label.place,
            )

    def _specific(self, found: list[Finding]) -> list[Finding]:
        """Errors first; where the cumulative KL is impossible, its window is not news, and where the loop was
        seen to score at a wrong temperature, that the tokens show it is not either."""
        codes = {item.code for item in found}
        kept = [f for f in found if not (f.code == "KLG604" and f.setting == "below" and "KLG603" in codes)]
        scoring = self._by_code["KLG705"]
        scoring.spoken = scoring.spoken or "KLG705" in codes
        if scoring.spoken:
            kept = [
                f for f in kept if not (f.code == "KLG701" and f.measured.cause.startswith("temperature"))
            ]
        return sorted(kept, key=lambda item: item.severity is not Severity.ERROR)

    # ------------------------------------------------------------------------------------------- across restarts

    def state_dict(self) -> dict[str, Any]:
        """Everything decisions depend on."""
        return {
            "evidence": self.evidence.state_dict(),
            "thinning": self.thinning.state_dict(),
            "invariants": {i.code: i.state_dict() for i in self.invariants},
            "step": self.run.step,
            "version": self.run.version,
            "rejected": self.run.rejected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state between two steps."""
        self.evidence.load_state_dict(state["evidence"])
        self.thinning.load_state_dict(state["thinning"])
        for invariant in self.invariants:
            if invariant.code in state["invariants"]:
                invariant.load_state_dict(state["invariants"][invariant.code])
        self.run.step, self.run.version = state["step"], state["version"]
        self.run.rejected = state["rejected"]
        self.pending = Pending(self.run.step)


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like)
