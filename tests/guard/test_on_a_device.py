"""The guard beside tensors of an accelerator, on a machine without one: devices are not mixed, nothing waits."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from klguard import Guard  # noqa: E402
from tests.guard.loop import EOS, GroupLoop, Loop  # noqa: E402
from tests.guard.pretend import CUDA, Pretend, mark_of, pretended  # noqa: E402

gpu = pytest.importorskip("benchmarks.gpu", reason="benchmarks are not in the source package")

torch.set_num_threads(1)

BEFORE_TRAINING = {"preflight", "__enter__"}


@pytest.fixture
def device(monkeypatch):
    yield from pretended(monkeypatch)


def placed(device, kind=Loop, **changes):
    """A loop whose models are on the device."""
    loop = type("Placed", (kind,), changes)()
    for module in (loop.policy, loop.reference, loop.value_head):
        if module is not None:
            device.move(module)
    return loop


def waits_in_training(device):
    return [wait for wait in device.waits if not BEFORE_TRAINING & set(wait.functions)]


class Untold:
    """Takes every event and does nothing: the guard watches by itself."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def test_the_device_knows_its_rules(device):
    there = torch.randn(3, 4, device="cuda")
    assert there.device == CUDA and there.is_cuda and (there * 2).exp().sum(0).device == CUDA
    assert torch.randn(3).is_cuda, "outside klguard the device is the default one"
    here = torch.randn(4, device="cpu")
    assert not here.is_cuda and mark_of(here.exp()) == "cpu"
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    assert (there + torch.tensor(1.0, device="cpu")).is_cuda, "a number of the CPU may enter a computation"
    assert not there.cpu().is_cuda and here.to(there.device).is_cuda and here.to(there).is_cuda
    linear = torch.nn.Linear(4, 1)
    device.move(linear)
    out = linear(there)
    out.sum().backward()
    assert out.is_cuda and linear.weight.grad.is_cuda
    assert Pretend._waits("__getitem__", (there, there > 0))
    assert not Pretend._waits("__getitem__", (there, slice(1)))


@pytest.mark.parametrize("kind", [Loop, GroupLoop])
def test_a_loop_that_tells_everything(device, kind):
    loop = placed(device, kind)
    guard = Guard(loop.policy, loop.reference, loop.tokenizer, **loop.guard_arguments())
    loop.run(guard, 3)
    assert guard.findings == []
    assert guard.evidence.tokens > 100
    assert waits_in_training(device) == []
    assert len(device.waits) > 10, "the preflight reads its results at once"


@pytest.mark.parametrize("bent", [False, True])
def test_a_loop_that_is_watched(device, bent):
    sampling = {"do_sample": True, "top_k": 10 if bent else 0}
    loop = placed(device, sampling=lambda self: sampling)
    guard = Guard(
        loop.policy, loop.reference, loop.tokenizer, optimizer=loop.optimizer,
        on_violation="record", ignore=["KLG1"], strict=True, eos_token_id=EOS, kl_coef=loop.beta,
    )  # fmt: skip
    loop.guard = Untold()
    with guard:
        for _ in range(5):
            loop.step()
    assert {finding.code for finding in guard.findings} == ({"KLG701"} if bent else set())
    assert guard.evidence.tokens > 100
    assert waits_in_training(device) == []


@pytest.mark.parametrize("vocabulary", [50, 13_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_event(device, vocabulary, dtype):
    """With a vocabulary that is looked at in groups on the CPU, and with what an engine reports."""
    guard = Guard(on_violation="record", strict=True, eos_token_id=EOS, kl_coef=0.1)
    for _ in range(3):
        logits = torch.randn(4, 6, vocabulary)
        tokens = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(4, 6)
        logits = logits.to(dtype)
        mask = torch.ones(4, 6, dtype=torch.bool)
        prompts = torch.randint(2, 50, (4, 3))
        context = torch.cat([prompts, tokens], 1)
        old = torch.log_softmax(logits.float(), -1).gather(-1, tokens[..., None])[..., 0]
        guard.rollout(tokens, mask, prompts=prompts, max_new_tokens=6)
        logprobs = guard.logprobs(
            logits, tokens, mask, reference_logits=logits + 0.01, context_ids=context, sampler_logprobs=old
        )
        guard.kl(logprobs, logprobs - 0.1, mask)
        guard.rewards(logits[:, 0, 0].float(), token_rewards=logprobs * 0, kl=logprobs * 0, mask=mask)
        guard.advantages(torch.randn(4, 6), mask, values=torch.randn(4, 6))
        guard.minibatch(logprobs, logprobs.clone(), mask, tokens=tokens, epoch=0, clip_range=0.2)
        assert waits_in_training(device) == []
        guard.step()
    assert guard.evidence.tokens == 3 * 24


@pytest.mark.parametrize("variant", gpu.VARIANTS[1:])
def test_the_laboratorys_loop(device, monkeypatch, variant):
    monkeypatch.setattr("accelerate.Accelerator.device", property(lambda self: CUDA))
    loop = gpu.loop_of("tiny", steps=3, precision="fp32")
    with gpu.guarded(loop, variant) as (tell, guard):
        for _ in range(3):
            loop.step(tell)
    assert guard.findings == [] and guard.failure is None
    assert guard.evidence.tokens > 300 and len(guard.exercised) > 20
    assert {mark_of(each) for each in loop.trained.parameters()} == {"cuda"}
    assert waits_in_training(device) == []
