"""KLG801 to KLG805."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from klguard.findings import Severity  # noqa: E402
from klguard.guard import models  # noqa: E402
from klguard.guard.events import Pairs, Preflight, Rollout, Setup, StepEnd  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.frozen import BaseFrozen, ReferenceFrozen  # noqa: E402
from klguard.guard.invariants.random_scoring import RandomScoring  # noqa: E402
from klguard.guard.invariants.reference import FirstKL, ReferenceAliased  # noqa: E402

from .harness import Player  # noqa: E402
from .loop import _model  # noqa: E402


class Tuner(nn.Module):
    """As much of an adapter layer of PEFT as is looked at."""

    def __init__(self, size):
        super().__init__()
        self.base_layer = nn.Linear(size, size).requires_grad_(False)
        self.lora_A = nn.Linear(size, 2, bias=False)
        self.lora_B = nn.Linear(2, size, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self._merged = False

    @property
    def merged(self):
        return self._merged

    @property
    def disable_adapters(self):
        return False


def pair(seed=0):
    policy = copy.deepcopy(_model())
    return policy, copy.deepcopy(policy).eval().requires_grad_(False)


def pairs(distance, rows=4, time=6):
    logprobs = torch.full((rows, time), -2.0)
    mask = torch.arange(time).expand(rows, time) < 5
    reference = torch.where(mask, logprobs - distance, torch.nan)
    return Pairs(logprobs=logprobs, reference_logprobs=reference, mask=mask, eps=1e-4)


def told(breaches):
    return [breach.message for breach in breaches]


# ------------------------------------------------------------------------------------------------ row 7


@pytest.mark.parametrize(
    ("distance", "severity"), [(0.0, None), (5e-5, None), (1e-3, Severity.WARNING), (0.3, Severity.ERROR)]
)
def test_a_copy_has_no_kl_before_the_first_update(distance, severity):
    policy, reference = pair()
    found = Player(FirstKL, Run(policy, reference)).step([Setup(), pairs(distance)])
    assert [breach.severity for breach in found] == ([severity] if severity else [])


def test_a_reference_in_half_precision_is_a_copy_with_a_tolerance_of_its_own():
    policy, reference = pair()
    run = Run(policy, reference.bfloat16())
    player = Player(FirstKL, run)
    assert player.step([Setup(), pairs(2e-2)]) == []
    assert player.invariant.exercised
    player = Player(FirstKL, Run(policy, reference))
    assert player.step([Setup(), pairs(0.1)])
    player = Player(FirstKL, Run(policy.bfloat16(), reference))
    assert [breach.severity for breach in player.step([Setup(), pairs(2e-2)])] == [Severity.WARNING]


def test_a_policy_with_other_weights_may_have_a_kl():
    policy, reference = pair()
    policy.transformer.wte.weight.data[0, 0] += 1
    player = Player(FirstKL, Run(policy, reference))
    assert player.step([Setup(), pairs(0.3)]) == []
    assert not player.invariant.exercised


def test_after_an_update_that_nobody_told_of_there_may_be_a_kl():
    policy, reference = pair()
    player = Player(FirstKL, Run(policy, reference))
    assert player.step([Setup()]) == []
    assert player.step([pairs(0.3)]) == []
    player = Player(FirstKL, Run(policy, reference))
    player.invariant.inspect(Setup())
    list(player.invariant.inspect(Setup()))
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.0)
    assert player.step([pairs(0.3)]) == []


def test_dropout_that_is_on_has_a_code_of_its_own():
    policy, reference = pair()
    reference.transformer.drop.p = 0.1
    reference.train()
    assert Player(FirstKL, Run(policy, reference)).step([Setup(), pairs(0.3)]) == []


def test_an_adapter_that_adds_nothing_yet_makes_a_copy():
    policy = nn.Sequential(Tuner(4))
    reference = nn.Sequential(nn.Linear(4, 4))
    reference[0].load_state_dict(policy[0].base_layer.state_dict())
    assert models.copies(policy, reference) and models.copies(policy, None)
    policy[0].lora_B.weight.data[0, 0] = 0.1
    assert not models.copies(policy, reference) and not models.copies(policy, None)


def test_a_wrapped_policy_is_recognised():
    policy, reference = pair()
    wrapped = nn.Module()
    wrapped.module = policy
    assert models.copies(wrapped, reference)
    wrapped.v_head = nn.Linear(2, 1)
    assert models.copies(wrapped, reference)
    wrapped.more = nn.Linear(2, 1)
    assert not models.copies(wrapped, reference)


# ------------------------------------------------------------------------------------------------ rows 8 and 10


def test_a_reference_that_stays_is_never_reported_and_is_looked_at():
    policy, reference = pair()
    player = Player(ReferenceFrozen, Run(policy, reference))
    with torch.no_grad():
        for step in range(60):
            policy.lm_head.weight.add_(1e-3)
            assert player.step([Setup(), StepEnd()] if not step else [StepEnd()]) == []
    assert player.invariant.exercised


@pytest.mark.parametrize("at", range(0, 130, 13))
def test_a_hidden_write_is_found_within_fifty_steps(at):
    policy, reference = pair()
    player = Player(ReferenceFrozen, Run(policy, reference))
    player.step([Setup()])
    for step in range(1, 181):
        if step == at + 1:
            reference.transformer.h[1].mlp.c_fc.weight.data[3, 2] += 1e-6
        if found := player.step([StepEnd()]):
            assert "transformer.h.1.mlp.c_fc.weight" in told(found)[0]
            assert at + 1 <= step <= at + 51
            return
    pytest.fail("never found")


def test_a_counted_write_is_found_in_its_step_with_a_count_of_the_others():
    policy, reference = pair()
    player = Player(ReferenceFrozen, Run(policy, reference))
    player.step([Setup()])
    for _ in range(4):
        assert player.step([StepEnd()]) == []
    with torch.no_grad():
        for parameter in reference.transformer.h[0].parameters():
            parameter.mul_(0.5)
    messages = told(player.step([StepEnd()]))
    # biases of 0 keep their bits
    assert len(messages) == 1 and "transformer.h.0" in messages[0] and "more of the reference" in messages[0]


def test_without_a_step_event_it_is_looked_at_by_rollouts():
    policy, reference = pair()
    player = Player(ReferenceFrozen, Run(policy, reference))
    rollout = Rollout(responses=torch.zeros(1, 2, dtype=torch.long))
    assert player.step([Setup(), rollout]) == []
    with torch.no_grad():
        reference.lm_head.weight.mul_(2)
    assert len(player.step([rollout])) == 1


def test_caches_that_are_not_saved_may_change():
    policy, reference = pair()
    reference.register_buffer("inv_freq", torch.ones(3), persistent=False)
    reference.register_buffer("scale", torch.ones(3))
    player = Player(ReferenceFrozen, Run(policy, reference))
    player.step([Setup()])
    reference.inv_freq.mul_(2)
    assert player.step([StepEnd()]) == []
    reference.scale.mul_(2)
    assert "`scale`" in told(player.step([StepEnd()]))[0]


def test_what_the_reference_shares_with_the_policy_is_left_to_others():
    policy, reference = pair()
    reference.transformer.h[0] = policy.transformer.h[0]
    player = Player(ReferenceFrozen, Run(policy, reference))
    player.step([Setup()])
    with torch.no_grad():
        policy.transformer.h[0].mlp.c_fc.weight.add_(1)
    assert player.step([StepEnd()]) == []


def test_a_restart_with_another_reference_is_found():
    policy, reference = pair()
    first = Player(ReferenceFrozen, Run(policy, reference))
    first.step([Setup(), StepEnd()])
    state = first.invariant.state_dict()
    for other, expected in ((reference, 0), (copy.deepcopy(reference), 0), (policy, 1)):
        other = copy.deepcopy(other)
        if expected:
            other.lm_head.weight.data += 1
        second = Player(ReferenceFrozen, Run(policy, other))
        second.invariant.load_state_dict(state)
        assert len(second.step([Setup(), StepEnd()])) == expected


def adapted():
    policy = nn.Sequential(Tuner(8))
    return policy, Player(BaseFrozen, Run(policy))


def test_the_base_under_an_adapter_keeps_its_bits_while_the_adapter_is_trained_and_merged():
    policy, player = adapted()
    tuner = policy[0]
    assert player.step([Setup(), StepEnd()]) == []
    weight = tuner.base_layer.weight.data.clone()
    with torch.no_grad():
        tuner.lora_A.weight.add_(1)
        tuner._merged = True
        tuner.base_layer.weight.add_(0.3)
    assert player.step([StepEnd()]) == []
    tuner._merged = False
    with torch.no_grad():
        tuner.base_layer.weight.copy_(weight)
    assert player.step([StepEnd()]) == []
    with torch.no_grad():
        tuner.base_layer.weight.add_(0.3).sub_(0.3)
    assert [breach.severity for breach in player.step([StepEnd()])] == [Severity.WARNING]


def test_a_base_in_half_precision_that_drifts_is_an_error():
    policy, player = adapted()
    policy[0].base_layer.bfloat16()
    player.step([Setup(), StepEnd()])
    with torch.no_grad():
        policy[0].base_layer.weight.add_(0.3).sub_(0.3)
    assert [breach.severity for breach in player.step([StepEnd()])] == [Severity.ERROR]


def test_layers_that_are_thawed_later_may_change():
    policy, _ = pair()
    policy.transformer.h[0].requires_grad_(False)
    optimizer = torch.optim.SGD(policy.transformer.h[1].parameters(), lr=0.1)
    run = Run(policy, optimizers=[optimizer])
    player = Player(BaseFrozen, run)
    player.step([Setup(), StepEnd()])
    policy.transformer.h[0].requires_grad_(True)
    with torch.no_grad():
        policy.transformer.h[0].mlp.c_fc.weight.add_(1)
    assert player.step([StepEnd()]) == []
    policy.transformer.h[0].requires_grad_(False)
    optimizer.add_param_group({"params": list(policy.transformer.h[0].parameters())})
    assert player.step([StepEnd()]) == []


def test_a_named_base_is_watched_without_a_policy():
    base = nn.Linear(3, 3).requires_grad_(False)
    player = Player(BaseFrozen, Run(adapter_base=base))
    player.step([Setup()])
    base.weight.data[0, 0] += 1
    assert len(player.step([StepEnd()])) == 1


# ------------------------------------------------------------------------------------------------ row 9


def aliased(policy, reference):
    return Player(ReferenceAliased, Run(policy, reference)).step([Setup()])


def test_copies_and_shared_frozen_layers_are_no_alias():
    policy, reference = pair()
    assert aliased(policy, reference) == []
    reference.transformer.h[0] = policy.transformer.h[0].requires_grad_(False)
    assert aliased(policy, reference) == []


def test_shared_trainable_layers_are_named():
    policy, reference = pair()
    reference.transformer.h[0].mlp.c_fc.weight.data = policy.transformer.h[0].mlp.c_fc.weight.data[:, :]
    assert "transformer.h.0.mlp.c_fc.weight" in told(aliased(policy, reference))[0]
    assert "the policy itself" in told(aliased(policy, policy))[0]


def test_an_adapter_switched_off_may_be_the_reference():
    policy = nn.Sequential(Tuner(4))
    assert aliased(policy, policy) == []
    policy.append(nn.Linear(4, 4))
    assert len(aliased(policy, policy)) == 1


def test_models_without_memory_are_passed_over():
    with torch.device("meta"):
        policy = nn.Linear(3, 3)
    player = Player(ReferenceAliased, Run(policy, copy.deepcopy(policy)))
    assert player.step([Setup()]) == [] and not player.invariant.exercised


# ------------------------------------------------------------------------------------------------ row 11


class Functional(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.attention_dropout = p


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.Dropout1d(0.1), nn.AlphaDropout(0.1), Functional(0.1)])
def test_dropout_is_on_in_train_mode_alone(layer):
    model = nn.Sequential(nn.Linear(2, 2), layer)
    assert models.active_dropout(model.train())[1] == 0.1
    assert models.active_dropout(model)[0].startswith("1")
    assert models.active_dropout(model.eval()) is None


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), Functional(0.0), Functional(None), Functional(True)])
def test_a_model_without_dropout_may_be_in_train_mode(layer):
    assert models.active_dropout(nn.Sequential(layer).train()) is None


def test_the_reference_needs_no_train_mode():
    policy, reference = pair()
    assert Player(RandomScoring, Run(policy, reference.train())).step([pairs(0.0)]) == []
    reference.transformer.h[1].mlp.dropout.p = 0.2
    found = Player(RandomScoring, Run(policy, reference)).step([pairs(0.0)])
    assert [breach.severity for breach in found] == [Severity.ERROR] and "h.1.mlp.dropout" in found[0].message


def scores(model, dtype=torch.float32):
    def score(ids, attention):
        position_ids = (attention.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=attention, position_ids=position_ids).logits[:, :-1].to(dtype)
        return logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    return score


def test_preflight_scores_twice_and_leaves_the_random_state():
    policy, reference = pair()
    policy.transformer.drop.p = 0.1
    policy.train()
    run = Run(policy, reference)
    event = Preflight(score=scores(policy), reference_score=scores(reference))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = Player(RandomScoring, run).step([event])
    assert torch.equal(before, torch.get_rng_state())
    assert [breach.key for breach in found] == ["score"]
    policy.eval()
    assert Player(RandomScoring, run).step([event]) == []


def test_preflight_of_a_loop_that_scores_in_half_precision_has_that_tolerance():
    policy, reference = pair()
    event = Preflight(score=scores(policy), reference_score=scores(reference, torch.bfloat16))
    player = Player(FirstKL, Run(policy, reference))
    assert [breach.severity for breach in player.step([Setup(), event])] != []
    policy, reference = policy.bfloat16(), reference.bfloat16()
    event = Preflight(score=scores(policy), reference_score=scores(reference))
    assert Player(FirstKL, Run(policy, reference)).step([Setup(), event]) == []


def test_a_score_of_another_shape_is_the_callers_mistake():
    policy, reference = pair()
    event = Preflight(score=lambda ids, attention: torch.zeros(ids.shape))
    with pytest.raises(ValueError, match="log-probs of tokens 1.."):
        Player(RandomScoring, Run(policy, reference)).step([event])
