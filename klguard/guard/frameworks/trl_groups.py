"""GRPOTrainer and RLOOTrainer of TRL: several responses for each prompt, scored in the trainer's own loss.

A rollout is told when the trainer has it; the evidence comes from the forward pass that makes the loss, as long
as the weights are still those that sampled. Rows get numbers that travel through the trainer's shuffling with
them. GRPO takes its old log-probs from the very pass that makes the new ones: the first minibatch of some
rollouts is scored a second time, so that the ratio of the first minibatch can be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard import events
from klguard.guard.frameworks.adapters import Adapter, other_randomness
from klguard.guard.frameworks.fused_head import first_logits
from klguard.guard.frameworks.taps import Tap
from klguard.guard.frameworks.transformers import sampled
from klguard.guard.frameworks.wrappers import chain, generator, hookable
from klguard.guard.guard import Guard
from klguard.guard.invariants.alignment import SAMPLER_STOPS
from klguard.guard.live import caller
from klguard.guard.models import stop_ids
from klguard.guard.plain import as_ids
from klguard.guard.ranks import Ranks
from klguard.guard.shield import LOG

SCORE = "_get_per_token_logps_and_entropies"
ROWS, SCORES, OLD, REFERENCE = "klguard_rows", "klguard_scores", "klguard_old", "klguard_reference"
"""Names under which an adapter's own tensors travel with the trainer's."""

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


@dataclass
class RolloutState:
    """What is remembered of a rollout until its last minibatch: the guard's count of updates when it was drawn;
    how many losses were computed from it, and the rows that were trained; its figures for the journal."""

    version: int
    losses: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


class Groups(Adapter):
    """Tells a guard of a GRPOTrainer or RLOOTrainer."""

    def __init__(self, guard: Guard, trainer: Any) -> None:
        super().__init__(guard, trainer, trainer.model)
        self._rollout: RolloutState | None = None
        self._pass: Pass | None = None
        self._scored: list[Tensor] | None = None
        self._rewards: Tensor | None = None
        self._rollouts = 0
        self._said: set[str] = set()
        guard._works.run.notes[SAMPLER_STOPS] = self._stops()

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
            eos_token_id=_ends(trainer, tokenizer),
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

    @property
    def _in_loss(self) -> bool:
        """GRPO has its KL in the loss, RLOO in the reward."""
        return "RLOO" not in " ".join(kind.__name__ for kind in type(self.trainer).__mro__)

    @property
    def _temperature(self) -> float:
        return float(self.trainer.temperature)

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)

    def _stops(self) -> frozenset[int]:
        """The ids at which the trainer lets a response end: it gives them to each generate() itself, so that those
        of the checkpoint are not in force. With vLLM a response ends where the engine ended it, by its length."""
        own = stop_ids(getattr(self.trainer, "generation_config", None))
        return own or frozenset(as_ids(_ends(self.trainer, self._tokenizer)) or ())

    # -- the rollout -------------------------------------------------------------------------------------------

    def _generating(self, original: Any, inputs: Any) -> Any:
        if not self.trainer.model.training:
            return original(inputs)
        self._end()
        self._scored, self._rewards = [], None
        self.reader.forget()
        try:
            with self.reader.reading():
                output = original(inputs)
            extra = self.told(self._rolled_out, output)
        finally:
            self._scored = None
        return output if extra is None else {**output, **extra}

    def _rewarding(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        rewards = original(*args, **kwargs)
        if self._scored is not None and isinstance(rewards, Tensor):
            self._rewards = rewards.detach()
        return rewards

    def _rolled_out(self, output: dict[str, Tensor]) -> dict[str, Any]:
        """Tell of the rollout in `output`, and give its rows numbers."""
        responses, prompts = output["completion_ids"], output["prompt_ids"]
        count, device = len(responses), responses.device
        first = self.trainer.accelerator.process_index * count
        rows = torch.arange(first, first + count, device=device)
        groups = torch.div(rows, self.trainer.num_generations, rounding_mode="floor")
        mask, tools = output["completion_mask"], output.get("tool_mask")
        stops = next((told.stop_ids for told, _ in self.reader.calls if told.stop_ids), None)
        rollout = dict(
            responses=responses,
            mask=mask if tools is None else mask * tools,
            prompts=prompts,
            attention_mask=output["prompt_mask"],
            tool_mask=None if tools is None else (tools == 0) & (mask > 0),
            stop_token_ids=stops or _ends(self.trainer, self._tokenizer),
            max_new_tokens=self.trainer.max_completion_length,
            groups=groups,
            rows=rows,
            temperature=self._temperature,
        )
        self._rollouts += 1
        self._rollout = RolloutState(self.guard.version)
        self.judge_settings([site for _, site in self.reader.calls] or self._engine_settings(), rollout)
        lengths = mask.sum(1)
        self._rollout.figures = {"lengths": lengths.float()}
        scores = self._scores(first, count)
        told = {"groups": groups, "group_size": self.trainer.num_generations, "scores": scores}
        self.guard.advantages(output["advantages"], mask, **told)
        extra: dict[str, Any] = {ROWS: rows}
        if scores is not None:
            self.guard.rewards(scores)
            self._rollout.figures["rewards"] = scores
            extra[SCORES] = scores
        self._say_what_is_not_seen(tools)
        if not self._in_loss:
            extra |= self._penalty(responses, mask)
        return extra

    def _scores(self, first: int, count: int) -> Tensor | None:
        """(count,) weighted sum of this rank's rewards, None where one of them has no reward at all or more than
        the group's own scores made the advantages."""
        rewards = self._rewards
        if rewards is None or rewards.dim() != 2 or len(rewards) < first + count:
            return None
        mine = rewards[first : first + count]
        weights = self.trainer.reward_weights.to(mine.device)
        plain = getattr(self.trainer, "multi_objective_aggregation", "sum_then_normalize")
        return (mine * weights).nansum(1) if plain == "sum_then_normalize" else None

    def _penalty(self, responses: Tensor, mask: Tensor) -> dict[str, Any]:
        """RLOO: old and reference log-probs (B, T) of the rollout, whose k1 is taken off the reward."""
        scored = [one for one in self._scored or () if one.shape == responses.shape]
        if len(scored) != len(self._scored or ()) or not 1 <= len(scored) <= 2:
            return {}
        extra = {OLD: scored[0]}
        if len(scored) == 2:
            extra[REFERENCE] = scored[1]
            if not self._filters:
                self.guard.kl(scored[0], scored[1], mask, estimator="k1")
                self._log_kl("k1")
        return extra

    @property
    def _filters(self) -> bool:
        """Rows that were cut off are taken out of the mask: what is left was chosen by its tokens."""
        return bool(getattr(self.trainer, "mask_truncated_completions", False))

    def _engine_settings(self) -> list[Any]:
        """What the trainer gives to vLLM, which generate() does not show."""
        if not getattr(self.trainer, "use_vllm", False):
            return []
        from klguard.guard.frameworks.vllm import settings_of_trainer

        return [settings_of_trainer(self.trainer, caller())]

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

    @property
    def _comparable(self) -> bool:
        """Whether the engine's log-probs are those of the distribution that drew: processed ones."""
        from klguard.guard.frameworks.vllm import processed_by_trainer

        return processed_by_trainer(self.trainer)

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
            given["clip_range"] = float(self.trainer.epsilon_low)
        self.guard.minibatch(new, new.detach() if old is None else old, mask, **given)
        if now.twice is not None:
            self.guard.minibatch(new, now.twice, mask)
        reference = inputs.get("ref_per_token_logps")
        if self._in_loss and reference is not None and self.trainer.beta:
            self.guard.kl(new, reference, mask, estimator="k3")
            if self._losses_of_rollout == 1:
                self._log_kl("k3")

    def _log_kl(self, estimator: str) -> None:
        """What the trainer has just logged as its KL, in nats per token."""
        logged = self.trainer._metrics["train"].get("kl")
        if logged and self._rollout.losses <= 1:
            figures = {"kl": logged[-1], "kl_unit": "token", "kl_estimator": estimator}
            self._rollout.figures |= figures

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

    def _end(self) -> None:
        rollout, self._rollout = self._rollout, None
        if rollout is not None and self.alive:
            self.guard.step(**rollout.figures)

    # -- what is not seen --------------------------------------------------------------------------------------

    def _say_what_is_not_seen(self, tools: Tensor | None) -> None:
        trainer = self.trainer
        if self._filters:
            self._say(
                "filter",
                "mask_truncated_completions drops responses for how they end: what is left is no sample of the policy,"
                " and the sampler is not tested",
            )
        if getattr(trainer, "use_transformers_continuous_batching", False) and not self.reader.calls:
            self._say("paged", "generate_batch() does not show its settings: only its tokens are tested")
        if getattr(trainer, "use_liger_kernel", False):
            self._say("liger", "the fused loss of liger shows no log-probs: the sampler is not tested")
        if getattr(trainer, "use_vllm", False) and not self._comparable:
            self._say("raw", "the engine's log-probs are not those it sampled with: they are not compared")

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            if Ranks().rank == 0:
                LOG.warning("klguard: %s", text)


def _ends(trainer: Any, tokenizer: Any) -> Any:
    """Ids at which the trainer's own mask ends a response: the tokenizer's, in later releases the checkpoint's too."""
    return getattr(trainer, "eos_token_ids", None) or tokenizer.eos_token_id
