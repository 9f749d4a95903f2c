"""The guard around a training loop: what the loop calls.

Every public method is shielded: an error of the guard's own is caught, told once, and the guard steps aside.
A mistake in a call (shapes, types) is the caller's and is raised as ValueError or TypeError.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from klguard.findings import Finding
from klguard.guard import events, kl, options, shapes, told
from klguard.guard.around import Around
from klguard.guard.evidence import Evidence
from klguard.guard.hooks import extra_forward
from klguard.guard.invariants import Run
from klguard.guard.listening import HALF, as_mask, detached, event_of
from klguard.guard.live import caller, findings, read_object
from klguard.guard.mirrored import temperature_of
from klguard.guard.ranks import Ranks
from klguard.guard.records import settings as journal_settings
from klguard.guard.shield import LOG, callers, shielded
from klguard.guard.violation import Reaction
from klguard.guard.works import Works
from klguard.settings import Site


def _plain_logprobs(self: Guard, logits: Tensor, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
    index = tokens.clamp(0, logits.shape[-1] - 1).long()
    return torch.log_softmax(logits.float(), -1).gather(-1, index[..., None]).squeeze(-1)


def _plain_kl(
    self: Guard,
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    *,
    estimator: str = "k1",
    values: Tensor | None = None,
) -> Tensor:
    difference = reference.float() - logprobs.float()
    exact = difference if values is None else values
    value = {"exact": lambda: exact, "k1": lambda: -difference, "k2": lambda: difference**2 / 2}.get(
        estimator, lambda: torch.expm1(difference) - difference
    )()
    return value if mask is None else torch.where(mask > 0, value, torch.zeros_like(value))


class Guard(Around):
    """Asserts that KL is what it claims to be, and that the loop around it is correct.

    policy, reference, tokenizer   what the loop trains, compares with and decodes by; each may be left out,
        and what needs it is then not checked.
    on_violation   "raise" a Violation (an AssertionError), "warn", "record", or a function of a Finding.
        Findings that are warnings only warn.
    alpha          probability of a false alarm, in the whole run, of all statistical tests together.
    tolerance      numeric noise in nats per token that is no evidence; None chooses 1e-4 in fp32, 1e-3 in
        half precision and 1e-2 where another engine sampled. Set it before the run, never from the run.
    kl_range       nats per sequence in which the KL has to stay, over windows of ten steps. Above the default is
        only warned of, and from half a nat per token on where responses are long.
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
        options.check_models(policy, reference)
        options.check_options(alpha, tolerance, kl_range, sample_tokens, seed)
        ends = told.token_ids("eos_token_id", eos_token_id) if eos_token_id is not None else None
        run = Run(
            policy=policy,
            reference=reference,
            tokenizer=tokenizer,
            stop_ids=ends or options.stop_ids(policy, tokenizer),
            kl_coef=None if kl_coef is None else told.amount("kl_coef", kl_coef),
            alpha=alpha,
            kl_range=kl_range,
            seed=seed,
            forward=functools.partial(extra_forward, self),
        )
        ranks = Ranks()
        works = Works(
            run,
            sample_tokens=sample_tokens,
            patient=strict,
            ranks=ranks,
            vocabulary=options.vocabulary(policy) if ranks.active else None,
        )
        super().__init__(
            works,
            strict=strict,
            on_violation=on_violation,
            ignore=ignore,
            logger=logger,
            journal=journal,
            settings=journal_settings(run, ranks.size, on_violation, sample_tokens, tolerance),
            tolerance=tolerance,
        )
        self.watch(
            optimizer=optimizer,
            scheduler=scheduler,
            max_grad_norm=max_grad_norm,
            group_size=group_size,
            adapter_base=adapter_base,
        )

    # ------------------------------------------------------------------------------- parts of the loop

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
        if scheduler is not None:
            run.scheduler = scheduler
        if max_grad_norm is not None:
            run.max_grad_norm = told.not_negative("max_grad_norm", max_grad_norm)
        if group_size is not None:
            run.group_size = told.count("group_size", group_size, least=1)
        if adapter_base is not None:
            run.adapter_base = adapter_base
        if kl_coef is not None:
            run.kl_coef = told.amount("kl_coef", kl_coef)
        return self

    @shielded()
    def preflight(self, **functions: Any) -> None:
        """Try the loop's own functions before training, on a small batch: see `events.Preflight` for what
        can be given. Raises what it finds at once, and what these functions raise."""
        place = caller()
        functions = {name: self._users(name, one) for name, one in functions.items()}
        event = event_of(events.Preflight, place, functions)
        self._begin()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices), self.looking_away():
            self._works.dispatch(event)
        self._between_steps(place)

    def _users(self, name: str, function: Any) -> Any:
        """A function of the loop, whose errors are the loop's: training has not begun, and they are raised."""
        if not callable(function):
            return function

        @functools.wraps(function, updated=())
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                answer = function(*args, **kwargs)
            except Exception as error:
                if hasattr(error, "add_note"):
                    error.add_note(f"raised by the `{name}` that was given to guard.preflight()")
                callers(error)
                raise
            return self._checked(told.answer, name, answer)

        return called

    # ------------------------------------------------------------------------------- events

    @shielded()
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

        mask       (B, T), or (B, P + T) over whole sequences when `prompts` (B, P) are given; likewise the
            attention_mask, (B, P) or (B, P + T).
        settings   the GenerationConfig, SamplingParams or dict it was sampled with, or a Site read from them.
        More: prompts, attention_mask, tool_mask, max_new_tokens, groups, rows, temperature, texts, filtered,
        allowed_lag, as in `events.Rollout`.
        """
        place = caller()
        prompts, attention = details.get("prompts"), details.get("attention_mask")
        self._checked(shapes.check_rollout, responses, mask, prompts)
        self._checked(shapes.check_alike, "tool_mask", details.get("tool_mask"), responses, "responses")
        rows = {name: details.get(name) for name in ("groups", "rows", "texts")}
        self._checked(shapes.check_rows, rows, responses, "the responses")
        if attention is not None:
            details["attention_mask"] = self._checked(shapes.of_prompts, attention, responses, prompts)
        site = None
        if settings is not None:
            known = isinstance(settings, Site)
            site = settings if known else self._checked(read_object, settings, place=place)
            if details.get("temperature") is None:
                details["temperature"] = temperature_of(site.settings)
        stop_ids = self._works.run.stop_ids
        if stop_token_ids is not None:
            stop_ids = self._checked(told.token_ids, "stop_token_ids", stop_token_ids)
        if weights_version is not None:
            weights_version = self._checked(told.count, "weights_version", weights_version, least=None)
        event = event_of(
            events.Rollout,
            place,
            details,
            responses=responses,
            mask=None if mask is None else self._valid(mask, mask),
            stop_ids=stop_ids,
            settings=None if site is None else site.settings,
            version=weights_version,
        )
        self._begin()
        self._by_hand.add("rollout")
        self._works.rollout(event, site, [] if site is None else findings(site))
        self._step_open = True

    @shielded(_plain_logprobs)
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
        self._checked(shapes.check_context, context_ids, tokens)
        if temperature is not None:
            temperature = self._checked(told.positive, "temperature", temperature)
        self._by_hand.add("score")
        answer = kl.token_log_probs(logits, tokens)
        with torch.no_grad():
            reference = (
                None if reference_logits is None else kl.token_log_probs(reference_logits.detach(), tokens)
            )
            self._score(
                events.Scoring(
                    place=place,
                    logits=logits.detach(),
                    tokens=tokens,
                    mask=self._valid(mask, tokens),
                    logprobs=answer.detach(),
                    reference_logits=None if reference_logits is None else reference_logits.detach(),
                    reference_logprobs=reference,
                    context_ids=context_ids,
                    sampler_logprobs=detached(sampler_logprobs),
                    stale_logprobs=detached(stale_logprobs),
                    temperature=temperature,
                    dtype=self._precision(logits),
                ),
                source="logprobs",
            )
        return answer

    @shielded()
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
        self._checked(shapes.check_per_token, "logprobs", logprobs)
        self._checked(shapes.check_log_probs, logprobs, reference_logprobs, mask)
        given = {
            "sampler_logprobs": sampler_logprobs,
            "stale_logprobs": stale_logprobs,
            "tokens": tokens,
        }
        for name, values in given.items():
            self._checked(shapes.check_alike, name, values, logprobs, "logprobs")
        self._by_hand.add("score")
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
                    mask=self._valid(mask, logprobs),
                    tokens=tokens,
                    reference_logprobs=detached(reference_logprobs),
                    sampler_logprobs=detached(sampler_logprobs),
                    stale_logprobs=detached(stale_logprobs),
                    dtype=self._precision(logprobs),
                ),
                source="observe",
            )

    @shielded(_plain_kl)
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

        `values` (B, T) are the loop's own estimates, to be checked; the answer is the guard's. With
        estimator="exact" they are the loop's KL over the vocabulary, and also the answer. Tokens that were not
        yet paired with their reference by `logprobs` or `observe` in this step count for the cumulative KL,
        except in a term of the loss (with a gradient) and after an update.
        """
        place = caller()
        self._checked(shapes.check_per_token, "logprobs", logprobs)
        self._checked(shapes.check_log_probs, logprobs, reference_logprobs, mask)
        self._checked(shapes.check_alike, "values", values, logprobs, "logprobs")
        if estimator == "exact" and values is not None:
            answer = torch.where(as_mask(mask, values), kl.upcast(values), 0.0)
        else:
            answer = self._checked(kl.estimate, logprobs, reference_logprobs, mask, estimator=estimator)
        with torch.no_grad():
            event = events.KL(
                place=place,
                values=answer.detach() if values is None else values.detach(),
                logprobs=kl.upcast(logprobs.detach()),
                reference_logprobs=kl.upcast(reference_logprobs.detach()),
                mask=self._valid(mask, logprobs),
                estimator=estimator,
                requires_grad=answer.requires_grad,
            )
            self._begin()
            self._works.dispatch(event)
            # a term of the loss is computed in every epoch: its tokens have been counted, or the weights have moved
            if not event.requires_grad and self._in_time():
                self._pairs("kl", place, event.logprobs, event.reference_logprobs, event.mask)
            self._step_open = True
        return answer

    @shielded()
    def rewards(self, scores: Tensor, **details: Any) -> None:
        """Scores (B,) of the responses. More: texts, recompute, token_rewards, kl, kl_coef, mask, as in
        `events.Rewards`."""
        combined = (details.get("token_rewards"), details.get("kl"))
        self._checked(shapes.check_rewards, scores, details.get("mask"), *combined)
        rows = {"texts": details.get("texts")}
        self._checked(shapes.check_rows, rows, scores, "the scores")
        differentiated = any(isinstance(one, Tensor) and one.requires_grad for one in combined)
        self._tell(events.Rewards, details, scores=scores, requires_grad=differentiated)

    @shielded()
    def advantages(self, advantages: Tensor, mask: Tensor, **details: Any) -> None:
        """Advantages (B, T) or (B,) as they enter the loss. More: raw, values, rewards, returns, gamma, lam,
        whitened, groups, group_size, scores, as in `events.Advantages`."""
        self._checked(
            shapes.check_advantages,
            advantages,
            mask,
            per_token={name: details.get(name) for name in ("raw", "values", "rewards", "returns")},
            per_row={name: details.get(name) for name in ("scores", "groups")},
        )
        self._tell(events.Advantages, details, advantages=advantages, mask=mask)

    @shielded()
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
        of the rollout. `kl_term` is the KL term as it enters the loss, (B, T) before its mean. More: tokens,
        rows, epoch, clip_range, reported, entropy, values, returns, as in `events.Minibatch`."""
        self._checked(shapes.check_per_token, "new_logprobs", new_logprobs)
        given = {"old_logprobs": old_logprobs, "mask": mask}
        given |= {name: details.get(name) for name in ("tokens", "entropy")}
        for name, values in given.items():
            self._checked(shapes.check_alike, name, values, new_logprobs, "new_logprobs")
        self._checked(shapes.check_rows, {"rows": details.get("rows")}, new_logprobs, "new_logprobs")
        self._checked(shapes.check_weights, advantages, new_logprobs)
        self._checked(shapes.check_term, kl_term)
        self._checked(shapes.check_values, details.get("values"), details.get("returns"), new_logprobs)
        learnt = {name: details.get(name) for name in ("values", "returns", "entropy")}
        self._tell(
            events.Minibatch,
            details,
            new=new_logprobs,
            old=old_logprobs,
            mask=self._valid(mask, new_logprobs),
            advantages=advantages,
            first=self._weights() == self._scored_under,
            by_construction=new_logprobs.data_ptr() == old_logprobs.data_ptr(),
            kl_term=kl_term if kl_term is not None and kl_term.shape == new_logprobs.shape else None,
            kl_loss_requires_grad=None if kl_term is None else kl_term.requires_grad,
            new_requires_grad=new_logprobs.requires_grad,
            kl_slope=self._arrivals.slope(kl_term, new_logprobs),
            arrivals=self._arrivals.at(
                {"new": new_logprobs, "old": old_logprobs, "advantages": advantages, **learnt}
            ),
            dtype=new_logprobs.dtype if new_logprobs.dtype in HALF else self._precision(new_logprobs),
        )

    @shielded(parting=lambda self, **_: self._take_part())
    def step(self, **figures: Any) -> None:
        """The step is over: this is where a violation is told. Under torch.distributed every rank has to call
        it, as often as the others. Figures: rewards, loss, grad_norm, entropy, kl, kl_unit, kl_estimator,
        kl_coef, controller_kl, controller_unit, lengths, truncated, explained_variance, as in
        `events.StepEnd`."""
        place = caller()
        event = event_of(events.StepEnd, place, figures)
        self._begin()
        self._by_hand.add("step")
        self._works.dispatch(event)
        self._settle(self._end_step(place))

    # ------------------------------------------------------------------------------- what it knows

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each thing once. Reads what is under way on the device."""
        if not self._aside:
            self._collect()
        return list(self._reporter.findings)

    @property
    def evidence(self) -> Evidence:
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
