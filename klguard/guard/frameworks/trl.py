"""The guard on a trainer of TRL: `klguard.guard_trainer(trainer)`, once, before `trainer.train()`.

GRPO and RLOO, the experimental PPO trainer, and the classic `PPOTrainer.step`. What each shows and does not show
is told in docs/trl.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from klguard.guard.frameworks.adapters import Adapter
from klguard.guard.frameworks.trl_classic import ClassicPPO
from klguard.guard.frameworks.trl_groups import Groups
from klguard.guard.frameworks.trl_ppo import PPO
from klguard.guard.guard import Guard
from klguard.guard.ranks import Ranks

try:
    from transformers import TrainerCallback
except ImportError as missing:  # pragma: no cover
    raise ImportError("guard_trainer needs transformers, as TRL does") from missing

ADAPTERS: tuple[type[Adapter], ...] = (Groups, PPO, ClassicPPO)


def guard_trainer(trainer: Any, **options: Any) -> Guard:
    """Put a guard on a trainer of TRL and return it.

    options   those of `klguard.Guard`; policy, reference, tokenizer, kl_coef and the like come from the trainer.

    The guard works while `trainer.train()` runs. Around a loop of the classic `PPOTrainer.step`, write
    `with klguard.guard_trainer(trainer):`. ValueError for a trainer that already has a guard, TypeError for
    one that klguard does not know.
    """
    kind = next((kind for kind in ADAPTERS if kind.knows(trainer)), None)
    if kind is None:
        raise TypeError(
            f"{type(trainer).__name__} is no trainer that klguard knows: it reads TRL's GRPOTrainer, RLOOTrainer and"
            " PPOTrainer and what derives from them; use klguard.Guard by hand for others"
        )
    if getattr(trainer, "_klguard", None) is not None:
        raise ValueError("this trainer has a guard already: use that one, guard_trainer(...) returned it")
    given = {**kind.options(trainer), **options}
    given["ignore"] = (*options.get("ignore", ()), *kind.ignored(trainer))
    guard = Guard(**given)
    adapter = kind(guard, trainer)
    trainer._klguard = adapter
    adapter.install()
    if callable(getattr(trainer, "train", None)) and hasattr(trainer, "add_callback"):
        trainer.add_callback(GuardCallback(adapter))
        _around_train(trainer, guard)
    return guard


class GuardCallback(TrainerCallback):
    """Tells the guard of the trainer's optimizer, ends its steps, and saves its state with checkpoints."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Optimizer and scheduler exist now."""
        guard = self.adapter.guard
        parts = {"optimizer": kwargs.get("optimizer"), "scheduler": kwargs.get("lr_scheduler")}
        self.adapter.told(guard.watch, **{name: part for name, part in parts.items() if part is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update is over: this is where a violation is raised."""
        self.adapter.step_end()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The guard's evidence belongs into the checkpoint."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if os.path.isdir(folder):
            self.adapter.told(_save, self.adapter.guard, folder)


def _file(folder: str) -> str:
    return os.path.join(folder, f"klguard-{Ranks().rank}.pt")


def _save(guard: Guard, folder: str) -> None:
    torch.save(guard.state_dict(), _file(folder))


def _around_train(trainer: Any, guard: Guard) -> None:
    """Let the guard be at work while `train` runs, and take up its state where a checkpoint is resumed."""
    original: Callable[..., Any] = trainer.train

    def train(*args: Any, **kwargs: Any) -> Any:
        resumed = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        _resume(trainer, guard, resumed)
        with guard:
            return original(*args, **kwargs)

    trainer.train = train


def _resume(trainer: Any, guard: Guard, checkpoint: Any) -> None:
    if checkpoint is True:
        from transformers.trainer_utils import get_last_checkpoint

        checkpoint = get_last_checkpoint(trainer.args.output_dir)
    path = _file(os.fspath(checkpoint)) if isinstance(checkpoint, str | os.PathLike) else ""
    if os.path.exists(path):
        guard.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
