"""The rollouts of TRL's GRPOTrainer and RLOOTrainer: what they are drawn with, and what a guard is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from klguard.guard.frameworks.adapters import Adapter
from klguard.guard.guard import Guard
from klguard.guard.invariants.alignment import SAMPLER_STOPS
from klguard.guard.live import caller
from klguard.guard.models import stop_ids
from klguard.guard.plain import as_ids
from klguard.guard.ranks import Ranks
from klguard.guard.shield import LOG

ROWS, SCORES, OLD, REFERENCE = "klguard_rows", "klguard_scores", "klguard_old", "klguard_reference"
"""Names under which an adapter's own tensors travel with the trainer's."""


@dataclass
class RolloutState:
    """What is remembered of a rollout until its last minibatch: the guard's count of updates when it was drawn;
    how many losses were computed from it, and the rows that were trained; its figures for the journal."""

    version: int
    losses: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


class Rollouts(Adapter):
    """Tells a guard of the rollouts; the passes that score and train them are `Groups`' own."""

    def __init__(self, guard: Guard, trainer: Any) -> None:
        super().__init__(guard, trainer, trainer.model)
        self._rollout: RolloutState | None = None
        self._scored: list[Tensor] | None = None
        self._rewards: Tensor | None = None
        self._rollouts = 0
        self._said: set[str] = set()
        guard._works.run.notes[SAMPLER_STOPS] = self._stops()

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
        return own or frozenset(as_ids(ends(self.trainer, self._tokenizer)) or ())

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
            stop_token_ids=stops or ends(self.trainer, self._tokenizer),
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

    def _log_kl(self, estimator: str) -> None:
        """What the trainer has just logged as its KL, in nats per token."""
        logged = self.trainer._metrics["train"].get("kl")
        if logged and self._rollout.losses <= 1:
            figures = {"kl": logged[-1], "kl_unit": "token", "kl_estimator": estimator}
            self._rollout.figures |= figures

    def _end(self) -> None:
        rollout, self._rollout = self._rollout, None
        if rollout is not None and self.alive:
            self.guard.step(**rollout.figures)

    # -- what is not seen --------------------------------------------------------------------------------------

    @property
    def _comparable(self) -> bool:
        """Whether the engine's log-probs are those of the distribution that drew: processed ones."""
        from klguard.guard.frameworks.vllm import processed_by_trainer

        return processed_by_trainer(self.trainer)

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


def ends(trainer: Any, tokenizer: Any) -> Any:
    """Ids at which the trainer's own mask ends a response: the tokenizer's, in later releases the checkpoint's too."""
    return getattr(trainer, "eos_token_ids", None) or tokenizer.eos_token_id
