"""The experimental PPOTrainer of TRL (trl.trainer up to 0.28, trl.experimental.ppo up to 1.12).

Its whole loop is one method, so that what it computes is read from that method's variables, when its first
training pass over a rollout begins. Its old log-probs come from the scores of generate(), after every logits
processor; its new ones from a pass of their own, which is also what the evidence is taken from, as long as the
weights are those that sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from klguard.guard import events
from klguard.guard.frameworks.adapters import Adapter, locals_of, rows_as_tensor
from klguard.guard.guard import Guard
from klguard.guard.kl import token_log_probs

ROLLOUT = (
    "update", "queries", "responses", "context_length", "logprobs", "ref_logprobs", "padding_mask",
    "padding_mask_p1", "scores", "kl", "rewards", "advantages", "returns", "values",
)  # fmt: skip
MINIBATCH = (
    "update", "micro_batch_inds", "ppo_epoch_idx", "responses", "logprobs", "ref_logprobs", "padding_mask",
    "advantages", "queries", "context_length",
)  # fmt: skip
"""Variables of `PPOTrainer.train` that are read: of a rollout, and of a minibatch."""


class PPO(Adapter):
    """Tells a guard of an experimental PPOTrainer."""

    def __init__(self, guard: Guard, trainer: Any) -> None:
        super().__init__(guard, trainer, trainer.policy_model)
        self._update: int | None = None
        self._version = 0
        self._figures: dict[str, Any] = {}

    @staticmethod
    def knows(trainer: Any) -> bool:
        """Whether `trainer` is one."""
        return all(
            hasattr(trainer, name) for name in ("policy_model", "value_model", "reward_model", "train")
        )

    @staticmethod
    def options(trainer: Any) -> dict[str, Any]:
        """What a Guard is given of the trainer. Without a stop token nothing ends a response, whatever the
        tokenizer says; and max_grad_norm is left out, for this trainer never clips."""
        stop = trainer.stop_token_id
        tokenizer = trainer.processing_class if stop is not None else None
        given = dict(policy=trainer.policy_model, reference=trainer.ref_model, tokenizer=tokenizer)
        return {**given, "eos_token_id": stop, "kl_coef": trainer.args.kl_coef}

    @staticmethod
    def ignored(trainer: Any) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def install(self) -> None:
        """Begin to listen."""
        self.reader.install()
        self.reader.paused = self.paused = False
        self.listen()
        self.wrap("generate_completions", self._evaluating)

    def _evaluating(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        with self.reader.reading(False):
            return original(*args, **kwargs)

    # -- passes of the policy ----------------------------------------------------------------------------------

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """A pass of the policy; one with a gradient is a minibatch of training."""
        if not torch.is_grad_enabled():
            return
        here = locals_of(MINIBATCH, "train", self.trainer, "trl")
        if here is None or len(here) < len(MINIBATCH):
            raise RuntimeError(
                "a training pass outside of PPOTrainer.train, or of a release that is not known"
            )
        with torch.no_grad():
            if here["update"] != self._update:
                self._rolled_out(locals_of(ROLLOUT, "train", self.trainer, "trl"))
            self._minibatch(here, output.logits.detach())

    @property
    def _temperature(self) -> float:
        return float(self.trainer.args.temperature) + 1e-7

    def _rolled_out(self, found: dict[str, Any]) -> None:
        """Tell of a rollout and of what was made from it."""
        missing = set(ROLLOUT) - set(found)
        if missing:
            raise RuntimeError(
                f"PPOTrainer.train lacks {', '.join(sorted(missing))}: a release that is not known"
            )
        args, guard = self.trainer.args, self.guard
        self._update, self._version = found["update"], guard.version
        mask, beyond = ~found["padding_mask"], ~found["padding_mask_p1"]
        pad = self.trainer.processing_class.pad_token_id
        calls, self.reader.calls = self.reader.calls, []
        rollout = dict(
            responses=found["responses"],
            mask=mask,
            prompts=found["queries"],
            attention_mask=found["queries"] != pad,
            stop_token_ids=() if self.trainer.stop_token_id is None else self.trainer.stop_token_id,
            max_new_tokens=args.response_length,
            temperature=self._temperature,
        )
        self.judge_settings([site for _, site in calls], rollout)
        estimator = getattr(args, "kl_estimator", "k1")
        given = dict(estimator=estimator, values=found["kl"])
        guard.kl(found["logprobs"], found["ref_logprobs"], mask, **given)
        rewards, values, returns = found["rewards"], found["values"], found["returns"]
        if args.whiten_rewards:
            guard.rewards(found["scores"])
        else:  # the score stands one place behind the last token, where the mask of the values still reaches
            told = dict(token_rewards=rewards, kl=found["kl"], kl_coef=args.kl_coef)
            guard.rewards(found["scores"], mask=beyond, **told)
        recursion = dict(gamma=args.gamma, lam=args.lam, values=values, rewards=rewards, returns=returns)
        guard.advantages(found["advantages"], mask, whitened=True)
        guard.advantages(returns - values, beyond, **recursion)
        self._figures = {"rewards": found["scores"], "lengths": mask.sum(1).float()}

    def _minibatch(self, here: dict[str, Any], logits: Tensor) -> None:
        device = here["responses"].device
        rows = rows_as_tensor(here["micro_batch_inds"], device)
        tokens, mask = here["responses"][rows], ~here["padding_mask"][rows]
        start = here["context_length"] - 1
        logits = logits[:, start : start + tokens.shape[1]]
        temperature = self._temperature
        new = token_log_probs(logits, tokens, temperature=None if temperature == 1.0 else temperature)
        if self.guard.version == self._version and here["ppo_epoch_idx"] == 0:
            self.guard._score(
                events.Scoring(
                    logits=logits,
                    tokens=tokens,
                    mask=mask,
                    logprobs=new,
                    reference_logprobs=here["ref_logprobs"][rows].float(),
                    context_ids=here["queries"][rows],
                    temperature=temperature,
                    divisor=temperature,
                    rows=rows,
                    dtype=self.guard._precision(logits),
                ),
                source="logprobs",
            )
        told = dict(
            tokens=tokens, rows=rows, epoch=here["ppo_epoch_idx"], advantages=here["advantages"][rows]
        )
        told["clip_range"] = self.trainer.args.cliprange
        self.guard.minibatch(new, here["logprobs"][rows], mask, **told)

    # -- the end of a step -------------------------------------------------------------------------------------

    def step_end(self) -> None:
        """The trainer has logged and is done with a rollout."""
        if self._update is None or not self.alive:
            return
        figures, self._figures = self._figures, {}
        history = self.trainer.state.log_history
        logged = history[-1].get("objective/kl") if history else None
        if logged is not None:
            estimator = getattr(self.trainer.args, "kl_estimator", "k1")
            figures |= {"kl": logged, "kl_unit": "sequence", "kl_estimator": estimator}
        self.guard.step(**figures)
