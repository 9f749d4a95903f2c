"""What guard.rewards and guard.advantages refuse, and with which words."""

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import Guard  # noqa: E402

MASK = torch.ones(3, 4, dtype=torch.bool)
ROWS, TOKENS = torch.zeros(3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(scores=TOKENS), "expected 1"),
        (dict(scores=ROWS, token_rewards=TOKENS[:2]), "one score for each row"),
        (dict(scores=ROWS, token_rewards=TOKENS, kl=TOKENS[:, 1:], mask=MASK), "kl have"),
        (dict(scores=ROWS, kl=ROWS), "expected 2"),
        (dict(scores=[0.0, 1.0, 2.0]), "scores is a list"),
    ],
)
def test_rewards(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Guard(on_violation="record").rewards(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(advantages=TOKENS, mask=None), "mask is a NoneType"),
        (dict(advantages=torch.zeros(2), mask=MASK), "2 entries for 3 rows"),
        (dict(advantages=TOKENS, mask=MASK, values=torch.zeros(3, 5)), "values"),
        (dict(advantages=TOKENS, mask=MASK, groups=[0, 1]), "groups has 2 entries"),
        (dict(advantages=TOKENS, mask=MASK, scores=TOKENS), "expected 1"),
    ],
)
def test_advantages(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Guard(on_violation="record").advantages(**arguments)


def test_what_fits_is_taken():
    guard = Guard(on_violation="record", strict=True)
    guard.rewards(ROWS, token_rewards=TOKENS, kl=TOKENS, kl_coef=0.1, mask=MASK.long())
    guard.advantages(ROWS, MASK.float(), groups=[0, 0, 1], scores=ROWS, values=TOKENS)
    guard.advantages(TOKENS.bfloat16(), MASK, raw=TOKENS, rewards=TOKENS, returns=TOKENS)
    guard.step()
    assert guard.findings == []
