"""KLG853 to KLG855 and KLG865: ties, precision, cache and packing of the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from klguard.guard import models, probe
from klguard.guard.events import Event, Minibatch, Preflight, Rollout, Setup
from klguard.guard.fingerprint import memory
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, tolerance
from klguard.guard.ledger import Readings
from klguard.settings import Known


class UntiedWeights(Invariant):
    """Embedding and output layer are one memory exactly when the configuration ties them.

    Looked at for decoders of transformers that can be tied at all (`_tied_weights_keys`), where both layers
    are whole on this rank.
    """

    code = "KLG853"
    watches = (Setup, Rollout)

    def inspect(self, event: Event) -> Iterator[Breach]:
        if isinstance(event, Rollout) and self.exercised:
            return
        for whose, model in (("policy", self.run.policy), ("reference", self.run.reference)):
            pair = self._layers(models.inner(model))
            if pair is None:
                continue
            self.exercised = True
            tied, shared = pair
            if tied and not shared:
                yield Breach(
                    f"the {whose}'s configuration ties embedding and output layer, and they are two tensors",
                    key=whose,
                )
            elif shared and not tied:
                yield Breach(
                    f"embedding and output layer of the {whose} are one tensor, and its configuration says they are"
                    " not: a saved checkpoint will lack one of them",
                    key=whose,
                )

    @staticmethod
    def _layers(model: nn.Module | None) -> tuple[bool, bool] | None:
        """Whether the configuration ties, and whether the memory is one; None where that is not to be seen."""
        if not getattr(model, "_tied_weights_keys", None) or not models.decoder_only(model):
            return None
        tied = getattr(models.text_config(model.config), "tie_word_embeddings", None)
        weights = [
            getattr(layer, "weight", None)
            for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        ]
        if tied is None or any(not isinstance(weight, torch.Tensor) for weight in weights):
            return None
        places = [memory(weight) for weight in weights]
        if not all(places) or weights[0].shape != weights[1].shape:
            return None
        return bool(tied), places[0] == places[1]


class LogitsPrecision(Invariant):
    """Log-probs are normalised and kept in fp32.

    Log-probs that were in half precision on their way can be told afterwards: each is a number that half
    precision can hold. Of fp32 numbers one in 65,000 is.
    """

    code = "KLG854"
    watches = (Minibatch,)
    sums = ("tokens", "finer_than_bf16", "finer_than_fp16")
    maxima = ("highest", "lowest")
    enough = 64

    def inspect(self, event: Event) -> Iterator[Breach]:
        self.exercised = True
        if event.new.dtype in HALF or event.old.dtype in HALF:
            dtype = event.new.dtype if event.new.dtype in HALF else event.old.dtype
            yield Breach(
                f"the loop's log-probabilities are {str(dtype).removeprefix('torch.')}: one of -6 is rounded by up"
                f" to {6 * torch.finfo(dtype).eps / 2:.2g} nats",
                key="dtype",
            )

    def measure(self, event: Event) -> None:
        new = event.new.detach()
        if new.dtype in HALF:
            return
        counted = event.mask & new.isfinite() & (new < 0)
        self.add("tokens", counted.sum())
        for slot, dtype in (("finer_than_bf16", torch.bfloat16), ("finer_than_fp16", torch.float16)):
            self.add(slot, (counted & (new.to(dtype).to(new.dtype) != new)).sum())
        self.highest("highest", torch.where(counted, new, -torch.inf))
        self.highest("lowest", torch.where(counted, -new, -torch.inf))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        spread = (readings.maximum("highest") or 0.0) + (readings.maximum("lowest") or 0.0)
        if readings["tokens"] < self.enough or spread <= 0:
            return
        for slot, name in (("finer_than_bf16", "bfloat16"), ("finer_than_fp16", "float16")):
            if not readings[slot]:
                yield Breach(
                    f"all {int(readings['tokens']):,} log-probabilities are {name} numbers in a wider tensor: they"
                    f" were rounded to {name} on their way",
                    key="rounded",
                )
                return


class CacheInTraining(Invariant):
    """generate() has its cache, which gradient checkpointing in train mode takes away.

    From what is certain only: the live settings of the rollout, read when generate() returned. Switches read later
    say nothing of the time of the pass: trainers of TRL switch checkpointing off around generate(), and on again.
    """

    code = "KLG855"
    watches = (Rollout,)

    def inspect(self, event: Event) -> Iterator[Breach]:
        if event.settings is None:
            return
        self.exercised = True
        if self._is(event.settings.get("use_cache"), False):
            yield Breach(
                "generate() ran without its cache (use_cache=False): every token computes all of them again",
                key="cache",
            )
        facts = event.settings.facts
        if self._is(facts.get("checkpointing"), True) and self._is(facts.get("train_mode"), True):
            yield Breach(
                "generate() ran in train mode with gradient checkpointing, which takes its cache away",
                key="checkpointing",
            )

    @staticmethod
    def _is(value: Any, wanted: bool) -> bool:
        return isinstance(value, Known) and value.value is wanted


class Packing(Invariant):
    """Sequences that share a row do not see each other."""

    code = "KLG865"
    watches = (Preflight,)

    def inspect(self, event: Event) -> Iterator[Breach]:
        rows = probe.sequences(self.run, event) if event.packed and event.score else []
        if not rows:
            return
        with probe.quietly(rows[0].device):
            packed = list(event.packed(rows))
            alone = [probe.scored(event.score, row[None], torch.ones_like(row)[None])[0] for row in rows]
        lengths = [len(values) for values in packed]
        if lengths != [len(row) - 1 for row in rows]:
            error = ValueError(
                f"packed(sequences) returned log-probs of lengths {lengths} for sequences of"
                f" {[len(row) for row in rows]} tokens: return those of tokens 1.. of each"
            )
            error._klguard_caller = True
            raise error
        self.exercised = True
        gaps = [
            probe.difference(one.detach().double(), other)[0]
            for one, other in zip(packed, alone, strict=True)
        ]
        limit = tolerance(models.precision(self.run.policy), fp32=1e-4, half=3e-2)
        worst = max(range(len(gaps)), key=gaps.__getitem__)
        if gaps[worst] > limit:
            yield Breach(
                f"sequence {worst + 1} of {len(gaps)} has other log-probabilities packed than alone, by"
                f" {gaps[worst]:.2g} nats per token on average",
                value=gaps[worst],
                limit=limit,
            )
