"""An inference engine beside the trainer: its weights, its state, its log-probs."""

from __future__ import annotations

import torch

from tests.guard.loop import EOS, Loop
from tests.incidents.replay import loop


class Engine(Loop):
    """A loop that samples from an engine and tells the log-probs it returned. Correct: the engine is in sync."""

    rollouts_repeat = 4

    def make_prompts(self):
        prompts, attention, groups = super().make_prompts()
        n = self.rollouts_repeat
        return prompts.repeat(n, 1), attention.repeat(n, 1), groups.repeat(n)

    def engine_logits(self, batch):
        """(B, T, V) the engine sampled from."""
        return batch.logits

    def engine_logprobs(self, batch):
        """(B, T) as the engine returns them."""
        return self.token_log_probs(self.engine_logits(batch), batch.responses)

    def tell_scoring(self, batch):
        self.guard.logprobs(batch.logits, batch.responses, batch.mask, reference_logits=batch.reference_logits,
                            sampler_logprobs=self.engine_logprobs(batch))  # fmt: skip


def noise_like(logits, seed, size):
    return size * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))


class SamplesElsewhere(Engine):
    """The engine samples from logits of its own."""

    def distort(self, logits, ids):
        """(B, V) what the engine computes where the trainer computes `logits`."""
        return logits

    def sample(self, prompts, attention):
        self.policy.eval()
        engine = self

        class Distorted:
            def __call__(self, ids, logits):
                return engine.distort(logits, ids)

        with torch.no_grad(), self.guard.looking_away() if self.guard else torch.no_grad():
            ids = self.policy.generate(
                input_ids=prompts, attention_mask=attention, logits_processor=[Distorted()], **self.sampling()
            )
        responses = ids[:, prompts.shape[1] :]
        return torch.nn.functional.pad(responses, (0, 16 - responses.shape[1]), value=0)

    def engine_logits(self, batch):
        ids = torch.cat([batch.prompts, batch.responses], 1)
        start = batch.prompts.shape[1]
        columns = [
            self.distort(batch.logits[:, t], ids[:, : start + t]) for t in range(batch.logits.shape[1])
        ]
        return torch.stack(columns, 1)


class RoutesMisaligned(SamplesElsewhere):
    """Experts' routes belong to other positions: where the last token is even, the logits are off."""

    size = 1.5

    def distort(self, logits, ids):
        off = noise_like(logits[:1], ids.shape[1], self.size)
        return torch.where(ids[:, -1:] % 2 == 0, logits + off, logits)


class RoutesSlightlyMisaligned(RoutesMisaligned):
    """The same, with a difference that a policy which repeats itself can outweigh."""

    size = 0.6


class GapGrows(SamplesElsewhere):
    """State of the engine drifts from step to step, with weights that never change."""

    learning_rate = 0.0

    def distort(self, logits, ids):
        return logits + noise_like(logits[:1], ids.shape[1], 0.15 * (1 + self.number))

    def tell_minibatch(self, *_):
        """The ratio never moves either, as the learning rate is 0 here."""


class LongPrefixes(SamplesElsewhere):
    """Attention over long shared prefixes is wrong."""

    def distort(self, logits, ids):
        return logits + noise_like(logits[:1], ids.shape[1], 1.5) if ids.shape[1] > 10 else logits


class OtherWeights(SamplesElsewhere):
    """The engine samples with a model of its own."""

    def engine_model(self):
        return self.reference

    @torch.no_grad()
    def distort(self, logits, ids):
        attention = (ids != 0).long()
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        model = self.engine_model()
        return (
            model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
            .logits[:, -1]
            .float()
        )


class BaseWeightsAfterResume(OtherWeights):
    """A resumed run: the trainer has trained weights, the engine still those of the base."""

    def make_policy(self):
        policy = super().make_policy()
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(5)
            for parameter in policy.transformer.h.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return policy

    def engine_model(self):
        if not hasattr(self, "base"):
            self.base = Loop.make_policy(self).eval()
        return self.base


class NeverSynced(OtherWeights):
    """The engine keeps its first weights while large updates change the trainer's."""

    learning_rate = 3e-3

    def engine_model(self):
        if not hasattr(self, "base"):
            self.base = Loop.make_policy(self).eval()
        return self.base

    def tell_minibatch(self, *_):
        """Updates are large so that few steps show it."""


class Synced(Engine):
    learning_rate = 3e-3

    def tell_minibatch(self, *_):
        """As above."""


class Versioned(Loop):
    """A loop that counts versions of the weights."""

    def version(self):
        return self.number

    def tell_rollout(self, batch):
        self.guard.rollout(batch.responses, batch.mask, stop_token_ids=(EOS,), rows=batch.rows,
                           weights_version=self.version(), allowed_lag=1)  # fmt: skip


class TwoBehind(Versioned):
    """Rollouts are one version older than allowed."""

    def version(self):
        return max(0, self.number - 2)


class Tempered(Engine):
    """Rollouts at temperature 0.7, mirrored in scoring."""

    temperature = 0.7

    def sampling(self):
        return super().sampling() | {"temperature": self.temperature}

    def scale(self, logits):
        return logits / self.temperature

    def tell_rollout(self, batch):
        self.guard.rollout(batch.responses, batch.mask, prompts=batch.prompts, attention_mask=batch.attention,
                           stop_token_ids=(EOS,), rows=batch.rows, temperature=self.temperature)  # fmt: skip

    def tell_scoring(self, batch):
        self.guard.logprobs(batch.logits, batch.responses, batch.mask, reference_logits=batch.reference_logits,
                            sampler_logprobs=self.engine_logprobs(batch), temperature=self.temperature)  # fmt: skip


class RawLogprobs(Tempered):
    """The engine returns log-probs from before the temperature, the trainer divides."""

    def engine_logprobs(self, batch):
        return self.token_log_probs(batch.logits * self.temperature, batch.responses)


class DividedAfterTheSoftmax(Tempered):
    """Log-probs are divided by the temperature, which is not the same as dividing logits."""

    def engine_logprobs(self, batch):
        return self.token_log_probs(batch.logits * self.temperature, batch.responses) / self.temperature


class FirstEntryOfTheDict(Engine):
    """The log-prob that is stored is that of the likeliest token."""

    def engine_logprobs(self, batch):
        return batch.logits.log_softmax(-1).amax(-1)


class RenormalisedTopP(Engine):
    """The engine returns log-probs over what top-k left, the trainer scores the full vocabulary."""

    def sampling(self):
        return super().sampling() | {"top_k": 8}

    def engine_logits(self, batch):
        least = batch.logits.topk(8, -1).values[..., -1:]
        return batch.logits.masked_fill(batch.logits < least, float("-inf"))


REPLAYS = (
    loop("skyrl-1908", "KLG702", RoutesMisaligned, Engine),
    loop("open-instruct-1473", "KLG702", GapGrows, Engine, steps=4),
    loop("vllm-22103", "KLG702", LongPrefixes, Engine),
    loop("open-instruct-1627", "KLG702", BaseWeightsAfterResume, Engine),
    loop("prime-rl-1901", "KLG852", TwoBehind, Versioned, steps=4),
    loop("nemo-rl-714", "KLG851", RawLogprobs, Tempered),
    loop("nemo-rl-3297", "KLG851", FirstEntryOfTheDict, Engine),
    loop("verl-4248", "KLG702", NeverSynced, Synced, steps=4),
    loop("trl-2872", "KLG702", NeverSynced, Synced, steps=4),
    loop("verl-5317", "KLG702", RoutesMisaligned, Engine),
    loop("vime-64", "KLG851", RawLogprobs, Tempered),
    loop("verl-3082", "KLG702", BaseWeightsAfterResume, Engine),
    loop("prime-rl-697", "KLG851", DividedAfterTheSoftmax, Tempered),
)
SIBLINGS = (
    loop("trl-5312", "KLG702", NeverSynced, Synced, steps=4),
    loop("nemo-rl-4018", "KLG702", LongPrefixes, Engine),
    loop("small-noise", "KLG702", RoutesSlightlyMisaligned, Engine),
    loop("trl-6789-runtime", "KLG702", RenormalisedTopP, Engine),
)
