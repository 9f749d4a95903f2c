"""The guard around loops with generate(): the settings in force speak with the codes of `klguard check`."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import GenerationConfig  # noqa: E402

import klguard  # noqa: E402
from klguard import Guard  # noqa: E402
from klguard.guard import GuardWarning  # noqa: E402
from tests.guard.draws import draw, top_k  # noqa: E402
from tests.guard.loop import EOS, _model  # noqa: E402

LOOP = '''\
"""One loop, read twice: by `klguard check` as text, and by the guard as it runs."""

import torch
from transformers import PreTrainedModel


def train(policy: PreTrainedModel, reference: PreTrainedModel, optimizer, steps: int) -> None:
    for step in range(steps):
        prompts = torch.randint(2, 64, (16, 6))
        policy.eval()
        with torch.no_grad():
            ids = policy.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=16,
                SETTINGS,
            )
        responses = ids[:, 6:]
        mask = (responses == 1).cumsum(1) - (responses == 1).long() == 0
        new = policy(ids, use_cache=False).logits[:, 5:-1].log_softmax(-1)
        logprobs = new.gather(-1, responses[..., None])[..., 0]
        with torch.no_grad():
            theirs = reference(ids).logits[:, 5:-1].log_softmax(-1)
            kl = logprobs - theirs.gather(-1, responses[..., None])[..., 0]
        rewards = (responses > 32).float().mean(1, keepdim=True) - 0.05 * kl.detach()
        advantages = rewards - rewards.mean()
        loss = -(advantages * logprobs * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        policy.eval()
        with torch.no_grad():
            shown = policy.generate(prompts, do_sample=False, max_new_tokens=4, attention_mask=torch.ones_like(prompts))
        print(shown.shape)
'''


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models():
    policy = copy.deepcopy(_model())
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    return policy, reference, torch.optim.SGD(policy.parameters(), lr=0.01)


def quiet(*models, **options):
    return Guard(*models[:2], **{"on_violation": "record", "strict": True} | options)


def loaded(text: str, path: Path) -> Callable:
    """`train` of a module with this text, whose lines can be found."""
    path.write_text(text)
    module = types.ModuleType("a_loop")
    exec(compile(text, str(path), "exec"), vars(module))
    return module.train


SETTINGS = {
    "do_sample=True, top_k=5, top_p=1.0": {"KLG101"},
    "do_sample=True, top_k=0, top_p=0.7": {"KLG103"},
    "do_sample=True, top_k=0, temperature=0.5": {"KLG106"},
    "do_sample=True, top_k=0, min_new_tokens=16": {"KLG302"},
    "do_sample=True, top_k=10, repetition_penalty=1.3": {"KLG101", "KLG107"},
    "do_sample=False": {"KLG201"},
    "do_sample=True, top_k=0, top_p=1.0, temperature=1.0": set(),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_live_settings_speak_with_the_codes_of_klguard_check(settings, models, tmp_path, capsys):
    text = LOOP.replace("SETTINGS", settings)
    guard = quiet(*models, optimizer=models[2])
    guard(loaded(text, tmp_path / "loop.py"))(*models, 2)
    live = {f.code for f in guard.findings if f.code in klguard.rules.RULES}
    checked = {f.code for f in klguard.check_source(text) if f.code < "KLG4"}
    assert live == checked == SETTINGS[settings]
    line = 1 + text.splitlines().index("            ids = policy.generate(")
    assert all(f.place.line == line for f in guard.findings if f.code in live)
    assert all(Path(f.place.path).name == "loop.py" for f in guard.findings if f.code in live)


def test_the_origin_of_the_evidence_is_the_line_that_set_the_cause(models, tmp_path, capsys):
    text = LOOP.replace("SETTINGS", "do_sample=True, top_k=5")
    guard = quiet(*models, optimizer=models[2])
    guard(loaded(text, tmp_path / "loop.py"))(*models, 6)
    found = {f.code: f for f in guard.findings}
    assert {"KLG101", "KLG701"} <= found.keys()
    proof = found["KLG701"]
    line = 1 + text.splitlines().index("            ids = policy.generate(")
    end = 1 + text.splitlines().index("                do_sample=True, top_k=5,")
    assert proof.measured.cause == "top_k=5"
    assert proof.place.line == line and proof.place.end_line > end, (
        "the call that has top_k among its arguments"
    )
    assert proof.origin[0].text == "passed to policy.generate()"
    assert proof.origin[0].place == proof.place == found["KLG101"].place


def test_an_evaluation_in_the_same_loop_is_not_reported(models, tmp_path, capsys):
    """Greedy generation that nothing scores is in every LOOP above; here it is all that is wrong."""
    text = LOOP.replace("SETTINGS", "do_sample=True, top_k=0, top_p=1.0")
    guard = quiet(*models, optimizer=models[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuardWarning)
        guard(loaded(text, tmp_path / "loop.py"))(*models, 6)
    assert guard.findings == []
    assert guard.evidence.tokens > 6 * 16 * 3
    assert {"KLG603", "KLG604", "KLG831"} & guard.exercised == {"KLG603", "KLG604"}, "both models were heard"


@pytest.mark.parametrize("divided", [True, False])
def test_whether_the_loop_divides_by_its_temperature_is_read_in_its_source(divided, models, tmp_path, capsys):
    """From outside a pass shows raw logits, whatever the loop does with them."""
    text = LOOP.replace("SETTINGS", "do_sample=True, top_k=0, temperature=0.5")
    if divided:
        text = text.replace(".logits[:, 5:-1].log_softmax", ".logits[:, 5:-1].div(0.5).log_softmax")
    guard = quiet(*models, optimizer=models[2])
    guard(loaded(text, tmp_path / "loop.py"))(*models, 3)
    assert {(f.code, f.severity.value) for f in guard.findings} == (
        set() if divided else {("KLG106", "warning")}
    )


PURE = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}


@pytest.mark.parametrize("heard", [True, False])
def test_a_loop_that_is_not_heard_is_told_so_once(heard, models, caplog):
    """It scores by the head alone: no pass of the model, so nothing is tested, and silence would look like a pass."""
    policy, reference, optimizer = models
    guard = quiet(*models, optimizer=optimizer)
    with caplog.at_level("WARNING", logger="klguard"), guard:
        for _ in range(20):
            prompts = torch.randint(2, 64, (4, 6))
            with torch.no_grad():
                ids = policy.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    max_new_tokens=4,
                    do_sample=True,
                    top_k=0,
                )
            hidden = policy.transformer(ids).last_hidden_state
            logits = policy(ids).logits if heard else policy.lm_head(hidden)
            loss = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).mean() * 1e-3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    said = [record for record in caplog.records if "no pass that scores a rollout" in record.getMessage()]
    assert len(said) == (0 if heard else 1)
    assert (guard.evidence.tokens > 0) is heard


def test_passes_that_score_nothing_that_was_sampled_are_no_pass(models, caplog):
    """The prompt goes into a cache, and the response is scored behind it: passes of the model, but of no rollout."""
    policy, _, optimizer = models
    guard = quiet(*models, optimizer=optimizer)
    with caplog.at_level("WARNING", logger="klguard"), guard:
        for _ in range(10):
            prompts = torch.randint(2, 64, (4, 6))
            with torch.no_grad():
                ids = policy.generate(
                    prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=4, **PURE
                )
            behind = policy(ids[:, :5], use_cache=True).past_key_values
            logits = policy(ids[:, 5:], past_key_values=behind).logits
            loss = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 6:, None]).mean() * 1e-3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    said = [record for record in caplog.records if "no pass that scores a rollout" in record.getMessage()]
    assert len(said) == 1 and "4 steps" in said[0].getMessage()
    assert guard.evidence.tokens == 0


@pytest.mark.parametrize("told", [True, False])
def test_a_guard_that_is_given_nothing_says_so(told, models, caplog):
    policy, _, optimizer = models
    guard = Guard(on_violation="record", strict=True, optimizer=optimizer if told else None)
    with caplog.at_level("WARNING", logger="klguard"), guard:
        for _ in range(10):
            loss = policy(torch.randint(2, 64, (4, 6))).logits.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and ("no pass that scores" if told else "given no policy") in said[0]


def responses(model, **settings):
    """(ids, mask) of six prompt tokens and a response."""
    prompts = torch.randint(2, 64, (16, 6))
    model.eval()
    with torch.no_grad():
        ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=16, **settings)
    stopped = (ids[:, 6:] == EOS).long()
    return ids, stopped.cumsum(1) - stopped == 0


def test_two_rollouts_under_the_same_weights_and_gradients_that_add_up(models):
    """Each sampled token counts once, whatever is done with it before the update."""
    policy, _, optimizer = models
    guard, sampled = quiet(*models, optimizer=optimizer), 0
    with guard:
        for _ in range(3):
            rollouts = [responses(policy, **PURE) for _ in range(2)]
            optimizer.zero_grad()
            for ids, mask in rollouts:
                for half in (slice(0, 8), slice(8, 16)):
                    logits = policy(ids[half], use_cache=False).logits[:, 5:-1]
                    policy(
                        ids[half], use_cache=False
                    )  # a second pass, such as that of gradient checkpointing
                    logprobs = logits.log_softmax(-1).gather(-1, ids[half, 6:, None])[..., 0]
                    (-(logprobs * mask[half]).sum() / 100).backward()
                sampled += int(mask.sum())
            optimizer.step()
    assert guard.findings == []
    assert guard.evidence.tokens == sampled


def test_an_evaluation_that_scores_its_own_output_is_left_out_where_the_guard_looks_away(models):
    def loop(guard, aside):
        policy, _, optimizer = models
        with guard:
            for _ in range(3):
                ids, mask = responses(policy, **PURE)
                optimizer.zero_grad()
                logits = policy(ids, use_cache=False).logits[:, 5:-1]
                logprobs = logits.log_softmax(-1).gather(-1, ids[:, 6:, None])[..., 0]
                if aside:
                    with guard.looking_away():
                        policy(responses(policy, do_sample=False)[0])
                else:
                    policy(responses(policy, do_sample=False)[0])
                (-(logprobs * mask).sum() / 100).backward()
                optimizer.step()
        return {f.code for f in guard.findings}

    assert loop(quiet(*models, optimizer=models[2]), aside=True) == set()
    assert "KLG201" in loop(quiet(*models, optimizer=models[2]), aside=False), (
        "or the test would show nothing"
    )


# ------------------------------------------------------------------------------------------------ told by hand


def told(settings):
    """A guard whose loop tells it of the rollout and its settings."""
    guard = quiet()
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(8, 16, 60, generator=generator)
    tokens = draw(top_k(5)(logits), generator)
    guard.rollout(tokens, settings=settings)  # told here
    guard.logprobs(logits, tokens)
    guard.step()
    return guard


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        (GenerationConfig(do_sample=True, top_k=5, max_new_tokens=16), {"KLG101"}),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9, "max_new_tokens": 16}, {"KLG101", "KLG103"}),
        ({"max_tokens": 16, "top_k": 5}, {"KLG101"}),
    ],
    ids=["GenerationConfig", "dict of transformers", "dict of vLLM"],
)
def test_settings_that_the_loop_hands_over(settings, codes):
    guard = told(settings)
    found = {f.code: f for f in guard.findings}
    assert {code for code in found if code < "KLG6"} == codes
    assert found["KLG701"].measured.cause == "top_k=5"
    line = 1 + next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines()) if "# told here" in text
    )
    assert found["KLG101"].place.line == found["KLG701"].place.line == line


def test_settings_without_fault_say_nothing_and_the_tokens_speak_for_themselves():
    guard = told({**PURE, "max_new_tokens": 16})
    assert [f.code for f in guard.findings] == ["KLG701"]
