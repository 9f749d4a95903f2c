"""KLG811 to KLG813 and KLG816: the response mask, and the figures that are taken over it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Event, Minibatch, Rollout
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.ledger import Readings
from klguard.guard.models import padding_id


def one_of(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Where `tokens` is one of `ids`, bool. By comparison with numbers: no list has to go to the device."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids:
        found = found | (tokens == token)
    return found


def agreed_stops(run: Run, event: Rollout) -> tuple[int, ...]:
    """Ids that end a response by the rollout's account and by the guard's: those in dispute are KLG817's."""
    if event.stop_ids is None or run.stop_ids is None:
        return event.stop_ids or run.stop_ids or ()
    return tuple(sorted(set(event.stop_ids) & set(run.stop_ids)))


def split_mask(event: Rollout) -> tuple[Tensor, Tensor | None]:
    """The mask of the responses (B, T), and of the prompts (B, P) where it covers whole sequences."""
    width = event.mask.shape[1] - event.responses.shape[1]
    if width <= 0:
        return event.mask, None
    return event.mask[:, width:], event.mask[:, :width]


class MaskOverreaches(Invariant):
    """Every token in the mask was sampled from the policy, as part of the response.

    A token right behind a stop token was not: nothing is sampled after the end. In a conversation of several
    turns the tokens between two turns are outside the mask, so that a later turn is not taken for it.
    """

    code = "KLG811"
    watches = (Rollout,)
    sums = ("prompt", "after_stop", "tool", "holes")
    maxima = ("row",)

    def measure(self, event: Event) -> None:
        if event.mask is None or not event.responses.numel():
            return
        mask, prompt = split_mask(event)
        if prompt is not None:
            self.exercised = True
            self.add("prompt", prompt.sum())
        stops = agreed_stops(self.run, event)
        if stops and mask.shape[1] > 1:
            self.exercised = True
            ended = one_of(event.responses, stops)[:, :-1] & mask[:, :-1]
            behind = (ended & mask[:, 1:]).any(1)
            self.add("after_stop", behind.sum())
            rows = torch.arange(len(behind), device=behind.device)
            self.highest("row", torch.where(behind, rows, -1))
        if event.tool_mask is not None:
            self.exercised = True
            self._measure_tools(event, mask)

    def _measure_tools(self, event: Rollout, mask: Tensor) -> None:
        """Tool tokens in the mask, and sampled tokens between valid ones that neither mask accounts for."""
        tool = event.tool_mask.to(mask.device, non_blocking=True).bool()
        self.add("tool", (mask & tool).sum())
        before = mask.cumsum(1) > 0
        behind = mask.flip(1).cumsum(1).flip(1) > 0
        hole = before & behind & ~mask & ~tool
        padding = padding_id(self.run.policy, self.run.tokenizer)
        if padding is not None:
            hole = hole & (event.responses != padding)
        # beside a tool's output stand the tokens of a template, which nobody sampled either
        self.add("holes", (hole & ~tool.any(1, keepdim=True)).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        said = {
            "prompt": "{n:,} prompt tokens are in the response mask",
            "after_stop": "in {n:,} responses the mask goes on after the first stop token",
            "tool": "{n:,} tokens that a tool wrote are in the response mask",
            "holes": "the response mask leaves out {n:,} tokens between valid ones that no tool wrote",
        }
        for slot, words in said.items():
            if readings[slot]:
                message = words.format(n=int(readings[slot]))
                if slot == "after_stop":
                    message += f", in row {int(readings['row'])} for one"
                yield Breach(message, value=readings[slot], limit=0.0, key=slot)


class _StopMissing(Invariant):
    """Counts, over a step, of stop tokens that were sampled and left out of the mask.

    A stop token was sampled when the token before it is valid and no stop. Where the stop token also pads,
    the padding behind a response that was cut off looks the same; so there only those count that stand before
    the end of the longest response, and only where the mask never includes a stop.
    """

    watches = (Rollout,)
    sums = ("missed", "kept", "differs", "padded_by_stop")

    def measure(self, event: Event) -> None:
        stops = agreed_stops(self.run, event)
        if event.mask is None or not stops or event.responses.shape[1] < 2:
            return
        self.exercised = True
        mask, _ = split_mask(event)
        stop = one_of(event.responses, stops)
        sampled = torch.zeros_like(stop)
        sampled[:, 1:] = stop[:, 1:] & mask[:, :-1] & ~stop[:, :-1]
        if event.tool_mask is not None:
            sampled = sampled & ~event.tool_mask.to(mask.device, non_blocking=True).bool()
        missed = sampled & ~mask
        padding = padding_id(self.run.policy, self.run.tokenizer)
        if padding in stops:
            time = torch.arange(mask.shape[1], device=mask.device)
            longest = torch.where(mask, time + 1, 0).amax()
            missed = missed & ((time < longest) | (event.responses != padding))
            self.add("padded_by_stop", 1.0)
            self.add("differs", (mask != (event.responses != padding)).sum())
        self.add("missed", missed.any(1).sum())
        self.add("kept", (stop & mask).any(1).sum())

    @staticmethod
    def built_by_padding(readings: Readings) -> bool:
        """Whether every mask of the step is `responses != pad`, with a pad that is a stop token."""
        return bool(readings["padded_by_stop"]) and not readings["differs"]


class StopNotInMask(_StopMissing):
    """The token that ends a response was sampled like the others, and is trained like them."""

    code = "KLG812"

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if not readings["missed"] or self.built_by_padding(readings):
            return
        if readings["padded_by_stop"] and readings["kept"]:
            return
        yield Breach(
            f"in {int(readings['missed']):,} responses the first stop token was sampled and is not in the mask:"
            " it gets no gradient",
            value=readings["missed"],
            limit=0.0,
        )


class PadIsStop(_StopMissing):
    """A pad token that is also a stop token is harmless, and common, where masks are built by position. This
    speaks only where the masks of a step are visibly `responses != pad` and lose the stop by it."""

    code = "KLG816"

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["missed"] and self.built_by_padding(readings):
            padding = padding_id(self.run.policy, self.run.tokenizer)
            yield Breach(
                f"pad_token_id {padding} is a stop token and the response mask is `responses != {padding}`: in"
                f" {int(readings['missed']):,} responses it drops the stop token that was sampled",
                value=readings["missed"],
                limit=0.0,
                severity=Severity.ERROR,
            )


_FIGURES = ("ratio", "approx_kl", "entropy", "clip_fraction", "kl")


class UnmaskedStatistic(Invariant):
    """Figures of a minibatch are means over valid tokens.

    A reported figure is compared with every usual definition of it, over valid tokens and over sequences, and
    with the same over all positions or with padding counted as 0. It is reported only where it is none of the
    former and one of the latter: a figure by a definition unknown here says nothing.

    Tolerance: the mean of n numbers of either sign in fp32 is off by up to about 1e-7 * sqrt(n) of their size;
    1e-4 relative and 5e-7 absolute hold it for any minibatch, and padding changes a mean by far more. What is
    only told to be diluted has to be ten times further from the right figures than that.

    Where new and old log-probs are the same, every mean of the ratio is 1, by whatever definition. A reported one that
    is not was spoilt on its way: a sum of ones in bfloat16, say, ends at 256. A share of 1/n is passed over, as one
    of n parts that the loop may add up later.

    The KL term of the loss is taken over tokens, over sequences, or over all places a response could have had: each
    is in use, and none is judged. What none of them contains is the KL at padding.
    """

    code = "KLG813"
    watches = (Minibatch,)
    sums = (*(f"{name}_diluted" for name in _FIGURES), "spoilt")
    maxima = (*_FIGURES, *(f"{name}_masked" for name in _FIGURES), "ratio_spoilt")
    STILL, OFF, PARTS = 1e-3, 2e-2, 64

    def measure(self, event: Event) -> None:
        values = self._values(event)
        for name in _FIGURES:
            reported = event.reported.get(name)
            if reported is None or not values.get(name) or not event.mask.numel():
                continue
            figure = self._scalar(reported, event)
            if figure is None:
                continue
            self.exercised = True
            half = event.new.dtype in HALF or event.dtype in HALF or _half(reported)
            relative = 1e-2 if half else 1e-4
            right, diluted = self._candidates(values[name], event.mask)
            if name == "kl":
                right, diluted = self._of_a_loss(values[name][0], event.mask, right)
            near_right = _nearest(figure, right, relative)
            bad = near_right.isfinite() & (near_right > 10) & (_nearest(figure, diluted, relative) <= 1)
            self.add(f"{name}_diluted", bad)
            self.highest(name, torch.where(bad, figure, -torch.inf))
            self.highest(f"{name}_masked", torch.where(bad, right[0], -torch.inf))
            if name == "ratio":
                self._measure_still(event, figure, ~bad)

    def _measure_still(self, event: Minibatch, figure: Tensor, other: Tensor) -> None:
        """Whether the reported ratio () is not 1 where no row moved, and is not said to be something else."""
        d = torch.where(event.mask, event.new.detach().double() - event.old.detach().double(), 0.0)
        still = (d.abs().sum(1).amax() <= self.STILL) & event.mask.any()
        parts = 1 / figure.clamp(min=1e-3)
        share = (parts <= self.PARTS) & ((parts - parts.round()).abs() <= self.OFF * parts) & (parts > 1.5)
        spoilt = other & still & ((figure - 1).abs() > self.OFF) & ~share
        self.add("spoilt", spoilt)
        self.highest("ratio_spoilt", torch.where(spoilt, figure, -torch.inf))

    def _scalar(self, reported: Tensor | float, event: Minibatch) -> Tensor | None:
        """() float64 on the minibatch's device; None for what is no single number, or elsewhere."""
        if not isinstance(reported, Tensor):
            return torch.full((), float(reported), dtype=torch.float64, device=event.new.device)
        if reported.numel() != 1 or reported.device != event.new.device:
            return None
        return reported.detach().double().reshape(())

    def _values(self, event: Minibatch) -> dict[str, list[Tensor]]:
        """Per-token values (B, T), float64, of each definition of a figure."""
        d = event.new.detach().double() - event.old.detach().double()
        ratio = d.exp()
        found = {
            "ratio": [ratio],
            "approx_kl": [torch.expm1(d) - d, torch.expm1(-d) + d, d.square() / 2, -d, d, d.abs()],
        }
        if event.entropy is not None:
            found["entropy"] = [event.entropy.detach().double()]
        if event.clip_range is not None:
            found["clip_fraction"] = self._clipped(event, ratio)
        if event.kl_term is not None:
            found["kl"] = [event.kl_term.double()]
        return found

    @staticmethod
    def _of_a_loss(value: Tensor, mask: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a term of the loss: sums over a sequence, and a division by a constant, are right too."""
        kept, rows = torch.where(mask, value, 0.0), (mask.sum(1) > 0).sum()
        more = torch.stack([kept.sum() / rows, kept.sum() / len(mask), kept.mean()])
        return torch.cat([right, more]), torch.stack([value.mean(), value.sum(1).mean()])

    def _clipped(self, event: Minibatch, ratio: Tensor) -> list[Tensor]:
        below, above = event.clip_range
        low, high = ratio < 1 - below, ratio > 1 + above
        found = [(low | high).double()]
        if event.advantages is not None:
            advantages = event.advantages.detach()
            advantages = advantages if advantages.dim() == 2 else advantages.reshape(-1, 1)
            if advantages.shape[0] == ratio.shape[0] and advantages.shape[1] in (1, ratio.shape[1]):
                found.append(((low & (advantages < 0)) | (high & (advantages > 0))).double())
        return found

    @staticmethod
    def _candidates(values: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Means over valid tokens and over sequences; means over all positions, and with padding as 0."""
        right, diluted = [], []
        tokens = mask.sum()  # where there are none, no mean is right or wrong: NaN
        lengths = mask.sum(1)
        rows = (lengths > 0).sum()
        for value in values:
            kept = torch.where(mask, value, 0.0)
            right.append(kept.sum() / tokens)
            right.append((kept.sum(1) / lengths.clamp(min=1)).sum() / rows)
            diluted.append(value.mean())
            diluted.append(kept.mean())
        return torch.stack(right), torch.stack(diluted)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        for name in _FIGURES:
            if readings[f"{name}_diluted"]:
                reported, masked = readings.maximum(name), readings.maximum(f"{name}_masked")
                yield Breach(
                    f"the reported {name} {reported:.6g} is the mean over all positions, padding included; over"
                    f" valid tokens it is {masked:.6g}",
                    value=reported,
                    limit=masked,
                    key=name,
                )
        if readings["spoilt"]:
            yield Breach(
                f"the reported ratio is {readings['ratio_spoilt']:.6g} in a minibatch whose new and old"
                " log-probabilities are the same, where every mean of the ratio is 1",
                value=readings["ratio_spoilt"],
                limit=1.0,
                key="spoilt",
                severity=Severity.WARNING,
                help="add up figures in fp32: a sum of ones in bfloat16 ends at 256; and divide once, by what was"
                " summed",
            )


def _half(reported: Tensor | float) -> bool:
    return isinstance(reported, Tensor) and reported.dtype in HALF


def _nearest(figure: Tensor, candidates: Tensor, relative: float) -> Tensor:
    """() smallest distance to one of the candidates, in units of the tolerance; inf where there is none."""
    distance = (figure - candidates).abs() / (relative * candidates.abs() + 5e-7)
    return torch.where(distance.isfinite(), distance, torch.inf).amin()
