"""Remembered rollouts: recognising, on the device, the rows of a forward pass that scores them.

A row is known by a 64-bit hash of its token ids. Kept of a rollout are the ids, the mask of sampled tokens and,
where a reference is scored too, one log-prob for each token. Nothing here waits for the device: which rows were
recognised is known there only, as masks.

A pass may be shorter or longer than the rollout: loops cut a micro-batch to its longest row, leave out the last
token, whose successor nobody knows, or pad rows of several rollouts to one length. What both have is compared. To
know only rows of full length would be to choose rows by what was drawn, and such tokens are no test of the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

POLICY, REFERENCE = "policy", "reference"
MAX_GROUPS = 64
MAX_BYTES = 64 * 2**20

# The finaliser of SplitMix64 (Steele, Lea and Flood 2014), as signed numbers: position -> weight.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shifted(words: Tensor, by: int) -> Tensor:
    """`words` >> by without the sign's copies: torch shifts int64 arithmetically."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def row_hashes(ids: Tensor) -> Tensor:
    """(B,) int64 hashes of the rows of token ids (B, L).

    The sum of id times weight modulo 2^64, with a weight for each position that looks random: two rows that
    differ collide with a probability of about 2^-64 times the power of two in their differences.
    """
    words = torch.arange(1, ids.shape[1] + 1, device=ids.device, dtype=torch.int64) * _GOLDEN
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return ((ids.long() + 1) * (words ^ _shifted(words, 31))).sum(-1)


@dataclass(frozen=True)
class Recognised:
    """The rows of one forward pass (B', L') that score rows of a group (N, L) for the first time.

    pick  (B', N) bool, at most one True in each row and column; tokens (B', T') ids after the prompt that the pass has
    logits for, T' <= T; mask (B', T') bool, the sampled ones.
    """

    group: Group
    pick: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def rows(self) -> Tensor:
        """(B',) the group's row for each row of the pass; meaningless where `pick` has none."""
        return self.pick.int().argmax(1)


class Group:
    """Rollouts drawn under the same weights and settings from the same line, of one shape.

    handle         number of the settings, as the listener knows them.
    key            what the rollouts of a group have in common.
    version        of the weights that drew them; `adapters` those in use then.
    prompt_length  P, of `length` = L ids in a row; T = L - P.
    """

    def __init__(
        self, handle: int, key: Any, version: int, prompt_length: int, length: int, adapters: tuple[str, ...]
    ) -> None:
        self.handle, self.key, self.version, self.adapters = handle, key, version, adapters
        self.prompt_length, self.length = prompt_length, length
        self.sequences: Tensor | None = None
        self.mask: Tensor | None = None
        self.done: dict[str, Tensor] = {}
        self.logprobs: dict[str, Tensor] = {}
        self.scored: dict[str, Tensor] = {}
        self._hashes: dict[int, Tensor] = {}

    @property
    def seen(self) -> bool:
        """Whether some pass may have scored it, as far as the host can tell."""
        return POLICY in self.done

    def dropped(self) -> Tensor | float:
        """() number of rows that no pass of the policy scored, under whatever weights; 0 where none was scored at all,
        as with an evaluation."""
        done = self.done.get(POLICY)
        if done is None or self.mask is None:
            return 0.0
        missing = self.mask.any(1).to(done.device, non_blocking=True) & ~done
        return missing.sum() * done.any()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        kept = [
            self.sequences,
            self.mask,
            *self.done.values(),
            *self.logprobs.values(),
            *self.scored.values(),
        ]
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def add(self, sequences: Tensor, mask: Tensor) -> None:
        """Remember more rows: sequences (B, L) ids, mask (B, T) bool."""
        self._hashes = {}
        if self.sequences is None or self.mask is None:
            self.sequences, self.mask = sequences.detach().clone(), mask.clone()
            return
        device = self.sequences.device
        self.sequences = torch.cat((self.sequences, sequences.detach().to(device, non_blocking=True)))
        self.mask = torch.cat((self.mask, mask.to(device, non_blocking=True)))
        rows, time = mask.shape
        for role, done in self.done.items():
            self.done[role] = torch.cat((done, done.new_zeros(rows)))
        for kept in (self.logprobs, self.scored):
            for role, values in kept.items():
                kept[role] = torch.cat((values, values.new_zeros((rows, time))))

    def hashes(self, length: int) -> Tensor:
        """(N,) int64 hashes of the first `length` ids of each row."""
        assert self.sequences is not None
        if length not in self._hashes:
            self._hashes[length] = row_hashes(self.sequences[:, :length])
        return self._hashes[length]

    def open(self, hashes: Tensor, length: int, role: str) -> Tensor:
        """(B', N) bool: which rows not yet scored in `role` begin with `length` ids of the hashes (B',). A pass over
        prompts alone scores the rows that have one token, and says nothing of others."""
        assert self.mask is not None
        equal = hashes[:, None] == self.hashes(length).to(hashes.device, non_blocking=True)[None, :]
        if length == self.prompt_length:
            equal = equal & (self.mask.sum(1) <= 1).to(hashes.device, non_blocking=True)[None, :]
        done = self.done.get(role)
        return equal if done is None else equal & ~done.to(hashes.device, non_blocking=True)[None, :]

    def take(self, pick: Tensor, length: int, role: str) -> Recognised:
        """Mark the rows of `pick` (B', N) as scored in `role`, by a pass of `length` ids."""
        assert self.mask is not None and self.sequences is not None
        done = self.done.get(role)
        taken = pick.any(0)
        self.done[role] = taken if done is None else done.to(pick.device, non_blocking=True) | taken
        self.mask = self.mask.to(pick.device, non_blocking=True)
        self.sequences = self.sequences.to(pick.device, non_blocking=True)
        rows, last = (
            pick.int().argmax(1),
            min(self.length, length + 1),
        )  # the last logits are about the next token
        tokens = self.sequences[rows, self.prompt_length : last]
        mask = self.mask[rows, : last - self.prompt_length] & pick.any(1)[:, None]
        return Recognised(self, pick, tokens, mask)

    def keep(self, found: Recognised, role: str, logprobs: Tensor) -> None:
        """Remember the log-probs (B', T') of a pass."""
        assert self.mask is not None
        values, known = self.logprobs.get(role), self.scored.get(role)
        if values is None or known is None:
            values = torch.zeros(self.mask.shape, dtype=torch.float32, device=logprobs.device)
            known = torch.zeros_like(self.mask)
        taken, source = found.pick.any(0)[:, None], found.pick.int().argmax(0)
        missing = (0, self.mask.shape[1] - logprobs.shape[1])
        fresh = nn.functional.pad(logprobs.detach().float(), missing)[source]
        there = nn.functional.pad(found.mask, missing)[source]
        self.logprobs[role] = torch.where(taken, fresh, values.to(fresh.device, non_blocking=True))
        self.scored[role] = torch.where(taken, there, known.to(fresh.device, non_blocking=True))

    def kept(self, found: Recognised, role: str) -> tuple[Tensor, Tensor] | None:
        """Log-probs (B', T') of the same tokens from an earlier pass in `role`, and where there are any (B', T')."""
        if role not in self.logprobs:
            return None
        device, rows, time = found.mask.device, found.rows, found.mask.shape[1]
        logprobs = self.logprobs[role].to(device, non_blocking=True)[rows, :time]
        return logprobs, found.mask & self.scored[role].to(device, non_blocking=True)[rows, :time]


class Memory:
    """The groups that are remembered, oldest first; at most `MAX_GROUPS` of them and `MAX_BYTES` together."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._handles = 0

    def group(
        self, key: Any, version: int, prompt_length: int, length: int, adapters: tuple[str, ...] = ()
    ) -> Group:
        """The group for a rollout, a new one where none fits. Groups with equal keys share their handle."""
        alike = [g for g in self.groups if g.version == version and g.key == key and g.adapters == adapters]
        for group in alike:
            if (group.prompt_length, group.length) == (prompt_length, length):
                return group
        self._handles += not alike
        handle = alike[0].handle if alike else self._handles
        self.groups.append(Group(handle, key, version, prompt_length, length, adapters))
        return self.groups[-1]

    def forget(self, keep_version: int | None = None) -> None:
        """Drop everything, or everything but what weights `keep_version` drew."""
        self.groups = [g for g in self.groups if g.version == keep_version]

    def shrink(self) -> None:
        """Drop the oldest groups beyond the limits; the newest stays."""
        while len(self.groups) > 1 and (
            len(self.groups) > MAX_GROUPS or sum(g.nbytes for g in self.groups) > MAX_BYTES
        ):
            del self.groups[0]

    def recognise(self, ids: Tensor, groups: list[Group], role: str) -> list[Recognised]:
        """The rows of `ids` (B', L') that score rows of `groups` for the first time in `role`, as far as both go.

        Of equal rows the k-th of the pass is the k-th that is still open, so that each is counted exactly
        once whatever its tokens: to count equal rows once would favour what is rare. A row that several
        groups claim goes to the one that claims most of this pass, of equals to the newest: an evaluation
        may draw the same tokens by chance.
        """
        newest_first = groups[::-1]
        common = [min(group.length, ids.shape[1]) for group in newest_first]
        known = {}
        for length in set(common):
            hashes = row_hashes(ids[:, :length])
            known[length] = hashes, (hashes[:, None] == hashes[None, :]).tril(-1).sum(1)
        picks = []
        for group, length in zip(newest_first, common, strict=True):
            hashes, before = known[length]
            free = group.open(hashes, length, role)
            picks.append(free & (free.cumsum(1) == before[:, None] + 1))
        if len(picks) > 1:
            claims = torch.stack([pick.any(1) for pick in picks])
            winner = (claims * claims.sum(1, keepdim=True)).argmax(0)
            picks = [pick & (winner == n)[:, None] for n, pick in enumerate(picks)]
        found = zip(newest_first, picks, common, strict=True)
        return [group.take(pick, length, role) for group, pick, length in found]
