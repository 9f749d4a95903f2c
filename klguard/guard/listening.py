"""How the guard hears of scored tokens, and which of them may count as evidence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klguard.findings import Finding
from klguard.guard import events, kl
from klguard.guard.frameworks.accelerate import mixed_precision
from klguard.guard.gradients import Arrivals
from klguard.guard.hooks import OptimizerHooks
from klguard.guard.invariants.invariant import HALF
from klguard.guard.live import caller, findings
from klguard.guard.mirrored import Temperatures, undivided
from klguard.guard.shield import LOG, callers, shielded
from klguard.guard.telling import Telling
from klguard.guard.told import in_form
from klguard.guard.works import Outcome
from klguard.settings import Place, Site

SEPARATE_ENGINE = 1e-2
"""Tolerance in nats per token where another engine drew the tokens."""

UPDATES_UNHEARD, STEPS_UNHEARD = 8, 4
"""Updates of a watched policy, or steps with passes in which nothing was recognised, after which it is said that no
rollout was seen to be scored."""

UNHEARD = (
    "klguard has seen %d %s and no pass that scores a rollout: by itself it recognises what model.generate() returned,"
    " in passes of the model over the same ids, one row for each. Where the loop samples or scores in another way, tell"
    " it: guard.rollout(...) and guard.logprobs(...)"
)

HALF_PRECISION = 1e-3
SINGLE_PRECISION = 1e-4
"""Tolerances where the policy itself drew the tokens, by the precision it computes in."""


def event_of(
    kind: type[events.Event], place: Place | None, details: Mapping[str, Any], **own: Any
) -> events.Event:
    """An event of `kind`, from what the loop told by keyword and the guard's own fields. A detail that it does not have,
    or that does not fit, is the caller's mistake."""
    try:
        told = in_form(kind, details, own)
    except (ValueError, TypeError) as error:
        raise callers(error) from None
    fields = {name: detached(v) if isinstance(v, Tensor) else v for name, v in {**told, **own}.items()}
    return kind(place=place, **fields)


def detached(values: Tensor | None) -> Tensor | None:
    """Without its graph."""
    return None if values is None else values.detach()


def as_mask(mask: Tensor | None, like: Tensor) -> Tensor:
    """A bool mask of the shape of `like`; all true when None."""
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return kl.valid_tokens(mask.detach())


class Listening(Telling):
    """Takes events of one step after another. The state of a step is forgotten when it ends."""

    def __init__(self, *args: Any, tolerance: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tolerance = tolerance
        self._begun = False
        self._said_blind = False
        self._watcher: Any = None
        self._hooks = OptimizerHooks(self)
        self._arrivals = Arrivals()
        self._sends = 0
        self._by_hand: set[str] = set()
        self._temperatures = Temperatures()
        self._first_step_over = False
        self._heard = False
        self._updates_unheard = self._steps_unheard = 0
        self._reset_step()

    def _reset_step(self) -> None:
        self._step_open = False
        self._scored_under: tuple[int, int] | None = None
        self._paired_by: str | None = None
        self._scored_by: str | None = None
        self._said_late = False

    def told_by(self) -> None:
        """An adapter knows the loop from inside and tells of everything: the models themselves are not watched."""
        self._works.run.adapter = True
        self._by_hand |= {"rollout", "score", "step"}

    # ------------------------------------------------------------------------------- transformers' side speaks

    @property
    def told_by_adapter(self) -> bool:
        """Whether an adapter tells of the loop."""
        return self._works.run.adapter

    @property
    def version(self) -> int:
        """Updates of the policy's weights that the guard has seen."""
        return self._works.run.version

    @property
    def policy(self) -> nn.Module | None:
        """The model that is trained."""
        return self._works.run.policy

    @shielded()
    def generated(self, event: events.Rollout, site: Site) -> None:
        """generate() returned. Its settings are judged once its tokens have been scored."""
        self._begin()
        self._temperatures.remember(event.handle, event.temperature)
        self._works.rollout(event, site, undivided(site, findings(site)), dispatch=self._alone("rollout"))

    @shielded()
    def scored(
        self,
        role: str,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor,
        context_ids: Tensor | None,
        handle: int,
        columns: Tensor | None = None,
    ) -> Tensor | None:
        """Policy or reference scored a rollout that generate() returned: logits (B, T, V), tokens and mask (B, T); with
        columns (B, T) the logits (B, L, V) of a whole pass, in which those of a token stand there.
        The answer is their log-probs (B, T), None where they were not needed. The logits are raw: whether the
        loop divides them by the temperature of the rollout is not seen, so that they are taken as if it does."""
        if role == "policy":
            self._works.matched(handle, mask)
        if "score" in self._by_hand:
            return None
        divisor = self._temperatures.divisor(handle)
        logprobs = kl.token_log_probs_at(logits.detach(), tokens, columns, temperature=divisor)
        if role == "policy":
            self._score(
                events.Scoring(
                    logits=logits.detach(),
                    columns=columns,
                    tokens=tokens,
                    mask=mask,
                    logprobs=logprobs,
                    context_ids=context_ids,
                    divisor=divisor,
                    dtype=self._precision(logits),
                ),
                source="watcher",
            )
        return logprobs

    @shielded()
    def paired(self, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> None:
        """Both models have scored these tokens: log-probs and mask (B, T)."""
        if "score" not in self._by_hand:
            self._pairs("watcher", None, logprobs, reference_logprobs, mask)

    @shielded()
    def dropped(self, rows: Tensor | float, rewritten: Tensor | float) -> None:
        """So many rows of a rollout, (), were never scored although others were, and the rollout is over; from the
        prompts of so many a pass went on with other tokens."""
        if "score" not in self._by_hand:
            self._works.ledger.add("unscored_rows", rows)
            self._works.dispatch(events.Dropped(rewritten=rewritten))

    @shielded()
    def boundary(self) -> None:
        """A new rollout begins under new weights: the step before is over, unless the loop says so itself.

        Not under several ranks, of which perhaps one alone generates, to evaluate: what all of them do alike is
        to update, and there their step ends.
        """
        if self._step_open and not self._by_hand and not self._works.ranks.active:
            self._settle(self._end_step(caller()))

    @shielded(parting=lambda self, optimizer, after: self._part_at(optimizer, after))
    def updated(self, optimizer: torch.optim.Optimizer, after: bool) -> None:
        """step() of an optimizer is about to run, or has run."""
        run, changes = self._works.run, self._hooks.updates(optimizer)
        if not changes and not self._hooks.named(optimizer):
            return
        if not any(one is optimizer for one in run.optimizers):
            run.optimizers.append(optimizer)
        self._begin()
        run.version += after and changes
        self._works.dispatch(events.Update(optimizer=optimizer, after=after))
        if after and changes:
            self._notice_silence()
        if self._ends_step(after, changes):
            self._settle(self._end_step(caller()))

    def _notice_silence(self) -> None:
        """Say once that the loop is trained and nothing of it is heard: silence is not to be taken for a pass."""
        if self.told_by_adapter or self._heard or self._by_hand:
            return
        self._updates_unheard += 1
        if self._updates_unheard == UPDATES_UNHEARD:
            LOG.warning(UNHEARD, UPDATES_UNHEARD, "updates of the policy")

    def _absorb(self, outcomes: Iterable[Outcome]) -> list[Finding]:
        return super()._absorb(map(self._listened, outcomes))

    def _listened(self, outcome: Outcome) -> Outcome:
        """Say once that passes were watched, step after step, and that none of them scored what was sampled."""
        if outcome.failed or not outcome.counted or self._watcher is None or self._by_hand:
            return outcome
        if self._works.recognised(outcome.readings):
            self._steps_unheard = -1
        elif self._steps_unheard >= 0:
            self._steps_unheard += 1
            if self._steps_unheard == STEPS_UNHEARD:
                LOG.warning(UNHEARD, STEPS_UNHEARD, "steps of the loop")
        return outcome

    def _part_at(self, optimizer: torch.optim.Optimizer, after: bool) -> None:
        if self._ends_step(after, self._hooks.updates(optimizer)):
            self._take_part()

    def _ends_step(self, after: bool, changes: bool) -> bool:
        """Whether this update ends the step: under several ranks, in a loop that tells the guard nothing."""
        return (
            after and changes and self._watcher is not None and not self._by_hand and self._works.ranks.active
        )

    def failed(self, error: BaseException) -> None:
        """The watching itself failed."""
        with self._lock:
            self._step_aside(error)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Do not take what the models do meanwhile for the loop's doing."""
        watcher = self._watcher
        if watcher is None:
            yield
            return
        before, watcher.paused = watcher.paused, True
        try:
            yield
        finally:
            watcher.paused = before

    # ------------------------------------------------------------------------------- what counts as evidence

    def _valid(self, mask: Tensor | None, like: Tensor) -> Tensor:
        """`as_mask`, and a word to the invariants where the mask holds something else than 0 and 1."""
        if mask is not None and mask.dtype != torch.bool:
            self._works.look_at_mask(mask.detach())
        return as_mask(mask, like)

    def _score(self, event: events.Scoring, source: str) -> None:
        self._begin()
        self._heard = True
        self._step_open = True
        if not self._in_time():
            return
        if self._scored_by == "watcher" != source:  # the loop knows more: the reference's logits, the context
            self._works.discard_evidence()
            self._scored_by = None
        if self._scored_by is None:
            self._scored_by = source
        if source != "watcher" or self._alone("score"):
            self._works.dispatch(event)
        if self._scored_by == source:
            self._works.score(event, self._eps(event.dtype, event.sampler_logprobs is not None))
        if event.reference_logprobs is not None:
            self._pairs(source, event.place, event.logprobs, event.reference_logprobs, event.mask)

    def _in_time(self) -> bool:
        """Whether the weights are still those under which this step's first tokens were scored."""
        weights = self._weights()
        if self._scored_under is None:
            self._scored_under = weights
        if weights != self._scored_under and not self._said_late:
            self._said_late = True
            LOG.warning(
                "klguard leaves out log-probs that were computed after an update in the same step: only the"
                " weights that sampled can be tested. Score the rollout before the first update"
            )
        return weights == self._scored_under

    def _alone(self, what: str) -> bool:
        """Whether the loop leaves telling of this to the watcher. In its first step that is not known yet: what
        the watcher saw is evidence then, but no event, or invariants would count rows twice."""
        return self._first_step_over and what not in self._by_hand

    def _pairs(
        self, source: str, place: Place | None, logprobs: Tensor, reference: Tensor, mask: Tensor
    ) -> None:
        """Pairs of log-probs from one source. The first source of a step counts, so that no token counts twice; what
        the loop itself tells is looked at all the same."""
        if self._paired_by is None:
            self._paired_by = source
        again = self._paired_by != source
        if again and self._paired_by != "watcher":
            return
        self._works.dispatch(
            events.Pairs(
                place=place,
                logprobs=logprobs,
                reference_logprobs=reference,
                mask=mask,
                eps=self._eps(self._precision(logprobs), False),
                again=again,
            )
        )

    def _weights(self) -> tuple[int, int]:
        """Changes whenever the policy's weights do, as far as it can be seen without looking at them: by the
        updates that the guard is told of, else by torch's count of writes (which sharding disturbs)."""
        policy = self.policy
        if policy is None or self._hooks.active:
            return self.version, 0
        return self.version, sum(parameter._version for parameter in policy.parameters())

    def _eps(self, dtype: torch.dtype, separate_engine: bool) -> float:
        if self._tolerance is not None:
            return self._tolerance
        if separate_engine:
            return SEPARATE_ENGINE
        return HALF_PRECISION if dtype in HALF else SINGLE_PRECISION

    def _precision(self, values: Tensor) -> torch.dtype:
        """The precision the policy computes in: of its logits, of autocast, of accelerate, or of its weights."""
        if values.dtype in HALF:
            return values.dtype
        if torch.is_autocast_enabled(values.device.type):
            return torch.get_autocast_dtype(values.device.type)
        mixed = mixed_precision()
        if mixed is not None:
            return mixed
        parameters = () if self.policy is None else self.policy.parameters()
        weights = next((p.dtype for p in parameters if p.is_floating_point()), None)
        return weights if weights in HALF else torch.float32

    # ------------------------------------------------------------------------------- beginning and end of steps

    def _tell(self, kind: type[events.Event], details: dict[str, Any], **own: Any) -> None:
        event = event_of(kind, caller(), details, **own)
        self._begin()
        self._works.dispatch(event)
        self._step_open = True

    def _begin(self) -> None:
        """Look once at what the guard was given; what is wrong with it is told when a step ends."""
        if not self._begun:
            self._begun = True
            self._works.dispatch(events.Setup(place=caller()))

    def _end_step(self, place: Place | None) -> list[Outcome]:
        if self._watcher is not None and not self._works.ranks.active:
            self._watcher.settle()
        self._works.scored_by_hand = "score" in self._by_hand
        outcomes = list(self._works.close(place))
        self._sends = self._works.sends
        self._first_step_over = True
        self._reset_step()
        return outcomes

    @shielded(parting=lambda self, place: self._take_part())
    def _between_steps(self, place: Place | None) -> None:
        """Tell what was found outside any step."""
        outcomes = list(self._works.close(place, counted=False))
        self._sends = self._works.sends
        self._settle(outcomes)

    @shielded()
    def _collect(self) -> None:
        """Take in what is under way, without reacting to it."""
        self._absorb(self._works.flush())

    def _take_part(self) -> None:
        """This rank's guard has stepped aside: the others have to hear of it in their reduction, or they would
        wait for this rank for ever."""
        if self._left or not self._works.ranks.active:
            return
        if self._works.sends > self._sends:  # it failed after this step's reduction: the next one tells
            self._sends = self._works.sends
            return
        try:
            self._left = self._works.announce_failure()
            self._sends = self._works.sends
        except Exception as error:  # noqa: BLE001  nothing is left to try
            self._left = True
            LOG.warning("klguard could not tell the other ranks that it failed", exc_info=error)
