"""KLG835 and KLG836: the gradient of a KL term."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Event, Minibatch, Preflight, Rewards
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import home
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

TOYS = (
    ((1.0, 0.0, -1.0), (-0.5, 0.2, 0.3)),
    ((0.5, 0.0, -0.5), (-0.5, 0.8, -0.3)),
    ((0.0, -2.0, 1.0), (0.0, 1.0, -1.0)),
)
"""Logits of toy policies over three tokens, and of their references: KL 0.6, 0.3 and 1.4 nats."""

_TRUE = 0.99
_PROXY = 0.5


def expected_gradients(
    kl_loss: Callable[..., Tensor],
    logits: tuple[float, ...],
    reference: tuple[float, ...],
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor, float] | None:
    """On a toy policy: the expectation over sampled tokens of the loss term's gradient, the gradient of the
    reverse KL itself, both (3,), and the mean norm of a single token's gradient. No sampling: the expectation
    is the sum over tokens. None when no token's loss has a gradient."""
    theta = torch.tensor(logits, device=device, requires_grad=True)
    log_q = torch.tensor(reference, device=device).log_softmax(0)
    log_p = theta.log_softmax(0)
    (true,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), theta)
    expected, norm, found = torch.zeros_like(true), 0.0, False
    for token, probability in enumerate(log_p.detach().exp()):
        loss = kl_loss(theta.log_softmax(0)[token : token + 1], log_q[token : token + 1]).sum()
        if not loss.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(loss, theta, allow_unused=True)
        if gradient is None:
            continue
        found = True
        expected += probability * gradient
        norm += float(probability * gradient.norm())
    return (expected, true, norm) if found else None


class KLLossGradient(Invariant):
    """The gradient of an estimate is not an estimate of the gradient (Tang and Munos 2025). For tokens drawn
    from the policy, k1 as a loss has an expected gradient of exactly 0, k3 that of another objective, k2 and
    the importance ratio times k3 that of the reverse KL.

    In training, the values v of the term and their slopes s by log p say which estimator it is, whatever the
    reference: s = 1 at every token is k1; v = s - log(1 + s) is k3 the wrong way round, exp(log p - log ref) - 1
    - (log p - log ref), which estimates no KL under samples of the policy; k3 is v = -s - log(1 - s)."""

    code = "KLG835"
    watches = (Preflight, Minibatch)
    sums = ("tokens", "ones", "telling", "turned")
    LEAST = 8

    def measure(self, event: Event) -> None:
        if not isinstance(event, Minibatch) or event.kl_slope is None or event.kl_term is None:
            return
        if event.kl_term.dtype in HALF or event.kl_slope.dtype in HALF:
            return
        self.exercised = True
        valid = valid_tokens(event.mask) & event.kl_term.isfinite() & event.kl_slope.isfinite()
        values, slopes = (torch.where(valid, one.double(), 0.0) for one in (event.kl_term, event.kl_slope))
        self.add("tokens", (valid & (values != 0)).sum())
        self.add("ones", (valid & (values != 0) & (slopes == 1)).sum())
        telling = valid & (slopes.abs() > 0.1) & (slopes.abs() < 1e3)
        turned = slopes - torch.log1p(slopes.clamp(min=-1 + 1e-9))
        self.add("telling", telling.sum())
        self.add("turned", (telling & ((values - turned).abs() <= 1e-4 * (values.abs() + 1e-2))).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        tokens, telling = readings["tokens"], readings["telling"]
        if tokens >= self.LEAST and readings["ones"] == tokens:
            yield Breach(
                f"the KL term of the loss has the slope 1 at all {tokens:,.0f} tokens: it is log p - log ref (k1), whose"
                " expected gradient is 0",
                value=tokens,
                key="k1",
                help="use k2, or k3 times the importance ratio, as a loss; or put k1 into the reward",
            )
        if telling >= self.LEAST and readings["turned"] == telling:
            yield Breach(
                "the KL term of the loss is k3 with log p and log ref exchanged: under samples of the policy it"
                " estimates no KL",
                value=readings["turned"],
                key="turned",
                severity=Severity.WARNING,
                help="write d = ref_logprobs - logprobs, and expm1(d) - d",
            )

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight) or event.kl_loss is None:
            return
        self.exercised = True
        with torch.enable_grad():
            measured = [expected_gradients(event.kl_loss, *toy, home(self.run.policy)) for toy in TOYS]
        if any(one is None for one in measured):
            yield Breach(
                "the KL loss has no gradient with respect to the log-probs of the policy",
                value=0.0,
                key="none",
                help="compute it from log-probs that have a gradient, and do not detach them",
            )
            return
        expected = torch.cat([one[0] for one in measured])
        true = torch.cat([one[1] for one in measured])
        if expected.norm() <= 1e-4 * sum(one[2] for one in measured):
            yield Breach(
                "the expected gradient of the KL loss is 0: the mean of log p - log ref (k1) pulls nowhere when"
                " it is differentiated, since the expectation of the score is 0",
                value=0.0,
                limit=_TRUE,
                key="zero",
            )
            return
        cosine = float(torch.cosine_similarity(expected, true, 0))
        if cosine > _TRUE:
            return
        if cosine < 0:
            message = f"the KL loss pulls away from the reference: the cosine of its gradient is {cosine:.2f}"
        else:
            off = math.sqrt(1 - cosine**2) / max(cosine, 1e-6)
            message = (
                f"the gradient of the KL loss is not that of the reverse KL: the cosine is {cosine:.3f} on toy"
                f" policies, {off:.0%} of it points elsewhere; k3 without the importance ratio does that"
            )
        severity = Severity.WARNING if cosine > _PROXY else None
        yield Breach(message, value=cosine, limit=_TRUE, key="biased", severity=severity)


class KLRequiresGrad(Invariant):
    """A term of the loss without a gradient is a constant; a reward with one is differentiated as a loss. A loop
    that has both a term in the loss and the same KL in the reward counts it twice, which is hardly ever meant."""

    code = "KLG836"
    watches = (Minibatch, Rewards)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._in_reward = self._in_loss = False

    def inspect(self, event: Event) -> Iterator[Breach]:
        if isinstance(event, Rewards):
            given = event.token_rewards is not None and event.kl is not None
            self._in_reward = self._in_reward or (given and bool(event.kl_coef))
        elif event.kl_loss_requires_grad and self.run.kl_coef != 0:
            self._in_loss = True
        if self._in_reward and self._in_loss:
            yield Breach(
                "the KL is subtracted from the reward, and a KL term with a gradient is in the loss: it is paid twice",
                key="twice",
                severity=Severity.WARNING,
                help="keep one of the two; where both are meant, ignore KLG836",
            )
        yield from self._gradient(event)

    def _gradient(self, event: Event) -> Iterator[Breach]:
        """What of the KL has a gradient and should not have one, or the other way round."""
        if isinstance(event, Rewards):
            if event.token_rewards is None and event.kl is None:
                return
            self.exercised = True
            if event.requires_grad:
                yield Breach(
                    "the KL penalty that goes into the reward has a gradient",
                    key="reward",
                    help="detach it, or compute it under torch.no_grad()",
                )
        elif event.kl_loss_requires_grad is not None and event.new_requires_grad:
            self.exercised = True
            if not event.kl_loss_requires_grad:
                yield Breach(
                    "the KL term of the loss has no gradient while the log-probs of the minibatch have one: it is"
                    " a constant",
                    key="loss",
                    help="compute it from the minibatch's own log-probs, and do not detach it",
                )
