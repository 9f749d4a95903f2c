"""GRPOTrainer and RLOOTrainer of TRL: several responses for each prompt, scored in the trainer's own loss.

A rollout is told when the trainer has it; the evidence comes from the forward pass that makes the loss, as long
as the weights are still those that sampled. Rows get numbers that travel through the trainer's shuffling with
them. GRPO takes its old log-probs from the very pass that makes the new ones: the first minibatch of some
rollouts is scored a second time, so that the ratio of the first minibatch can be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard import events
from klguard.guard.frameworks.adapters import other_randomness
from klguard.guard.frameworks.fused_head import first_logits
from klguard.guard.frameworks.taps import Tap
from klguard.guard.frameworks.transformers import sampled
from klguard.guard.frameworks.trl_rollouts import OLD, REFERENCE, ROWS, Rollouts, ends
from klguard.guard.frameworks.wrappers import chain, generator, hookable
from klguard.guard.guard import Guard

SCORE = "_get_per_token_logps_and_entropies"
HIDDEN = "hidden"
"""Role of the pass of the layers below the head."""

FIRST_CHECKS, CHECK_EVERY = 3, 50
"""Rollouts, from the first, and every how many after them, whose first minibatch is scored twice."""


@dataclass
class Pass:
    """One loss that is being computed, of the rows in `inputs`."""

    inputs: dict[str, Any]
    timely: bool
    logits: Tensor | None = None
    hidden: Tensor | None = None
    logprobs: Tensor | None = None
    entropies: Tensor | None = None
    twice: Tensor | None = None


class Groups(Rollouts):
    """Tells a guard of a GRPOTrainer or RLOOTrainer."""

    def __init__(self, guard: Guard, trainer: Any) -> None:
        super().__init__(guard, trainer)
        self._pass: Pass | None = None

    @staticmethod
    def knows(trainer: Any) -> bool:
        """Whether `trainer` is one of these."""
        return hasattr(trainer, SCORE) and hasattr(trainer, "_generate_and_score_completions")

    @staticmethod
    def options(trainer: Any) -> dict[str, Any]:
        """What a Guard is given of the trainer."""
        processor = trainer.processing_class
        tokenizer = getattr(processor, "tokenizer", processor)
        limit = trainer.args.max_grad_norm
        return dict(
            policy=trainer.model,
            reference=getattr(trainer, "ref_model", None),
            tokenizer=tokenizer,
            eos_token_id=ends(trainer, tokenizer),
            kl_coef=trainer.beta if trainer.beta else None,
            group_size=trainer.num_generations,
            max_grad_norm=limit if limit and limit > 0 else None,
        )

    @staticmethod
    def ignored(trainer: Any) -> tuple[str, ...]:
        """A reference that the trainer is told to move towards the policy does change."""
        return ("KLG802",) if getattr(trainer.args, "sync_ref_model", False) else ()

    def install(self) -> None:
        """Begin to listen."""
        self.reader.install()
        self.listen()
        self._listen_below_the_head()
        self.wrap("_generate_and_score_completions", self._generating)
        self.wrap("_calculate_rewards", self._rewarding)
        self.wrap(SCORE, self._scoring)
        self.wrap("_compute_loss", self._losing)

    def _listen_below_the_head(self) -> None:
        """Later releases fuse the head with the log-softmax, and the policy's pass has no logits any more."""
        model = generator(self.policy)
        below = getattr(model, "base_model", None)
        if isinstance(below, nn.Module) and below is not model:
            hook = below.register_forward_hook(Tap(self, HIDDEN), with_kwargs=True)
            self._undo.append(hook.remove)

    # -- minibatches -------------------------------------------------------------------------------------------

    def _losing(self, original: Any, model: nn.Module, inputs: dict[str, Any], *rest: Any, **kw: Any) -> Any:
        if not isinstance(inputs, dict) or ROWS not in inputs or self._rollout is None:
            return original(model, inputs, *rest, **kw)
        self._outside(model)
        timely = self.guard.version == self._rollout.version
        self._pass = Pass(inputs, timely)
        if self._due():
            self.told(self._score_twice, model)
        self.paused = False
        try:
            loss = original(model, inputs, *rest, **kw)
        finally:
            done, self._pass, self.paused = self._pass, None, True
        self.told(self._minibatch, done)
        return loss

    def _outside(self, model: nn.Module) -> None:
        """Look at `model`, which the loss is made with, where it runs the policy compiled: the trainer compiles it
        after this adapter came, and nothing inside is heard any more."""
        heard = hookable(chain(model))
        if heard and self.hooked not in heard:
            self.hook(heard[0])

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """The policy's pass inside the loss."""
        if self._pass is None:
            return
        if role == HIDDEN:
            hidden = getattr(output, "last_hidden_state", None)
            self._pass.hidden = hidden.detach() if isinstance(hidden, Tensor) else None
            return
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and logits.dim() == 3:
            self._pass.logits = logits.detach()

    def _scoring(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.told(self._scored_by_trainer, result)
        return result

    def _scored_by_trainer(self, result: Any) -> None:
        logprobs, entropies = result[0], result[1]
        if self._pass is None:
            if self._scored is not None:
                self._scored.append(logprobs.detach())
            return
        now = self._pass
        if now.logprobs is None:
            now.logprobs, now.entropies = logprobs, entropies
            if now.timely and self._rollout.losses < self._losses_of_rollout:
                self._evidence(now)
        now.logits = now.hidden = None

    @property
    def _losses_of_rollout(self) -> int:
        """Minibatches that a rollout is cut into, each trained once in each iteration."""
        return int(getattr(self.trainer.args, "steps_per_generation", 1) or 1)

    def _evidence(self, now: Pass) -> None:
        """Tell of the pass whose log-probs make the loss: tokens as they were drawn, weights that drew them."""
        tools = now.inputs.get("tool_mask")
        if self._filters:
            return
        tokens, mask = now.inputs["completion_ids"], now.inputs["completion_mask"]
        width = tokens.shape[1]
        if now.logits is None:
            with torch.no_grad(), self.trainer.accelerator.autocast():
                logits = first_logits(self.policy, now.hidden, width)
        else:
            logits = now.logits[:, :-1][:, -width:]
        if logits is None:
            self._say("logits", "no logits of the policy were seen in the loss: the sampler is not tested")
            return
        if logits.shape[1] != width and now.logits is not None or now.logprobs.shape != tokens.shape:
            return
        width = logits.shape[1]  # of a fused head, as many of the first positions as the budget holds
        tokens, mask = tokens[:, :width], mask[:, :width] > 0
        if tools is None:  # nothing behind the first stop was drawn, whatever the trainer's mask says
            mask = mask & sampled(tokens, self.guard._works.run.stop_ids)
        else:
            mask = mask & (tools[:, :width] > 0)
        temperature = self._temperature
        reference = now.inputs.get("ref_per_token_logps", now.inputs.get(REFERENCE))
        sampler = now.inputs.get("sampling_per_token_logps") if self._comparable else None
        with torch.no_grad():
            self.guard._score(
                events.Scoring(
                    logits=logits,
                    tokens=tokens,
                    mask=mask,
                    logprobs=now.logprobs.detach()[:, :width].float(),
                    reference_logprobs=None if reference is None else reference[:, :width].float(),
                    sampler_logprobs=None if sampler is None else sampler[:, :width].float(),
                    context_ids=now.inputs["prompt_ids"],
                    temperature=temperature,
                    divisor=None if temperature == 1.0 else temperature,
                    rows=now.inputs[ROWS] - self.trainer.accelerator.process_index * self._rows_here,
                    dtype=self.guard._precision(logits),
                ),
                source="logprobs",
            )

    @property
    def _rows_here(self) -> int:
        """Rows of a rollout on this rank."""
        return len(self._rollout.figures["lengths"])

    def _minibatch(self, now: Pass) -> None:
        """Tell of a minibatch, after its loss and before its update."""
        new = now.logprobs
        if new is None:
            self._say(
                "pass", "no pass of the policy was seen in the loss (a fused kernel?): nothing is tested"
            )
            return
        inputs, number = now.inputs, self._rollout.losses
        self._rollout.losses += 1
        mask, tokens = inputs["completion_mask"], inputs["completion_ids"]
        tools = inputs.get("tool_mask")
        mask = mask if tools is None else mask * tools
        old = inputs.get("old_per_token_logps", inputs.get(OLD))
        given: dict[str, Any] = {
            "tokens": tokens,
            "rows": inputs[ROWS],
            "epoch": number // self._losses_of_rollout,
            "advantages": inputs["advantages"],
        }
        if now.entropies is not None and now.entropies.shape == new.shape:
            given["entropy"] = now.entropies.detach()
        if old is not None and self._in_loss:
            given["clip_range"] = (self.trainer.epsilon_low, self.trainer.epsilon_high)
        self.guard.minibatch(new, new.detach() if old is None else old, mask, **given)
        if now.twice is not None:
            self.guard.minibatch(new, now.twice, mask)
        reference = inputs.get("ref_per_token_logps")
        if self._in_loss and reference is not None and self.trainer.beta:
            self.guard.kl(new, reference, mask, estimator="k3")
            if self._losses_of_rollout == 1:
                self._log_kl("k3")

    # -- a second look -----------------------------------------------------------------------------------------

    def _due(self) -> bool:
        """Whether this minibatch is scored twice: its ratio is 1 by construction, and nothing was updated yet."""
        now, rollout = self._pass, self._rollout
        constructed = "old_per_token_logps" not in now.inputs and OLD not in now.inputs
        if not (constructed and now.timely) or rollout.losses or "pixel_values" in now.inputs:
            return False
        self._say(
            "ratio",
            "GRPOTrainer takes the old log-probs of a minibatch from its new ones (old = new.detach()): its first"
            " ratio is 1 by construction and proves nothing. klguard scores the first minibatch of some rollouts a"
            " second time",
        )
        return self._rollouts <= FIRST_CHECKS or self._rollouts % CHECK_EVERY == 0

    def _score_twice(self, model: nn.Module) -> None:
        now = self._pass
        inputs = now.inputs
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].shape[1]
        function = getattr(type(self.trainer), SCORE)
        with torch.no_grad(), other_randomness(ids.device):
            now.twice = function(self.trainer, model, ids, attention, width)[0].detach()

    # -- the end of a step -------------------------------------------------------------------------------------

    def step_end(self) -> None:
        """The trainer has updated: the step is over when the rollout is used up."""
        trainer = self.trainer
        every = self._losses_of_rollout * int(getattr(trainer, "num_iterations", 1))
        if trainer._step % every == 0:
            self._end()
