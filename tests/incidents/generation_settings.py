"""Generation settings that make rollouts differ from what is scored."""

from __future__ import annotations

import json

import torch

from klguard.rules.programs import by_hand, grpo, ppo, vllm
from tests.guard.loop import EOS, RESPONSE, GroupLoop, Loop
from tests.incidents.replay import document, loop, script

PURE = "do_sample=True, top_k=0, max_new_tokens=32"
INSTRUCT = "Qwen/Qwen2.5-7B-Instruct"
NEUTRAL = "temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, max_tokens=64"

LLAMA_FACTORY = """\
stage: ppo
do_train: true
model_name_or_path: Qwen/Qwen2.5-0.5B
reward_model: rewards/model
finetuning_type: full
dataset: prompts
output_dir: out
"""
LLAMA_FACTORY_PURE = "temperature: 1.0\ntop_p: 1.0\ntop_k: 0\nrepetition_penalty: 1.0\n"

COMMAND = """\
#!/bin/sh
llamafactory-cli train --stage ppo --do_train --model_name_or_path Qwen/Qwen2.5-0.5B --dataset prompts \\
    --reward_model rewards/model --output_dir out{settings}
"""

NEMO = """\
grpo:
  num_prompts_per_step: 8
  num_generations_per_prompt: 4
loss_fn:
  reference_policy_kl_penalty: 0.01
policy:
  model_name: Qwen/Qwen2.5-0.5B
  generation:
    backend: vllm
    max_new_tokens: 256
    temperature: 1.0
    top_p: {top_p}
    top_k: {top_k}
    stop_token_ids: null
    vllm_cfg:
      tensor_parallel_size: 1
"""


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


class TopPOfTheCheckpoint(Loop):
    """generate() fills what is left out from the checkpoint."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.top_p = 0.6
        return policy

    def sampling(self):
        return {"do_sample": True, "temperature": 1.0, "top_k": 0}


REPLAYS = (
    script(
        "prime-rl-886", "KLG501",
        vllm("max_tokens=64").replace("Qwen/Qwen2.5-0.5B", INSTRUCT),
        vllm(NEUTRAL).replace("Qwen/Qwen2.5-0.5B", INSTRUCT),
    ),
    script("trl-615", "KLG301 KLG102", ppo("min_length=48, do_sample=True, max_new_tokens=48"), ppo(PURE)),
    loop("nemo-rl-3497", "KLG701", EnginesOwnPenalty, Loop, steps=3),
    loop("trl-3029", "KLG705", ScoredAtOne, Loop),
    loop("verl-2646", "KLG823", SeedOfEachRequest, GroupLoop, steps=5),
    script(
        "trl-1017", "KLG302 KLG108",
        ppo("min_new_tokens=8, no_repeat_ngram_size=3, do_sample=True, top_k=0, max_new_tokens=32"), ppo(PURE),
    ),
    script("trl-235", "KLG102 KLG103 KLG301", ppo("do_sample=True, top_p=0.9, min_length=20, max_new_tokens=32"), ppo(PURE)),
    document("llamafactory-3902", "KLG506", "ppo.yaml", LLAMA_FACTORY, LLAMA_FACTORY + LLAMA_FACTORY_PURE),
    loop("medicalgpt-374", "KLG603", NeverShort, Loop),
    script(
        "trl-6337", "KLG501", by_hand(PURE, checkpoint=INSTRUCT),
        by_hand(PURE + ", top_p=1.0, temperature=1.0, repetition_penalty=1.0", checkpoint=INSTRUCT),
    ),
    document(
        "llamafactory-664", "KLG502", "ppo.yaml",
        LLAMA_FACTORY + "temperature: 0.95\ntop_p: 0.7\ntop_k: 50\n", LLAMA_FACTORY + LLAMA_FACTORY_PURE,
    ),
    document("nemo-rl-69", "KLG502", "grpo.yaml", NEMO.format(top_p=0.9, top_k=50), NEMO.format(top_p=1.0, top_k="null")),
    document(
        "llamafactory-98", "KLG506", "train.sh", COMMAND.format(settings=""),
        COMMAND.format(settings=" --temperature 1.0 --top_p 1.0 --top_k 0 --repetition_penalty 1.0"),
    ),
)  # fmt: skip
SIBLINGS = (
    loop("trl-6337-live", "KLG103", TopPOfTheCheckpoint, Loop),
    script("trl-5783", "KLG103", grpo('output_dir="o", beta=0.04, top_p=0.9, temperature=1.0, top_k=0'), grpo('output_dir="o", beta=0.04, top_p=1.0, temperature=1.0, top_k=0, repetition_penalty=1.0')),
    script("trl-6789", "KLG101 KLG104", vllm("temperature=1.0, top_p=1.0, top_k=20, min_p=0.05, repetition_penalty=1.0, max_tokens=64"), vllm(NEUTRAL)),
    script("vllm-presence", "KLG107", vllm("temperature=1.0, top_p=1.0, top_k=-1, presence_penalty=1.5, repetition_penalty=1.0, max_tokens=64"), vllm(NEUTRAL)),
    script("trl-greedy", "KLG201", ppo("max_new_tokens=32"), ppo(PURE)),
    script("trl-beams", "KLG202", ppo("do_sample=True, num_beams=4, top_k=0, max_new_tokens=32"), ppo(PURE)),
)
_ = json
