"""The decorator's eyes on a loop with models of transformers: generate() is read as it is called, and forward
passes that score what it returned are recognised by their token ids, through DDP, FSDP, accelerate, PEFT, TRL's
value heads and torch.compile. The loop gets what it would have got, and nothing waits for the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from klguard.guard import live
from klguard.guard.caller import spot
from klguard.guard.courier import at_hand
from klguard.guard.events import Rollout
from klguard.guard.frameworks.capture import Prepared
from klguard.guard.frameworks.memory import POLICY, REFERENCE, Group, Memory, Recognised
from klguard.guard.frameworks.taps import CompiledTap, Generate, Tap
from klguard.guard.frameworks.wrappers import adapter_layer, adapters_in_use, chain, generator, hookable
from klguard.guard.kl import token_log_probs_at
from klguard.guard.plain import as_ids
from klguard.guard.rows import constants
from klguard.settings import Site


class Listener(Protocol):
    """Who is told. Failures of the watcher's own are taken by a listener that is a `Shielded`, else raised."""

    @property
    def version(self) -> int:
        """Updates of the policy's weights so far."""

    def generated(self, event: Rollout, site: Site) -> None:
        """generate() returned. Whether its tokens are trained on is not known yet."""

    def scored(
        self,
        role: str,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor,
        context_ids: Tensor,
        handle: int,
        columns: Tensor | None = None,
    ) -> Tensor | None:
        """A forward pass scored tokens of a rollout for the first time under the weights that drew them.

        role "policy" or "reference"; logits (B, T, V) with logits[b, t] for tokens[b, t], or, with `columns` (B, T),
            logits (B, L, V) with logits[b, columns[b, t]] for tokens[b, t]; views of the loop's memory, detached; mask
            (B, T) bool, perhaps all False: which rows were recognised is known on the device only; context_ids (B, P)
            what comes before. May return the tokens' log-probs (B, T), fp32.
        """

    def paired(self, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> None:
        """Both models have scored these tokens; (B, T) each, each token once."""

    def dropped(self, rows: Tensor | float, rewritten: Tensor | float) -> None:
        """() how many rows of a rollout that is over were never scored, where others were; and from the prompts of how
        many a pass went on with other tokens."""

    def boundary(self) -> None:
        """A new rollout begins under new weights, after one that was scored: a step is over. May raise."""


class Watcher:
    """Watches one policy, and the reference if there is one, for a listener.

    stop_ids   tokens that end a response, for a model whose generation config does not say.
    pad_id     the padding of prompts, which tells where rows begin in a call without an attention mask.
    paused     set by the listener while it uses the models itself: nothing is told meanwhile.

    While `paused` is set, forward passes are not the loop's own and are passed over.

    `install()` and `remove()` may be called more than once; also a context manager. After `remove()` nothing
    is left on the models.
    """

    def __init__(
        self,
        listener: Listener,
        policy: nn.Module,
        reference: nn.Module | None = None,
        *,
        stop_ids: tuple[int, ...] | None = None,
        pad_id: int | None = None,
    ) -> None:
        self.listener, self.policy, self.reference, self.stop_ids = listener, policy, reference, stop_ids
        self.pad_id = pad_id
        self.model = generator(policy)
        self.memory = Memory()
        self.paused = False
        self._layer: nn.Module | None = None
        self._hooks: list[Any] = []
        self._wrapper: Generate | None = None
        self._last: dict[str, tuple[Any, int, tuple[str, ...]]] = {}
        self.paused = False

    # -- coming and going --------------------------------------------------------------------------------------

    def install(self) -> None:
        """Begin to watch."""
        if self._hooks:
            return
        policy = chain(self.policy)
        self._layer = adapter_layer(policy[-1])
        self._hooks = [self._hook(module, POLICY) for module in hookable(policy)]
        others = [module for module in hookable(chain(self.reference)) if module not in policy]
        self._hooks += [self._hook(module, REFERENCE) for module in others]
        if self.model is not None:
            own = vars(self.model)
            self._wrapper = Generate(self, self.model, self.model.generate, own.get("generate"))
            own["generate"] = self._wrapper

    def _hook(self, module: nn.Module, role: str) -> Any:
        tap = Tap(self, role)
        if getattr(module, "_compiled_call_impl", None) is not None:
            return CompiledTap(module, tap)
        return module.register_forward_hook(tap, with_kwargs=True)

    def remove(self) -> None:
        """Stop watching, and forget."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            wrapper.remove()
        self._layer = None
        self._last.clear()
        self.memory.forget()

    def __enter__(self) -> Watcher:
        self.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # -- generate() --------------------------------------------------------------------------------------------

    def begins_a_step(self) -> bool:
        """Whether tokens drawn by other weights than the present ones were scored; such rollouts are forgotten."""
        version = self.listener.version
        over = any(group.seen and group.version != version for group in self.memory.groups)
        self.settle()
        return over

    def settle(self) -> None:
        """Forget rollouts of other weights than the present ones, and tell how many of their rows were never scored."""
        version = self.listener.version
        with _aside():
            for group in self.memory.groups:
                if group.version != version and group.seen:
                    self.listener.dropped(group.dropped(), group.rewritten())
        self.memory.forget(keep_version=version)

    @staticmethod
    def _sequences(output: Any) -> Tensor | None:
        """The ids (B, L) that generate() returned, None where it returned something else."""
        found = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        return found if isinstance(found, Tensor) and found.dim() == 2 else None

    def drawn(self, prepared: Prepared, args: tuple, kwargs: dict, output: Any) -> None:
        """Remember what generate() returned, and tell of it."""
        sequences = self._sequences(output)
        if sequences is None or sequences.dtype.is_floating_point:
            return
        with _aside():
            self.listener.generated(*self._rollout(sequences, prepared, args, kwargs))

    def _rollout(
        self, sequences: Tensor, prepared: Prepared, args: tuple, kwargs: dict
    ) -> tuple[Rollout, Site]:
        """What to tell of a call that returned `sequences` (B, L)."""
        assert self.model is not None
        call = live.Call.of(self.model, args, kwargs)
        where = spot()
        site = live.read_generate(
            self.model,
            prepared.config,
            prepared.processors,
            prepared.criteria,
            place=where.place,
            call=call,
            spot=where,
        )
        config = live.in_force(site) if prepared.config is None else prepared.config
        length = call.prompt_length if prepared.prompt_length is None else prepared.prompt_length
        responses = sequences[:, length:]
        mask = sampled(responses, self._stop_tokens(config), prepared.stopped.lengths, length)
        version = self.listener.version
        group = self.memory.group(site, version, length, sequences.shape[1], adapters_in_use(self._layer))
        copies = max(1, sequences.shape[0] // max(1, call.batch_size or 1))
        padded = None if call.encoder_decoder else _expanded(call.attention_mask, copies)
        group.add(sequences, mask, self._starts(sequences[:, :length], padded))
        self.memory.shrink()
        event = Rollout(
            place=where.place,
            responses=responses,
            mask=mask,
            prompts=_expanded(call.prompts, copies) if call.encoder_decoder else sequences[:, :length],
            attention_mask=_expanded(call.attention_mask, copies),
            stop_ids=self._stop_ids(config),
            max_new_tokens=_most_new_tokens(config, prepared.final, length),
            settings=site.settings,
            temperature=_temperature(config),
            handle=group.handle,
        )
        return event, site

    def _stop_tokens(self, config: Any) -> Any:
        """The tokens at which this call stops a row: a tuple of numbers, a tensor of them, or None.

        Those in force decide, also where there are none: what comes after any other token was drawn.
        """
        stop = getattr(config, "eos_token_id", self.stop_ids)
        return stop if isinstance(stop, Tensor) or stop is None else as_ids(stop)

    def _stop_ids(self, config: Any) -> tuple[int, ...] | None:
        """The same, where the host knows them."""
        stop = self._stop_tokens(config)
        return None if isinstance(stop, Tensor) else stop

    # -- forward passes ----------------------------------------------------------------------------------------

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """A forward pass of a watched model is over."""
        found = self._scoring(role, args, kwargs, output) if self.memory.groups else None
        if found is None:
            return
        role, ids, logits, groups = found
        with _aside():
            late = any(group.version != self.listener.version for group in self.memory.groups)
            for recognised in self._recognised(ids, logits, groups, role, kwargs, alone=not late):
                self._tell(role, logits, recognised)

    def _recognised(
        self, ids: Tensor, logits: Tensor, groups: list, role: str, kwargs: dict, *, alone: bool
    ) -> list[Recognised]:
        """alone: no other rollouts are remembered that the pass may score."""
        starts = self._starts(ids, kwargs.get("attention_mask"))
        first = ids.shape[1] - logits.shape[1]
        fillers = self._fillers(ids.device) if alone and role == POLICY else None
        return self.memory.recognise(ids, groups, role, starts=starts, first=first, fillers=fillers)

    def _fillers(self, device: torch.device) -> Tensor | None:
        """(n,) the ids that may stand behind a response, None where they are not known."""
        if self.stop_ids is None:
            return None
        known = {*self.stop_ids, *(() if self.pad_id is None else (self.pad_id,))}
        return constants(tuple(map(float, sorted(known))), device).long()

    def _starts(self, ids: Tensor, attention_mask: Any) -> Tensor | None:
        """(B,) how many ids of padding the rows of `ids` (B, L) begin with, by the attention mask, else by the
        padding itself, unless that may also be text. None where there is no telling."""
        if isinstance(attention_mask, Tensor) and attention_mask.shape == ids.shape:
            padding = attention_mask.to(ids.device, non_blocking=True) <= 0
        elif self.pad_id is not None and self.pad_id not in (self.stop_ids or (self.pad_id,)):
            padding = ids == self.pad_id
        else:
            return None
        return padding.long().cumprod(1).sum(1)

    def _scoring(
        self, role: str, args: tuple, kwargs: dict, output: Any
    ) -> tuple[str, Tensor, Tensor, list] | None:
        """(role, ids, logits, groups) of a pass that may score a remembered rollout, by what the host can see."""
        ids = self._ids(args, kwargs)
        if ids is None:
            return None
        logits = _logits(output, ids)
        if logits is None:
            return None
        version = self.listener.version
        adapters = adapters_in_use(self._layer) if role == POLICY else ()
        groups = [g for g in self.memory.groups if 0 < g.prompt_length < g.length and self._may_score(g, ids)]
        if role == POLICY and self._layer is not None:
            if any(group.adapters != adapters for group in groups):
                role = REFERENCE
                groups = [group for group in groups if group.adapters != adapters]
        late = [group for group in groups if role == POLICY and group.version != version]
        groups = [group for group in groups if group not in late]
        if not groups and not late:
            return None
        last = self._last.get(role)
        if last is not None and last[0]() is ids and last[1:] == (version, adapters):
            return None  # the same pass, seen from the wrapper around the model
        self._last[role] = (weakref.ref(ids), version, adapters)
        ids = ids.detach().to(logits.device, non_blocking=True)
        if late:  # no evidence, but their rows have been used
            with _aside():
                self._recognised(ids, logits, late, role, kwargs, alone=False)
        return (role, ids, logits.detach(), groups) if groups else None

    def _ids(self, args: tuple, kwargs: dict) -> Tensor | None:
        """The token ids (B, L) that went into a forward pass."""
        encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        name = "decoder_input_ids" if encoder_decoder else "input_ids"
        ids = kwargs.get(name, args[0] if args and not encoder_decoder else None)
        usable = isinstance(ids, Tensor) and ids.dim() == 2 and not ids.dtype.is_floating_point
        return ids if usable else None

    @staticmethod
    def _may_score(group: Group, ids: Tensor) -> bool:
        """Whether a pass of `ids` (B', L') is long enough: one token at a time is a sampler of the loop's own."""
        return ids.shape[1] >= min(group.prompt_length, 2)

    def _tell(self, role: str, logits: Tensor, found: Recognised) -> None:
        """Tell the listener of one group's rows in a pass, and of the pairs that it completes."""
        scores, columns, found = _placed(logits, found)
        group, more = found.group, {} if columns is None else {"columns": columns}
        logprobs = self.listener.scored(
            role, scores, found.tokens, found.mask, found.context, group.handle, **more
        )
        if self.reference is None and self._layer is None:
            return
        if logprobs is None:
            logprobs = token_log_probs_at(scores, found.tokens, columns)
        pair = self._paired(role, logprobs, found)
        if pair is not None:
            self.listener.paired(*pair)

    def _paired(self, role: str, logprobs: Tensor, found: Recognised) -> tuple[Tensor, Tensor, Tensor] | None:
        """(log-probs, reference log-probs, mask) of tokens that the other model has scored before."""
        found.group.keep(found, role, logprobs)
        other = found.group.kept(found, REFERENCE if role == POLICY else POLICY)
        if other is None:
            return None
        theirs, mask = other
        return (logprobs, theirs, mask) if role == POLICY else (theirs, logprobs, mask)


# -- what the host can see of a call -----------------------------------------------------------------------------


@contextmanager
def _aside() -> Iterator[None]:
    """A place to measure: no graph, and ordinary tensors also where the loop is in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _logits(output: Any, ids: Tensor) -> Tensor | None:
    """The logits (B, L', V) in what a forward pass of `ids` (B, L) returned, L' <= L; None where there are none."""
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, dict):
        found = output.get("logits")
    if found is None and isinstance(output, tuple):
        found = next((part for part in output if isinstance(part, Tensor) and part.dim() == 3), None)
    if found is None and isinstance(output, Tensor):
        found = output
    if not isinstance(found, Tensor) or found.dim() != 3 or hasattr(found, "full_tensor"):
        return None  # a vocabulary spread over ranks cannot be looked at without communication
    return found if found.shape[0] == ids.shape[0] and 0 < found.shape[1] <= ids.shape[1] else None


def _placed(logits: Tensor, found: Recognised) -> tuple[Tensor, Tensor | None, Recognised]:
    """The logits (B', T', V) of the tokens found, as a view, where all rows begin at one place and the host can see it;
    else all of them (B', L', V) with the columns (B', T') that are about the tokens."""
    if at_hand(logits.device):
        recognised = found.pick.any(1)
        places = found.offset[recognised].unique().tolist() or [0]
        if len(places) == 1:
            part = logits[:, places[0] : places[0] + found.tokens.shape[1]]
            time = part.shape[1]
            return part, None, replace(found, tokens=found.tokens[:, :time], mask=found.mask[:, :time])
    columns = found.offset[:, None] + torch.arange(found.tokens.shape[1], device=logits.device)
    return logits, columns.clamp(0, logits.shape[1] - 1), found


def _expanded(rows: Tensor | None, copies: int) -> Tensor | None:
    """(B * copies, P): each row (of B, P) as often as a response was drawn from it, as generate() orders them."""
    if rows is None or copies == 1:
        return rows
    return rows[:, None].expand(-1, copies, -1).reshape(-1, rows.shape[1])


def sampled(responses: Tensor, stop: Any, stopped: Tensor | None = None, prompt_length: int = 0) -> Tensor:
    """(B, T) bool, the tokens of `responses` (B, T) that were drawn: up to the first stop token, inclusive.

    stop     ids of stop tokens, in a tuple or a tensor, or None; by position, not by value: padding may be one.
    stopped  (B,) length with the prompt at which another criterion ended the row, below 0 where none did.
    """
    mask = torch.ones_like(responses, dtype=torch.bool)
    hits = torch.zeros_like(mask)
    if isinstance(stop, Tensor):
        ids = stop.to(responses.device, non_blocking=True).reshape(-1)
        hits = (responses[..., None] == ids).any(-1)
    else:
        for token in stop or ():
            hits = hits | (responses == token)
    mask = mask & (hits.cumsum(-1) - hits.long() == 0)
    if stopped is not None and stopped.shape[0] == responses.shape[0]:
        last = (stopped.to(responses.device, non_blocking=True) - prompt_length)[:, None]
        position = torch.arange(1, responses.shape[1] + 1, device=responses.device)
        mask = mask & ((last < 1) | (position <= last))
    return mask


def _most_new_tokens(config: Any, final: Any, prompt_length: int) -> int | None:
    """How many tokens a response could have had, None where not known."""
    most = getattr(config, "max_new_tokens", None)
    if most is None and final is not None and isinstance(getattr(final, "max_length", None), int):
        most = final.max_length - prompt_length
    return most if isinstance(most, int) and most > 0 else None


def _temperature(config: Any) -> float | None:
    """The temperature that tokens were drawn at; None where nothing was drawn at random."""
    if not getattr(config, "do_sample", False):
        return None
    value = getattr(config, "temperature", None)
    return 1.0 if value is None else float(value) if isinstance(value, int | float) else None
