"""The clipped objective of a hand-written loop: turned around, told; as it should be, or not certain, not told."""

import pytest

from klguard.check import check_source
from klguard.rules.programs import by_hand

PURE = "do_sample=True, top_k=0, max_new_tokens=32"
K3 = "torch.exp(ref_logprobs - logprobs) - (ref_logprobs - logprobs) - 1"
OLD = "old_logprobs, advantages = logprobs.detach(), score(tokens)"


def found(loss, kl="(logprobs - ref_logprobs).detach()", ratio="torch.exp(logprobs - old_logprobs)", more=""):
    lines = "\n    ".join(line for line in (OLD, f"ratio = {ratio}", more) if line)
    return {f.code for f in check_source(by_hand(PURE, kl=kl, mask=lines, loss=loss))}


PAIR = "{}ratio * advantages, {}torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * advantages"
RIGHT = f"-torch.min({PAIR.format('', '')}).mean()"

TURNED = [
    {"loss": f"-torch.max({PAIR.format('', '')}).mean()"},
    {"loss": f"torch.min({PAIR.format('-', '-')}).mean()"},
    {"loss": "torch.minimum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()"},
    {
        "more": "one = ratio * advantages\n    other = ratio.clip(1 - 0.2, 1 + 0.3) * advantages",
        "loss": "-torch.maximum(other, one).sum()",
    },
    {"loss": RIGHT, "ratio": "(old_logprobs - logprobs).exp()"},
    {"loss": f"{RIGHT} - 0.1 * kl.mean()", "kl": K3},
    {"more": f"policy_loss = {RIGHT}", "loss": "policy_loss - 0.1 * kl.mean()", "kl": K3},
    {"loss": RIGHT.removeprefix("-")},
    {
        "more": f"gain = torch.min({PAIR.format('', '')})\n    token_loss = -gain * mask",
        "loss": "-token_loss.sum()",
    },
    {
        "more": f"gain = torch.min({PAIR.format('', '')})",
        "loss": "((gain * mask).sum(1) / mask.sum(1)).mean()",
    },
    {"loss": f"0.5 * value_loss - torch.max({PAIR.format('-', '-')}).mean()"},
    {
        "more": f"gain = torch.min({PAIR.format('', '')}) + beta * kl",
        "loss": "-(gain * mask).mean()",
        "kl": K3,
    },
]

HELD = [
    {"loss": RIGHT},
    {"loss": f"torch.max({PAIR.format('-', '-')}).mean()"},
    {"loss": "torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()"},
    {"loss": f"-torch.max(torch.min({PAIR.format('', '')}), 3 * advantages).mean()"},  # dual clip
    {"loss": f"torch.max({PAIR.format('', '').replace('advantages', 'neg_advantages')}).mean()"},
    {"loss": f"{RIGHT} + 0.1 * kl.mean()", "kl": K3},
    {"more": f"policy_loss = {RIGHT}", "loss": "policy_loss + 0.1 * kl.mean()", "kl": K3},
    {"more": "gain = (ratio * advantages).mean()", "loss": "-(gain - 0.1 * kl.mean())", "kl": K3},
    {
        "more": "policy_loss = (ratio * advantages).mean()",
        "loss": "-(policy_loss - 0.1 * kl.mean())",
        "kl": K3,
    },
    {
        "more": f"gain = torch.min({PAIR.format('', '')}) - beta * kl",
        "loss": "-(gain * mask).mean()",
        "kl": K3,
    },
    {
        "more": f"gain = torch.min({PAIR.format('', '')})\n    token_loss = -gain * mask",
        "loss": "token_loss.sum()",
    },
    {"loss": "-(advantages * logprobs).mean()"},
    {"loss": "(neg_advantages * logprobs).mean()"},
    {"more": "nll = -logprobs", "loss": "(advantages * nll).mean()"},
    {"more": "log_probs = F.cross_entropy(logits, tokens)", "loss": "(advantages * log_probs).mean()"},
    {"more": "minus = -logprobs * advantages", "loss": "minus.mean()"},
    {"loss": "(costs * logprobs).mean()"},
    {"more": "rewards = -1 * advantages", "loss": "(rewards * logprobs).mean()"},
    {"more": "rewards = -advantages", "loss": "(rewards * logprobs).mean()"},
    {"more": "gains = advantages\n    scores_ = baseline - gains", "loss": "(scores_ * logprobs).mean()"},
    {"more": "log_probs = loss_fn(logits, tokens)", "loss": "(advantages * log_probs).mean()"},
    {"more": "torch.optim.SGD(policy.parameters(), maximize=True)", "loss": "(advantages * logprobs).mean()"},
    {"more": f"gain = torch.min({PAIR.format('', '')})", "loss": "sign * gain.mean()"},
    {"more": f"gain = torch.min({PAIR.format('', '')})", "loss": "negate(gain).mean()"},
    {"loss": f"{RIGHT} - 0.1 * entropy.mean()"},
    {"loss": "torch.max((values - returns) ** 2, (values.clamp(1 - 0.2, 1 + 0.2) - returns) ** 2).mean()"},
]


@pytest.mark.parametrize(("sign", "expected"), [("-", set()), ("", {"KLG410"})])
def test_the_loss_that_a_function_hands_back_is_minimised(sign, expected):
    function = (
        "def policy_loss(logprobs, old_logprobs, advantages):\n    ratio = torch.exp(logprobs - old_logprobs)\n"
        f"    return {sign}torch.min({PAIR.format('', '')}).mean()\n\n\n"
    )
    program = by_hand(PURE, kl="(logprobs - ref_logprobs).detach()", mask=OLD, loss="{}")
    call = "policy_loss(logprobs, old_logprobs, advantages)"
    assert {f.code for f in check_source(function + program.replace("{}", call))} == expected
    turned = {f.code for f in check_source(function + program.replace("{}", f"-{call}"))}
    assert "KLG410" not in turned  # which way round it is then is not followed through the call


@pytest.mark.parametrize("program", TURNED)
def test_a_turned_objective_is_told(program):
    assert found(**program) == {"KLG410"}


@pytest.mark.parametrize("program", HELD)
def test_an_objective_that_holds_is_not(program):
    assert "KLG410" not in found(**program)
