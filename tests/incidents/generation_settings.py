"""Generation settings that make rollouts differ from what is scored."""

from __future__ import annotations

import torch

from klguard.rules.programs import by_hand, grpo, ppo, vllm
from tests.guard.loop import EOS, RESPONSE, GroupLoop, Loop
from tests.incidents.replay import config, document, loop, script

PURE = "do_sample=True, top_k=0, max_new_tokens=32"
INSTRUCT = "Qwen/Qwen2.5-7B-Instruct"
NEUTRAL = "temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, max_tokens=64"


class EnginesOwnPenalty(Loop):
    """The engine fills what the request left out: a repetition penalty from the checkpoint."""

    def sampling(self):
        return super().sampling() | {"repetition_penalty": 1.5}


class ScoredAtOne(Loop):
    """Rollouts at temperature 0.7 whose logits are not divided."""

    def sampling(self):
        return super().sampling() | {"temperature": 0.7}

    def tell_rollout(self, batch):
        self.guard.rollout(batch.responses, batch.mask, prompts=batch.prompts, attention_mask=batch.attention,
                           stop_token_ids=(EOS,), rows=batch.rows, temperature=0.7)  # fmt: skip


class SeedOfEachRequest(GroupLoop):
    """Each request carries the same seed: a group is one response, repeated."""

    def sample(self, prompts, attention):
        alone = []
        for n in range(len(prompts)):
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(7)
                alone.append(super().sample(prompts[n : n + 1], attention[n : n + 1]))
        return torch.cat(alone)


class NeverShort(Loop):
    """The policy has learnt to stop early, and the rollout may not: every token that is not the stop costs k1."""

    def make_reference(self):
        reference = super().make_reference()
        with torch.no_grad():
            stop = reference.transformer.wte.weight[EOS]
            reference.transformer.ln_f.bias.sub_(4 * stop / stop.square().sum())
        return reference

    def sampling(self):
        return super().sampling() | {"min_new_tokens": RESPONSE, "max_new_tokens": RESPONSE}


class StopsEarly(NeverShort):
    """The same policy and reference, sampled purely."""

    def sampling(self):
        return Loop.sampling(self)


class PenaltyOfTheCheckpoint(Loop):
    """The checkpoint's generation_config penalises repetition, and the call leaves it out."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.repetition_penalty = 1.5
        return policy


class FrameworkDefaults(Loop):
    """Sampling as a framework's defaults have it, scored at temperature 1 over the whole vocabulary."""

    def sampling(self):
        return super().sampling() | {"temperature": 0.95, "top_p": 0.7, "top_k": 50}


class TopKAndTopP(Loop):
    """Filtered samples with unfiltered log-probs."""

    def sampling(self):
        return super().sampling() | {"top_k": 10, "top_p": 0.9}


class TopPOfTheCheckpoint(Loop):
    """generate() fills what is left out from the checkpoint."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.top_p = 0.6
        return policy

    def sampling(self):
        return {"do_sample": True, "temperature": 1.0, "top_k": 0}


READ_YAML = """\
import yaml

with open("rollout.yaml") as file:
    settings = yaml.safe_load(file)
"""
READ_JSON = """\
import json

with open("rollout.json") as file:
    settings = json.load(file)
"""
READ_CHECKPOINT = """\
import json

with open("checkpoint/generation_config.json") as file:
    settings = json.load(file)
"""
"""How a program takes its settings from a file beside it."""

PURE_VLLM = "temperature: 1.0\ntop_p: {p}\ntop_k: {k}\nmin_p: 0.0\nrepetition_penalty: 1.0\nmax_tokens: 64\n"
CHAT = """{{"do_sample": true, "temperature": 1.0, "top_k": 0, "top_p": {p}, "repetition_penalty": {penalty},
  "max_new_tokens": 32}}"""
PLAIN = """{{"do_sample": true, "top_k": 0, {bans}"max_new_tokens": 32}}"""

DOCUMENTS = (
    document(
        "nemo-rl-69",
        "KLG101 KLG103",
        vllm("**settings", before=READ_YAML),
        "rollout.yaml",
        PURE_VLLM.format(p=0.9, k=10),
        PURE_VLLM.format(p=1.0, k=-1),
    ),
    document(
        "trl-1017",
        "KLG108 KLG302",
        by_hand("**settings", before=READ_JSON),
        "rollout.json",
        PLAIN.format(bans='"min_new_tokens": 8, "no_repeat_ngram_size": 3, '),
        PLAIN.format(bans=""),
    ),
    document(
        "trl-6337",
        "KLG502",
        by_hand("generation_config=GenerationConfig(**settings)", before=READ_CHECKPOINT),
        "checkpoint/generation_config.json",
        CHAT.format(p=0.8, penalty=1.0),
        CHAT.format(p=1.0, penalty=1.0),
    ),
    document(
        "nemo-rl-3497",
        "KLG502",
        by_hand("**settings", before=READ_CHECKPOINT),
        "checkpoint/generation_config.json",
        CHAT.format(p=1.0, penalty=1.1),
        CHAT.format(p=1.0, penalty=1.0),
    ),
)

REPLAYS = (
    *DOCUMENTS,
    loop("prime-rl-886", "KLG501", PenaltyOfTheCheckpoint, Loop),
    script("trl-615", "KLG301 KLG102", ppo("min_length=48, do_sample=True, max_new_tokens=48"), ppo(PURE)),
    loop("nemo-rl-3497", "KLG107", EnginesOwnPenalty, Loop, steps=3),
    loop("trl-3029", "KLG705", ScoredAtOne, Loop),
    loop("verl-2646", "KLG823", SeedOfEachRequest, GroupLoop, steps=5),
    script(
        "trl-1017",
        "KLG302 KLG108",
        ppo("min_new_tokens=8, no_repeat_ngram_size=3, do_sample=True, top_k=0, max_new_tokens=32"),
        ppo(PURE),
    ),
    script(
        "trl-235",
        "KLG102 KLG103 KLG301",
        ppo("do_sample=True, top_p=0.9, min_length=20, max_new_tokens=32"),
        ppo(PURE),
    ),
    loop("llamafactory-3902", "KLG101 KLG103", FrameworkDefaults, Loop, steps=2),
    loop("medicalgpt-374", "KLG302", NeverShort, StopsEarly),
    script(
        "trl-6337",
        "KLG501",
        by_hand(PURE, checkpoint=INSTRUCT),
        by_hand(PURE + ", top_p=1.0, temperature=1.0, repetition_penalty=1.0", checkpoint=INSTRUCT),
    ),
    loop("llamafactory-664", "KLG101 KLG103", FrameworkDefaults, Loop, steps=2),
    loop("nemo-rl-69", "KLG101 KLG103", TopKAndTopP, Loop),
    loop("llamafactory-98", "KLG101 KLG103", FrameworkDefaults, Loop, steps=2),
)
SLIME = """\
ROLLOUT_ARGS=(
   --rollout-batch-size 32
   --n-samples-per-prompt 8
   --num-rollout 3000
   --rollout-temperature 1
   --rollout-top-k {k}
)
MISC_ARGS=(--attention-dropout 0.0 --hidden-dropout 0.0)
python3 train.py --advantage-estimator grpo ${{ROLLOUT_ARGS[@]}} ${{MISC_ARGS[@]}}
"""
SWIFT = (
    "swift rlhf --rlhf_type grpo --model Qwen/Qwen2.5-7B --use_vllm true --top_p 1.0 --top_k -1 --min_p {p}\n"
)
LLAMA_FACTORY = "stage: ppo\nmodel_name_or_path: my/model\nreward_model: my/judge\n{}"

SIBLINGS = (
    script(
        "torchtitan-3474",
        "KLG204",
        by_hand(PURE).replace("    tokens =", "    torch.manual_seed(42)\n    tokens ="),
        by_hand(PURE, before="torch.manual_seed(42)"),
    ),
    script(
        "vllm-3333",
        "KLG204",
        vllm("temperature=1.0, max_tokens=64, seed=42"),
        vllm("temperature=1.0, max_tokens=64"),
    ),
    config("miles-338", "KLG101", "run.sh", SLIME.format(k=20), SLIME.format(k=-1)),
    config("ms-swift-9824", "KLG104", "run.sh", SWIFT.format(p=0.1), SWIFT.format(p=0.0)),
    config(
        "llamafactory-1111",
        "KLG506",
        "ppo.yaml",
        LLAMA_FACTORY.format(""),
        LLAMA_FACTORY.format("temperature: 1.0\ntop_p: 1.0\ntop_k: 0\n"),
    ),
    loop("checkpoint-top-p", "KLG701", TopPOfTheCheckpoint, Loop),
    script(
        "grpo-top-p",
        "KLG103",
        grpo('output_dir="o", beta=0.04, top_p=0.9, temperature=1.0, top_k=0'),
        grpo('output_dir="o", beta=0.04, top_p=1.0, temperature=1.0, top_k=0, repetition_penalty=1.0'),
    ),
    script(
        "trl-6789",
        "KLG101 KLG104",
        vllm("temperature=1.0, top_p=1.0, top_k=20, min_p=0.05, repetition_penalty=1.0, max_tokens=64"),
        vllm(NEUTRAL),
    ),
    script(
        "vllm-presence",
        "KLG107",
        vllm(
            "temperature=1.0, top_p=1.0, top_k=-1, presence_penalty=1.5, repetition_penalty=1.0, max_tokens=64"
        ),
        vllm(NEUTRAL),
    ),
    script("trl-greedy", "KLG201", ppo("max_new_tokens=32"), ppo(PURE)),
    script("trl-beams", "KLG202", ppo("do_sample=True, num_beams=4, top_k=0, max_new_tokens=32"), ppo(PURE)),
)
