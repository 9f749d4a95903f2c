"""Loops with one bug each, in the reference, the masks or the forward pass: its code is found, and no other."""

from __future__ import annotations

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tests.guard import loop as loops  # noqa: E402
from tests.guard.loop import EOS, PAD, Loop, run  # noqa: E402

torch.set_num_threads(1)


def codes(kind: type[Loop], **options) -> set[str]:
    return {finding.code for finding in run(kind, strict=True, **options).findings}


# ------------------------------------------------------------------------------------------------ reference


class RoundedReference(Loop):
    """The reference goes through another precision than the policy."""

    def forward(self, model, ids, attention):
        logits, hidden = super().forward(model, ids, attention)
        return (logits.bfloat16().float() if model is self.reference else logits), hidden


class FollowingReference(Loop):
    """An exponential average of the policy, written where torch counts no write."""

    def apply(self):
        super().apply()
        for mine, theirs in zip(self.policy.parameters(), self.reference.parameters(), strict=True):
            theirs.data.lerp_(mine.data, 0.1)


class PolicyAsReference(Loop):
    def make_reference(self):
        return self.policy


class SharedParameters(Loop):
    """copy.copy copies the module and not what it holds."""

    def make_reference(self):
        reference = copy.deepcopy(self.policy).requires_grad_(False)
        reference.transformer.h = copy.copy(self.policy.transformer.h)
        return reference.eval()


class FrozenBlock(Loop):
    """A correct loop that trains everything but the first block."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.h[0].requires_grad_(False)
        return policy

    def parameters(self):
        return [parameter for parameter in super().parameters() if parameter.requires_grad]


class RoundedBase(FrozenBlock):
    """Weights that are merged and unmerged come back rounded."""

    def apply(self):
        super().apply()
        weight = self.policy.transformer.h[0].mlp.c_fc.weight.data
        weight.copy_((weight + 1.0) - 1.0)


class FrozenBlockShared(FrozenBlock):
    """A correct loop whose reference shares the frozen block, to save memory."""

    def make_reference(self):
        reference = super().make_reference()
        reference.transformer.h[0] = self.policy.transformer.h[0]
        return reference


class DropoutInReference(Loop):
    def make_reference(self):
        reference = super().make_reference().train()
        reference.transformer.drop.p = 0.1
        return reference


class WithoutPreflight(Loop):
    def tell_preflight(self):
        pass


class DropoutInScoring(Loop):
    """The policy scores in train mode. The minibatches are not told: their ratio would not be 1 either."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.drop.p = 0.02
        return policy

    def score_responses(self, model, *arguments):
        model.train(model is self.policy)
        return super().score_responses(model, *arguments)

    def tell_minibatch(self, *arguments):
        pass


class DropoutInScoringSeenInTheRun(WithoutPreflight, DropoutInScoring):
    pass


# ---------------------------------------------------------------------------------- positions and padding


class NotShifted(Loop):
    """The logits at a token are taken for those that predicted it."""

    def forward(self, model, ids, attention):
        logits, hidden = super().forward(model, ids, attention)
        return torch.cat([logits[:, 1:], logits[:, -1:]], 1), hidden


class ShiftedTwice(Loop):
    def forward(self, model, ids, attention):
        logits, hidden = super().forward(model, ids, attention)
        return torch.cat([logits[:, :1], logits[:, :-1]], 1), hidden


class NotShiftedSeenInTheRun(WithoutPreflight, NotShifted):
    pass


class ShiftedTwiceSeenInTheRun(WithoutPreflight, ShiftedTwice):
    pass


class NoPositions(Loop):
    """Positions are counted from the padding. generate() counts them from the mask."""

    def position_ids(self, attention):
        return torch.arange(attention.shape[1]).expand_as(attention)


class NoPositionsBeforeTraining(NoPositions):
    def tell_scoring(self, batch):
        pass


class NoPositionsSeenInTheRun(WithoutPreflight, NoPositions):
    pass


class PaddingAttended(WithoutPreflight):
    """The attention mask is missing in the scoring pass."""

    def forward(self, model, ids, attention):
        return super().forward(model, ids, torch.ones_like(attention))


class RightPadded(Loop):
    def make_prompts(self):
        ids, attention, groups = super().make_prompts()
        return ids.flip(1), attention.flip(1), groups


class SideChanges(Loop):
    """Something else tokenises on the right, and leaves it so."""

    def step(self):
        super().step()
        self.tokenizer.padding_side = "right"


# ------------------------------------------------------------------------------------------ masks and stops


class MaskOfEverything(Loop):
    """Padding behind the stop is trained. Nothing but the mask is told: the padding was not sampled from the
    policy either, and the score stands at the end of the padding."""

    def response_mask(self, responses):
        return torch.ones_like(responses, dtype=torch.bool)

    def tell_scoring(self, batch):
        pass


class PromptInMask(Loop):
    def tell_rollout(self, batch):
        whole = torch.cat([batch.attention.bool(), batch.mask], 1)
        super().tell_rollout(dataclasses.replace(batch, mask=whole))


class StopLeftOut(Loop):
    def response_mask(self, responses):
        mask = super().response_mask(responses) & (responses != EOS)
        mask[:, 0] = True  # a response that is only a stop keeps it: a row needs a token
        return mask


class FirstTokenMasked(Loop):
    """The mask begins one token late, in the rollout and wherever else it is used."""

    def tell_rollout(self, batch):
        super().tell_rollout(dataclasses.replace(batch, mask=late(batch.mask)))

    def tell_scoring(self, batch):
        super().tell_scoring(dataclasses.replace(batch, mask=late(batch.mask)))

    def tell_minibatch(self, *arguments):
        pass


class FirstTokenNotInTheLoss(Loop):
    """The mask of the loss is cut as the logits are: off by one. The rollout's is right."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        mask = late(batch.mask)
        self.guard.minibatch(new, batch.old, mask, tokens=batch.responses, rows=batch.rows, epoch=epoch)

    def mean(self, loss, batch):
        return super().mean(loss, dataclasses.replace(batch, mask=late(batch.mask)))


def late(mask):
    """The mask without the first token of each row."""
    return mask & (torch.arange(mask.shape[1]) > 0)


class ForcedBeginning(Loop):
    """A correct loop whose responses begin with a token that a template gives, outside the mask."""

    def sample(self, prompts, attention):
        prompts = torch.cat([prompts, torch.full_like(prompts[:, :1], 9)], 1)
        responses = super().sample(prompts, torch.cat([attention, torch.ones_like(attention[:, :1])], 1))
        return torch.cat([torch.full_like(responses[:, :1], 9), responses[:, :-1]], 1)

    def response_mask(self, responses):
        return late(super().response_mask(responses))

    def score_responses(self, model, prompts, attention, responses, mask):
        mask = mask | (torch.arange(mask.shape[1]) == 0)  # what is attended to is not what is trained
        return super().score_responses(model, prompts, attention, responses, mask)

    def token_rewards(self, scores, kl, mask):
        rewards = -self.beta * kl * mask
        last = torch.where(mask, torch.arange(mask.shape[1]), 0).amax(1)
        return rewards.scatter_add(1, last[:, None], scores[:, None])


class NoResponses(Loop):
    """Responses are cut out of a mapping where a list was expected: nothing is left, and the loop does not notice."""

    def step(self):
        prompts, attention, _ = self.make_prompts()
        nothing = prompts[:, :0]
        self.guard.rollout(nothing, nothing.bool(), prompts=prompts, attention_mask=attention)
        self.guard.step()


class OnlyPadding(NoResponses):
    def step(self):
        prompts, attention, _ = self.make_prompts()
        padding = torch.full((len(prompts), loops.RESPONSE), PAD)
        told = {"prompts": prompts, "attention_mask": attention}
        self.guard.rollout(padding, torch.zeros_like(padding, dtype=torch.bool), **told)
        self.guard.step()


class PadIsStop(Loop):
    """A correct loop with the stop token for padding."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.pad_token_id = EOS
        return policy

    def sample(self, prompts, attention):
        self.tokenizer.pad_token_id = EOS
        responses = super().sample(prompts, attention)
        responses[:, 0] = torch.where(responses[:, 0] == EOS, 5, responses[:, 0])
        ended = (responses == EOS).cumsum(1) > 0
        return torch.where(ended, EOS, responses)

    def guard_arguments(self):
        """The first token is not always the policy's."""
        return {**super().guard_arguments(), "ignore": ["KLG867"]}

    def tell_scoring(self, batch):
        """Nor is the evidence."""


class MaskByPad(PadIsStop):
    def response_mask(self, responses):
        return responses != EOS


class TwoStops(Loop):
    """generate() stops at two tokens, and the loop knows of one."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.eos_token_id = [EOS, 2]
        return policy

    def tell_scoring(self, batch):
        """Behind token 2 comes padding that was not sampled."""


class NeverStops(Loop):
    """The sampler is told no stop token, and responses are cut at the first one afterwards."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.eos_token_id = None
        return policy


class DilutedRatio(Loop):
    """The ratio is averaged over the padding, where it is set to 0."""

    def reported(self, batch, new, entropy):
        figures = super().reported(batch, new, entropy)
        return figures | {"ratio": (self.ratio(new, batch.old) * batch.mask).mean()}


class DilutedEntropy(Loop):
    def reported(self, batch, new, entropy):
        return super().reported(batch, new, entropy) | {"entropy": entropy.mean()}


# ------------------------------------------------------------------------------------------ the forward pass


class Untied(Loop):
    def make_policy(self):
        policy = super().make_policy()
        policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach().clone())
        return policy


class HalfLogProbs(Loop):
    def token_log_probs(self, logits, tokens):
        return super().token_log_probs(logits.bfloat16(), tokens).float()


class NoCache(Loop):
    def tell_rollout(self, batch):
        settings = loops.GenerationConfig(**self.sampling(), use_cache=False)
        self.guard.rollout(batch.responses, batch.mask, stop_token_ids=(EOS,), settings=settings)


class Packs(Loop):
    """A correct loop that also scores packed sequences, each with positions of its own."""

    def tell_preflight(self):
        self.guard.preflight(score=self.score, packed=self.packed)

    def packed(self, sequences):
        return [self.score(row[None], torch.ones_like(row)[None])[0] for row in sequences]


class PacksTogether(Packs):
    """Sequences one after the other, as if they were one."""

    def packed(self, sequences):
        row = torch.cat(list(sequences))
        values = self.score(row[None], torch.ones_like(row)[None])[0]
        lengths = [len(sequence) for sequence in sequences]
        starts = [sum(lengths[:n]) for n in range(len(lengths))]
        return [values[start : start + n - 1] for start, n in zip(starts, lengths, strict=True)]


BUGS = {
    RoundedReference: "KLG801",
    FollowingReference: "KLG802",
    PolicyAsReference: "KLG803",
    SharedParameters: "KLG803",
    RoundedBase: "KLG804",
    DropoutInReference: "KLG805",
    DropoutInScoring: "KLG805",
    DropoutInScoringSeenInTheRun: "KLG805",
    NotShifted: "KLG703",
    ShiftedTwice: "KLG703",
    NotShiftedSeenInTheRun: "KLG703",
    ShiftedTwiceSeenInTheRun: "KLG703",
    NoPositionsBeforeTraining: "KLG814",
    NoPositionsSeenInTheRun: "KLG814",
    PaddingAttended: "KLG814",
    RightPadded: "KLG815",
    SideChanges: "KLG815",
    MaskOfEverything: "KLG811",
    PromptInMask: "KLG811",
    StopLeftOut: "KLG812",
    MaskByPad: "KLG816",
    FirstTokenMasked: "KLG818",
    FirstTokenNotInTheLoss: "KLG818",
    NoResponses: "KLG863",
    OnlyPadding: "KLG863",
    TwoStops: "KLG817",
    NeverStops: "KLG817",
    DilutedRatio: "KLG813",
    DilutedEntropy: "KLG813",
    Untied: "KLG853",
    HalfLogProbs: "KLG854",
    NoCache: "KLG855",
    PacksTogether: "KLG865",
}
CORRECT = (Loop, FrozenBlock, FrozenBlockShared, PadIsStop, Packs, WithoutPreflight, ForcedBeginning)


@pytest.mark.parametrize("kind", CORRECT, ids=lambda kind: kind.__name__)
def test_a_correct_loop_has_no_findings(kind):
    assert run(kind, steps=3, strict=True).findings == []


@pytest.mark.parametrize(("kind", "code"), BUGS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_the_bug_is_found_and_nothing_else(kind, code):
    """After one step, where that is enough: by the second, the evidence has seen that tokens scored wrongly are
    not the policy's."""
    assert codes(kind, steps=2 if kind is SideChanges else 1) == {code}


def test_pad_is_zero_in_the_plain_loop():
    """The loops above tell padding from the stop token."""
    assert PAD != EOS


class ShiftedReference(Loop):
    """The reference's logits are cut one position off. Both models were watched while they scored, rightly."""

    def tell_scoring(self, batch):
        shifted = batch.reference_logits.roll(-1, 1)
        told = dict(reference_logits=shifted, context_ids=batch.prompts)
        self.guard.logprobs(batch.logits, batch.responses, batch.mask, **told)


def test_what_is_told_of_the_first_rollout_counts_beside_what_was_seen():
    assert "KLG801" in codes(ShiftedReference)
    assert "KLG801" not in codes(Loop)


class Masters(Loop):
    """The optimizer has weights in full precision, which are copied into the policy after each step."""

    def make_optimizer(self):
        self.masters = [p.detach().clone().requires_grad_() for p in self.parameters()]
        return torch.optim.AdamW(self.masters, lr=self.learning_rate)

    def clip_gradient(self):
        for master, parameter in zip(self.masters, self.parameters(), strict=True):
            master.grad = parameter.grad
        return torch.nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)

    def zero_gradient(self):
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self):
        super().apply()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters(), strict=True):
                parameter.copy_(master)


def test_the_steps_of_masters_are_updates_of_the_policy():
    assert codes(Masters, steps=4) == set()
