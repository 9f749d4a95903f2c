"""What a guard and its events take, what they refuse, and with which words. A mistake in a call is the caller's: the
guard never steps aside for one."""

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from klguard.guard import Guard  # noqa: E402
from klguard.guard.told import clip_range, groups  # noqa: E402

B, T, V = 3, 4, 7
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(B, T, V, generator=GENERATOR)
IDS = torch.randint(0, V, (B, T), generator=GENERATOR)
PROMPTS = torch.randint(0, V, (B, 5), generator=GENERATOR)
MASK = torch.ones(B, T, dtype=torch.bool)
LOGPROBS = LOGITS.log_softmax(-1).gather(-1, IDS[..., None]).squeeze(-1)
ROWS, TOKENS = torch.zeros(B), torch.zeros(B, T)


def refused(words, event, *given, **named):
    guard = Guard(on_violation="record")
    with pytest.raises((ValueError, TypeError), match=words):
        getattr(guard, event)(*given, **named)
    assert guard.failure is None
    guard.step()
    assert guard.failure is None


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("expected 1", dict(scores=TOKENS)),
        ("one score for each row", dict(scores=ROWS, token_rewards=TOKENS[:2])),
        ("kl have", dict(scores=ROWS, token_rewards=TOKENS, kl=TOKENS[:, 1:], mask=MASK)),
        ("expected 2", dict(scores=ROWS, kl=ROWS)),
        ("scores is a list", dict(scores=[0.0, 1.0, 2.0])),
        ("texts has 1 entry for 3 rows", dict(scores=ROWS, texts=["a"])),
        ("texts is a str", dict(scores=ROWS, texts="abc")),
        ("recompute is an int; pass a function", dict(scores=ROWS, texts=["a"] * 3, recompute=3)),
        ("kl_coef is a str", dict(scores=ROWS, kl_coef="0.1")),
        ("unknown argument 'requires_grad'", dict(scores=ROWS, requires_grad=True)),
        ("missing 1 required positional argument: 'scores'", {}),
    ],
)
def test_rewards(words, given):
    refused(words, "rewards", **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("mask is a NoneType", dict(advantages=TOKENS, mask=None)),
        ("missing 1 required positional argument: 'mask'", dict(advantages=TOKENS)),
        ("2 entries for 3 rows", dict(advantages=torch.zeros(2), mask=MASK)),
        ("values", dict(advantages=TOKENS, mask=MASK, values=torch.zeros(3, 5))),
        ("groups has 2 entries", dict(advantages=TOKENS, mask=MASK, groups=[0, 1])),
        ("expected 1", dict(advantages=TOKENS, mask=MASK, scores=TOKENS)),
        ("gamma is a str; pass a number", dict(advantages=TOKENS, mask=MASK, gamma="1")),
        ("group_size=0 has to be 1 or more", dict(advantages=ROWS, mask=MASK, group_size=0)),
        ("group_size is a float; pass a whole number", dict(advantages=ROWS, mask=MASK, group_size=2.5)),
    ],
)
def test_advantages(words, given):
    refused(words, "advantages", **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("clip_range is a str; pass a number", dict(clip_range="0.2")),
        ("clip_range=-0.2 has to be above 0", dict(clip_range=-0.2)),
        ("one number, or \\(low, high\\)", dict(clip_range=(0.1, 0.2, 0.3))),
        ("'kll' is not known: choose one of 'ratio'", dict(reported={"kll": 1.0})),
        ("reported is a list; pass a dict", dict(reported=[1.0])),
        ("reported\\['ratio'\\] is a str", dict(reported={"ratio": "1"})),
        ("rows has 1 entry for 3 rows of new_logprobs", dict(rows=[0])),
        ("rows are no whole numbers", dict(rows=["a", "b", "c"])),
        ("epoch is a str; pass a whole number", dict(epoch="0")),
        ("epoch=-1 has to be 0 or more", dict(epoch=-1)),
        ("advantages is a ndarray, not a tensor", dict(advantages=TOKENS.numpy())),
        ("advantages has shape \\(2, 4\\); expected \\(3,\\) or \\(3, 4\\)", dict(advantages=TOKENS[:2])),
        ("kl_term is a float, not a tensor", dict(kl_term=0.1)),
        ("unknown argument 'first'", dict(first=True)),
    ],
)
def test_minibatch(words, given):
    refused(words, "minibatch", LOGPROBS, LOGPROBS, MASK, **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (
            "stop_token_ids is a str; .* tokenizer.convert_tokens_to_ids\\('</s>'\\)",
            dict(stop_token_ids="</s>"),
        ),
        ("stop_token_ids is a list", dict(stop_token_ids=["</s>"])),
        ("max_new_tokens is a str", dict(max_new_tokens="16")),
        ("temperature is a str", dict(temperature="0.7")),
        ("temperature=-1 has to be 0 or more", dict(temperature=-1)),
        ("filtered is a list; pass a whole number", dict(filtered=[1, 2])),
        ("weights_version is a str", dict(weights_version="v1")),
        ("allowed_lag is a str", dict(weights_version=1, allowed_lag="1")),
        ("groups has 1 entry for 3 rows of the responses", dict(prompts=PROMPTS, groups=[0])),
        ("rows has 2 entries for 3 rows", dict(rows=[0, 1])),
        ("texts has 1 entry", dict(texts=["a"])),
        (
            "attention_mask has shape \\(3, 4\\); expected \\(3, 5\\)",
            dict(prompts=PROMPTS, attention_mask=MASK),
        ),
        ("attention_mask is a list", dict(prompts=PROMPTS, attention_mask=PROMPTS.tolist())),
        ("tool_mask have shape \\(3, 3\\)", dict(tool_mask=MASK[:, 1:])),
        ("unknown argument 'stop_ids': choose from prompts", dict(stop_ids=3)),
        ("unknown argument 'setings'", dict(setings={})),
    ],
)
def test_rollout(words, given):
    refused(words, "rollout", IDS, MASK, **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("context_ids have shape \\(2, 5\\) .* batch sizes differ", dict(context_ids=PROMPTS[:2])),
        ("context_ids has 1 dimension", dict(context_ids=PROMPTS[0])),
        ("context_ids is a list", dict(context_ids=PROMPTS.tolist())),
        ("context_ids have dtype torch.float32", dict(context_ids=PROMPTS.float())),
        ("temperature=0 has to be above 0", dict(temperature=0)),
        ("temperature is a str", dict(temperature="1")),
        ("unexpected keyword argument 'ref_logits'", dict(ref_logits=LOGITS)),
    ],
)
def test_logprobs(words, given):
    refused(words, "logprobs", LOGITS, IDS, MASK, **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("rewards is a str; pass one number for each response", dict(rewards="a")),
        ("rewards has shape \\(0,\\)", dict(rewards=[])),
        ("loss is a str; pass a number", dict(loss="a")),
        ("kl is a dict", dict(kl={"a": 1})),
        ("kl_unit='tokens' is not known: choose one of 'token', 'sequence'", dict(kl=0.1, kl_unit="tokens")),
        ("kl_estimator='k9' is not known", dict(kl=0.1, kl_estimator="k9")),
        ("unknown argument 'rewardz': choose from rewards, loss", dict(rewardz=1.0)),
    ],
)
def test_step(words, given):
    refused(words, "step", **given)


def test_other_calls():
    refused("unexpected keyword argument 'ref_logprobs'", "observe", LOGPROBS, MASK, ref_logprobs=LOGPROBS)
    refused("takes 1 positional argument", "step", 3)
    refused("values is a float", "kl", LOGPROBS, LOGPROBS, MASK, values=0.1)


@pytest.mark.parametrize(
    ("words", "functions"),
    [
        ("score is an int; pass a function", dict(score=3)),
        ("unknown argument 'scor': choose from score", dict(scor=lambda ids, mask: None)),
        ("batch has to be a pair of tensors", dict(batch=3)),
        ("shapes .* which differ", dict(batch=(PROMPTS, MASK))),
        ("gamma is a str", dict(gae=lambda rewards, values, mask: rewards, gamma="1")),
        (
            "what `gae` returned is None; it has to return the advantages",
            dict(gae=lambda rewards, values, mask: None),
        ),
        ("what `reward` returned is a str", dict(reward=lambda score, kl: "x")),
        ("what `kl_loss` returned is None", dict(kl_loss=lambda logprobs, reference: None)),
    ],
)
def test_preflight(words, functions):
    refused(words, "preflight", **functions)


class Tokenizer:
    eos_token_id = 0


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("policy is a str, .* AutoModelForCausalLM.from_pretrained\\('gpt2'\\)", dict(policy="gpt2")),
        ("policy is a function, .* @guard above the function", dict(policy=lambda: None)),
        ("reference is a Tokenizer.*the order is", dict(reference=Tokenizer())),
        ("alpha='1e-6' is a probability", dict(alpha="1e-6")),
        ("tolerance='a' is in nats", dict(tolerance="a")),
        ("kl_range=10 has to be \\(low, high\\)", dict(kl_range=10)),
        ("seed=None has to be a whole number", dict(seed=None)),
        ("eos_token_id is a str", dict(eos_token_id="</s>")),
        ("kl_coef is a str", dict(kl_coef="0.1")),
        ("max_grad_norm is a str", dict(max_grad_norm="1")),
        ("max_grad_norm=-1 has to be 0 or more", dict(max_grad_norm=-1)),
        ("group_size=0", dict(group_size=0)),
        ("optimizer is a str", dict(optimizer="adam")),
    ],
)
def test_making_a_guard(words, given):
    with pytest.raises((ValueError, TypeError), match=words):
        Guard(**given)


@pytest.mark.parametrize("thing", [torch.nn.Linear(1, 1), Tokenizer, None, "train"])
def test_only_functions_are_decorated(thing):
    with pytest.raises(TypeError, match="put it around the function that trains"):
        Guard()(thing)


def test_what_fits_is_taken():
    guard = Guard(on_violation="record", strict=True)
    guard.rollout(
        IDS, MASK, prompts=PROMPTS, attention_mask=torch.ones(B, 5 + T), groups=["x", "y", "z"], temperature=0
    )
    guard.rollout(IDS, MASK, stop_token_ids=np.int64(V), max_new_tokens=torch.tensor(16), filtered=0.0)
    guard.rewards(ROWS, token_rewards=TOKENS, kl=TOKENS, kl_coef=torch.tensor(0.1), mask=MASK.long())
    guard.advantages(ROWS, MASK.float(), groups=[0, 0, 1], scores=ROWS, values=TOKENS)
    guard.advantages(TOKENS.bfloat16(), MASK, raw=TOKENS, rewards=TOKENS, returns=TOKENS)
    guard.minibatch(LOGPROBS, LOGPROBS, MASK, clip_range=(0.2, 0.28), reported={"ratio": np.float32(1)})
    guard.minibatch(LOGPROBS, LOGPROBS, MASK, clip_range=torch.tensor(0.2), rows=np.arange(3), epoch=0)
    guard.step(
        rewards=[1.0, 2.0, 3.0],
        lengths=np.array([4, 4, 4]),
        truncated=[True, False, False],
        loss=torch.ones(1),
    )
    guard.step(rewards=[torch.tensor(1.0), torch.tensor(2.0)], lengths=4.0, truncated=0.25)
    assert guard.findings == []


def test_rows_of_a_whole_attention_mask_do_not_end_in_padding():
    """Responses are padded on the right; prompts that are given with them are not."""
    attention = torch.ones(B, 5 + T)
    attention[:, -1] = 0
    guard = Guard(on_violation="record", strict=True)
    guard.rollout(IDS, MASK, prompts=PROMPTS, attention_mask=attention)
    guard.step()
    assert guard.findings == []


@pytest.mark.parametrize(
    ("given", "share"), [((0.2, 0.28), 0.0), (0.2, 0.5), ((0.3, 0.2), 0.5), ([0.05, 0.5], 0.5)]
)
def test_each_side_is_clipped_by_its_own_number(given, share):
    """Half of the tokens have a ratio of 1.25, the others of 0.9: three steps above a share of 0.3 are told."""
    guard = Guard(on_violation="record", strict=True)
    old = TOKENS.clone()
    new = torch.where(torch.arange(T) % 2 == 0, 1.25, 0.9).log().expand(B, T)
    for _ in range(3):
        guard.minibatch(new, old, MASK, clip_range=given)
        guard.step()
    found = [finding.measured.value for finding in guard.findings if finding.code == "KLG833"]
    assert found == ([share] if share else [])


def test_forms():
    assert clip_range("clip_range", 0.2) == (0.2, 0.2)
    assert groups("groups", ["b", "a", "b"]) == [0, 1, 0]
    assert groups("groups", np.array(["b", "a"], dtype=object)) == [0, 1]
    with pytest.raises(TypeError, match="cannot be told apart"):
        groups("groups", [[1], [2]])
