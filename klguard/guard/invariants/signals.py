"""KLG861 to KLG864: signals of a run that learns. Judged over many steps, since single ones are noise."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Minibatch, Rewards, Rollout, Scoring, StepEnd
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.masks import split_mask
from klguard.guard.invariants.measuring import Consecutive, kept, scalar
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings
from klguard.guard.models import padding_id
from klguard.guard.randomness import kept_randomness

LOG = logging.getLogger("klguard")


class ValueHead(Invariant):
    """Explained variance, 1 - Var(returns - values) / Var(returns), over the valid tokens of a step.

    A fresh value head may be worse than a constant for a while, and gets better. One that is below -0.5 in
    twenty steps in a row without getting better, or whose median is still below -0.5 after fifty steps, does
    not learn. Steps of fewer than 64 values are passed over. Computed from values and returns where the loop
    tells them, else the loop's own figure is taken.
    """

    code = "KLG861"
    watches = (Advantages, StepEnd)
    sums = ("count", "error", "error_squares", "returns", "return_squares", "told", "tellers")
    ENOUGH, WINDOW, LATE, LIMIT = 64, 20, 50, -0.5

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self._steps = 0

    def measure(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            if event.explained_variance is not None:
                self.add("told", scalar(event.explained_variance))
                self.add("tellers", 1.0)
            return
        values, returns = event.values, event.returns
        if returns is None and event.raw is not None and values is not None:
            returns = event.raw + values
        if values is None or returns is None or not values.shape == returns.shape == event.mask.shape:
            return
        self.add("count", valid_tokens(event.mask).sum())
        target, error = kept(returns.detach(), event.mask), kept((returns - values).detach(), event.mask)
        for name, figure in (("error", error), ("returns", target)):
            self.add(name, figure)
        self.add("error_squares", error.square())
        self.add("return_squares", target.square())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        explained = self._explained(readings)
        if explained is None:
            return
        self.exercised = True
        self._steps += 1
        self._recent.append(explained)
        if len(self._recent) < self.WINDOW:
            return
        recent = list(self._recent)
        half = self.WINDOW // 2
        stuck = max(recent) < self.LIMIT and fmean(recent[half:]) <= fmean(recent[:half])
        late = self._steps >= self.LATE and median(recent) < self.LIMIT
        if stuck or late:
            yield Breach(
                f"the values explain {median(recent):.2f} of the variance of the returns, the median of"
                f" {self.WINDOW} steps; a constant explains 0",
                value=median(recent), limit=self.LIMIT,
            )  # fmt: skip

    def _explained(self, readings: Readings) -> float | None:
        count = readings["count"]
        if count >= self.ENOUGH:
            spread = readings["return_squares"] / count - (readings["returns"] / count) ** 2
            error = readings["error_squares"] / count - (readings["error"] / count) ** 2
            # returns that are all alike leave nothing to explain
            floor = 1e-6 * max(1e-6, readings["return_squares"] / count)
            return 1 - error / spread if spread > floor else None
        return None if count else readings.mean("told", "tellers")

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=self.WINDOW)
        self._steps = state["steps"]


class EntropyDrift(Invariant):
    """Entropy per token against the mean of the first five steps: below 0.3 times or above twice that for
    twenty steps in a row.

    The exact entropy of the minibatches where the loop tells it, else the figure it logs, else the mean of
    -log p over the sampled tokens, whose expectation it is. Each has a beginning of its own. An explosion has
    to be one of at least half a nat too, so that a policy that begins nearly certain may hesitate.
    """

    code = "KLG862"
    watches = (Scoring, Minibatch, StepEnd)
    sums = ("exact", "exact_count", "told", "told_count", "sampled", "sampled_count")
    SOURCES = (("exact", 64), ("told", 1), ("sampled", 64))
    FIRST, STEPS, LOW, HIGH, RISE = 5, 20, 0.3, 2.0, 0.5

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._first: dict[str, list[float]] = {name: [] for name, _ in self.SOURCES}
        self._low, self._high = Consecutive(self.STEPS), Consecutive(self.STEPS)

    def measure(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            if event.entropy is not None:
                self.add("told", scalar(event.entropy))
                self.add("told_count", 1.0)
        elif isinstance(event, Scoring):
            self.add("sampled", -kept(event.logprobs, event.mask))
            self.add("sampled_count", (valid_tokens(event.mask) & event.logprobs.isfinite()).sum())
        elif event.entropy is not None and event.entropy.shape == event.mask.shape:
            self.add("exact", kept(event.entropy.detach(), event.mask))
            self.add("exact_count", valid_tokens(event.mask).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        source = next((n for n, least in self.SOURCES if readings[f"{n}_count"] >= least), None)
        if source is None:
            return
        self.exercised = True
        entropy = readings[source] / readings[f"{source}_count"]
        first = self._first[source]
        if len(first) < self.FIRST:
            first.append(entropy)
            return
        start = fmean(first)
        if start <= 0:
            return
        low = self._low.see(entropy < self.LOW * start, entropy)
        high = self._high.see(entropy > max(self.HIGH * start, start + self.RISE), entropy)
        if low or high:
            limit = (self.LOW if low else self.HIGH) * start
            yield Breach(
                f"entropy is {entropy:.3g} nats per token, and was {start:.3g} at first: for {self.STEPS} steps it"
                f" has been {'below' if low else 'above'} {limit:.3g}",
                value=entropy, limit=limit, key="low" if low else "high",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "low": self._low.state_dict(), "high": self._high.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = {name: list(figures) for name, figures in state["first"].items()}
        self._low.load_state_dict(state["low"])
        self._high.load_state_dict(state["high"])


class CompletionLength(Invariant):
    """Every response has a token. Over five steps in a row of at least eight responses: at most half of them lack a
    stop token, and they are three tokens long on average.

    A response is empty where it has no column, or begins with padding that is no stop token and is outside the
    mask altogether. One that only the mask leaves out may have been dropped by a filter of the loop: of those, only
    a step without any valid token is news. Rows whose prompt is empty too fill up a batch and do not count.

    Cut off is a response without any stop token, where those are known; else the loop's own figure is taken.
    Short responses are a breach only where there was room for eight tokens: a classifier answers with one.
    """

    code = "KLG863"
    watches = (Rollout, StepEnd)
    sums = (
        "rows", "cut", "length_rows", "length", "roomy", "told_cut", "told_rows", "responses", "empty", "tokens",
    )  # fmt: skip
    ROWS, STEPS, SHARE, SHORT, ROOM = 8, 5, 0.5, 3.0, 8

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._cut, self._short = Consecutive(self.STEPS), Consecutive(self.STEPS)

    def measure(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            if event.truncated is not None and event.truncated.dim():
                self.add("told_cut", event.truncated)
                self.add("told_rows", float(event.truncated.numel()))
            return
        responses, mask = event.responses, event.mask
        if responses.dim() != 2:
            return
        self._measure_empty(event)
        if not responses.shape[1]:
            return
        valid = valid_tokens(mask) if mask is not None and mask.shape == responses.shape else None
        there = responses[:, 0] == responses[:, 0] if valid is None else valid.any(1)
        if event.stop_ids:
            written = torch.zeros_like(responses, dtype=torch.bool)
            for stop in event.stop_ids:
                written = written | (responses == stop)
            if event.tool_mask is not None and event.tool_mask.shape == responses.shape:
                written = written & ~valid_tokens(event.tool_mask)
            self.add("rows", there.sum())
            self.add("cut", (there & ~written.any(1)).sum())
        if valid is not None:
            room = event.max_new_tokens or responses.shape[1]
            self.add("length_rows", there.sum())
            self.add("length", valid.sum())
            self.add("roomy", float(room >= self.ROOM))

    def _measure_empty(self, event: Rollout) -> None:
        """Rows of the rollout, those of them that are empty, and valid tokens."""
        responses, attention = event.responses, event.attention_mask
        counted = torch.ones(len(responses), dtype=torch.bool, device=responses.device)
        if attention is not None and attention.shape[0] == len(responses) and attention.shape[1]:
            counted = (attention > 0).any(1).to(responses.device, non_blocking=True)
        valid = torch.ones_like(responses, dtype=torch.bool)
        if event.mask is not None:
            valid = valid_tokens(split_mask(event)[0])
        if not responses.shape[1]:
            empty = counted
        elif self._pads_apart(event):
            first = responses[:, 0] == padding_id(self.run.policy, self.run.tokenizer)
            empty = counted & first & ~valid.any(1)
        else:
            empty = torch.zeros_like(counted)
        self.add("responses", counted.sum())
        self.add("empty", empty.sum())
        self.add("tokens", valid.sum())

    def _pads_apart(self, event: Rollout) -> bool:
        """Whether padding is known, and known to be no stop token: else a row of it may be a stop at once."""
        padding = padding_id(self.run.policy, self.run.tokenizer)
        stops = {*(event.stop_ids or ()), *(self.run.stop_ids or ())}
        return padding is not None and bool(stops) and padding not in stops

    def _no_tokens(self, readings: Readings) -> Iterator[Breach]:
        """Responses without a token, in this step."""
        responses, empty = readings["responses"], readings["empty"]
        if not responses:
            return
        self.exercised = True
        if empty:
            none = empty == responses
            yield Breach(
                f"{'all' if none else f'{empty:.0f} of'} {responses:.0f} responses of this step are empty: they have"
                " no token at all",
                value=empty, limit=0.0, key="empty", severity=Severity.ERROR if none else Severity.WARNING,
                help="look at how responses are cut out of what the sampler returned, and at requests that failed;"
                " drop rows without a response before advantages are made",
            )  # fmt: skip
        if not readings["tokens"] and empty < responses:
            yield Breach(
                f"no token of the {responses:.0f} responses of this step is in the response mask: nothing is trained",
                value=0.0, key="all masked",
                help="look at how the mask is built, and at filters that mask responses out",
            )  # fmt: skip

    def judge(self, readings: Readings) -> Iterator[Breach]:
        yield from self._no_tokens(readings)
        known = "cut", "rows"
        if not readings["rows"]:
            known = "told_cut", "told_rows"
        rows, share = readings[known[1]], readings.mean(*known)
        if share is not None and rows >= self.ROWS:
            self.exercised = True
            if self._cut.see(share > self.SHARE):
                yield Breach(
                    f"{share:.0%} of {rows:.0f} responses were cut off before a stop token, and more than half in"
                    f" each of {self.STEPS} steps",
                    value=share, limit=self.SHARE, key="cut off",
                )  # fmt: skip
        length = readings.mean("length", "length_rows")
        if length is not None and readings["length_rows"] >= self.ROWS and readings["roomy"]:
            self.exercised = True
            if self._short.see(length < self.SHORT):
                yield Breach(
                    f"responses are {length:.2g} tokens long on average, and were shorter than {self.SHORT:g} in"
                    f" each of {self.STEPS} steps",
                    value=length, limit=self.SHORT, key="short",
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"cut": self._cut.state_dict(), "short": self._short.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cut.load_state_dict(state["cut"])
        self._short.load_state_dict(state["short"])


class RewardOfAnother(Invariant):
    """Rewards are finite; and in the first step and every fiftieth, the loop's own `recompute` on the stored
    texts of four rows gives the stored rewards.

    It is called twice: where one of the rewards is not the same twice (a sampled judge), nothing can be said and it
    is not called again. Judges that only sometimes change their mind answer alike now and then, so it takes four
    rows that all differ, or differences in three steps in a row, of which the second and third follow at once. A
    difference counts above 1e-3 and a tenth of the spread of the step's rewards, since a reward model in half
    precision depends a little on its batch. Random state is put back as it was. A `recompute` that raises is not
    called again.
    """

    code = "KLG864"
    watches = (Rewards,)
    sums = ("scores", "broken", "checked", "wrong", "unsteady")
    maxima = ("difference", "row")
    ROWS, EACH, IN_A_ROW, LEAST, SPREAD = 4, 50, 3, 1e-3, 0.1

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._last: int | None = None
        self._again: tuple[list[int], Tensor, Tensor] | None = None
        self._raised = self._unsteady = False
        self._differed = 0

    def inspect(self, event: Event) -> Iterator[Breach]:
        """Have the loop's own function compute some rewards, which may take as long as it likes."""
        self._again = None
        count = len(event.texts) if event.texts is not None else 0
        wait = 1 if self._differed else self.EACH
        due = self._last is None or self.run.step >= self._last + wait
        if self._raised or self._unsteady:
            return iter(())
        if due and event.recompute is not None and count > 1 and event.scores.shape == (count,):
            self._last = self.run.step
            rows = sorted({round(i * (count - 1) / (self.ROWS - 1)) for i in range(self.ROWS)})
            texts, device = [event.texts[row] for row in rows], event.scores.device
            answers = self._answers(event.recompute, texts, device)
            if answers is not None and all(answer.numel() == len(rows) for answer in answers):
                self._again = rows, *answers
        return iter(())

    def _answers(
        self, recompute: Callable[..., Any], texts: list[str], device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """What the loop's function says of the texts, twice; None where it raises: in the middle of training that
        costs this check, and not the run."""
        with torch.no_grad(), kept_randomness([device]):
            try:
                once, again = (self._answer(recompute(list(texts)), device) for _ in range(2))
            except Exception as error:  # noqa: BLE001  whatever the user's own function raises
                self._raised = True
                LOG.warning(
                    "klguard no longer checks that stored texts give the stored rewards: the `recompute` given to"
                    " guard.rewards() raised %s: %s", type(error).__name__, error, exc_info=error,
                )  # fmt: skip
                return None
        return once, again

    def measure(self, event: Event) -> None:
        scores = event.scores.detach()
        self.exercised = True
        self.add("scores", float(scores.numel()))
        self.add("broken", (~scores.isfinite()).sum())
        if self._again is not None:
            self._compare(scores.double(), *self._again)
            self._again = None

    def _compare(self, scores: Tensor, rows: list[int], once: Tensor, again: Tensor) -> None:
        stored = torch.stack([scores[row] for row in rows])
        finite = torch.where(scores.isfinite(), scores, 0.0)
        limit = torch.maximum(self.LEAST * stored.abs().clamp(min=1.0), self.SPREAD * finite.std())
        difference = (once - stored).abs()
        steady = (once - again).abs() <= limit / 2
        judged = stored.isfinite() & steady
        wrong = judged & (difference > limit)
        self.add("unsteady", (~steady & (once.isfinite() | again.isfinite())).sum())
        self.add("checked", judged.sum())
        self.add("wrong", wrong.sum())
        self.highest("difference", torch.where(wrong, difference, -torch.inf))
        self.highest(
            "row", torch.stack([torch.where(flag, row, -1) for flag, row in zip(wrong, rows, strict=True)])
        )

    @staticmethod
    def _answer(scores: Any, device: torch.device) -> Tensor:
        given = scores if isinstance(scores, Tensor) else torch.tensor([float(score) for score in scores])
        return given.detach().flatten().to(device=device, dtype=torch.float64, non_blocking=True)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["broken"]:
            yield Breach(
                f"{readings['broken']:.0f} of {readings['scores']:.0f} rewards are not finite",
                value=readings["broken"], limit=0.0, key="not finite",
                help="give a reward that could not be computed a number, or drop its row before advantages are made",
            )  # fmt: skip
        self._unsteady = self._unsteady or readings["unsteady"] > 0
        if not readings["checked"] and not readings["unsteady"]:
            return
        self._differed = self._differed + 1 if readings["wrong"] and not self._unsteady else 0
        all_differ = self._differed and readings["wrong"] == readings["checked"] >= self.ROWS
        if all_differ or self._differed == self.IN_A_ROW:
            self._differed = 0
            yield Breach(
                f"computed again from the stored text, the reward of {readings['wrong']:.0f} of"
                f" {readings['checked']:.0f} rows is another, by up to {readings['difference']:.3g}"
                f" (row {readings['row']:.0f})",
                value=readings["difference"], key="another",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last, "differed": self._differed, "unsteady": self._unsteady}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._differed, self._unsteady = state["last"], state["differed"], state["unsteady"]
