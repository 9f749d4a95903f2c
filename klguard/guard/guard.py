"""The guard around a training loop: what the loop calls, and what happens when something does not hold.

Every public method is shielded: an error of the guard's own is caught, told once, and the guard steps aside.
A mistake in a call (shapes, types) is the caller's and is raised as ValueError or TypeError.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from klguard.findings import INTERNAL_ERROR, Confidence, Finding, Severity
from klguard.guard import events, kl, shapes
from klguard.guard.hooks import OptimizerHooks, extra_forward
from klguard.guard.invariants import Run
from klguard.guard.journal import Journal
from klguard.guard.live import caller, findings, read_object
from klguard.guard.metrics import flat, sink
from klguard.guard.ranks import Ranks
from klguard.guard.records import settings as settings_record
from klguard.guard.records import step_record, violation_record
from klguard.guard.violation import NOWHERE, GuardWarning, Reaction, Reporter, Violation
from klguard.guard.works import Outcome, Works
from klguard.settings import Place, Site

LOG = logging.getLogger("klguard")

SEPARATE_ENGINE = 1e-2
"""Tolerance in nats per token where another engine drew the tokens."""

HALF_PRECISION = 1e-3
SINGLE_PRECISION = 1e-4
"""Tolerances where the policy itself drew the tokens, by the precision it computes in."""

_HALF = (torch.bfloat16, torch.float16)
_WATCHED: set[int] = set()
"""Policies (by id) that a guard is watching: two would wrap the same methods, and take them off in any order."""


def _shielded(default: Callable[..., Any] | None = None) -> Callable:
    """Run a method under the guard's lock; on an error of the guard's own, step aside and answer `default`."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self: Guard, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if not self._aside:
                    try:
                        with torch.inference_mode(False):
                            return method(self, *args, **kwargs)
                    except Violation:
                        raise
                    except Exception as error:  # noqa: BLE001  whatever it is, the run must go on
                        if self._is_callers(error):
                            raise
                        self._step_aside(error)
                return default(self, *args, **kwargs) if default else None

        return call

    return decorate


def _plain_logprobs(self: Guard, logits: Tensor, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
    index = tokens.clamp(0, logits.shape[-1] - 1).long()
    return torch.log_softmax(logits.float(), -1).gather(-1, index[..., None]).squeeze(-1)


def _plain_kl(
    self: Guard, logprobs: Tensor, reference: Tensor, mask: Tensor | None = None, *, estimator: str = "k1"
) -> Tensor:
    difference = reference.float() - logprobs.float()
    value = {"k1": lambda: -difference, "k2": lambda: difference**2 / 2}.get(
        estimator, lambda: torch.expm1(difference) - difference
    )()
    return value if mask is None else torch.where(mask > 0, value, torch.zeros_like(value))


class Guard:
    """Asserts that KL is what it claims to be, and that the loop around it is correct.

    policy, reference, tokenizer   what the loop trains, compares with and decodes by; each may be left out,
        and what needs it is then not checked.
    on_violation   "raise" a Violation (an AssertionError), "warn", "record", or a function of a Finding.
        Findings that are warnings only warn.
    alpha          probability of a false alarm, in the whole run, of all statistical tests together.
    tolerance      numeric noise in nats per token that is no evidence; None chooses 1e-4 in fp32, 1e-3 in
        half precision and 1e-2 where another engine sampled. Set it before the run, never from the run.
    kl_range       nats per sequence in which the KL has to stay, over windows of ten steps.
    kl_coef        coefficient of the KL penalty: prices the harm in reward.
    eos_token_id   one id or several that end a response; from the policy or the tokenizer when None.
    sample_tokens  positions to test in a step, valid or not: bounds time and memory.
    seed           of the guard's own random numbers. The global ones are never used.
    journal        a file that gets a JSON line for each step and violation (`klguard report` reads it).
    strict         raise the guard's own errors instead of stepping aside, and read each step at once.
    ignore         codes, beginnings of codes, or names that are not reported.
    logger         where metrics go: a SummaryWriter, W&B or trackio run, accelerate.Accelerator, or a function
        of (dict, step).
    optimizer, scheduler, max_grad_norm, group_size, adapter_base   parts of the loop that are checked; can
        be given later by `watch`.

    Use it as a decorator or context manager around the loop, or call its events by hand; both together work.
    """

    def __init__(
        self,
        policy: nn.Module | None = None,
        reference: nn.Module | None = None,
        tokenizer: Any = None,
        *,
        on_violation: Reaction = "raise",
        alpha: float = 1e-6,
        tolerance: float | None = None,
        kl_range: tuple[float, float] = (0.0, 10.0),
        kl_coef: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        sample_tokens: int = 1024,
        seed: int = 0,
        journal: str | PathLike[str] | None = None,
        strict: bool = False,
        ignore: Collection[str] = (),
        logger: Any = None,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        scheduler: Any = None,
        max_grad_norm: float | None = None,
        group_size: int | None = None,
        adapter_base: nn.Module | None = None,
    ) -> None:
        _check_options(alpha, tolerance, kl_range, sample_tokens)
        self._lock = threading.RLock()
        self._aside = False
        self._depth = 0
        self._strict = strict
        self._tolerance = tolerance
        self._reporter = Reporter(on_violation, ignore)
        self._ranks = Ranks()
        stop_ids = _ids(eos_token_id) if eos_token_id is not None else _stop_ids(policy, tokenizer)
        run = Run(
            policy=policy,
            reference=reference,
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            kl_coef=kl_coef,
            alpha=alpha,
            kl_range=kl_range,
            seed=seed,
            forward=functools.partial(extra_forward, self),
        )
        self._works = Works(
            run,
            sample_tokens=sample_tokens,
            patient=strict,
            ranks=self._ranks,
            vocabulary=_vocabulary(policy) if self._ranks.active else None,
        )
        self._hooks = OptimizerHooks(self)
        self._watcher: Any = None
        self._begun = False
        self._said_blind = False
        self._reset_step()
        self._metrics: dict[str, float] = {}
        self.failure: BaseException | None = None
        self.watch(
            optimizer=optimizer,
            scheduler=scheduler,
            max_grad_norm=max_grad_norm,
            group_size=group_size,
            adapter_base=adapter_base,
        )
        self._sink = None if logger is None else sink(logger)
        self._journal_path = journal if self._ranks.rank == 0 else None
        self._journal_settings = settings_record(run, self._ranks.size, on_violation, sample_tokens, tolerance)
        self._journal: Journal | None = None
        self._open_journal()

    # ------------------------------------------------------------------------------------------- around the loop

    def __call__(self, function: Callable) -> Callable:
        """Guard a training function, plain or async: everything of `with guard:` holds while it runs."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return guarded_async

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return guarded

    def __enter__(self) -> Guard:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return self
            policy = self._works.run.policy
            if policy is not None and id(policy) in _WATCHED:
                self._depth -= 1
                raise RuntimeError("another guard is watching this policy: use one guard for each policy")
            if policy is not None:
                _WATCHED.add(id(policy))
        try:
            self._install()
            self._begin(settle=True)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        with self._lock:
            if self._depth > 1:
                self._depth -= 1
                return
        try:
            self._finish(failing=error is not None)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._depth = 0
            policy = self._works.run.policy
            if policy is not None:
                _WATCHED.discard(id(policy))
        self._uninstall()

    @_shielded()
    def _install(self) -> None:
        from klguard.guard.frameworks.transformers import Watcher

        self._hooks.install()
        run = self._works.run
        if isinstance(run.policy, nn.Module) and hasattr(_bare(run.policy), "generate"):
            self._watcher = Watcher(self, run.policy, run.reference, stop_ids=run.stop_ids)
            self._watcher.install()

    def _uninstall(self) -> None:
        watcher, self._watcher = self._watcher, None
        removals = [self._hooks.remove]
        removals += [watcher.remove] if watcher is not None else []
        removals += [i.close for i in self._works.invariants if hasattr(i, "close")]
        for remove in removals:
            try:
                remove()
            except Exception as error:  # noqa: BLE001  the other hooks have to go all the same
                self._step_aside(error)

    @_shielded()
    def _finish(self, failing: bool) -> None:
        """The loop is over: judge what is left. Nothing is raised over an error of the loop's own, and ranks
        are not asked to agree then: the others may never come."""
        if self._step_open and not failing:
            self._close(None)
        outcomes = list(self._works.flush())
        if failing:
            self._absorb(outcomes)
        else:
            self._settle(outcomes)
        self.close("raised" if failing else "finished")

    def close(self, outcome: str = "finished") -> None:
        """End the journal. `with guard:` and the decorator do it by themselves."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close(outcome)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Do not take what the models do meanwhile for the loop's doing."""
        watcher = self._watcher
        if watcher is None:
            yield
            return
        before, watcher.paused = watcher.paused, True
        try:
            yield
        finally:
            watcher.paused = before

    @property
    def policy(self) -> nn.Module | None:
        """The model that is trained."""
        return self._works.run.policy

    # ------------------------------------------------------------------------------------------- parts of the loop

    def watch(
        self,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        scheduler: Any = None,
        max_grad_norm: float | None = None,
        group_size: int | None = None,
        adapter_base: nn.Module | None = None,
        kl_coef: float | None = None,
    ) -> Guard:
        """Name parts of the loop that were not there when the guard was made. Returns the guard."""
        run = self._works.run
        given = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
        for one in given:
            self._hooks.watch(one)
        run.scheduler = run.scheduler if scheduler is None else scheduler
        run.max_grad_norm = run.max_grad_norm if max_grad_norm is None else max_grad_norm
        run.group_size = run.group_size if group_size is None else group_size
        run.adapter_base = run.adapter_base if adapter_base is None else adapter_base
        run.kl_coef = run.kl_coef if kl_coef is None else kl_coef
        return self

    @_shielded()
    def preflight(self, **functions: Any) -> None:
        """Try the loop's own functions before training, on a small batch: see `events.Preflight` for what
        can be given. Raises what it finds at once."""
        place = caller()
        self._begin(settle=False)
        self._works.dispatch(_event(events.Preflight, place, functions))
        self._between_steps(place)

    # ------------------------------------------------------------------------------------------- events

    @_shielded()
    def rollout(
        self,
        responses: Tensor,
        mask: Tensor | None = None,
        *,
        stop_token_ids: int | Sequence[int] | None = None,
        settings: Any = None,
        weights_version: int | None = None,
        **details: Any,
    ) -> None:
        """The sampler returned `responses` (B, T).

        mask       (B, T), or (B, P + T) over whole sequences when `prompts` (B, P) are given.
        settings   the GenerationConfig, SamplingParams or dict it was sampled with.
        More: prompts, attention_mask, tool_mask, max_new_tokens, groups, rows, temperature, texts, filtered,
        allowed_lag, as in `events.Rollout`.
        """
        place = caller()
        self._checked(shapes.check_rollout, responses, mask, details.get("prompts"))
        self._begin(settle=False)
        site = None
        if settings is not None:
            site = self._checked(read_object, settings, place=place)
        event = _event(
            events.Rollout,
            place,
            dict(
                responses=responses.detach(),
                mask=None if mask is None else kl.valid_tokens(mask.detach()),
                stop_ids=_ids(stop_token_ids) if stop_token_ids is not None else self._works.run.stop_ids,
                settings=None if site is None else site.settings,
                version=weights_version,
                **details,
            ),
        )
        self._works.rollout(event, site, [] if site is None else findings(site))
        self._step_open = True

    @_shielded(_plain_logprobs)
    def logprobs(
        self,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        reference_logits: Tensor | None = None,
        context_ids: Tensor | None = None,
        sampler_logprobs: Tensor | None = None,
        stale_logprobs: Tensor | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """log p of each token, natural, fp32 (B, T), from shifted logits (B, T, V); and the evidence with it.

        `logits[b, t]` is what scored `tokens[b, t]`. Call it once for each sampled token, before the first
        update, with the tokens as they were sampled. mask (B, T) is true where the policy drew the token.
        reference_logits (B, T, V) adds the exact KL; context_ids (B, P) the prompt, for repetition penalties;
        sampler_logprobs (B, T) what the engine returned; stale_logprobs (B, T) those of earlier weights.
        temperature is what the logits were already divided by.

        A gradient flows where the logits have one, as through log_softmax; the guard's own statistics never
        take part. Raises ValueError and TypeError for shapes and types that do not fit together.
        """
        place = caller()
        self._checked(shapes.check_shapes, logits, tokens, mask, reference_logits)
        for name, values in (("sampler_logprobs", sampler_logprobs), ("stale_logprobs", stale_logprobs)):
            self._checked(shapes.check_alike, name, values, tokens)
        answer = kl.token_log_probs(logits, tokens)
        with torch.no_grad():
            reference = None if reference_logits is None else kl.token_log_probs(reference_logits.detach(), tokens)
            self._score(
                events.Scoring(
                    place=place,
                    logits=logits.detach(),
                    tokens=tokens,
                    mask=_mask(mask, tokens),
                    logprobs=answer.detach(),
                    reference_logits=None if reference_logits is None else reference_logits.detach(),
                    reference_logprobs=reference,
                    context_ids=context_ids,
                    sampler_logprobs=_detached(sampler_logprobs),
                    stale_logprobs=_detached(stale_logprobs),
                    temperature=temperature,
                    dtype=self._precision(logits),
                ),
                source="logprobs",
            )
        return answer

    @_shielded()
    def observe(
        self,
        logprobs: Tensor,
        mask: Tensor | None = None,
        *,
        reference_logprobs: Tensor | None = None,
        sampler_logprobs: Tensor | None = None,
        stale_logprobs: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> None:
        """Scored tokens of which only log-probs (B, T) are known. Only the hypotheses that need no logits can
        be tested then: the cumulative k1, the engine's log-probs, earlier weights."""
        place = caller()
        given = {
            "mask": mask,
            "reference_logprobs": reference_logprobs,
            "sampler_logprobs": sampler_logprobs,
            "stale_logprobs": stale_logprobs,
        }
        for name, values in given.items():
            self._checked(shapes.check_alike, name, values, logprobs, "logprobs")
        if not self._said_blind:
            self._said_blind = True
            LOG.warning(
                "klguard sees log-probs without logits: it tests the cumulative KL, and the engine's or earlier"
                " log-probs where given, but cannot tell top-k, temperature and the like by themselves"
            )
        with torch.no_grad():
            self._score(
                events.Scoring(
                    place=place,
                    logprobs=kl.upcast(logprobs.detach()),
                    mask=_mask(mask, logprobs),
                    tokens=tokens,
                    reference_logprobs=_detached(reference_logprobs),
                    sampler_logprobs=_detached(sampler_logprobs),
                    stale_logprobs=_detached(stale_logprobs),
                    dtype=self._precision(logprobs),
                ),
                source="observe",
            )

    @_shielded(_plain_kl)
    def kl(
        self,
        logprobs: Tensor,
        reference_logprobs: Tensor,
        mask: Tensor | None = None,
        *,
        estimator: str = "k1",
        values: Tensor | None = None,
    ) -> Tensor:
        """The KL estimate of each token, (B, T) nats, 0 where masked: k1, k2 or k3 (Schulman 2020).

        `values` are the loop's own estimates, to be checked; the answer is the guard's. Tokens that were not
        yet paired with their reference by `logprobs` or `observe` in this step count for the cumulative KL.
        """
        place = caller()
        answer = self._checked(kl.estimate, logprobs, reference_logprobs, mask, estimator=estimator)
        with torch.no_grad():
            event = events.KL(
                place=place,
                values=answer.detach() if values is None else values.detach(),
                logprobs=kl.upcast(logprobs.detach()),
                reference_logprobs=kl.upcast(reference_logprobs.detach()),
                mask=_mask(mask, logprobs),
                estimator=estimator,
                requires_grad=answer.requires_grad,
            )
            self._begin(settle=False)
            self._works.dispatch(event)
            if self._pair("kl"):
                self._works.dispatch(
                    events.Pairs(
                        place=place,
                        logprobs=event.logprobs,
                        reference_logprobs=event.reference_logprobs,
                        mask=event.mask,
                        eps=self._eps(self._precision(logprobs), False),
                    )
                )
            self._step_open = True
        return answer

    @_shielded()
    def rewards(self, scores: Tensor, **details: Any) -> None:
        """Scores (B,) of the responses. More: texts, recompute, token_rewards, kl, kl_coef, mask, as in
        `events.Rewards`."""
        combined = (details.get("token_rewards"), details.get("kl"))
        differentiated = any(isinstance(one, Tensor) and one.requires_grad for one in combined)
        self._tell(events.Rewards, dict(scores=scores, requires_grad=differentiated, **details))

    @_shielded()
    def advantages(self, advantages: Tensor, mask: Tensor, **details: Any) -> None:
        """Advantages (B, T) or (B,) as they enter the loss. More: raw, values, rewards, returns, gamma, lam,
        whitened, groups, group_size, scores, as in `events.Advantages`."""
        self._tell(events.Advantages, dict(advantages=advantages, mask=mask, **details))

    @_shielded()
    def minibatch(
        self,
        new_logprobs: Tensor,
        old_logprobs: Tensor,
        mask: Tensor | None = None,
        *,
        advantages: Tensor | None = None,
        kl_term: Tensor | None = None,
        **details: Any,
    ) -> None:
        """A minibatch's forward pass, before its update: log-probs (B, T) under the current weights and those
        of the rollout. `kl_term` is the KL term as it enters the loss. More: tokens, rows, epoch, clip_range,
        reported, entropy, as in `events.Minibatch`."""
        self._checked(shapes.check_alike, "old_logprobs", old_logprobs, new_logprobs, "new_logprobs")
        self._checked(shapes.check_alike, "mask", mask, new_logprobs, "new_logprobs")
        self._tell(
            events.Minibatch,
            dict(
                new=new_logprobs.detach(),
                old=old_logprobs.detach(),
                mask=_mask(mask, new_logprobs),
                advantages=_detached(advantages),
                first=self._weights() == self._scored_under,
                by_construction=new_logprobs.data_ptr() == old_logprobs.data_ptr(),
                kl_loss_requires_grad=None if kl_term is None else kl_term.requires_grad,
                new_requires_grad=new_logprobs.requires_grad,
                dtype=new_logprobs.dtype if new_logprobs.dtype in _HALF else self._precision(new_logprobs),
                **details,
            ),
        )

    @_shielded()
    def step(self, **figures: Any) -> None:
        """The step is over: this is where a violation is told. Under torch.distributed every rank has to call
        it, as often as the others. Figures: rewards, loss, grad_norm, entropy, kl, kl_unit, kl_estimator,
        kl_coef, controller_kl, controller_unit, lengths, truncated, explained_variance, as in
        `events.StepEnd`."""
        place = caller()
        self._begin(settle=False)
        self._works.dispatch(_event(events.StepEnd, place, figures))
        self._figures = figures
        self._settle(self._close(place))

    # ------------------------------------------------------------------------------------------- what it knows

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each thing once. Reads what is under way on the device."""
        if not self._aside:
            self._collect()
        return list(self._reporter.findings)

    @property
    def evidence(self) -> Any:
        """The evidence: `log_evidence` in nats, `causes` with their posterior weights, after the last step."""
        return self._works.evidence

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last step, flat, named `klguard/...`."""
        return dict(self._metrics)

    @property
    def exercised(self) -> set[str]:
        """Codes of the invariants that really looked at something so far."""
        return {invariant.code for invariant in self._works.invariants if invariant.exercised}

    @property
    def version(self) -> int:
        """Updates of the policy's weights that the guard has seen."""
        return self._works.run.version

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on; take it between two steps and save it with the run."""
        with self._lock:
            self._collect()
            seen = [list(key) for key in sorted(self._reporter.seen)]
            return {"works": self._works.state_dict(), "seen": seen, "aside": self._aside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. ValueError when it is not one, or of another guard's making."""
        missing = {"works", "seen", "aside"} - set(state)
        if missing:
            raise ValueError(f"not a state of a klguard.Guard: it lacks {', '.join(sorted(missing))}")
        with self._lock:
            self._works.load_state_dict(state["works"])
            self._reporter.seen = {tuple(key) for key in state["seen"]}
            self._aside = state["aside"]
            self._reset_step()

    # ------------------------------------------------------------------------------------------- the watcher speaks

    @_shielded()
    def generated(self, event: events.Rollout, site: Site) -> None:
        """generate() returned. Its settings are judged once its tokens have been scored."""
        self._begin(settle=False)
        self._works.rollout(event, site, findings(site))

    @_shielded()
    def scored(
        self, role: str, logits: Tensor, tokens: Tensor, mask: Tensor, context_ids: Tensor | None, handle: int
    ) -> None:
        """The policy scored a rollout that generate() returned."""
        if role != "policy":
            return
        logprobs = kl.token_log_probs(logits.detach(), tokens)
        self._works.matched(handle, mask)
        self._score(
            events.Scoring(
                logits=logits.detach(),
                tokens=tokens,
                mask=mask,
                logprobs=logprobs,
                context_ids=context_ids,
                dtype=self._precision(logits),
            ),
            source="watcher",
        )

    @_shielded()
    def paired(self, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> None:
        """Both models have scored these tokens."""
        if self._pair("watcher"):
            eps = self._eps(self._precision(logprobs), False)
            self._works.dispatch(
                events.Pairs(logprobs=logprobs, reference_logprobs=reference_logprobs, mask=mask, eps=eps)
            )

    @_shielded()
    def boundary(self) -> None:
        """A new rollout begins under new weights: the step before is over, unless the loop says so itself."""
        if self._step_open and not self._stepped_by_hand:
            self._settle(self._close(caller()))

    @_shielded()
    def updated(self, optimizer: torch.optim.Optimizer, after: bool, owns: bool) -> None:
        """optimizer.step() is about to run, or has run. `owns`: some of its parameters are the policy's."""
        run = self._works.run
        if not any(one is optimizer for one in run.optimizers):
            run.optimizers.append(optimizer)
        self._begin(settle=False)
        run.version += after and owns
        self._works.dispatch(events.Update(optimizer=optimizer, after=after))

    # ------------------------------------------------------------------------------------------- inside

    def _tell(self, kind: type[events.Event], fields: dict[str, Any]) -> None:
        place = caller()
        self._begin(settle=False)
        self._works.dispatch(_event(kind, place, fields))
        self._step_open = True

    def _begin(self, *, settle: bool) -> None:
        """Look once at what the guard was given. `settle`: say what is wrong with it now."""
        if not self._begun:
            self._begun = True
            self._look_at_setup()
        if settle:
            self._between_steps(None)

    @_shielded()
    def _look_at_setup(self) -> None:
        self._works.dispatch(events.Setup(place=caller()))

    @_shielded()
    def _between_steps(self, place: Place | None) -> None:
        self._settle(list(self._works.close(place, counted=False)))

    def _score(self, event: events.Scoring, source: str) -> None:
        self._begin(settle=False)
        self._step_open = True
        weights = self._weights()
        if self._scored_under is None:
            self._scored_under = weights
        if weights != self._scored_under:
            if not self._said_late:
                self._said_late = True
                LOG.warning(
                    "klguard leaves out log-probs that were computed after an update in the same step: only the"
                    " weights that sampled can be tested. Score the rollout before the first update"
                )
            return
        eps = self._eps(event.dtype, event.sampler_logprobs is not None)
        self._works.score(event, eps, pairs=event.reference_logprobs is not None and self._pair(source))

    def _pair(self, source: str) -> bool:
        """Whether pairs of log-probs from this call count: the first source of a step does, so that no token
        counts twice."""
        if self._paired_by is None:
            self._paired_by = source
        return self._paired_by == source

    def _weights(self) -> tuple[int, int]:
        """Changes whenever the policy's weights do, as far as it can be seen without looking at them."""
        policy = self._works.run.policy
        counters = 0 if policy is None else sum(p._version for p in policy.parameters())
        return self._works.run.version, counters

    def _eps(self, dtype: torch.dtype, separate_engine: bool) -> float:
        if self._tolerance is not None:
            return self._tolerance
        if separate_engine:
            return SEPARATE_ENGINE
        return HALF_PRECISION if dtype in _HALF else SINGLE_PRECISION

    def _precision(self, values: Tensor) -> torch.dtype:
        """The precision the policy computes in: of its logits, its weights, or of autocast."""
        if values.dtype in _HALF:
            return values.dtype
        if torch.is_autocast_enabled(values.device.type):
            return torch.get_autocast_dtype(values.device.type)
        policy = self._works.run.policy
        weights = next((p.dtype for p in policy.parameters() if p.is_floating_point()), None) if policy else None
        return weights if weights in _HALF else torch.float32

    def _close(self, place: Place | None) -> list[Outcome]:
        self._stepped_by_hand = self._stepped_by_hand or place is not None
        outcomes = list(self._works.close(place))
        self._reset_step()
        return outcomes

    def _reset_step(self) -> None:
        self._step_open = False
        self._stepped_by_hand = False
        self._scored_under: tuple[int, int] | None = None
        self._paired_by: str | None = None
        self._said_late = False
        self._figures: dict[str, Any] = {}

    @_shielded()
    def _collect(self) -> None:
        self._absorb(self._works.flush())

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell what was found in the steps that arrived, and react to it."""
        self._reporter.react(self._absorb(outcomes))

    def _absorb(self, outcomes: Any) -> list[Finding]:
        new: list[Finding] = []
        for outcome in outcomes:
            if outcome.failed:
                raise RuntimeError("the guard of another rank failed")
            fresh = self._reporter.take(outcome.findings)
            new += fresh
            self._record(outcome, fresh)
        return new

    def _record(self, outcome: Outcome, fresh: Sequence[Finding]) -> None:
        if outcome.counted:
            record = step_record(self._works, outcome, {})
            self._metrics = flat(record)
            if self._sink is not None and self._ranks.rank == 0:
                self._sink(self._metrics, outcome.step)
            if journal := self._open_journal():
                journal.step(record)
        for item in fresh:
            if journal := self._open_journal():
                journal.violation(item, violation_record(item))

    def _open_journal(self) -> Journal | None:
        """The journal, opened again when the guard is used on after `close`."""
        if self._journal is None and self._journal_path is not None:
            self._journal = Journal(self._journal_path, settings=self._journal_settings)
        return self._journal

    def _checked(self, check: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call what judges the caller's own input: its ValueError and TypeError are the caller's."""
        try:
            return check(*args, **kwargs)
        except (ValueError, TypeError) as error:
            error._klguard_caller = True
            raise

    @staticmethod
    def _is_callers(error: BaseException) -> bool:
        return getattr(error, "_klguard_caller", False)

    def _step_aside(self, error: BaseException) -> None:
        """The guard has failed: say so once, tell the other ranks, and leave the loop alone."""
        if self._strict:
            raise error
        if self._aside:
            return
        self._aside, self.failure = True, error
        code, name = INTERNAL_ERROR
        message = f"the guard failed and has stepped aside, the run goes on unguarded: {type(error).__name__}: {error}"
        self._reporter.findings.append(
            Finding(code, name, Severity.WARNING, Confidence.HIGH, message, NOWHERE)
        )
        LOG.warning(message, exc_info=error)
        with warnings.catch_warnings():
            warnings.simplefilter("always", GuardWarning)
            warnings.warn(message, GuardWarning, stacklevel=4)


def _check_options(
    alpha: float, tolerance: float | None, kl_range: tuple[float, float], sample_tokens: int
) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} is a probability: choose it between 0 and 1, such as 1e-6")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance!r} is in nats per token: 0 or more, such as 1e-4")
    if len(kl_range) != 2 or not kl_range[0] < kl_range[1]:
        raise ValueError(f"kl_range={kl_range!r} has to be (low, high) in nats per sequence, such as (0.0, 10.0)")
    if not isinstance(sample_tokens, int) or sample_tokens < 1:
        raise ValueError(f"sample_tokens={sample_tokens!r} counts positions to test in a step: at least 1")


def _event(kind: type[events.Event], place: Place | None, fields: Mapping[str, Any]) -> events.Event:
    """An event of `kind`; a field it does not have is the caller's mistake."""
    known = kind.__dataclass_fields__
    unknown = [name for name in fields if name not in known]
    if unknown:
        error = TypeError(f"unknown argument {unknown[0]!r}: choose from {', '.join(n for n in known if n != 'place')}")
        error._klguard_caller = True
        raise error
    plain = {name: _detached(v) if isinstance(v, Tensor) else v for name, v in fields.items()}
    return kind(place=place, **plain)


def _detached(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach()


def _mask(mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return kl.valid_tokens(mask.detach())


def _ids(value: int | Sequence[int] | Tensor) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    return (value,) if isinstance(value, int) else tuple(sorted({int(one) for one in value}))


def _bare(module: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP, FSDP and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None) or (
            module.module if not hasattr(module, "generate") and hasattr(module, "module") else None
        )
        if inner is None:
            return module
        module = inner


def _stop_ids(policy: nn.Module | None, tokenizer: Any) -> tuple[int, ...] | None:
    """The tokens that end a response, from the policy's generation config, else from the tokenizer."""
    config = getattr(_bare(policy), "generation_config", None) if policy is not None else None
    for owner in (config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            return _ids(value)
    return None


def _vocabulary(policy: nn.Module | None) -> int | None:
    """Number of logits of the policy, where its output layer tells."""
    find = getattr(_bare(policy), "get_output_embeddings", None) if policy is not None else None
    layer = find() if find else None
    return None if getattr(layer, "weight", None) is None else int(layer.weight.shape[0])
