"""KLG405."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from klguard.findings import Severity
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Known, Settings, SiteKind, Value, members


class _Form(NamedTuple):
    """A form of the KL term, and what is wrong with it where it stands."""

    severity: Severity
    why: str
    instead: str


_K1_IN_REWARD = "take log p - log ref, without a gradient, off the reward"
_K3_AS_LOSS = "ask for k3 (`low_var_kl`) or k2 there, or take the KL off the reward instead"
_K3_RIGHT = "write `d = ref_logprobs - logprobs` and `torch.exp(d) - d - 1`"
_CONFIGURED = {
    ("kl_penalty", "abs"): _Form(
        Severity.WARNING,
        "penalises |log p - log ref|, whose mean is above the KL",
        'write `kl_penalty="kl"`, or `"full"` for the exact KL over the vocabulary',
    ),
    ("kl_penalty", "mse"): _Form(
        Severity.WARNING,
        "penalises half the square of log p - log ref, whose mean is not the KL once the models differ",
        'write `kl_penalty="kl"`, or `"full"` for the exact KL over the vocabulary',
    ),
    ("use_absolute_kl", True): _Form(
        Severity.WARNING,
        "penalises |log p - log ref|, whose mean is above the KL",
        "write `use_absolute_kl: False`",
    ),
    ("kl_estimator", "k3"): _Form(
        Severity.NOTE,
        "takes k3 off the reward: its mean is the KL, but the policy gradient of it is not that of the KL",
        'write `kl_estimator="k1"`',
    ),
}
_AS_A_LOSS = {"k1": "k1-loss", "kl": "k1-loss", "kl1": "k1-loss", "abs": "abs"}
"""What frameworks call the forms that are wrong as a loss; `kl` is k1 in verl."""

_WRITTEN_BY_HAND = {
    "k1-loss": _Form(
        Severity.WARNING,
        "log p - log ref is differentiated as a loss: the expectation of its gradient is 0, so it holds "
        "nothing, and adds noise",
        f"{_K1_IN_REWARD}, or use its half square (k2) as the loss",
    ),
    "abs": _Form(
        Severity.WARNING,
        "the KL term is |log p - log ref|: its mean is above the KL, and it hides a KL estimate that has "
        "gone negative",
        _K1_IN_REWARD,
    ),
    "clamp": _Form(
        Severity.WARNING,
        "the KL term is log p - log ref clamped at 0: tokens that would lower it are left out, so its "
        "mean is above the KL, and a KL estimate that has gone negative cannot be seen",
        _K1_IN_REWARD,
    ),
    "k3-turned": _Form(
        Severity.WARNING,
        "k3 is written with exp(log p - log ref), whose mean over the policy's own tokens is no part of the KL: "
        "a few tokens that the reference finds unlikely decide it",
        _K3_RIGHT,
    ),
    "k3-mixed": _Form(
        Severity.WARNING,
        "k3 is written with one of its signs turned: its mean is not the KL, and it may be negative",
        _K3_RIGHT,
    ),
}


class KlEstimator(Rule):
    """The KL is estimated in a way that is biased where it is used.

    ## What it does
    Reports a hand-written KL term that is log p - log ref differentiated as a loss, its absolute value, or
    clamped at 0, and a k3 with a sign turned; the first two asked for in the configuration of a framework
    (verl's `kl_loss_type: kl`, OpenRLHF's `--use_kl_loss --kl_estimator k1`); `kl_penalty="abs"` and `"mse"`
    of classic TRL and verl; and notes `kl_estimator="k3"` where it is taken off the reward. k3 as a loss, as
    in GRPO, is not reported.

    ## Why it breaks the KL
    With d = log p - log ref of a token drawn from p: k1 = d is unbiased and may be negative; k2 = d^2 / 2
    and |d| are never negative and biased; k3 = exp(-d) - 1 + d is unbiased and never negative. Taken off
    the reward, only k1 gives the gradient of the KL. As a differentiated loss, k1 has gradient 0 in
    expectation, since the mean of grad log p is 0, while k2 gives the gradient of the KL.

    ## Example
    ```python
    kl = (logprobs - ref_logprobs).abs()
    loss = policy_loss + 0.1 * kl.mean()
    ```

    ## Use instead
    ```python
    kl = (logprobs - ref_logprobs).detach()
    rewards = scores - 0.1 * kl
    ```

    ## References
    - [Schulman, Approximating KL Divergence](http://joschu.net/blog/kl-approx.html)
    - [Tang and Munos, On a Few Pitfalls in KL Divergence Gradient Estimation for
      RL](https://arxiv.org/abs/2506.09477)
    - [Amini, Vieira and Cotterell, Better Estimation of the KL Divergence Between Language
      Models](https://arxiv.org/abs/2504.10637)
    """

    code = "KLG405"
    name = "kl-estimator"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER_CONFIG:
            for (name, form), about in _CONFIGURED.items():
                written = f'`{name}="{form}"` ' if isinstance(form, str) else f"`{name}={form}` "
                yield from self._found(name, settings.values.get(name), form, about, written)
            yield from self._as_a_loss(settings)
        for form, about in _WRITTEN_BY_HAND.items():
            yield from self._found("", settings.facts.get("kl_estimator"), form, about, "")

    def _as_a_loss(self, settings: Settings) -> Iterator[Hazard]:
        """The form of the KL loss that a framework's configuration asks for."""
        written = settings.values.get("kl_loss_type")
        for value in () if written is None else members(written):
            form = _AS_A_LOSS.get(str(value.value).lower()) if isinstance(value, Known) else None
            if form is not None and isinstance(value, Known):
                about = _WRITTEN_BY_HAND[form]
                asked = f"`{value.value}` is asked for as the KL loss: "
                yield from self._found(
                    "kl_loss_type", value, value.value, about._replace(instead=_K3_AS_LOSS), asked
                )

    def _found(
        self, setting: str, value: Value | None, form: Any, about: _Form, start: str
    ) -> Iterator[Hazard]:
        found = judge(value, lambda v: v == form, about.severity)
        if found is not None:
            yield Hazard(
                message=f"{start}{about.why}",
                help=about.instead,
                setting=setting,
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                in_loop=not setting,
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32", config='kl_penalty="kl"')),
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32", config='kl_penalty="full"')),
        Example(by_hand("do_sample=True, top_k=0, max_new_tokens=32")),
        Example(
            "actor_rollout_ref:\n  actor:\n    use_kl_loss: true\n    kl_loss_type: low_var_kl\n",
            filename="verl.yaml",
        ),
    )
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, max_new_tokens=32", config='kl_penalty="abs"'),
            '`kl_penalty="abs"` penalises',
        ),
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32",
                kl="(logprobs - ref_logprobs).abs()",
                loss="-(score(tokens) * logprobs).mean() + 0.1 * kl.mean()",
            ),
            "the KL term is |log p - log ref|",
        ),
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32",
                loss="-(score(tokens) * logprobs).mean() + 0.1 * kl.mean()",
            ),
            "differentiated as a loss",
        ),
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32",
                kl="torch.exp(logprobs - ref_logprobs) - (logprobs - ref_logprobs) - 1",
                loss="-(score(tokens) * logprobs).mean() + 0.1 * kl.mean()",
            ),
            "k3 is written with exp(log p - log ref)",
        ),
        Example(
            "actor_rollout_ref:\n  actor:\n    use_kl_loss: true\n    kl_loss_type: kl\n",
            "`kl` is asked for as the KL loss",
            filename="verl.yaml",
        ),
    )
