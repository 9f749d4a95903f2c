"""The laboratory: a plain PPO loop to read and to measure with, and the experiment that shows what klguard is about.

    config, rollout, advantages, update, parallel, checkpoint, telling, loop     the loop, on any causal model
    settings, grammar, student, experiment, live, drawing, page, demo            `klguard demo`

Needs torch, transformers and accelerate: `pip install 'klguard[demo]'`. Nothing else of klguard imports it.
"""
