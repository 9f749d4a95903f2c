"""What the guard promises: it changes nothing, costs one copy a step, and never takes a run down."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import sys
import threading
import warnings

import pytest

torch = pytest.importorskip("torch")

import klguard.guard  # noqa: E402
from klguard.guard import Guard, Violation  # noqa: E402
from klguard.guard.courier import Courier  # noqa: E402
from tests.guard.loop import EOS, GroupLoop, Loop  # noqa: E402


class Nobody:
    """Stands where a guard would: takes every call and does nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def train(kind=Loop, steps=20, guard=None, around=None):
    """What a run leaves behind: weights, optimizer state, and all random states."""
    torch.manual_seed(0)
    random.seed(0)
    loop = kind()
    teller = guard(loop) if guard else Nobody()
    if around:
        with around(loop):
            loop.run(teller, steps)
    else:
        loop.run(teller, steps)
    optimizer = loop.optimizer.state_dict()["state"]
    state = {f"policy.{name}": value.clone() for name, value in loop.policy.state_dict().items()}
    state |= {f"reference.{name}": value.clone() for name, value in loop.reference.state_dict().items()}
    state |= {
        f"optimizer.{key}.{name}": torch.as_tensor(value).clone()
        for key, entries in optimizer.items()
        for name, value in entries.items()
    }
    state["torch random"] = torch.get_rng_state()
    state["python random"] = torch.tensor([hash(random.getstate())])
    return state


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def told(loop, **options):
    return Guard(
        loop.policy, loop.reference, loop.tokenizer, **loop.guard_arguments() | {"strict": False} | options
    )


def watching(loop, **options):
    """A guard around a loop that tells it nothing."""
    return Guard(
        loop.policy, loop.reference, loop.tokenizer, on_violation="record", eos_token_id=EOS, **options
    )


@pytest.fixture(scope="module")
def unguarded():
    return {kind: train(kind) for kind in (Loop, GroupLoop)}


@pytest.mark.parametrize("kind", [Loop, GroupLoop])
def test_weights_optimizer_and_random_state_are_the_same_to_the_bit(kind, unguarded, tmp_path):
    guards = []

    def make(loop):
        guards.append(told(loop, journal=tmp_path / "run.jsonl"))
        return guards[-1]

    assert differing(unguarded[kind], train(kind, guard=make)) == []
    assert guards[0].findings == [] and guards[0].failure is None
    assert len(guards[0].exercised) > 19


@pytest.mark.parametrize("kind", [Loop, GroupLoop])
def test_nothing_changes_under_the_decorator_either(kind, unguarded):
    guards = []

    def around(loop):
        guards.append(watching(loop))
        return guards[-1]

    assert differing(unguarded[kind], train(kind, around=around)) == []
    assert guards[0].findings == [] and guards[0].failure is None
    assert guards[0].evidence.tokens > 500, "the watcher must have seen the rollouts being scored"


def modules():
    """Everything below klguard.guard but for the shield itself, the public calls it covers, and what only names
    things."""
    spared = {
        "shield",
        "guard",
        "around",
        "violation",
        "pages",
        "catalogue",
        "events",
        "options",
        "taps",
        "hooks",
    }
    names = [module.name for module in pkgutil.walk_packages(klguard.guard.__path__, "klguard.guard.")]
    return [name for name in names if name.rsplit(".", 1)[-1] not in spared]


def functions(module):
    """The functions and methods of a module, as (owner, name)."""
    for name, thing in vars(module).items():
        if getattr(thing, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield module, name
        elif inspect.isclass(thing):
            yield from ((thing, method) for method, value in vars(thing).items() if inspect.isfunction(value))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """What a run of a single step leaves, and the code objects that run in it after the guard was made."""
    codes = set()

    def make(loop):
        guard = told(loop, journal=tmp_path_factory.mktemp("journal") / "run.jsonl")
        sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
        return guard

    try:
        train(steps=1, guard=make)
    finally:
        sys.setprofile(None)
    return train(steps=1), codes


@pytest.mark.parametrize("name", modules())
def test_an_error_anywhere_inside_leaves_the_run_alone(name, one_step, tmp_path):
    """Each function that runs is made to raise, in turn."""
    weights, ran = one_step
    module = importlib.import_module(name)
    for owner, function in functions(module):
        original = inspect.getattr_static(owner, function)
        if hasattr(original, "__wrapped__"):
            continue  # the shield is on the outside of it
        if original.__code__ not in ran or function in ("__init__", "__enter__", "__exit__"):
            continue
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            guards, raised = [], []

            def broken(*args, raised=raised, **kwargs):
                raised.append(1)
                raise RuntimeError("injected")

            def make(loop, owner=owner, function=function, patch=patch, broken=broken, guards=guards):
                guards.append(told(loop, journal=tmp_path / "run.jsonl"))
                patch.setattr(owner, function, broken)
                return guards[-1]

            left = train(steps=1, guard=make)
            where = f"{owner.__name__}.{function}"
            assert differing(weights, left) == [], where
            if raised:
                told_of = [w for w in caught if "stepped aside" in str(w.message)]
                if name == "klguard.guard.rescoring" and not told_of:
                    continue  # an extra pass that fails is logged, and costs only itself
                assert len(told_of) == 1, where
                assert "injected" in str(guards[0].failure), where
                assert [f.code for f in guards[0].findings] == ["KLG006"], where


def test_an_error_of_the_users_own_reaction_is_not_the_guards():
    def stop(finding):
        raise KeyboardInterrupt if finding.code == "never" else OSError("mine")

    guard = Guard(on_violation=stop)
    with pytest.raises(OSError, match="mine"):
        break_it(guard)
    assert guard.failure is None


def break_it(guard, steps=1):
    """Log-probs that no policy gives: a positive one."""
    for _ in range(steps):
        guard.observe(torch.full((2, 4), 0.5), reference_logprobs=torch.full((2, 4), -1.0))
        guard.step()


def test_strict_raises_the_guards_own_errors(monkeypatch):
    guard = Guard(strict=True)
    monkeypatch.setattr(guard._works, "close", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guard.step()


# ------------------------------------------------------------------------------------------------ one copy a step


class Counting(Courier):
    """A double for the copy to the host."""

    @staticmethod
    def _copy(vector):
        Counting.copied.append(vector.numel())
        return vector.clone()

    copied: list[int] = []


def test_one_copy_to_the_host_a_step(monkeypatch):
    """The figures of a step reach the host in one vector, whatever the loop tells the guard."""
    loop = Loop()
    guard = told(loop)
    Counting.copied = []
    guard._works.courier = Counting()
    loop.run(guard, 4)
    between = 2  # on entering, and after the preflight
    assert len(Counting.copied) == 4 + between
    assert max(Counting.copied) < 2000


MOVES = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero")


def test_events_never_wait_for_the_device(monkeypatch):
    """On a GPU each of these calls on a tensor of the loop's would be a synchronisation: between the preflight and
    the end of a step the guard's own code makes none. (Tensors here carry a mark that follows computations.)"""
    waited = []

    class Marked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function.__name__ in MOVES:
                frames = [f for f in inspect.stack() if "/klguard/guard/" in f.filename]
                if frames and not any(f.function == "step" for f in frames):
                    waited.append(
                        (function.__name__, frames[0].filename.rsplit("/", 1)[-1], frames[0].lineno)
                    )
            return super().__torch_function__(function, types, args, kwargs or {})

    for module in ("watermark", "scoring"):
        monkeypatch.setattr(f"klguard.guard.{module}.at_hand", lambda device: False)  # as on a GPU
    guard = Guard(on_violation="record", strict=True, eos_token_id=EOS, kl_coef=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        logits = torch.randn(4, 6, 50, generator=generator)
        tokens = torch.multinomial(logits.softmax(-1).view(-1, 50), 1, generator=generator).view(4, 6)
        mask = torch.ones(4, 6, dtype=torch.bool)
        marked = [t.as_subclass(Marked) for t in (logits, tokens, mask, logits + 0.01)]
        guard.rollout(marked[1], marked[2], prompts=marked[1], max_new_tokens=6)
        logprobs = guard.logprobs(*marked[:3], reference_logits=marked[3], context_ids=marked[1])
        guard.kl(logprobs, logprobs, marked[2])
        guard.rewards(marked[0][:, 0, 0], token_rewards=logprobs * 0, kl=logprobs * 0, mask=marked[2])
        guard.advantages(logprobs * 0, marked[2])
        guard.minibatch(logprobs, logprobs.clone(), marked[2], tokens=marked[1], epoch=0, clip_range=0.2)
        assert waited == []
        guard.step()


def test_copies_that_arrive_a_step_late_lead_to_the_same_findings():
    """What happens on a GPU: the copy of a step is read at the next one, the last at the end."""

    class Late(Courier):
        def _dispatch(self, vector, label):
            sent = super()._dispatch(vector, label)
            sent.ready = self
            return sent

        def synchronize(self):
            pass

    def run(courier):
        guard = Guard(on_violation="record", eos_token_id=EOS)
        guard._works.courier = courier
        seen = []
        for step in range(6):
            play(guard, step, sharp=step >= 2)
            seen.append(len(guard._reporter.findings))
        guard._collect()
        return guard, seen

    at_once, seen_at_once = run(Courier())
    late, seen_late = run(Late())
    assert [f.message for f in at_once.findings] == [f.message for f in late.findings] != []
    assert seen_late == [0, *seen_at_once[:-1]]
    assert at_once.evidence.log_evidence == late.evidence.log_evidence
    assert at_once.evidence.causes == late.evidence.causes


def play(guard, step, *, sharp=False, rows=8, time=32, vocabulary=100):
    """A step of a made-up loop; `sharp` samples at temperature 0.7."""
    generator = torch.Generator().manual_seed(step)
    logits = torch.randn(rows, time, vocabulary, generator=generator) * 2
    drawn_from = logits / 0.7 if sharp else logits
    tokens = torch.multinomial(drawn_from.softmax(-1).view(-1, vocabulary), 1, generator=generator)
    guard.logprobs(logits, tokens.view(rows, time), reference_logits=logits + 0.05 * logits.roll(1, -1))
    guard.step()


def test_memory_of_the_evidence_stays_within_the_budget():
    """Peak memory beyond the inputs and the answer, with many more positions than are tested."""
    import tracemalloc  # noqa: F401  torch's own allocations are not seen by it: the profiler is

    from torch.profiler import ProfilerActivity, profile

    guard = Guard(on_violation="record", eos_token_id=EOS, sample_tokens=256, strict=True)
    logits = torch.randn(8, 128, 5000)
    tokens = torch.randint(5000, (8, 128))
    guard.logprobs(logits, tokens)
    guard.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        guard.logprobs(logits, tokens)
        guard.step()
    memory = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in memory:
        held += event.nbytes()
        peak = max(peak, held)
    assert memory and peak <= 64 * 2**20


# ------------------------------------------------------------------------------------------------ restarts, threads


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_saved_and_restored_guard_decides_alike(at, tmp_path):
    def steps(guard, numbers):
        for step in numbers:
            play(guard, step, sharp=step >= 5)

    whole = Guard(on_violation="record", eos_token_id=EOS, sample_tokens=60)
    steps(whole, range(14))
    first = Guard(on_violation="record", eos_token_id=EOS, sample_tokens=60)
    steps(first, range(at))
    torch.save(first.state_dict(), tmp_path / "guard.pt")
    second = Guard(on_violation="record", eos_token_id=EOS, sample_tokens=60)
    second.load_state_dict(torch.load(tmp_path / "guard.pt", weights_only=True))
    steps(second, range(at, 14))
    assert second.evidence.log_evidence == whole.evidence.log_evidence
    assert second.evidence.causes == whole.evidence.causes
    together = [f.message for f in [*first.findings, *second.findings]]
    assert together == [f.message for f in whole.findings] and together


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match="not a state of a klguard.Guard"):
        Guard().load_state_dict({"model": {}})


def test_threads_take_turns():
    guard = Guard(on_violation="record", eos_token_id=EOS, sample_tokens=10_000)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 8, 60, generator=generator)
    tokens = torch.multinomial(logits.softmax(-1).view(-1, 60), 1, generator=generator).view(4, 8)
    errors = []

    def score():
        try:
            for _ in range(5):
                guard.logprobs(logits, tokens)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=score) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.step()
    assert errors == [] and guard.failure is None
    assert guard.evidence.tokens == 8 * 5 * 32


def test_a_second_guard_on_the_same_policy_is_refused():
    loop = Loop()
    outer, inner = watching(loop), watching(loop)
    with outer:
        with pytest.raises(RuntimeError, match="another guard is watching this policy"):
            with inner:
                pass
        with outer:  # the same one may be entered again
            pass
        assert outer._watcher is not None
    with inner:
        pass


def test_a_violation_reaches_the_loop_through_the_decorator_and_nothing_is_left_behind():
    loop = Loop()
    before = dict(vars(loop.policy)), dict(loop.policy._forward_hooks)
    guard = watching(loop)

    @guard
    def training():
        raise Violation([violation_of(guard)])

    with pytest.raises(Violation):
        training()
    assert (dict(vars(loop.policy)), dict(loop.policy._forward_hooks)) == before


def violation_of(guard):
    other = Guard(on_violation="record")
    break_it(other)
    return other.findings[0]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="counts synchronisations of a GPU, and there is none"
)
def test_on_a_gpu_a_step_waits_for_the_device_at_most_once():
    guard = Guard(on_violation="record", eos_token_id=EOS)

    def step(number):
        generator = torch.Generator("cuda").manual_seed(number)
        logits = torch.randn(8, 32, 1000, generator=generator, device="cuda")
        tokens = torch.multinomial(logits.softmax(-1).view(-1, 1000), 1, generator=generator).view(8, 32)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            logprobs = guard.logprobs(logits, tokens, mask, reference_logits=logits + 0.01)
            guard.kl(logprobs, logprobs, mask)
            guard.minibatch(logprobs, logprobs.clone(), mask, tokens=tokens, epoch=0, clip_range=0.2)
            guard.step(rewards=logprobs.sum(1))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(0)
    for number in range(1, 5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(number)
        assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 1
    assert guard.failure is None
