"""The watcher: what it tells of a loop with real models, that it is right, and that it leaves no trace."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from klguard.guard.events import Rollout  # noqa: E402
from klguard.guard.frameworks import memory as remembering  # noqa: E402
from klguard.guard.frameworks import transformers as watching  # noqa: E402
from klguard.guard.frameworks.capture import Noted, Stopped  # noqa: E402
from klguard.guard.frameworks.memory import Memory, row_hashes  # noqa: E402
from klguard.guard.frameworks.transformers import Watcher, sampled  # noqa: E402
from klguard.guard.shield import Shielded  # noqa: E402
from klguard.settings import Known, Site  # noqa: E402

VOCABULARY, PAD, EOS = 60, 0, 2
LENGTHS = {"do_sample": True, "max_new_tokens": 7, "pad_token_id": PAD}
torch.set_num_threads(1)


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.5,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def llama(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=[EOS, 3],
        pad_token_id=PAD,
        initializer_range=0.5,
    )
    return transformers.LlamaForCausalLM(config).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def prompts(rows: int = 6, length: int = 5, padding: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Prompts padded on the left by 0 to `padding`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        missing = row % (padding + 1)
        ids[row, :missing], mask[row, :missing] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def scoring_inputs(sequences: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What a loop passes to score whole sequences after left-padded prompts (rows, P)."""
    copies = sequences.shape[0] // mask.shape[0]
    mask = mask.repeat_interleave(copies, 0)
    whole = torch.cat((mask, torch.ones(len(mask), sequences.shape[1] - mask.shape[1], dtype=mask.dtype)), 1)
    return {
        "input_ids": sequences,
        "attention_mask": whole,
        "position_ids": (whole.cumsum(1) - 1).clamp(min=0),
    }


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1).gather(-1, tokens[..., None])[..., 0]


@dataclass
class Recorder:
    """A listener that writes everything down."""

    version: int = 0
    rollouts: list[tuple[Rollout, Site]] = field(default_factory=list)
    passes: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    error: Exception | None = None
    rows_dropped: int = 0

    def generated(self, event: Rollout, site: Site) -> None:
        self.order.append("generated")
        self.rollouts.append((event, site))

    def scored(self, role, logits, tokens, mask, context_ids, handle, columns=None) -> None:
        assert not torch.is_grad_enabled() and not logits.requires_grad
        if columns is not None:
            logits = logits[torch.arange(len(columns))[:, None], columns]
        self.order.append(role)
        self.passes.append(
            {
                "role": role,
                "logits": logits,
                "tokens": tokens,
                "mask": mask,
                "context": context_ids,
                "handle": handle,
            }
        )

    def paired(self, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> None:
        self.order.append("paired")
        self.pairs.append((logprobs, reference_logprobs, mask))

    def dropped(self, rows: Tensor | float, rewritten: Tensor | float) -> None:
        self.rows_dropped += int(rows)

    def boundary(self) -> None:
        self.order.append("boundary")
        if self.error is not None:
            raise self.error

    def of(self, role: str) -> list[dict[str, Any]]:
        return [found for found in self.passes if found["role"] == role]

    def count(self, role: str = "policy") -> int:
        return sum(int(found["mask"].sum()) for found in self.of(role))


@pytest.fixture(params=[gpt2, llama])
def policy(request) -> nn.Module:
    return request.param()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def drawn_mask(responses: Tensor, stops: tuple[int, ...]) -> Tensor:
    """The oracle of the response mask, token by token."""
    mask = torch.zeros(responses.shape, dtype=torch.bool)
    for row, tokens in enumerate(responses.tolist()):
        for position, token in enumerate(tokens):
            mask[row, position] = True
            if token in stops:
                break
    return mask


# -- one pass ------------------------------------------------------------------------------------------------


def test_the_logits_are_those_the_tokens_were_drawn_from(policy, recorder):
    batch = prompts()
    with Watcher(recorder, policy):
        output = policy.generate(
            **batch, **LENGTHS, top_k=0, return_dict_in_generate=True, output_logits=True
        )
        policy(**scoring_inputs(output.sequences, batch["attention_mask"]))
    (event, site), (found,) = recorder.rollouts[0], recorder.passes
    length = batch["input_ids"].shape[1]
    assert torch.equal(found["tokens"], output.sequences[:, length:])
    assert torch.equal(found["context"], output.sequences[:, :length])
    assert torch.equal(event.prompts, batch["input_ids"]) and event.attention_mask is batch["attention_mask"]
    stops = (EOS,) if policy.config.model_type == "gpt2" else (EOS, 3)
    assert torch.equal(found["mask"], drawn_mask(found["tokens"], stops)) and torch.equal(
        event.mask, found["mask"]
    )
    assert (found["mask"].sum(1) < 7).any(), "no row ended early: the mask was not tried"
    expected = token_logprobs(torch.stack(output.logits, 1), found["tokens"])
    got = token_logprobs(found["logits"], found["tokens"])
    assert (got - expected)[found["mask"]].abs().max() < 1e-5
    assert found["handle"] == event.handle and event.settings is site.settings
    assert (event.max_new_tokens, event.temperature, event.stop_ids) == (7, 1.0, stops)


def test_the_logits_are_views_of_the_loops_own(recorder):
    policy, batch = gpt2(), prompts()
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        logits = policy(tokens).logits
    assert recorder.passes[0]["logits"].data_ptr() == logits[:, 4:].data_ptr()


def test_a_pass_that_keeps_only_the_last_logits(recorder):
    policy, batch = llama(), prompts(padding=0)
    if "logits_to_keep" not in inspect.signature(policy.forward).parameters:
        pytest.skip("this release computes all logits")
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        time = tokens.shape[1] - 5
        policy(tokens, logits_to_keep=time + 1)
        assert recorder.count() == recorder.rollouts[0][0].mask.sum()
        whole = policy(tokens).logits[:, 4:-1]
    assert torch.allclose(recorder.passes[0]["logits"], whole, atol=1e-6)
    with Watcher(recorder, policy):
        recorder.passes.clear()
        policy.generate(**batch, **LENGTHS)
        policy(tokens, logits_to_keep=2)
    assert not recorder.count(), "two logits cannot score seven tokens"


def test_several_responses_to_a_prompt(policy, recorder):
    batch = prompts(rows=3)
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS, num_return_sequences=4)
        policy(**scoring_inputs(tokens, batch["attention_mask"]))
    event = recorder.rollouts[0][0]
    assert torch.equal(event.attention_mask, batch["attention_mask"].repeat_interleave(4, 0))
    assert torch.equal(event.prompts, batch["input_ids"].repeat_interleave(4, 0))
    assert recorder.count() == event.mask.sum() > 0


def test_positional_arguments_and_a_generation_config_object(recorder):
    policy, batch = gpt2(), prompts(padding=0)
    config = transformers.GenerationConfig(**LENGTHS, temperature=0.7, eos_token_id=[EOS, 9])
    with Watcher(recorder, policy):
        tokens = policy.generate(batch["input_ids"], config, attention_mask=batch["attention_mask"])
        policy(tokens)
    event, site = recorder.rollouts[0]
    assert (event.temperature, event.stop_ids) == (0.7, (EOS, 9)) and recorder.count() == event.mask.sum()
    assert site.settings.values["temperature"].value == 0.7


def test_an_encoder_decoder_is_matched_by_its_decoder_ids(recorder):
    policy, batch = t5(), prompts(padding=0)
    with Watcher(recorder, policy):
        output = policy.generate(
            **batch, **LENGTHS, top_k=0, return_dict_in_generate=True, output_logits=True
        )
        policy(input_ids=batch["input_ids"], decoder_input_ids=output.sequences)
    (found,), (event, _) = recorder.passes, recorder.rollouts[0]
    assert torch.equal(found["tokens"], output.sequences[:, 1:]) and found["context"].shape == (6, 1)
    assert torch.equal(event.prompts, batch["input_ids"])
    expected = token_logprobs(torch.stack(output.logits, 1), found["tokens"])
    assert (token_logprobs(found["logits"], found["tokens"]) - expected)[found["mask"]].abs().max() < 1e-5


def test_embeddings_have_no_prompt_among_the_ids(recorder):
    policy, batch = gpt2(), prompts(padding=0)
    embeddings = policy.get_input_embeddings()(batch["input_ids"]).detach()
    with Watcher(recorder, policy):
        tokens = policy.generate(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], **LENGTHS)
        policy(tokens)
    event, _ = recorder.rollouts[0]
    assert torch.equal(event.responses, tokens) and event.prompts.shape == (6, 0) and not recorder.passes


# -- whole steps -----------------------------------------------------------------------------------------------


def test_permuted_minibatches_with_accumulation_count_each_token_once(policy, recorder):
    reference = copy.deepcopy(policy).requires_grad_(False)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    batch = prompts(rows=8)
    with Watcher(recorder, policy, reference):
        with torch.no_grad():
            tokens = policy.generate(**batch, **LENGTHS)
        inputs = scoring_inputs(tokens, batch["attention_mask"])
        with torch.no_grad():
            reference(**inputs)
        rows = torch.randperm(8, generator=torch.Generator().manual_seed(3))
        policy.train()
        for _ in range(2):
            for micro in rows.split(2):
                loss = (
                    policy(**{name: value[micro] for name, value in inputs.items()})
                    .logits.logsumexp(-1)
                    .mean()
                )
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.version += 1
        policy.eval()
    event = recorder.rollouts[0][0]
    assert len(recorder.of("policy")) == 4, "passes under new weights are not told of"
    assert recorder.count() == recorder.count("reference") == event.mask.sum()
    for micro, found in zip(rows.split(2), recorder.of("policy"), strict=True):
        assert torch.equal(found["mask"], event.mask[micro])
    assert sum(int(mask.sum()) for *_, mask in recorder.pairs) == event.mask.sum()


OFTEN = {"eos_token_id": list(range(2, 10))}
"""So many ids stop a response that they differ in length."""


def alone(inputs, lengths):
    """Each row by itself, up to its last token."""
    for row, length in enumerate(lengths):
        yield [row], {name: value[row : row + 1, :length] for name, value in inputs.items()}


def cut(inputs, lengths):
    """Micro-batches as long as their longest row."""
    for rows in ([0, 5], [1, 7, 2], [3], [4, 6]):
        yield rows, {name: value[rows, : max(lengths[row] for row in rows)] for name, value in inputs.items()}


def shifted(inputs, lengths):
    """The same, without the last token: it predicts nothing that is known."""
    for rows, given in cut(inputs, lengths):
        yield rows, {name: value[:, :-1] for name, value in given.items()}


def unpadded(inputs, lengths):
    """Each row by itself, without padding on either side, and without a mask."""
    for row, length in enumerate(lengths):
        own = inputs["attention_mask"][row, :length].bool()
        yield [row], {"input_ids": inputs["input_ids"][row : row + 1, :length][:, own]}


def to_the_right(inputs, lengths):
    """All padding moved behind the rows, as a collator that pads on the right leaves it."""
    rows = [given["input_ids"][0] for _, given in unpadded(inputs, lengths)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    yield list(range(8)), {"input_ids": ids, "attention_mask": mask}


def to_the_left(inputs, lengths):
    """All padding in front of the rows, behind which their last tokens stand in one column."""
    (rows, given), *_ = to_the_right(inputs, lengths)
    flipped = [
        nn.utils.rnn.pad_sequence(
            [v[m.bool()].flip(0) for v, m in zip(given[name], given["attention_mask"], strict=True)],
            batch_first=True,
        ).flip(1)
        for name in ("input_ids", "attention_mask")
    ]
    yield (
        rows,
        {
            "input_ids": flipped[0],
            "attention_mask": flipped[1],
            "position_ids": (flipped[1].cumsum(1) - 1).clamp(min=0),
        },
    )


def less_in_front(inputs, lengths):
    """Micro-batches of rows with the same padding, without it."""
    padding = (inputs["attention_mask"].cumsum(1) == 0).sum(1)
    for missing in padding.unique().tolist():
        rows = (padding == missing).nonzero()[:, 0].tolist()
        yield rows, {name: value[rows, missing:] for name, value in inputs.items()}


def longer(inputs, lengths):
    """Padded to more than generate() returned."""
    yield list(range(8)), {name: torch.nn.functional.pad(value, (0, 3)) for name, value in inputs.items()}


MOVED = [unpadded, to_the_right, to_the_left, less_in_front]


@pytest.mark.parametrize("host", [True, False], ids=["cpu", "device"])
@pytest.mark.parametrize("passes", [alone, cut, shifted, longer, *MOVED])
def test_passes_of_another_length_count_each_token_once(policy, recorder, passes, host, monkeypatch):
    """Rows of full length alone would be rows chosen by what was drawn: no stop token would ever be among them. Rows
    that are moved are recognised too; also on a device, where nobody can look how far they are."""
    if not host:
        for module in (watching, remembering):
            monkeypatch.setattr(module, "at_hand", lambda device: False)
    reference = copy.deepcopy(policy).requires_grad_(False)
    batch = prompts(rows=8)
    with torch.no_grad(), Watcher(recorder, policy, reference):
        torch.manual_seed(5)
        tokens = policy.generate(**batch, **LENGTHS, **OFTEN)
        event = recorder.rollouts[0][0]
        lengths = (batch["input_ids"].shape[1] + event.mask.sum(1)).tolist()
        assert len(set(lengths)) > 2, "rows of different lengths"
        inputs = scoring_inputs(tokens, batch["attention_mask"])
        for _ in range(2):  # a second time nothing is new
            for _, given in passes(inputs, lengths):
                policy(**given)
                reference(**given)
        whole = token_logprobs(
            policy(**inputs).logits[:, batch["input_ids"].shape[1] - 1 : -1], event.responses
        )
    assert recorder.count() == recorder.count("reference") == event.mask.sum()
    assert sum(int(mask.sum()) for *_, mask in recorder.pairs) == event.mask.sum()
    for (rows, _), found in zip(passes(inputs, lengths), recorder.of("policy"), strict=False):
        seen = found["mask"]
        assert torch.equal(seen.sum(1), event.mask[rows].sum(1))
        logprobs = token_logprobs(found["logits"], found["tokens"])
        time = seen.shape[1]
        assert torch.equal(found["tokens"][seen], event.responses[rows, :time][seen])
        assert ((logprobs - whole[rows, :time]) * seen).abs().max() < 1e-5
    for own, theirs, mask in recorder.pairs:
        assert ((own - theirs) * mask).abs().max() < 1e-6


def test_a_pass_over_the_prompts_alone_scores_no_longer_responses(recorder):
    model, batch = llama(), prompts(rows=8)
    with torch.no_grad(), Watcher(recorder, model):
        torch.manual_seed(5)
        tokens = model.generate(**batch, **LENGTHS, **OFTEN)
        event = recorder.rollouts[0][0]
        model(**batch)
        assert recorder.count() == int((event.mask.sum(1) == 1).sum())
        model(**scoring_inputs(tokens, batch["attention_mask"]))
    assert recorder.count() == event.mask.sum()


@pytest.mark.parametrize("first", ["policy", "reference"])
def test_pairs_come_with_whichever_pass_is_second(policy, recorder, first):
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(1.1)
    batch = prompts()
    with Watcher(recorder, policy, reference), torch.no_grad():
        tokens = policy.generate(**batch, **LENGTHS)
        inputs = scoring_inputs(tokens, batch["attention_mask"])
        models = {"policy": policy, "reference": reference}
        models[first](**inputs)
        assert not recorder.pairs
        parts = torch.tensor([4, 0, 2, 5, 1, 3]).split(3)
        for micro in parts:
            models["reference" if first == "policy" else "policy"](
                **{name: value[micro] for name, value in inputs.items()}
            )
    with torch.no_grad():
        expected = [token_logprobs(m(**inputs).logits[:, 4:-1], tokens[:, 5:]) for m in (policy, reference)]
    for micro, (*got, mask) in zip(parts, recorder.pairs, strict=True):
        assert torch.equal(mask, recorder.rollouts[0][0].mask[micro])
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours - theirs[micro])[mask].abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_a_second_pass_over_the_same_rows_is_not_counted(policy, recorder):
    batch = prompts()
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        policy(tokens[:4])
        policy(tokens.clone())
        policy(tokens.clone())
    counts = [int(found["mask"].sum()) for found in recorder.passes]
    whole = recorder.rollouts[0][0].mask
    assert counts == [whole[:4].sum(), whole[4:].sum(), 0]


def test_equal_rows_count_as_often_as_they_were_drawn(recorder):
    policy = gpt2()
    ids = torch.full((4, 3), 7)
    with Watcher(recorder, policy):
        tokens = policy.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=PAD, max_new_tokens=5)
        assert (tokens == tokens[0]).all(), "greedy search from equal prompts"
        for rows in ([0], [1, 2, 3, 0], [2]):
            policy(tokens[rows])
    drawn = recorder.rollouts[0][0].mask[0].sum()
    assert [found["mask"].sum() / drawn for found in recorder.passes] == [1, 3, 0]
    assert recorder.passes[1]["mask"].any(1).tolist() == [True, True, True, False]


def test_an_evaluation_in_between_is_told_apart(recorder):
    """Greedy search for evaluation, of the same shape: its settings must not be taken for the rollout's."""
    policy, batch = gpt2(), prompts(padding=0)
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS, eos_token_id=None)
        policy.generate(**batch, max_new_tokens=7, pad_token_id=PAD, eos_token_id=None, do_sample=False)
        policy(tokens)
    (rollout, _), (evaluation, _) = recorder.rollouts
    assert rollout.handle != evaluation.handle
    tokens_of = {found["handle"]: int(found["mask"].sum()) for found in recorder.passes}
    assert tokens_of == {rollout.handle: 42, evaluation.handle: 0}


def test_an_evaluation_that_drew_some_of_the_same_rows_claims_none(recorder):
    """By chance or because the policy is nearly certain: the rollout that explains the pass gets its rows."""
    memory = Memory()
    rows = torch.arange(20).reshape(4, 5)
    mask = torch.ones(4, 3, dtype=torch.bool)
    rollout, evaluation = memory.group("drawn", 0, 2, 5), memory.group("greedy", 0, 2, 5)
    rollout.add(rows, mask)
    evaluation.add(torch.cat((rows[:2], rows[2:] + 1)), mask)
    found = {f.group: f.mask for f in memory.recognise(rows[[3, 0, 1]], [rollout, evaluation], "policy")}
    assert found[rollout].all() and not found[evaluation].any()


def test_rollouts_of_the_same_line_and_settings_share_a_handle(recorder):
    policy = gpt2()
    with Watcher(recorder, policy):
        parts = []
        for seed in range(3):
            batch = prompts(rows=2, seed=seed, padding=0)
            parts.append(policy.generate(**batch, **LENGTHS, eos_token_id=None))
        policy(torch.cat(parts)[[5, 0, 3, 2, 1, 4]])
    assert len({event.handle for event, _ in recorder.rollouts}) == 1
    assert len(recorder.passes) == 1 and recorder.count() == 6 * 7


def test_a_generate_under_new_weights_ends_the_step(recorder):
    policy, batch = gpt2(), prompts()
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        policy(tokens)
        policy.generate(**batch, **LENGTHS)
        recorder.version += 1
        policy.generate(**batch, **LENGTHS)  # the step is over before this draws
        recorder.version += 1
        policy.generate(**batch, **LENGTHS)  # what was not scored is no step
    assert recorder.order == ["generated", "policy", "generated", "boundary", "generated", "generated"]
    with Watcher(recorder, policy):
        policy(policy.generate(**batch, **LENGTHS))
        recorder.version += 1
        recorder.error, before = AssertionError("violation"), torch.get_rng_state()
        with pytest.raises(AssertionError, match="violation"):
            policy.generate(**batch, **LENGTHS)
    assert torch.equal(torch.get_rng_state(), before), "it raises before anything is drawn"


def test_stale_rollouts_are_not_matched(recorder):
    policy, batch = gpt2(), prompts()
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        recorder.version += 1
        policy(tokens)
    assert not recorder.passes


def test_inference_mode(recorder):
    policy, reference, batch = gpt2(), gpt2(1), prompts()
    with Watcher(recorder, policy, reference):
        with torch.inference_mode():
            tokens = policy.generate(**batch, **LENGTHS)
            reference(tokens)
        ids = tokens.clone()
        policy(ids[:3]).logits.sum().backward()
        with torch.inference_mode():
            policy(ids[3:])
    assert recorder.count() == recorder.count("reference") == recorder.rollouts[0][0].mask.sum()
    assert len(recorder.pairs) == 2
    assert not any(part.is_inference() for pair in recorder.pairs for part in pair)


# -- masks ----------------------------------------------------------------------------------------------------


def test_the_mask_goes_by_position():
    """The padding is the stop token: only the first one was drawn."""
    responses = torch.tensor([[5, EOS, EOS, EOS], [EOS, EOS, EOS, EOS], [5, 6, 7, 8], [5, 6, 3, EOS]])
    expected = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(sampled(responses, (EOS,)), expected)
    expected[3, 3] = False
    assert torch.equal(sampled(responses, torch.tensor([EOS, 3])), expected)
    assert sampled(responses, None).all()


class EndsAt:
    """A stopping criterion of the project's own: a row ends with one of these tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.tokens)


def test_a_row_ended_by_a_stopping_criterion_is_masked_after_it(recorder):
    """Padding is the stop token, so that the array itself does not tell a drawn one from a filled one."""
    policy, batch = gpt2(), prompts(rows=12, padding=0)
    ends = tuple(range(20, 40))
    criteria = transformers.StoppingCriteriaList([EndsAt(*ends)])
    with Watcher(recorder, policy):
        tokens = policy.generate(
            **batch, do_sample=True, max_new_tokens=7, pad_token_id=EOS, stopping_criteria=criteria
        )
        policy(tokens)
    oracle = drawn_mask(tokens[:, 5:], (EOS, *ends))
    by_token_alone = drawn_mask(tokens[:, 5:], (EOS,))
    assert not torch.equal(oracle, by_token_alone)
    assert torch.equal(recorder.passes[0]["mask"], oracle)
    assert type(criteria[0]) is EndsAt


def test_a_watched_criterion_is_like_its_own():
    stopped = Stopped()
    criterion = EndsAt(5)
    criterion.eos_token_id = 5
    noted = Noted(criterion, stopped.note)
    done = noted(torch.tensor([[1, 5], [1, 6]]), None)
    assert done.tolist() == [True, False] and stopped.lengths.tolist() == [2, -1]
    noted(torch.tensor([[1, 5, 5], [1, 6, 5]]), None)
    assert stopped.lengths.tolist() == [2, 3]
    assert noted.eos_token_id == 5 and not hasattr(noted, "stop_string")
    assert type(copy.deepcopy([noted])[0]) is EndsAt, "a copy is not watched"


def test_hashes_tell_rows_apart_by_position_and_padding():
    rows = torch.tensor([[1, 2, 3], [3, 2, 1], [2, 1, 3], [0, 2, 3], [1, 2, 0], [1, 2, 3]])
    hashes = row_hashes(rows)
    assert hashes[0] == hashes[5] and len(set(hashes.tolist())) == 5
    assert torch.equal(row_hashes(rows.int()), hashes)
    many = torch.randint(0, 4, (20_000, 9), generator=torch.Generator().manual_seed(0))
    assert len(set(row_hashes(many).tolist())) == len({tuple(row) for row in many.tolist()})


# -- wrappers -------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """DDP and its like: the model is `module`, and forward passes go through it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ValueHead(nn.Module):
    """TRL's AutoModelForCausalLMWithValueHead: (logits, loss, value), and a generate() that delegates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model = model
        self.v_head = nn.Linear(16, 1)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, None, Tensor]:
        output = self.pretrained_model(input_ids, output_hidden_states=True, **kwargs)
        return output.logits.float(), None, self.v_head(output.hidden_states[-1])[..., 0]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.pretrained_model.generate(*args, **kwargs)


class Bypass(nn.Module):
    """PEFT's tuner: it calls the model's forward(), not the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.forward(*args, **kwargs)


@pytest.mark.parametrize("wrap", [Wrapper, ValueHead, Bypass, lambda m: Wrapper(ValueHead(m))])
def test_through_wrappers(recorder, wrap):
    model, batch = gpt2(), prompts(padding=0)
    wrapped = wrap(model)
    with Watcher(recorder, wrapped):
        tokens = model.generate(**batch, **LENGTHS)
        wrapped(tokens)
    assert recorder.count() == recorder.rollouts[0][0].mask.sum()
    assert len(recorder.passes) == 1, "one pass through several modules is told once"


@pytest.mark.parametrize("in_place", [False, True])
def test_through_torch_compile(recorder, in_place):
    model, batch = gpt2(), prompts(padding=0)
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager", fullgraph=True)
    before = traces(model), model._compiled_call_impl
    with Watcher(recorder, compiled):
        tokens = compiled.generate(**batch, **LENGTHS)
        expected = compiled(tokens).logits[:, 4:-1]
    assert recorder.count() == recorder.rollouts[0][0].mask.sum()
    assert torch.equal(recorder.passes[0]["logits"], expected)
    assert (traces(model), model._compiled_call_impl) == before


class Adapter(nn.Linear):
    """The part of a PEFT layer that tells whether its adapters are in use."""

    on = True
    active_adapters = ("default",)

    @property
    def disable_adapters(self) -> bool:
        return not self.on

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.on else x


def test_a_pass_without_the_adapters_is_the_references(recorder):
    policy, batch = llama(), prompts(padding=0)
    adapter = policy.model.layers[0].mlp.up_proj = Adapter(16, 32)
    adapter.forward = lambda x: nn.functional.linear(x, adapter.weight * (2.0 if adapter.on else 1.0))
    with Watcher(recorder, policy), torch.no_grad():
        tokens = policy.generate(**batch, **LENGTHS)
        adapter.on = False
        base = policy(tokens).logits[:, 4:-1]
        adapter.on = True
        own = policy(tokens).logits[:, 4:-1]
    assert [found["role"] for found in recorder.passes] == ["reference", "policy"]
    ((logprobs, theirs, mask),) = recorder.pairs
    assert (logprobs - token_logprobs(own, tokens[:, 5:]))[mask].abs().max() < 1e-5
    assert (theirs - token_logprobs(base, tokens[:, 5:]))[mask].abs().max() < 1e-5
    assert (logprobs - theirs)[mask].abs().max() > 1e-3


# -- no trace ---------------------------------------------------------------------------------------------------


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def traces(model: nn.Module) -> list[tuple[set[str], tuple[int, ...]]]:
    return [(set(vars(m)), tuple(len(getattr(m, name)) for name in HOOKS)) for m in model.modules()]


def test_nothing_is_left_after_removal(policy, recorder):
    reference, batch = gpt2(1), prompts()
    before = traces(policy), traces(reference)
    watcher = Watcher(recorder, policy, reference)
    watcher.install()
    watcher.install()
    assert traces(policy) != before[0]
    tokens = policy.generate(**batch, **LENGTHS)
    installed = set(vars(policy))
    assert installed - before[0][0][0] == {"generate"}, (
        "what generate() prepares is watched for its time only"
    )
    watcher.remove()
    watcher.remove()
    assert (traces(policy), traces(reference)) == before
    policy(tokens)
    policy.generate(**batch, **LENGTHS)
    assert recorder.order == ["generated"]
    with watcher:
        policy(policy.generate(**batch, **LENGTHS))
    assert recorder.order == ["generated", "generated", "policy"] and traces(policy) == before[0]


def test_removed_also_when_the_loop_or_generate_raises(policy, recorder):
    before, batch = traces(policy), prompts()
    with pytest.raises(ValueError, match="nonsense"), Watcher(recorder, policy):
        with pytest.raises(ValueError):
            policy.generate(**batch, **LENGTHS, nonsense=1)
        assert set(vars(policy)) - before[0][0] == {"generate"} and not recorder.rollouts
        policy(policy.generate(**batch, **LENGTHS))
        assert recorder.count() > 0, "a failed call does not end the watching"
        policy.generate(**batch, **LENGTHS, nonsense=1)
    assert traces(policy) == before


def test_an_own_generate_of_the_instance_is_put_back(recorder):
    policy, batch = gpt2(), prompts()
    calls = []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(policy).generate(policy, *args, **kwargs)

    policy.generate = own
    with Watcher(recorder, policy):
        policy.generate(**batch, **LENGTHS)
    assert policy.generate is own and calls == [1] and len(recorder.rollouts) == 1


@pytest.mark.parametrize("last_first", [True, False])
def test_two_watchers_removed_in_any_order(policy, last_first):
    before, batch = traces(policy), prompts()
    one, two = Recorder(), Recorder()
    watchers = [Watcher(one, policy), Watcher(two, policy)]
    for watcher in watchers:
        watcher.install()
    policy(policy.generate(**batch, **LENGTHS))
    assert one.order == two.order == ["generated", "policy"]
    for watcher in watchers[:: -1 if last_first else 1]:
        watcher.remove()
        policy.generate(**batch, **LENGTHS)
    assert traces(policy) == before


def test_everything_generate_returns_and_draws_is_untouched(policy, recorder):
    batch, reference = prompts(), gpt2(1)
    options = dict(LENGTHS, temperature=0.9, return_dict_in_generate=True, output_logits=True)

    def loop() -> tuple[Any, Tensor, Tensor]:
        torch.manual_seed(5)
        output = policy.generate(**batch, **options)
        reference(output.sequences)
        return output, policy(output.sequences).logits, torch.rand(3)

    plain, plain_logits, after = loop()
    with Watcher(recorder, policy, reference):
        seen, seen_logits, seen_after = loop()
    assert type(seen) is type(plain) and seen.keys() == plain.keys()
    assert torch.equal(plain.sequences, seen.sequences) and torch.equal(plain_logits, seen_logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, seen.logits, strict=True))
    assert seen_logits.requires_grad and torch.equal(after, seen_after)
    assert recorder.count() == recorder.count("reference") > 0


def test_a_copy_of_the_policy_is_not_watched(policy, recorder):
    batch = prompts()
    with Watcher(recorder, policy):
        tokens = policy.generate(**batch, **LENGTHS)
        for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            assert twin.generate.__self__ is twin
            with torch.no_grad():
                twin.get_output_embeddings().weight.zero_()
            twin(tokens)
            flat = twin.generate(**batch, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
            assert flat.logits[0].abs().max() == 0, "its generate() is its own"
    assert recorder.order == ["generated"]


# -- failures -------------------------------------------------------------------------------------------------


class Shielding(Shielded, Recorder):
    """A listener that takes failures of the watching, and then hears no more."""

    def __init__(self) -> None:
        Recorder.__init__(self)
        Shielded.__init__(self, strict=False)

    def _note_failure(self, finding: Any) -> None:
        self.order.append(type(self.failure).__name__)


WORK = ("begins_a_step", "drawn", "passed", "_rollout", "_scoring", "_tell", "_paired")


@pytest.mark.filterwarnings("ignore:the guard failed")
@pytest.mark.parametrize(
    "broken", [*WORK, "take_config", "take_processors", "take_criteria", "recognise", "begin", "end"]
)
def test_failures_of_the_watching_stay_its_own(monkeypatch, broken):
    from klguard.guard.frameworks import capture

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("planted")

    owner = {"recognise": Memory, "begin": capture.Capture, "end": capture.Capture}.get(
        broken, capture.Prepared if broken.startswith("take") else Watcher
    )
    monkeypatch.setattr(owner, broken, fails)
    policy, reference, batch = gpt2(), gpt2(1), prompts()
    listener = Shielding()
    torch.manual_seed(1)
    with Watcher(listener, policy, reference):
        tokens = policy.generate(**batch, **LENGTHS)
        policy(tokens), reference(tokens)
    torch.manual_seed(1)
    assert torch.equal(tokens, policy.generate(**batch, **LENGTHS))
    assert "ZeroDivisionError" in listener.order
    with Watcher(Recorder(), policy, reference), pytest.raises(ZeroDivisionError):
        tokens = policy.generate(**batch, **LENGTHS)
        policy(tokens), reference(tokens)


@pytest.mark.filterwarnings("ignore:the guard failed")
def test_one_that_failed_still_tells_of_boundaries(monkeypatch):
    """Its listener may have to tell the other ranks, which would wait for it."""

    def fails(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Watcher, "drawn", fails)
    policy, batch, listener = gpt2(), prompts(), Shielding()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    with Watcher(listener, policy):
        for _ in range(3):
            policy.generate(**batch, **LENGTHS)
            tokens = policy.generate(**batch, **LENGTHS)
            policy(tokens).logits.mean().backward()
            optimizer.step()
    assert listener.order == ["ZeroDivisionError", "boundary", "boundary"]


def test_nothing_is_told_while_the_listener_uses_the_model_itself(recorder):
    policy, batch = gpt2(), prompts()
    with Watcher(recorder, policy) as watcher:
        tokens = policy.generate(**batch, **LENGTHS)
        watcher.paused = True
        policy(tokens)
        policy.generate(**batch, **LENGTHS)
        watcher.paused = False
        policy(tokens)
    assert recorder.order == ["generated", "policy"] and recorder.count() > 0


class NoWaiting(TorchDispatchMode):
    """Raises where the host would have to wait for a device."""

    waits = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.equal",
        "aten.is_nonzero",
    )

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        masked = name.startswith("aten.index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for part in args
            if isinstance(part, list | tuple)
            for index in part
        )
        assert not name.startswith(self.waits) and not masked, name
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(monkeypatch, recorder):
    for name in ("drawn", "passed"):
        original = getattr(Watcher, name)

        def careful(*args: Any, original: Any = original) -> Any:
            with NoWaiting():
                return original(*args)

        monkeypatch.setattr(Watcher, name, careful)
    for module in (watching, remembering):
        monkeypatch.setattr(module, "at_hand", lambda device: False)  # as on a GPU
    policy, reference, batch = gpt2(), gpt2(1), prompts()
    ends = transformers.StoppingCriteriaList([EndsAt(*range(20, 40))])
    with Watcher(recorder, policy, reference), torch.no_grad():
        for stop in (EOS, torch.tensor([EOS, 9])):
            tokens = policy.generate(**batch, **LENGTHS, stopping_criteria=ends, eos_token_id=stop)
        policy.generate(**batch, **LENGTHS, num_return_sequences=2)
        policy(tokens[[1, 0, 2]])
        reference(tokens)
        policy(tokens)
    assert recorder.count() == recorder.count("reference") == recorder.rollouts[1][0].mask.sum()
    with NoWaiting(), pytest.raises(AssertionError, match="aten"):
        bool(tokens.sum())
    with NoWaiting(), pytest.raises(AssertionError, match="aten"):
        tokens[tokens > 3]


def test_recognition_on_a_device_without_values():
    """The meta device has no values at all: whatever looked at one would raise."""
    ids = torch.ones(6, 9, dtype=torch.int64, device="meta")
    memory, mask = Memory(), sampled(ids[:, 5:], (EOS,), ids[:, 0], 5)
    for key in ("one", "two"):
        group = memory.group(key, 0, 5, 9)
        group.add(ids, mask)
        group.add(ids, mask)
    for role, other in (("policy", "reference"), ("reference", "policy")):
        for found in memory.recognise(ids[:4], memory.groups, role):
            found.group.keep(found, role, torch.zeros(4, 4, device="meta"))
            kept = found.group.kept(found, other)
            assert found.mask.shape == (4, 4) and (kept is None) == (role == "policy")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers' advice about lengths and modes is not what is tested."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def test_memory_is_bounded(monkeypatch):
    from klguard.guard.frameworks import memory

    monkeypatch.setattr(memory, "MAX_BYTES", 4000)
    kept = Memory()
    for number in range(100):
        group = kept.group(number, 0, 2, 10)
        group.add(torch.full((8, 10), number), torch.ones(8, 8, dtype=torch.bool))
        kept.shrink()
    assert kept.groups[-1].key == 99 and 1 < len(kept.groups) < 40
    monkeypatch.setattr(memory, "MAX_BYTES", 2**30)
    for number in range(200, 300):
        kept.group(number, 0, 2, 10).add(torch.zeros(1, 10).long(), torch.ones(1, 8, dtype=torch.bool))
        kept.shrink()
    assert len(kept.groups) == memory.MAX_GROUPS


def test_the_site_is_the_line_of_the_call(recorder):
    policy, batch = gpt2(), prompts()
    with Watcher(recorder, policy):
        policy.generate(**batch, **LENGTHS)
    event, site = recorder.rollouts[0]
    assert site.place.path.endswith("test_frameworks_transformers.py") and site.place == event.place
    assert site.enclosing == "test_the_site_is_the_line_of_the_call"
    assert site.settings.values["do_sample"] == Known(True, site.settings.values["do_sample"].hops)
