"""Remembered rollouts: recognising, on the device, the rows of a forward pass that scores them.

A row is known by a 64-bit hash of its token ids. Kept of a rollout are the ids, the mask of sampled tokens and,
where a reference is scored too, one log-prob for each token. Nothing here waits for the device: which rows were
recognised is known there only, as masks.

A pass may be shorter or longer than the rollout: loops cut a micro-batch to its longest row, leave out the last
token, whose successor nobody knows, or pad rows of several rollouts to one length. It may also move rows: prompts that
were padded on the left for generate() are often scored without that padding, or with less of it. What both have of a
row's own tokens is compared. To know only rows of full length, or only rows in their old place, would be to choose rows
by what was drawn, and such tokens are no test of the sampler.

A row of the policy's pass that is none of these, but goes on from the prompt of a row that no pass scored with other
tokens than were drawn, is that row written anew: decoded and encoded again, most often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard.courier import at_hand

POLICY, REFERENCE = "policy", "reference"
MAX_GROUPS = 64
MAX_BYTES = 64 * 2**20

# The finaliser of SplitMix64 (Steele, Lea and Flood 2014), as signed numbers: id -> word; and an odd number with its
# inverse modulo 2^64, whose powers tell positions apart.
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """`words` >> by without the sign's copies: torch shifts int64 arithmetically."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _powers(of: int, count: int, device: torch.device) -> Tensor:
    """(count,) int64: of^0, of^1, ... modulo 2^64."""
    factors = torch.full((count,), _signed(of), dtype=torch.int64, device=device)
    return factors.cumprod(0) * _signed(pow(of, -1, 2**64))


def prefix_sums(ids: Tensor) -> Tensor:
    """(B, L + 1) int64: sums, modulo 2^64, of the words of the first 0, 1, ... L ids of each row (B, L) times powers
    of an odd number by position. From them `windows` gets the hash of any part of a row."""
    words = ids.long() + 1
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    words = (words ^ _shifted(words, 31)) * _powers(_BASE, ids.shape[1], ids.device)
    return nn.functional.pad(words.cumsum(1), (1, 0))


def windows(sums: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(B, M) int64 hashes of the `lengths` (B, M) ids from `starts` (B,) on in each row, whose `prefix_sums` (B, L + 1)
    are given: equal for equal ids, wherever they stand. Two that differ collide with a probability of about 2^-64."""
    before = sums.gather(1, starts[:, None])
    unmoved = _powers(_INVERSE, sums.shape[1], sums.device)[starts][:, None]
    return (sums.gather(1, starts[:, None] + lengths) - before) * unmoved


def row_hashes(ids: Tensor) -> Tensor:
    """(B,) int64 hashes of the rows of token ids (B, L)."""
    return prefix_sums(ids)[:, -1]


@dataclass(frozen=True)
class Recognised:
    """The rows of one forward pass (B', L') that score rows of a group (N, L) for the first time.

    pick  (B', N) bool, at most one True in each row and column; tokens (B', T') ids after the prompt that the pass may
    have logits for, T' <= T; mask (B', T') bool, the sampled ones that it has; offset (B',) the column of the pass's
    logits that is about the first of them, which differs between rows that were moved; context (B', P) the ids before.
    """

    group: Group
    pick: Tensor
    tokens: Tensor
    mask: Tensor
    offset: Tensor
    context: Tensor

    @property
    def rows(self) -> Tensor:
        """(B',) the group's row for each row of the pass; meaningless where `pick` has none."""
        return self.pick.int().argmax(1)


@dataclass(frozen=True)
class Pass:
    """A forward pass as its rows are compared: its ids (B', L'), their `prefix_sums` (B', L' + 1), the padding before
    them (B',), and `first`, the column from which on it has logits."""

    ids: Tensor
    sums: Tensor
    starts: Tensor
    first: int = 0

    @property
    def length(self) -> int:
        """L'."""
        return self.ids.shape[1]


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
        self.starts: Tensor | None = None
        self.altered: Tensor | None = None
        self._sums: Tensor | None = None

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

    def rewritten(self) -> Tensor | float:
        """() number of rows that no pass of the policy scored, while one went on from their prompt with other tokens."""
        done = self.done.get(POLICY)
        if done is None or self.altered is None:
            return 0.0
        return (self.altered & ~done.to(self.altered.device, non_blocking=True)).sum()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        kept = [
            self.sequences,
            self.mask,
            self._sums,
            *self.done.values(),
            *self.logprobs.values(),
            *self.scored.values(),
        ]
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def add(self, sequences: Tensor, mask: Tensor, starts: Tensor | None = None) -> None:
        """Remember more rows: sequences (B, L) ids, mask (B, T) bool, starts (B,) how many ids of padding come first."""
        self._sums = None
        sequences = sequences.detach().to(torch.int32, copy=True)
        if starts is None:
            starts = torch.zeros(len(sequences), dtype=torch.int64, device=sequences.device)
        starts = starts.clamp(max=self.prompt_length - 1)
        if self.sequences is None or self.mask is None or self.starts is None:
            self.sequences, self.mask, self.starts = sequences, mask.clone(), starts
            return
        device = self.sequences.device
        self.sequences = torch.cat((self.sequences, sequences.to(device, non_blocking=True)))
        self.mask = torch.cat((self.mask, mask.to(device, non_blocking=True)))
        self.starts = torch.cat((self.starts, starts.to(device, non_blocking=True)))
        rows, time = mask.shape
        if self.altered is not None:
            self.altered = torch.cat((self.altered, self.altered.new_zeros(rows)))
        for role, done in self.done.items():
            self.done[role] = torch.cat((done, done.new_zeros(rows)))
        for kept in (self.logprobs, self.scored):
            for role, values in kept.items():
                kept[role] = torch.cat((values, values.new_zeros((rows, time))))

    def _move(self, device: torch.device) -> None:
        """Have the rows where the pass is."""
        assert self.sequences is not None and self.mask is not None and self.starts is not None
        if self.sequences.device != device:
            self.sequences = self.sequences.to(device, non_blocking=True)
            self.mask = self.mask.to(device, non_blocking=True)
            self.starts = self.starts.to(device, non_blocking=True)
            self._sums = None

    def open(self, there: Pass, role: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B', N) bool: which rows not yet scored in `role` a pass scores; and which of them where they stood in the
        rollout. (B',) bool: which rows of the pass score any, be it again. A pass over prompts alone scores the rows
        that have one token, and says nothing of others."""
        self._move(there.sums.device)
        assert self.starts is not None
        unmoved = self._matches(there, torch.zeros_like(self.starts), torch.zeros_like(there.starts))
        padded = not at_hand(self.starts.device) or bool(self.starts.any() or there.starts.any())
        equal = unmoved | self._matches(there, self.starts, there.starts) if padded else unmoved
        done, known = self.done.get(role), equal.any(1)
        if done is not None:
            equal = equal & ~done.to(equal.device, non_blocking=True)[None, :]
        return equal, unmoved, known

    def _matches(self, there: Pass, starts: Tensor, theirs: Tensor) -> Tensor:
        """(B', N) bool: where the ids from `starts` (N,) on, up to the last that was sampled, are those of the pass from
        `theirs` (B',) on, as far as it goes, and its logits say something of the response."""
        assert self.mask is not None
        sampled, prompt, common = self._extent(there, starts, theirs)
        long_enough = (common > prompt) | ((common == prompt) & (sampled <= 1))
        scored = prompt[None, :] + theirs[:, None] > there.first
        return self._equal(there, starts, theirs, common) & long_enough & scored

    def _extent(self, there: Pass, starts: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) tokens sampled, (N,) ids of the prompt, and (B', N) how many ids of the two a row has in a pass."""
        assert self.mask is not None
        sampled = self.mask.sum(1)
        prompt = self.prompt_length - starts
        return sampled, prompt, torch.minimum((prompt + sampled)[None, :], (there.length - theirs)[:, None])

    def _equal(self, there: Pass, starts: Tensor, theirs: Tensor, lengths: Tensor) -> Tensor:
        """(B', N) bool: whether the first `lengths` (B', N) ids are the same."""
        assert self.sequences is not None
        if self._sums is None:
            self._sums = prefix_sums(self.sequences)
        return windows(there.sums, theirs, lengths) == windows(self._sums, starts, lengths.T).T

    def notice_altered(self, there: Pass, strange: Tensor, fillers: Tensor) -> None:
        """Mark the rows from whose prompt a `strange` (B',) row of a pass goes on with another token than was drawn: of
        several those it has most in common with. Tokens of `fillers` are no other token: a response may have been cut,
        and padded or ended there."""
        assert self.sequences is not None and self.starts is not None
        _, prompt, common = self._extent(there, self.starts, there.starts)
        prompts = torch.minimum(prompt[None, :].expand_as(common), common)
        alike = strange[:, None] & (common > prompt) & self._equal(there, self.starts, there.starts, prompts)
        low, high = prompts, common  # how many ids are the same: found by halving
        for _ in range((self.length - self.prompt_length).bit_length()):
            middle = (low + high + 1) // 2
            equal = self._equal(there, self.starts, there.starts, middle)
            low, high = torch.where(equal, middle, low), torch.where(equal, high, middle - 1)
        place = (there.starts[:, None] + low).clamp(max=there.length - 1)
        other = ~torch.isin(there.ids.gather(1, place), fillers)
        least_apart = low == torch.where(alike, low, -1).amax(1, keepdim=True)
        found = (alike & least_apart & (low < common) & other).any(0)
        self.altered = (
            found if self.altered is None else self.altered.to(found.device, non_blocking=True) | found
        )

    def take(self, pick: Tensor, unmoved: Tensor, there: Pass, role: str) -> Recognised:
        """Mark the rows of `pick` (B', N) as scored in `role` by a pass; `unmoved` as of `open`."""
        assert self.mask is not None and self.sequences is not None and self.starts is not None
        done = self.done.get(role)
        taken = pick.any(0)
        self.done[role] = taken if done is None else done.to(pick.device, non_blocking=True) | taken
        rows = pick.int().argmax(1)
        moved = torch.where((pick & ~unmoved).any(1), there.starts - self.starts[rows], 0)
        offset = self.prompt_length - 1 + moved - there.first
        time = min(self.length - self.prompt_length, there.length - there.first)
        sequences = self.sequences[rows].long()
        steps = torch.arange(time, device=pick.device)
        has_logits = offset[:, None] + steps < there.length - there.first
        mask = self.mask[rows, :time] & pick.any(1)[:, None] & has_logits
        tokens = sequences[:, self.prompt_length : self.prompt_length + time]
        return Recognised(self, pick, tokens, mask, offset, sequences[:, : self.prompt_length])

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

    def recognise(
        self,
        ids: Tensor,
        groups: list[Group],
        role: str,
        *,
        starts: Tensor | None = None,
        first: int = 0,
        fillers: Tensor | None = None,
    ) -> list[Recognised]:
        """The rows of `ids` (B', L') that score rows of `groups` for the first time in `role`, as far as both go.

        starts  (B',) how many ids of padding a row begins with; 0 where not known.
        first   the column from which on the pass has logits.
        fillers (n,) ids that may stand behind a response; without them, nobody looks for rows written anew.

        Of equal rows the k-th of the pass is the k-th that is still open, so that each is counted exactly
        once whatever its tokens: to count equal rows once would favour what is rare. A row that several
        groups claim goes to the one that claims most of this pass, of equals to the newest: an evaluation
        may draw the same tokens by chance.
        """
        if starts is None:
            starts = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        there = Pass(ids, prefix_sums(ids), starts.clamp(max=ids.shape[1] - 1), first)
        newest_first = groups[::-1]
        picks, places = [], []
        strange = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        for group in newest_first:
            free, unmoved, known = group.open(there, role)
            strange = strange & ~known
            alike = (free.float() @ free.float().T > 0).tril(-1)
            picks.append(free & (free.cumsum(1) == alike.sum(1)[:, None] + 1))
            places.append(unmoved)
        if len(picks) > 1:
            claims = torch.stack([pick.any(1) for pick in picks])
            winner = (claims * claims.sum(1, keepdim=True)).argmax(0)
            picks = [pick & (winner == n)[:, None] for n, pick in enumerate(picks)]
        if fillers is not None:
            for group in newest_first:
                group.notice_altered(there, strange, fillers)
        found = zip(newest_first, picks, places, strict=True)
        return [group.take(pick, unmoved, there, role) for group, pick, unmoved in found]
