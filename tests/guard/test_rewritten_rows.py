"""KLG867 in loops that are watched: rows that are scored with other tokens than were sampled."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard import Guard  # noqa: E402
from tests.guard.loop import EOS, _model  # noqa: E402

PROMPT, RESPONSE, PAD, ROWS = 6, 16, 0, 16
PURE = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": RESPONSE}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def codes(change, *, padded=False, copies=1, steps=3):
    """The codes of a loop that scores, in each epoch, what `change` makes of the sampled ids (B, L)."""
    policy = copy.deepcopy(_model())
    policy.generation_config.pad_token_id = PAD
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-4)
    guard = Guard(
        policy,
        copy.deepcopy(policy).eval().requires_grad_(False),
        optimizer=optimizer,
        on_violation="record",
        strict=True,
    )
    with guard:
        for _ in range(steps):
            prompts = torch.randint(4, 64, (ROWS // copies, PROMPT)).repeat_interleave(copies, 0)
            attention = torch.ones_like(prompts)
            if padded:
                prompts[::2, :2], attention[::2, :2] = PAD, 0
            with torch.no_grad():
                ids = policy.generate(input_ids=prompts, attention_mask=attention, **PURE)
            whole = torch.cat([attention, torch.ones_like(ids[:, PROMPT:])], 1)
            for given in change(ids):
                mask = whole[: len(given)] if len(given) <= len(whole) else None
                logits = policy(given, attention_mask=mask).logits[:, :-1]
                loss = -logits.log_softmax(-1).gather(-1, given[:, 1:, None]).mean() * 0.01
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
    return {finding.code for finding in guard.findings}


def encoded_again(ids):
    """Some tokens in the middle become others, as they do when text is cut into tokens anew."""
    new = ids.clone()
    new[::3, PROMPT + 1] = torch.where(ids[::3, PROMPT + 1] == 7, 8, 7)
    return [new]


def all_of_it(ids):
    return [ids]


def the_better_half(ids):
    return [ids[::2]]


def the_better_half_twice(ids):
    return [ids[::2], ids[::2]]


def with_right_answers(ids):
    """A supervised loss beside it, on other responses to the same prompts."""
    answers = ids.clone()
    answers[:, PROMPT:] = torch.randint(4, 64, answers[:, PROMPT:].shape)
    return [ids, answers]


def cut_and_padded(ids):
    """What comes after the fifth token is thrown away, and the response ended there."""
    cut = ids.clone()
    cut[:, PROMPT + 5] = EOS
    cut[:, PROMPT + 6 :] = PAD
    return [cut]


def two_epochs(ids):
    return [ids, ids.flip(0)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("copies", [1, 4])
def test_rows_that_were_written_anew_are_found(padded, copies):
    assert "KLG867" in codes(encoded_again, padded=padded, copies=copies)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(
    "change",
    [all_of_it, the_better_half, the_better_half_twice, with_right_answers, cut_and_padded, two_epochs],
)
def test_rows_that_are_left_cut_or_joined_by_others_are_not(change, copies):
    assert "KLG867" not in codes(change, copies=copies)
