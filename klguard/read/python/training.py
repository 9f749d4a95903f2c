"""The vocabulary of training code: which names train, score, judge, or only look.

Regular expressions over identifiers, taken from how public RLHF code names its parts. They decide only what
the data flow cannot see: library calls, and the meaning of a number.
"""

from __future__ import annotations

import ast
import re

from klguard.read.python.callers import callee, callee_name, words
from klguard.read.python.source import dotted

JUDGING = re.compile(
    r"(^|_)(rewards?|rew|scores?|scorer|judged?|judge?ments?|grades?|grader|ratings?|verdicts?|advantages?"
    r"|advs?|feedback|metrics?|accuracy|accuracies|acc|bleu|rouge\w*|bertscore|win_?rate|correct|correctness"
    r"|kls?|similarity|similarities|sentiments?|toxicity|perplexity|stats|preference)(_|s?$)",
    re.IGNORECASE,
)
"""A number about a text: what a judge or reward model makes of it. The tokens end here."""

LOG_PROBS = re.compile(
    r"log_?soft_?max|log_?probs?(_|$|s)|(^|_)log_?ps?($|_)|logprob|cross_entropy|sequence_log|selective_log"
    r"|token_log|nll_loss|^gather$|batched_forward_pass|(^|_)ratio|importance_"
    r"|(^|_)(objective|criterion|loss_fn|loss_func|loss)$",
    re.IGNORECASE,
)
"""Scoring tokens under a model: half of a policy gradient, or of an evaluation."""

ALGORITHMS = r"(policy|actor|ppo|grpo|rloo|reinforce|a2c|gspo|dapo)"

TRAINING_CALLS = re.compile(
    r"^_?(train|training)_(step|epoch|policy|actor|ppo|grpo|(mini_?|micro_?)?batch|(on|one)_\w+)$"
    rf"|^_?(\w+_)?{ALGORITHMS}_(update|step|train|loss|learn|optimize|epochs?|objective)$"
    rf"|^_?(update|optimi[sz]e|train|learn|step)_({ALGORITHMS}|model|agent|minibatch|step|generator)\w*$"
    r"|^_?(learn|optimi[sz]e|fit_batch|forward_backward)$"
    rf"|^_?((compute|calculate|calc|get)_)?({ALGORITHMS}|pg|surrogate|clip|clipped)\w*_?(loss|objective)\w*$"
    r"|^_?(compute|calculate|calc|get)_(\w+_)?loss(es)?$"
    r"|^(\w+_)?(value_and_grad|loss_and_grad|grad_fn|loss_grad)(_fn|_step)?$",
    re.IGNORECASE,
)
"""Functions that train on what they are given, by name."""

OPTIMIZERS = re.compile(
    r"(^|_)(adam|adamw|sgd|rmsprop|adafactor|lion|muon|optim)|Adam|SGD|Optimi[sz]er|Adafactor|Lion"
)
"""What is given the parameters that it changes."""

BACKWARD = frozenset({"backward", "manual_backward", "minimize"})

STEPS = re.compile(r"(^|_)(step|optimi[sz]e|minimize|apply_gradients|apply_updates)(_|$)")
"""Calls that change the parameters after a backward pass."""

GRADIENTS = re.compile(
    r"^grads?$|(^|_)gradients?(_|$)|^_?(get|collect|extract|flatten|read|save)_\w*grads?$", re.IGNORECASE
)
"""Names of a gradient that is looked at: `param.grad`, `collect_gradients()`."""

UPDATES = frozenset({"update", "train", "learn", "fit", "step", "optimize", "run_step", "train_epoch"})
"""Words that train when the receiver is an agent or a trainer, and mean anything elsewhere."""

TRAINERS = frozenset(
    "trainer ppo grpo rloo agent algo algorithm learner reinforce policy actor ac rlhf rl learners "
    "trainers trlx".split()
)
NOT_TRAINERS = frozenset(
    "optimizer optim optimizers opt scheduler schedulers sched lr env envs environment environments "
    "game sim bar pbar progress tqdm tokenizer metrics metric stats config cfg kwargs meter tracker "
    "stopwatch wandb writer profiler prof callback table live console status".split()
)

BUFFERS = re.compile(
    r"(buffer|memory|replay|experience|rollout|trajector|episode|transitions?)", re.IGNORECASE
)
ADDING = frozenset(
    "append extend add push put store insert appendleft enqueue update setdefault add_batch record "
    "remember save_rollout".split()
)

PAIRS = re.compile(
    r"(^|_)(chosen|rejected|winners?|losers?|preferred|dispreferred|pairs?|negatives?)(_|$)", re.IGNORECASE
)
"""Records of which answer is the better one."""

PROMPTS = re.compile(r"quer(y|ies)|prompt|question|instruction|(^|_)context|problem", re.IGNORECASE)

SCALARS = frozenset(
    "len float int bool isinstance type any all hash id print item startswith endswith isdigit count "
    "index find numel size dim get_rank min_length mean_length format_time tolist_len round abs "
    "log_metrics".split()
)
"""Calls that leave nothing of the tokens but a number."""

ELEMENTWISE = frozenset("float int round abs type".split())
"""Of these, those that as methods of a tensor leave it one: `logprobs.float()`."""

DEAD_ATTRIBUTES = frozenset(
    {
        "scores",
        "sequences_scores",
        "shape",
        "device",
        "dtype",
        "ndim",
        "grad",
        "requires_grad",
        "config",
        "__class__",
        "prompt_logprobs",  # of the tokens that were given, not of those that were drawn
        "prompt_token_ids",
    }
)

OUTPUTS = re.compile(
    r"^(print|pprint|log|info|debug|warning|error|critical|write|writelines|writerow|writerows|dump|add_text|"
    r"add_scalar|add_data|add_row|rprint|echo|secho|markdown|display|save|success|title|caption|"
    r"to_csv|to_json|to_parquet|"
    r"save_to_disk|push_to_hub|savetxt|Table|log_metrics|log_text|log_table|log_completions)$"
)
"""Where text is shown or kept on disk."""

SENDING = frozenset("post put put_nowait send send_pyobj rpush lpush publish".split())
"""Calls that hand a value to another process."""

GENERATORS = frozenset(
    "generate respond_to_batch chat fast_generate generate_stream stream_generate beam_search greedy_search "
    "sample_sequence generate_text batch_generate".split()
)

SAMPLING = re.compile(r"generat|respond|sample|complet|rollout", re.IGNORECASE)
"""A function that is given sampling settings and is called like this samples with them."""

HOOKS = re.compile(
    r"generate|prepare_|rollout|training_step|compute_loss|sample|make_experience|get_batch|score"
)
"""Methods of a trainer's subclass whose result the trainer itself consumes."""

LOOKING_HOOKS = re.compile(r"eval|predict|log|callback|test|valid|save|visual")


OFFLINE_TRAINERS = re.compile(r"(^|[._a-z])(?<!Online)(DPO|CPO|KTO|ORPO|BCO|SFT|Reward)Trainer$")
"""Trainers that train on data sets: what their subclasses sample is there to be looked at."""

FOR_A_JUDGE = re.compile(
    r"(text|token|input|sequence|seq|response|completion|output|string|str|id)\w*_for_"
    r"|(^|_)(reward|rm|judge|scorer?|scoring)_(model_)?(texts?|tokens?|inputs?|input_ids|sequences?|strings?|prompts?|ids)$",
    re.IGNORECASE,
)
"""`texts_for_reward`, `reward_inputs`: what a judge is given, not what it says."""


def judging(name: str) -> bool:
    """Is `name` that of a number about a text rather than of tokens?"""
    last = name.rsplit(".", 1)[-1]
    return bool(JUDGING.search(last)) and not FOR_A_JUDGE.search(last)


def receiver_words(call: ast.Call) -> set[str]:
    """The words of the object a method is called on."""
    func = callee(call)
    if not isinstance(func, ast.Attribute):
        return set()
    name = dotted(func.value) or (dotted(func.value.func) if isinstance(func.value, ast.Call) else "")
    return words(name.rsplit(".", 1)[-1])


def trains_by_step(call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
    """Is this `trainer.step(queries, responses, rewards)` or the like, with the tokens at `slot`?"""
    name = callee_name(call)
    if name not in UPDATES or slot is None:
        return False
    receiver = receiver_words(call)
    if receiver & NOT_TRAINERS and not receiver & {"trainer", "ppo", "agent"}:
        return False
    if isinstance(slot, int) and len(call.args) == 3 and slot != 1:
        return False  # the queries and the rewards of TRL's step() are not trained on
    text = slot if isinstance(slot, str) else dotted(value).rsplit(".", 1)[-1]
    if judging(text) or PROMPTS.search(text):
        return False
    if name in ("step", "run_step"):
        return len(call.args) + len(call.keywords) >= 2 or bool(receiver & TRAINERS)
    return bool(receiver & TRAINERS)


def scores_tokens(call: ast.Call) -> bool:
    """Is this a log-probability of what it is given? (`accelerator.gather` only collects from processes.)"""
    name = callee_name(call)
    distributed = {"accelerator", "dist", "distributed", "comm", "fabric"}
    return bool(LOG_PROBS.search(name)) and not (name == "gather" and receiver_words(call) & distributed)


def backward_operand(call: ast.Call) -> bool:
    """Is this `accelerator.backward(loss)`: a backward that takes the loss as its argument?"""
    return callee_name(call) in BACKWARD and bool(call.args)
