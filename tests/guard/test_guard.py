"""The guard as its user meets it: around a loop, its reactions, its words, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from klguard import Guard, GuardWarning, Violation  # noqa: E402
from klguard.guard.journal import read  # noqa: E402
from tests.guard.draws import draw, min_p, play, top_k  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(**options):
    return Guard(**{"on_violation": "record", "strict": True} | options)


def break_it(guard):
    """A step in which a log-prob is above 0."""
    guard.observe(torch.full((2, 4), 0.5))
    guard.step()


def inside(guard):
    return guard._depth


# ------------------------------------------------------------------------------------------------ around a loop


def test_a_function_is_guarded_while_it_runs_and_returns_what_it_returns():
    guard = quiet()

    @guard
    def train(steps, *, rate=1.0):
        """Trains."""
        return steps, rate, inside(guard)

    assert train(3, rate=0.5) == (3, 0.5, 1)
    assert inside(guard) == 0
    assert (train.__name__, train.__doc__) == ("train", "Trains.")


def test_a_coroutine_is_guarded_while_it_runs():
    guard = quiet()

    @guard
    async def train():
        await asyncio.sleep(0)
        return inside(guard)

    coroutine = train()
    assert inside(guard) == 0, "nothing runs before it is awaited"
    assert asyncio.run(coroutine) == 1
    assert inside(guard) == 0


def test_a_generator_is_guarded_while_it_is_iterated():
    guard = quiet()

    @guard
    def train():
        got = yield inside(guard)
        yield got
        return "done"

    steps = train()
    assert inside(guard) == 0
    assert next(steps) == 1
    assert steps.send("sent") == "sent"
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "done" and inside(guard) == 0


def test_an_asynchronous_generator_is_guarded_while_it_is_iterated():
    guard = quiet()

    @guard
    async def train():
        for _ in range(2):
            yield inside(guard)

    async def collect():
        return [item async for item in train()]

    assert asyncio.run(collect()) == [1, 1]
    assert inside(guard) == 0


def test_a_generator_that_is_left_early_ends_in_order(tmp_path):
    guard = quiet(journal=tmp_path / "run.jsonl")

    @guard
    def train():
        while True:
            yield

    steps = train()
    next(steps)
    steps.close()
    assert inside(guard) == 0
    assert read(tmp_path / "run.jsonl").end["outcome"] == "finished"


def test_an_error_of_the_loop_passes_as_it_is(tmp_path):
    guard = quiet(journal=tmp_path / "run.jsonl")
    error = RuntimeError("out of memory")

    @guard
    def train():
        raise error

    with pytest.raises(RuntimeError) as caught:
        train()
    assert caught.value is error and guard.failure is None and inside(guard) == 0
    assert read(tmp_path / "run.jsonl").end["outcome"] == "raised"


def test_a_guard_may_be_entered_again_inside_and_afterwards():
    guard = quiet()
    with guard as entered:
        assert entered is guard
        with guard:
            assert inside(guard) == 2
        assert inside(guard) == 1
    with guard:
        break_it(guard)
    assert [f.code for f in guard.findings] == ["KLG838"]


def test_explicit_events_need_neither_decorator_nor_with():
    guard = Guard()
    with pytest.raises(Violation):
        break_it(guard)


def test_what_is_left_at_the_end_of_the_loop_is_judged():
    guard = Guard()
    with pytest.raises(Violation), guard:
        guard.observe(torch.full((2, 4), 0.5))


def test_what_is_left_does_not_hide_an_error_of_the_loop():
    guard = Guard()
    with pytest.raises(ZeroDivisionError), guard:
        guard.observe(torch.full((2, 4), 0.5))
        1 / 0  # noqa: B018


def test_a_setup_that_is_wrong_ends_the_journal(tmp_path):
    model = torch.nn.Linear(2, 2)
    guard = Guard(model, model, journal=tmp_path / "run.jsonl")
    with pytest.raises(Violation) as caught, guard:
        pass
    assert caught.value.code == "KLG803"
    assert read(tmp_path / "run.jsonl").end["outcome"] == "raised"
    assert inside(guard) == 0


def test_a_guard_that_stepped_aside_says_so_in_the_journal(tmp_path, monkeypatch):
    guard = Guard(journal=tmp_path / "run.jsonl")
    monkeypatch.setattr(guard._works, "close", lambda *a, **k: 1 / 0)
    with pytest.warns(GuardWarning, match="stepped aside.*ZeroDivisionError") as caught, guard:
        break_it(guard)
        assert guard.logprobs(torch.zeros(1, 1, 4), torch.zeros(1, 1).long()).item() == pytest.approx(
            -1.3862944
        )
    assert len(caught) == 1 and Path(caught[0].filename) == Path(__file__)
    run = read(tmp_path / "run.jsonl")
    assert [record["code"] for record in run.violations] == ["KLG006"]
    assert run.end["outcome"] == "finished"


# ------------------------------------------------------------------------------------------------ reactions


def test_raise_is_the_default_and_a_finding_is_told_once():
    guard = Guard()
    with pytest.raises(Violation):
        break_it(guard)
    break_it(guard)
    assert [f.code for f in guard.findings] == ["KLG838"]


def test_warn():
    guard = Guard(on_violation="warn")
    with pytest.warns(GuardWarning, match="KLG838") as caught:
        break_it(guard)
        break_it(guard)
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__), "the warning points at the loop"


def test_record_says_nothing():
    guard = Guard(on_violation="record")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        break_it(guard)
    assert [f.code for f in guard.findings] == ["KLG838"]


def test_a_function_gets_each_finding():
    got = []
    guard = Guard(on_violation=got.append)
    break_it(guard)
    assert got == guard.findings and got[0].code == "KLG838"


def test_milder_findings_warn_where_errors_raise():
    """A NaN of an engine that has no figure for a token is a warning."""
    guard = Guard()
    nothing = torch.full((2, 4), torch.nan)
    with pytest.warns(GuardWarning, match="of the engine are NaN"):
        guard.observe(torch.full((2, 4), -1.0), sampler_logprobs=nothing)
        guard.step()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_violation": "rise"}, "on_violation='rise': choose one of raise, warn, record"),
        ({"alpha": 1.5}, "alpha=1.5 is a probability"),
        ({"tolerance": -1.0}, "nats per token"),
        ({"kl_range": (3.0, 1.0)}, "has to be"),
        ({"sample_tokens": 0}, "at least 1"),
        ({"ignore": ["KLG999"]}, "no code, beginning of a code, or name"),
        ({"ignore": [""]}, "no code"),
        ({"ignore": "KLG838"}, r"write \['KLG838'\]"),
        ({"logger": 3}, "klguard cannot log to"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Guard(**options)


@pytest.mark.parametrize("word", ["KLG838", "klg838", "KLG83", "KLG8", "malformed-logprobs"])
def test_ignored_by_code_by_beginning_and_by_name(word):
    guard = Guard(ignore=[word])
    break_it(guard)
    assert guard.findings == []


def test_ignoring_one_thing_ignores_nothing_else():
    guard = quiet(ignore=["KLG834", "top-k"])
    break_it(guard)
    assert [f.code for f in guard.findings] == ["KLG838"]


# ------------------------------------------------------------------------------------------------ what a violation says


@pytest.fixture(scope="module")
def violation():
    """top_k=5, and a KL that the guard can price."""
    guard = Guard(kl_coef=0.1)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(Violation) as caught:
        for _ in range(10):
            logits = 2 * torch.randn(8, 32, 60, generator=generator)
            reference = logits + 0.5 * torch.randn(logits.shape, generator=generator)
            guard.logprobs(logits, draw(top_k(5)(logits), generator), reference_logits=reference)
            guard.step()  # told here
    return caught.value


def test_a_violation_is_an_assertion_error_with_all_that_is_known(violation):
    assert isinstance(violation, AssertionError)
    assert (violation.code, violation.finding.code, violation.cause) == ("KLG701", "KLG701", "top_k=5")
    assert violation.weight > 0.9
    assert violation.standard_error > 0
    assert violation.reward == pytest.approx(-0.1 * violation.nats_per_sequence)
    assert violation.finding in violation.findings
    lines = Path(__file__).read_text().splitlines()
    assert Path(violation.place.path).name == Path(__file__).name
    assert "told here" in lines[violation.place.line - 1]
    assert "sampling setting" in violation.help


def test_a_violation_can_be_read(violation):
    first, place, harm, action = str(violation).splitlines()[:4]
    assert first.startswith("KLG701 [not-the-policy] error: the tokens were not drawn from the policy")
    assert "look drawn with `top_k=5`" in first and "see KLG101 [top-k]" in first
    assert place.startswith("  --> ") and "test_guard.py" in place
    assert harm.startswith("  harm: the KL estimate is off by ") and "nats per sequence, worth " in harm
    assert action.startswith("  help: ")
    assert all(len(line) < 420 for line in str(violation).splitlines())


def test_a_violation_survives_pickling(violation):
    back = pickle.loads(pickle.dumps(violation))
    assert isinstance(back, Violation) and str(back) == str(violation)
    assert back.findings == violation.findings
    for name in ("code", "cause", "weight", "nats_per_sequence", "standard_error", "reward", "place", "help"):
        assert getattr(back, name) == getattr(violation, name)


def test_errors_come_first_and_all_are_carried():
    guard = Guard()
    with pytest.raises(Violation) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard.observe(torch.tensor([[0.5, torch.nan]]), sampler_logprobs=torch.tensor([[torch.nan, -1.0]]))
        guard.step()
    settings = [f.setting for f in caught.value.findings]
    assert settings == ["policy-nan", "policy-above"], "a warning is not raised"
    assert [f.setting for f in guard.findings] == [*settings, "sampler-nan"]
    assert str(caught.value).count("KLG838") == 2
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings


# ------------------------------------------------------------------------------------------------ journal and logger


def test_journal_and_logger_get_the_same_figures(tmp_path):
    path, history = tmp_path / "run.jsonl", {}
    guard = quiet(journal=path, logger=history, kl_coef=0.1)
    with guard:
        play(guard, top_k(5), steps=4)
    run = read(path)
    assert [record["step"] for record in run.steps] == [0]
    assert run.steps[0]["log_evidence"] == pytest.approx(guard.evidence.log_evidence, rel=1e-6)
    (record,) = run.violations
    assert (record["code"], record["cause"], record["step"]) == ("KLG701", "top_k=5", 0)
    assert run.end["outcome"] == "finished" and run.end["steps"] == 1
    assert history["klguard/log_evidence"] == [(0, pytest.approx(guard.evidence.log_evidence))]
    assert guard.metrics["klguard/causes/top_k_5"] == pytest.approx(guard.evidence.causes["top_k=5"])
    assert all(json.loads(line) for line in path.read_text().splitlines())


# ------------------------------------------------------------------------------------------------ torch


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
import klguard, klguard.guard
from klguard.guard import journal, catalogue
print(klguard.check_source("model.generate(ids)") is not None)
for name in ("Guard", "Violation", "GuardWarning"):
    try:
        getattr(klguard, name)
    except ImportError as error:
        print(f"{name}: {type(error).__name__}: {error} {error.__cause__}")
"""

WITH_TORCH = "import klguard, sys; print('torch' in sys.modules, 'klguard.read' in sys.modules)"


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_torch_klguard_works_and_the_guard_says_what_to_install():
    works, guard, *others = python(WITHOUT_TORCH)
    assert works == "True"
    said = "ImportError: klguard.{} needs torch: install the guard with `pip install 'klguard[guard]'` None"
    assert guard == "Guard: " + said.format("Guard")
    # an exception and a warning that nobody can raise need nothing
    assert others in ([], [f"{n}: " + said.format(n) for n in ("Violation", "GuardWarning")])


def test_importing_klguard_imports_no_torch():
    assert python(WITH_TORCH) == ["False False"]


# ------------------------------------------------------------------------------------------------ gradients


def test_log_probs_have_the_gradient_of_log_softmax_to_the_bit():
    guard = quiet()
    logits = torch.randn(4, 6, 50, requires_grad=True)
    tokens = torch.randint(50, (4, 6))
    weights = torch.randn(4, 6)
    theirs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None]).squeeze(-1)
    (wanted,) = torch.autograd.grad((theirs * weights).sum(), logits)
    ours = guard.logprobs(logits, tokens)
    (got,) = torch.autograd.grad((ours * weights).sum(), logits)
    assert torch.equal(ours, theirs) and torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("estimator", "slope"), [("k1", 1.0), ("k2", 0.5), ("k3", 1 - 2.718281828459045**-0.5)]
)
def test_the_kl_is_differentiable_and_0_where_masked(estimator, slope):
    guard = quiet()
    new = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    value = guard.kl(new, torch.tensor([[-1.5, -9.0]]), torch.tensor([[1, 0]]), estimator=estimator)
    value.sum().backward()
    assert value[0, 1] == 0
    assert new.grad.tolist() == [[pytest.approx(slope), 0.0]]


def tensors_of(thing, seen, path="guard"):
    """All tensors that can be reached from an object."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, torch.Tensor):
        yield path, thing
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from tensors_of(value, seen, f"{path}[{key!r}]")
    elif isinstance(thing, (list, tuple, set)) or type(thing).__name__ == "deque":
        for value in thing:
            yield from tensors_of(value, seen, f"{path}[]")
    elif type(thing).__module__.startswith("klguard"):
        slots = {name: getattr(thing, name, None) for name in getattr(thing, "__slots__", ())}
        yield from tensors_of({**slots, **getattr(thing, "__dict__", {})}, seen, path)


def test_nothing_that_the_guard_keeps_has_a_graph():
    guard = quiet(kl_coef=0.1)
    logits = torch.randn(4, 6, 50, requires_grad=True)
    tokens = draw(logits.detach(), torch.Generator().manual_seed(0))
    reference = torch.randn(4, 6, 50, requires_grad=True)
    mask = torch.ones(4, 6)
    guard.rollout(tokens, mask)
    logprobs = guard.logprobs(logits, tokens, mask, reference_logits=reference, stale_logprobs=logits[..., 0])
    kl = guard.kl(logprobs, reference.log_softmax(-1)[..., 0], mask)
    guard.rewards(logprobs.sum(1), token_rewards=logprobs, kl=kl, mask=mask)
    guard.advantages(logprobs, mask, values=logprobs, returns=logprobs)
    guard.minibatch(logprobs, logprobs * 1.0, mask, advantages=logprobs, entropy=logprobs, kl_term=kl)
    found = list(tensors_of(guard, {}))
    assert len(found) > 20
    assert [path for path, tensor in found if tensor.requires_grad or tensor.grad_fn is not None] == []
    guard.step(loss=logprobs.mean(), kl=kl.sum(1).mean())
    assert [p for p, tensor in tensors_of(guard, {}) if tensor.requires_grad] == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_sees_the_same(mode):
    plain, other = quiet(), quiet()
    play(plain, min_p(0.05), steps=2)
    with mode():
        play(other, min_p(0.05), steps=1)
    play(other, seed=1, steps=1)
    assert other.findings[0].message == plain.findings[0].message


# ------------------------------------------------------------------------------------------------ late scoring


def test_log_probs_after_an_update_are_left_out_and_that_is_said_once(caplog):
    policy = torch.nn.Linear(8, 50)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    guard = quiet(policy=policy, optimizer=optimizer, ignore=["KLG8"])
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 6, 8, generator=generator)
    with guard, caplog.at_level(logging.WARNING, "klguard"):
        for _ in range(2):
            tokens = draw(policy(states).detach(), generator)
            for _ in range(4):
                optimizer.zero_grad()
                guard.logprobs(policy(states), tokens).mean().neg().backward()
                optimizer.step()
            guard.step()
    said = [r.message for r in caplog.records if "after an update in the same step" in r.message]
    assert len(said) == 2, "once in each step"
    assert guard.evidence.tokens == 2 * 24


def test_a_kl_term_of_the_loss_and_log_probs_after_an_update_do_not_count_for_the_cumulative_kl():
    """In every epoch the loss has a KL term over the same tokens; under weights that have moved it may be of any
    sign, and says nothing about the sampler."""
    weight = torch.nn.Linear(2, 2)
    guard = Guard(weight, on_violation="record", strict=True)
    low = torch.full((4, 16), -3.0)
    for _ in range(4):
        guard.kl(low, low + 0.0)
        for _ in range(3):
            guard.kl(low.clone().requires_grad_(), low + 2.0, estimator="k3")
        with torch.no_grad():
            weight.weight.add_(1.0)
        guard.kl(low, low + 2.0)
        guard.step()
    assert guard.findings == []
    for _ in range(2):
        guard.kl(low, low + 2.0)
        guard.step()
    assert [finding.code for finding in guard.findings] == ["KLG603"]
