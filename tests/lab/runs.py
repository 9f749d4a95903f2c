"""Short runs of the laboratory's loop."""

from __future__ import annotations

import copy
import functools

import torch

from klguard.lab.config import Config
from klguard.lab.grammar import Beginnings, Tokenizer
from klguard.lab.loop import PPO
from klguard.lab.student import student

SHORT = {"steps": 3, "rows": 8, "max_new_tokens": 16, "learning_rate": 1e-4}


def early(texts):
    """(B,) the share of words that stand early in the alphabet."""
    return torch.tensor([sum(word < "m" for word in t.split()) / max(1, len(t.split())) for t in texts])


def short(kind=PPO, policy=None, reward=early, **config):
    """A loop over a model that knows a little."""
    model = pupil() if policy is None else policy
    return kind(model, Tokenizer(), Beginnings(), reward, Config(**SHORT | config))


@functools.lru_cache(maxsize=1)
def _pupil():
    return student(steps=60, rows=32)


def pupil():
    """A model that has read a little of the grammar, and ends its texts after some ten words."""
    return copy.deepcopy(_pupil())


def weights(loop):
    """What training left behind."""
    state = {name: value.clone() for name, value in loop.trained.state_dict().items()}
    for number, entry in loop.optimizer.state_dict()["state"].items():
        state |= {
            f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in entry.items()
        }
    return state


def differing(one, other):
    """Names of what is not the same bit by bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
