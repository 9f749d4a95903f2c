"""The classic PPOTrainer of TRL (0.2 to 0.11): generate() and step(queries, responses, scores) are the loop's.

step() is a whole update: it scores the responses, makes rewards and advantages, and trains. Its tensors hold whole
sequences, of which a mask selects the response; so here time runs over L - 1 positions, from the second id.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from klguard.guard import events
from klguard.guard.frameworks.adapters import Adapter, distinct, locals_of, rows_as_tensor
from klguard.guard.guard import Guard
from klguard.guard.live import findings

MOST_BYTES = 256 * 2**20
"""Of logits that are kept until the trainer has made its mask: the first pass is kept in any case."""

PREFIX = 8
"""Ids of a response by which it is found among those that generate() returned."""

ESTIMATORS = {"kl": "k1", "mse": "k2", "full": "exact"}
"""The trainer's words for the estimators of the KL."""


class ClassicPPO(Adapter):
    """Tells a guard of a classic PPOTrainer."""

    def __init__(self, guard: Guard, trainer: Any) -> None:
        super().__init__(guard, trainer, trainer.model)
        self._stepping = False
        self._reset()

    def _reset(self) -> None:
        self._passes = self._trained = 0
        self._chunks: list[Tensor] = []
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._old: Tensor | None = None
        self._reference: Tensor | None = None
        self._tokens: Tensor | None = None
        self._figures: dict[str, Any] = {}

    @staticmethod
    def knows(trainer: Any) -> bool:
        """Whether `trainer` is one."""
        return all(hasattr(trainer, name) for name in ("batched_forward_pass", "compute_rewards", "step"))

    @staticmethod
    def options(trainer: Any) -> dict[str, Any]:
        """What a Guard is given of the trainer."""
        return dict(
            policy=trainer.model,
            reference=trainer.ref_model,
            tokenizer=trainer.tokenizer,
            kl_coef=trainer.kl_ctl.value,
            max_grad_norm=trainer.config.max_grad_norm,
            optimizer=trainer.optimizer,
            scheduler=trainer.lr_scheduler,
        )

    @staticmethod
    def ignored(trainer: Any) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def install(self) -> None:
        """Begin to listen."""
        self.reader.install()
        self.reader.paused = False
        self.listen()
        for name, around in (
            ("step", self._step),
            ("batched_forward_pass", self._forward),
            ("compute_rewards", self._rewards),
            ("compute_advantages", self._advantages),
            ("train_minibatch", self._minibatch),
            ("record_step_stats", self._statistics),
        ):
            self.wrap(name, around)

    # -- step --------------------------------------------------------------------------------------------------

    def _step(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        self._reset()
        self._stepping = True
        try:
            with self.reader.reading(False):
                result = original(*args, **kwargs)
        finally:
            self._stepping, self.paused = False, True
            self._chunks.clear()
        self.reader.forget()
        if self.alive:
            self.guard.step(**self._figures)
        return result

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._stepping:
            return original(*args, **kwargs)
        self._passes += 1
        first = self._passes == 1
        self.paused = not first
        try:
            result = original(*args, **kwargs)
        finally:
            self.paused = True
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        self.told(self._scored, given["model_inputs"], given["queries"], result)
        return result

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """One chunk of the first pass over a rollout."""
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            return
        size = sum(one.nbytes for one in self._chunks)
        if not self._chunks or size + logits.nbytes <= MOST_BYTES:
            self._chunks.append(logits.detach()[:, :-1])

    def _scored(self, inputs: dict[str, Tensor], queries: Any, result: Any) -> None:
        ids = inputs.get("decoder_input_ids", inputs["input_ids"])
        self._tokens = ids[:, 1:]
        if self._passes == 1:
            self._ids, self._old, self._mask = ids, result[0].detach(), result[3]
            self._rolled_out(inputs, queries)
        elif self._passes == 2:
            self._reference = result[0].detach()

    def _rolled_out(self, inputs: dict[str, Tensor], queries: Any) -> None:
        """Tell of a rollout, and score as many of its rows as were kept."""
        ids, mask, guard = self._ids, self._mask, self.guard
        attention = inputs.get("decoder_attention_mask", inputs["attention_mask"])
        temperature = next((event.temperature for event, _ in self.reader.calls if event.temperature), None)
        details = dict(prompts=ids[:, :1], attention_mask=attention[:, :1], temperature=temperature)
        guard.rollout(self._tokens, mask, **details)
        self._judge_generate(queries)
        begin = 0
        with torch.no_grad():
            while self._chunks:
                logits = self._chunks.pop(0)
                rows = torch.arange(begin, begin + len(logits), device=ids.device)
                begin += len(logits)
                guard._score(
                    events.Scoring(
                        logits=logits,
                        tokens=self._tokens[rows],
                        mask=mask[rows] > 0,
                        logprobs=self._old[rows].float(),
                        context_ids=ids[rows, :1],
                        temperature=1.0,
                        rows=rows,
                        dtype=guard._precision(logits),
                    ),
                    source="logprobs",
                )

    def _judge_generate(self, queries: Any) -> None:
        """Judge the settings of the calls that drew these responses: some row of theirs begins like one."""
        works, calls = self.guard._works, self.reader.calls
        lengths = self._mask.sum(1)
        first = self._mask.to(torch.uint8).argmax(1)
        wanted = self._beginnings(self._tokens, first, lengths)
        for number, site in enumerate(distinct([site for _, site in calls])):
            told = findings(site)
            works.rollout(
                events.Rollout(
                    place=site.place, responses=self._tokens, settings=site.settings, handle=number
                ),
                site, told, dispatch=False,
            )  # fmt: skip
            codes = [(f.code, f.setting, f.message) for f in told]
            for event, other in calls:
                if other is site or [(f.code, f.setting, f.message) for f in findings(other)] == codes:
                    drawn = event.mask.sum(1)
                    starts = torch.zeros_like(drawn)
                    mine = self._beginnings(event.responses, starts, drawn)
                    works.matched(number, (mine[:, None] == wanted[None]).all(-1))

    @staticmethod
    def _beginnings(ids: Tensor, first: Tensor, lengths: Tensor) -> Tensor:
        """(B, PREFIX) the ids of each row from `first` (B,), -1 from the end of its `lengths` (B,) on."""
        steps = torch.arange(PREFIX, device=ids.device)
        at = (first[:, None] + steps).clamp(max=ids.shape[1] - 1)
        return torch.where(steps < lengths[:, None], ids.gather(1, at), -1)

    # -- what is made from it ----------------------------------------------------------------------------------

    def _rewards(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self._stepping:
            self.told(self._tell_rewards, inspect.signature(original).bind(*args, **kwargs).arguments, result)
        return result

    def _tell_rewards(self, given: dict[str, Any], result: Any) -> None:
        rewards, _, kls = result
        mask, scores = given["masks"], given["scores"]
        estimator = ESTIMATORS.get(self.trainer.config.kl_penalty)
        if estimator is not None and self._reference is not None:
            self.guard.kl(self._old, self._reference, mask, estimator=estimator, values=kls)
        told = dict(token_rewards=rewards, kl=kls, kl_coef=float(self.trainer.kl_ctl.value), mask=mask)
        self.guard.rewards(scores, **told)
        self._figures |= {"rewards": scores, "lengths": mask.sum(1).float()}

    def _advantages(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self._stepping:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            self.told(self._tell_advantages, given["rewards"], given["mask"], result)
        return result

    def _tell_advantages(self, rewards: Tensor, mask: Tensor, result: Any) -> None:
        values, advantages, returns = result
        config = self.trainer.config
        told: dict[str, Any] = dict(values=values, returns=returns, whitened=True)
        if not config.whiten_rewards:
            told |= dict(rewards=rewards * mask, raw=returns - values, gamma=config.gamma, lam=config.lam)
        # outside the mask the trainer leaves what whitening made of nothing, and masks its loss
        self.guard.advantages(torch.where(mask > 0, advantages, 0.0), mask, **told)

    def _minibatch(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._stepping:
            self.told(self._tell_minibatch, inspect.signature(original).bind(*args, **kwargs).arguments)
        return original(*args, **kwargs)

    def _tell_minibatch(self, given: dict[str, Any]) -> None:
        old, new, mask = given["old_logprobs"], given["logprobs"], given["mask"]
        told: dict[str, Any] = dict(clip_range=self.trainer.config.cliprange, advantages=given["advantages"])
        here = locals_of(("mini_batch_inds",), "step", self.trainer, "trl") or {}
        if self._tokens is not None and self._tokens.shape == new.shape and "mini_batch_inds" in here:
            told |= dict(tokens=self._tokens, rows=rows_as_tensor(here["mini_batch_inds"], new.device))
            told["epoch"] = self._trained // self.trainer.config.batch_size
        self._trained += len(new)
        self.guard.minibatch(new, old, mask, **told)

    def _statistics(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        stats = original(*args, **kwargs)
        if self._stepping:
            self.told(self._tell_statistics, stats)
        return stats

    def _tell_statistics(self, stats: dict[str, Any]) -> None:
        """The logged KL, which is also what the controller of the coefficient is fed."""
        logged, estimator = stats.get("objective/kl"), ESTIMATORS.get(self.trainer.config.kl_penalty)
        if logged is None or estimator is None:
            return
        logged = logged.detach() if isinstance(logged, Tensor) else float(logged)
        self._figures |= dict(kl=logged, kl_unit="sequence", kl_estimator=estimator)
        self._figures["kl_coef"] = float(self.trainer.kl_ctl.value)
        if self.trainer.config.adap_kl_ctrl:
            self._figures |= dict(controller_kl=logged, controller_unit="sequence")
