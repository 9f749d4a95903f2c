"""The loops in which the examples of the rules stand: each rule fills in the line it is about."""

from __future__ import annotations

_PPO = """\
from rewards import score
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

tokenizer = AutoTokenizer.from_pretrained("EleutherAI/pythia-160m")
model = AutoModelForCausalLMWithValueHead.from_pretrained("EleutherAI/pythia-160m")
ref_model = AutoModelForCausalLMWithValueHead.from_pretrained("EleutherAI/pythia-160m")
ppo_trainer = PPOTrainer(config=PPOConfig({config}), model=model, ref_model=ref_model, tokenizer=tokenizer)
generation_kwargs = dict({settings})
for batch in ppo_trainer.dataloader:
    queries = batch["input_ids"]
    responses = ppo_trainer.generate(queries, return_prompt=False, **generation_kwargs)
    ppo_trainer.step(queries, responses, [score(text) for text in tokenizer.batch_decode(responses)])
"""

_BY_HAND = """\
import torch
from rewards import prompts, score
from transformers import {automodel}, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained("{checkpoint}"{tokenizer})
policy = {automodel}.from_pretrained("{checkpoint}"{policy})
reference = {automodel}.from_pretrained("{checkpoint}").eval().requires_grad_(False)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
{before}for prompt in prompts:
    inputs = tokenizer({prompt}, return_tensors="pt"{padding})
    tokens = policy.generate({inputs}, {settings})
    logprobs = policy(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    ref_logprobs = reference(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    kl = {kl}
{mask}    loss = {loss}
    loss.backward()
    optimizer.step()
"""

_VLLM = """\
from rewards import prompts, score
from training import policy, reference, token_logprobs, update
from vllm import LLM, SamplingParams

llm = LLM("Qwen/Qwen2.5-0.5B")
{before}params = SamplingParams({settings})
for _ in range(100):
    outputs = llm.generate(prompts, params)
    responses = [output.outputs[0].token_ids for output in outputs]
    logprobs = token_logprobs(policy, responses)
    kl = logprobs - token_logprobs(reference, responses)
    loss = -((score(responses) - 0.1 * kl.detach()) * logprobs).mean()
    loss.backward()
    update(policy, llm)
"""

_GRPO = """\
from datasets import load_dataset
from rewards import score
from trl import GRPOConfig, GRPOTrainer

config = GRPOConfig({settings})
trainer = GRPOTrainer(
    model="Qwen/Qwen2.5-0.5B", reward_funcs=score, args=config,
    train_dataset=load_dataset("trl-lib/tldr", split="train"),
)
trainer.train()
"""


def ppo(settings: str, config: str = "") -> str:
    """A PPO loop with the classic trainer of TRL, whose `generate` takes these keyword arguments."""
    return _PPO.format(settings=settings, config=config)


def by_hand(
    settings: str,
    *,
    before: str = "",
    checkpoint: str = "gpt2",
    automodel: str = "AutoModelForCausalLM",
    tokenizer: str = "",
    policy: str = "",
    prompt: str = "prompt",
    padding: str = "",
    inputs: str = "**inputs",
    kl: str = "logprobs - ref_logprobs",
    mask: str = "",
    loss: str = "-((score(tokens) - 0.1 * kl.detach()) * logprobs).mean()",
) -> str:
    """A policy-gradient loop written by hand, whose `generate` takes these keyword arguments."""
    before = f"{before.rstrip()}\n" if before else ""
    return _BY_HAND.format(
        settings=settings,
        before=before,
        checkpoint=checkpoint,
        automodel=automodel,
        tokenizer=tokenizer,
        policy=policy,
        prompt=prompt,
        padding=padding,
        inputs=inputs,
        kl=kl,
        mask=f"    {mask}\n" if mask else "",
        loss=loss,
    )


def vllm(settings: str, before: str = "") -> str:
    """A loop that samples with vLLM under these parameters."""
    return _VLLM.format(settings=settings, before=f"{before.rstrip()}\n" if before else "")


def grpo(settings: str) -> str:
    """GRPO with TRL, configured so."""
    return _GRPO.format(settings=settings)
