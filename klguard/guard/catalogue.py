"""What the guard can say: one entry for each code, and for each of the 58 things that hold in a correct loop.

Plain data, so that `klguard rule` and the documentation need no torch. An invariant's class names its entry
by code; the row numbers are those of docs/invariants.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from klguard.findings import Severity

ERROR, WARNING = Severity.ERROR, Severity.WARNING

BEFORE = "before training"
FIRST_ROLLOUT = "first rollout"
FIRST_MINIBATCH = "first minibatch of a step"
EVERY = "every step"
SAMPLED = "now and then"


@dataclass(frozen=True, slots=True)
class Entry:
    """One code of the guard.

    row        number in the table of invariants, or None for a code that is not in it.
    holds      what is true of a correct run.
    tolerance  how far it may be off, by precision where that matters, in words.
    when       how often it is looked at.
    means      what it means for the run when it does not hold.
    help       what to do then.
    """

    code: str
    name: str
    row: int | None
    group: str
    holds: str
    tolerance: str
    when: str
    means: str
    help: str
    severity: Severity = ERROR


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "KLG601", "exact-kl-negative", 1, "kl",
        "the exact KL over the vocabulary is not negative at any token",
        "-1e-5 nats, always computed in fp32", EVERY,
        "a sum over a whole distribution cannot be negative: the logits are not those of one normalised"
        " distribution each",
        "pass whole, unsharded logits of both models for the same positions and the same vocabulary",
    ),
    Entry(
        "KLG602", "k3-negative", 2, "kl",
        "k3 = expm1(d) - d with d = log ref - log p is not negative at any token",
        "-1e-6 nats: what exp(d) - 1 - d rounds to in fp32", EVERY,
        "k3 is a convex function with minimum 0: the formula, its sign or its arithmetic is wrong",
        "use klguard.guard.kl.k3, or expm1 in fp32 with d = reference_logprobs - logprobs",
    ),
    Entry(
        "KLG603", "kl-impossible", 3, "kl",
        "the cumulative k1 over all tokens of the run stays above ln(alpha)",
        "none: a test with the false-alarm probability alpha for the whole run", EVERY,
        "tokens drawn from the policy give so low a sum with probability below alpha: they were drawn from"
        " something else, or scored by something else",
        "sample with pure sampling (klguard.pure_sampling) and score with the weights that sampled",
    ),
    Entry(
        "KLG604", "kl-out-of-range", None, "kl",
        "the KL per sequence, over a window of steps, lies in kl_range",
        "only when the window's own standard error rules chance out; above the default range, or half a nat per"
        " token where that is more, it is a warning", EVERY,
        "the policy is further from its reference than it should be, or the estimate is below what a KL can be",
        "raise the KL coefficient or lower the learning rate; below 0, look at how the rollout is sampled",
    ),
    Entry(
        "KLG605", "kl-biased", None, "kl",
        "the mean of k1 agrees with the mean of the exact KL at the same tokens",
        "reported only when the evidence has rejected the policy as the sampler", EVERY,
        "the KL penalty is paid on a number that is not the KL",
        "remove the sampling setting that the evidence names",
    ),
    Entry(
        "KLG606", "kl-free-reward", None, "kl",
        "no reward is paid for the bias of the KL estimate",
        "reported with KLG605 when the KL coefficient is known", EVERY,
        "the policy is paid, each sequence, for something the reward model never saw",
        "remove the sampling setting that the evidence names",
    ),
    Entry(
        "KLG701", "not-the-policy", 4, "sampler",
        "the tokens were drawn from the policy that scored them",
        "none: a test with the false-alarm probability alpha for the whole run", EVERY,
        "the log-probabilities belong to another distribution than the tokens: KL, ratio and gradient are biased",
        "remove the sampling setting that is named, or apply the same one to the logits that are scored",
    ),
    Entry(
        "KLG702", "sampler-trainer-mismatch", 41, "sampler",
        "the engine's own log-probabilities of the sampled tokens equal the trainer's",
        "by the evidence; mean exp|d| 1.1 or k3 1e-2 for 3 steps (1.05 and 3e-3 for 5: a warning)", EVERY,
        "the engine sampled from another distribution than the trainer scores",
        "sync the weights, use the same precision and temperature, or correct by truncated importance weights",
    ),
    Entry(
        "KLG703", "shifted-logits", 12, "sampler",
        "logits[:, t] are the ones that predicted tokens[:, t]",
        "1e-3 nats (fp32), 3e-2 (bf16) from a scoring by hand; or by the evidence", FIRST_ROLLOUT,
        "every log-probability belongs to a neighbouring position",
        "score with logits[:, :-1] against tokens[:, 1:], or hand over logits already shifted once",
    ),
    Entry(
        "KLG704", "stale-weights", 43, "sampler",
        "the tokens were drawn with the weights that score them",
        "none: a test with the false-alarm probability alpha for the whole run", EVERY,
        "the sampler still has earlier weights",
        "sync the weights into the engine before each rollout, and score before the first update",
    ),
    Entry(
        "KLG705", "scoring-temperature", 6, "sampler",
        "the logits are divided by the temperature of the rollout before they are scored",
        "1e-3 nats (fp32), 3e-2 (bf16) from a scoring by hand; what the loop says of it: equal", FIRST_ROLLOUT,
        "the log-probabilities are those of another temperature than the tokens",
        "sample and score at temperature 1, or divide the logits by the rollout's temperature in both passes",
    ),
    Entry(
        "KLG801", "nonzero-first-kl", 7, "reference",
        "before the first update the policy equals a reference that is its copy, or itself without its adapter",
        "mean |d| 1e-4 nats (fp32), 5e-3 (bf16), 5e-2 (one in each); of a trained adapter 1e-2 (a warning)",
        FIRST_ROLLOUT,
        "KL does not start at 0: another checkpoint, dropout, another precision or another code path",
        "load the reference from the policy's checkpoint, call eval() on both, score both the same way",
    ),
    Entry(
        "KLG802", "reference-changed", 8, "reference",
        "the reference's parameters and buffers do not change",
        "identical bits", SAMPLED,
        "the policy is compared with a reference that follows it",
        "freeze it (requires_grad_(False)), keep it out of the optimizer, and copy it instead of aliasing",
    ),
    Entry(
        "KLG803", "reference-aliased", 9, "reference",
        "no trainable parameter of the policy shares memory with the reference, and the policy is not scored in its"
        " place",
        "none (frozen layers may be shared); equal bit for bit in 3 steps where the weights differ", BEFORE,
        "the reference is the policy: KL is 0 for ever",
        "make the reference with copy.deepcopy, or load it a second time; score it with the adapter switched off",
    ),
    Entry(
        "KLG804", "base-changed", 10, "reference",
        "the frozen base under an adapter does not change",
        "identical bits", SAMPLED,
        "merging and unmerging the adapter rounds the base: the reference drifts",
        "merge into a copy, or load the base again after each merge",
    ),
    Entry(
        "KLG805", "random-scoring", 11, "reference",
        "scoring the same tokens twice gives the same log-probabilities",
        "0; no dropout module in train mode", FIRST_ROLLOUT,
        "dropout is active: the ratio and the KL carry noise of tenths of a nat",
        "call model.eval() for rollouts and scoring, or set every dropout probability to 0",
    ),
    Entry(
        "KLG811", "mask-overreaches", 13, "masks",
        "the response mask holds response tokens only: no prompt, nothing after the first stop, no tool output",
        "exact", EVERY,
        "tokens that nobody sampled from the policy are trained on",
        "build the mask by position: from the first response token to the first stop token, both included",
    ),
    Entry(
        "KLG812", "stop-not-in-mask", 14, "masks",
        "the first stop token itself is inside the mask",
        "exact", EVERY,
        "the policy never learns to stop: the token that ends the response has no gradient",
        "include the first stop token in the mask; do not mask by `!= pad_token_id` when pad is the stop token",
    ),
    Entry(
        "KLG813", "unmasked-statistic", 15, "masks",
        "reported ratio, KL and entropy are means over valid tokens",
        "1e-4 relative (1e-2 for half precision); 2e-2 for a ratio that has to be 1 (a warning)", EVERY,
        "the logged figure is diluted by padding, or spoilt by rounding, and hides what happens",
        "multiply by the mask and divide by its sum, in fp32",
    ),
    Entry(
        "KLG814", "padding-matters", 16, "masks",
        "a row's log-probabilities are the same alone and left-padded in a batch",
        "1e-4 nats (fp32), 3e-2 (bf16)", BEFORE,
        "padding shifts positions or is attended to: the scored policy is not the one that sampled",
        "pass attention_mask, and position_ids counted from it, in every scoring pass",
    ),
    Entry(
        "KLG815", "padding-side-changed", 17, "masks",
        "the tokenizer's padding side is left for a decoder's generate() and does not change",
        "exact", EVERY,
        "prompts are separated from their responses by padding",
        "set tokenizer.padding_side = 'left' once, and nowhere else",
    ),
    Entry(
        "KLG816", "pad-is-stop", 18, "masks",
        "the pad token is no stop token, or the mask is built by position",
        "exact", BEFORE,
        "a mask of the form `!= pad` drops the end of every response",
        "give the tokenizer a pad token of its own, or build the mask by position", WARNING,
    ),
    Entry(
        "KLG817", "stop-sets-differ", 19, "masks",
        "tokenizer, generation config, engine and trainer stop at the same tokens",
        "equal sets; no sampled token behind the stop that ends the mask (a warning, at 4 rows and 80 %)", BEFORE,
        "responses end at one token and are masked at another",
        "use generation_config.eos_token_id, with all its ids, in the trainer's mask too",
    ),
    Entry(
        "KLG818", "first-token-masked", None, "masks",
        "the first response token is in the response mask, and in the mask of the loss",
        "exact; at least 4 rows of a step, none of which has it, with different first tokens; none that has anything"
        " before a tool's output (a warning)", EVERY,
        "the token that follows the prompt is never trained: the mask is off by one",
        "build the mask from the first response token on; where logits are shifted by one, shift the mask with the"
        " tokens, mask[:, 1:], and not with the logits, mask[:, :-1]",
    ),
    Entry(
        "KLG821", "unwhitened-advantages", 20, "advantages",
        "whitened advantages have mean 0 and variance 1 over valid tokens, and are 0 elsewhere",
        "|mean| 1e-3 (1e-2 in half precision), |std - 1| 1e-2; values at padding are a warning", EVERY,
        "padding takes part in the whitening, or the mean is added back: every token is pushed the same way",
        "whiten over the mask only, subtract the mean, and zero the rest",
    ),
    Entry(
        "KLG822", "broken-group", 21, "advantages",
        "groups are complete, of one prompt each, and their advantages add up to 0",
        "|mean| 1e-4 (fp32), 1e-2 (bf16), times the advantages' size where that is above 1", EVERY,
        "rewards are compared across prompts",
        "keep the n responses of a prompt together through shuffling, filtering and sharding",
    ),
    Entry(
        "KLG823", "flat-groups", 22, "advantages",
        "rewards differ inside most groups",
        "at most 0.8 of groups without spread for 5 steps; an error when none of 32 groups in the first 5 steps or"
        " more has any", EVERY,
        "there is no learning signal: the sampler repeats itself or the reward is constant",
        "look at the rollout's seed and temperature, and at the reward function", WARNING,
    ),
    Entry(
        "KLG824", "gae-terminal", 23, "advantages",
        "the value after the last token is 0: advantages recomputed in float64 agree",
        "1e-4 (fp32), 3e-2 (bf16), of the row's largest", EVERY,
        "the advantage of the last tokens is bootstrapped from padding",
        "set the next value to 0 at the last valid token, and stop the recursion there",
    ),
    Entry(
        "KLG825", "misplaced-score", 24, "advantages",
        "the score is added once, at the last valid token: rewards add up to score - beta * sum of k1",
        "1e-4 (fp32), 1e-2 (bf16)", EVERY,
        "the score is missing, doubled, or credited to another token",
        "add the score at the index of the last valid token of each row",
    ),
    Entry(
        "KLG826", "kl-penalty-sign", 25, "advantages",
        "reward falls when KL rises",
        "exact sign", EVERY,
        "the policy is paid to leave its reference",
        "subtract beta * (logprobs - reference_logprobs), with beta above 0",
    ),
    Entry(
        "KLG827", "kl-controller", 26, "advantages",
        "an adaptive controller is fed the KL to the reference, in the unit of its target, and holds below 0",
        "5 % and 1 % of the mean |k1|, for 3 steps; a KL below 0 by 4 standard errors, for 2 steps", EVERY,
        "the coefficient follows a number that is no KL",
        "feed nats per sequence to a target in nats per sequence, and hold the coefficient when KL is below 0",
    ),
    Entry(
        "KLG828", "value-gradient", None, "advantages",
        "the gradient of the value loss pulls each value towards its own return, and is 0 outside the mask",
        "outside, but for one position on either side: exactly 0; sign: 0.9 of the values; a known mistake: fits a"
        " hundred times better; 0.1 of the signs wrong for 3 steps is a warning", EVERY,
        "the critic learns something else than the value of its state",
        "hold the value loss against its formula: shapes, rows, positions, the mask and the sign",
    ),
    Entry(
        "KLG829", "moving-target", None, "advantages",
        "old log-probs, advantages and returns are constants of the loss: it has no gradient there",
        "exactly 0; at advantages, of which a value loss may be made, one sign everywhere", EVERY,
        "the loss is lowered by moving what it is held against",
        "make old log-probs, advantages and returns under torch.no_grad()",
    ),
    Entry(
        "KLG831", "first-ratio", 27, "ratio",
        "before the first update of a step the new log-probabilities equal the old ones",
        "max |d| 1e-4 nats (fp32); mean 1e-2, k3 1e-3, max 1 (half precision, autocast, TF32)", FIRST_MINIBATCH,
        "the ratio starts away from 1: dropout, another temperature, padding or a shift between the two passes",
        "score rollout and minibatch by the same function, in eval mode, at the same temperature",
    ),
    Entry(
        "KLG832", "ratio-unbounded", 28, "ratio",
        "the ratio stays near 1 inside a step",
        "for 3 steps: mean in 0.8 to 1.25, at most 1e-3 of tokens at 10 or more, k3(old, new) below 0.05;"
        " at once: mean in 0.5 to 2, k3 below 0.5", EVERY,
        "the update leaves the region in which the surrogate objective means anything",
        "lower the learning rate or the number of epochs, or stop the epochs early on k3(old, new)", WARNING,
    ),
    Entry(
        "KLG833", "clip-fraction", 29, "ratio",
        "some ratios are clipped, and not too many",
        "0 before the first update; at most 0.3 for 3 steps; the ratio not exactly 1 after updates for 3 steps", EVERY,
        "above: the steps are too large; always 0: the ratio does not move at all",
        "look at the learning rate, and at whether the old log-probabilities are recomputed each epoch", WARNING,
    ),
    Entry(
        "KLG834", "logged-kl", 30, "ratio",
        "the KL that is logged is the KL that is optimised",
        "1e-4 relative; reported when for 3 steps it is another estimator, unit, sign, mask or multiple", EVERY,
        "the curve that people watch is not the quantity that is penalised",
        "log the masked mean of the very tensor that enters the reward or the loss",
    ),
    Entry(
        "KLG835", "kl-loss-gradient", 31, "ratio",
        "a KL term in the loss has the gradient of the reverse KL",
        "cosine above 0.99 on toy policies; down to 0.5 a warning", BEFORE,
        "the term pulls nowhere (k1 as a loss has zero expected gradient) or somewhere else",
        "use k2, or k3 times the importance ratio, as a loss; or put k1 into the reward",
    ),
    Entry(
        "KLG836", "kl-requires-grad", 32, "ratio",
        "the KL term has a gradient when it is in the loss, and none when it is in the reward",
        "exact", FIRST_MINIBATCH,
        "the penalty is a constant, or the reward is differentiated",
        "compute the loss term from log-probs with gradient; detach what goes into the reward",
    ),
    Entry(
        "KLG837", "clamp-binds", 33, "ratio",
        "clamps on log-ratio and KL hardly ever bind",
        "at most 1e-4 of the tokens of 5 steps, or 4 tokens, at |d| >= 20", EVERY,
        "the KL gradient vanishes exactly where the policy drifted most",
        "find the tokens with impossible log-probs: masked positions, another tokenizer, another model", WARNING,
    ),
    Entry(
        "KLG838", "malformed-logprobs", 34, "ratio",
        "log-probabilities are finite, at most 0, and as many as there are tokens",
        "max 1e-4 nats above 0", EVERY,
        "what is called log-probabilities is something else, or overflowed",
        "take them from log_softmax in fp32 at the sampled token",
    ),
    Entry(
        "KLG839", "loss-gradient", None, "ratio",
        "the gradient of the loss at the log-probs is that of the surrogate: against the advantages, 0 where the mask or"
        " the clip cuts, weighed alike in all micro-batches of an update; an entropy bonus has the sign of a bonus",
        "masked: exactly 0; direction: cosine above -0.9; at clipped tokens 1e-2 of the whole gradient; rows with their"
        " own advantages, weights of micro-batches and padding in a mean: 3 steps, where the rest fits to 3 %", EVERY,
        "the objective that is trained is not the one that the figures are about",
        "hold the loss against its formula: the mask, the sign, min(), the indices of rows, what it is divided by",
    ),
    Entry(
        "KLG841", "dead-gradient", 35, "optimiser",
        "the gradient is finite, and not zero for the trainable tensors",
        "at least 0.95 of tensors within four updates (less is a warning, below 0.5 an error); finite in all; 0 in two"
        " steps with advantages that are not, or in the first 5 where they are not told (a warning)", EVERY,
        "part of the model does not learn, or the update is poisoned",
        "look for detached tensors and frozen modules; skip steps with a gradient that is not finite",
    ),
    Entry(
        "KLG842", "optimizer-parameters", 36, "optimiser",
        "the optimizer owns exactly the trainable parameters, and they change",
        "exact; change: 2 steps without any (fp32), 20 in half precision (a warning, as are 10 with less than a tenth)",
        EVERY,
        "what is trained is not what samples",
        "make the optimizer after wrapping and adapting the model, from its trainable parameters",
    ),
    Entry(
        "KLG843", "unclipped-gradient", 37, "optimiser",
        "at optimizer.step() the gradient's norm is at most max_grad_norm",
        "1e-3 (fp32), 2e-2 (bf16), relative", EVERY,
        "max_grad_norm is a dead field: nothing clips",
        "call clip_grad_norm_ between backward() and step(), after unscaling",
    ),
    Entry(
        "KLG844", "accumulation", 38, "optimiser",
        "accumulated micro-batches give the gradient of the large batch",
        "before training 1e-3 (fp32), 5e-2 (half precision, autocast, TF32), relative; then a gradient that is gone"
        " before its update, or made smaller, in 2 steps", EVERY,
        "means of means: short micro-batches weigh more, or the division is missing, or all but the last are lost",
        "sum token losses and divide by the number of valid tokens of the whole batch; one zero_grad() for each update",
    ),
    Entry(
        "KLG845", "leftover-gradient", 39, "optimiser",
        "when the first backward after an update begins, no parameter of the optimizer has a gradient left",
        "0 or None", EVERY,
        "gradients of earlier steps are added to later ones",
        "call optimizer.zero_grad(), not model.zero_grad(), once for each step",
    ),
    Entry(
        "KLG846", "scheduler", 40, "optimiser",
        "scheduler and optimizer have the same groups, a step changes weights by about the learning rate, and the"
        " schedule lasts as long as the run",
        "on Adam, max |change| of a weight w is 10 * lr + lr * weight decay * |w|; lr 0 for 3 steps after it was not,"
        " or for the first 10, one that climbs again after 1 % of its peak, a schedule that is not stepped in 20, what"
        " was not taken up after a restart: warnings",
        EVERY,
        "the scheduler drives another optimizer or runs ahead, or the weights are changed by something else",
        "make the scheduler from the very optimizer that steps; step both once per update",
    ),
    Entry(
        "KLG851", "foreign-logprobs", 42, "engine",
        "the engine's log-probabilities are those of the sampled tokens",
        "mean of p_trainer / p_engine is 1 within 5 standard errors, or within 0.05", EVERY,
        "the engine returned the log-probability of another token or another distribution",
        "ask the engine for the log-probability of the sampled token, unprocessed",
    ),
    Entry(
        "KLG852", "policy-lag", 45, "engine",
        "the version of the weights that sampled is at most the allowed lag behind",
        "exact", EVERY,
        "rollouts are older than the algorithm corrects for",
        "drop or re-score rollouts that are too old",
    ),
    Entry(
        "KLG853", "untied-weights", 46, "engine",
        "embedding and output layer share their memory exactly when the configuration ties them",
        "exact", BEFORE,
        "one of the two is trained and the other is used",
        "call tie_weights() after loading, wrapping or adapting",
    ),
    Entry(
        "KLG854", "logits-precision", 47, "engine",
        "log-probabilities are normalised in fp32",
        "fp32", EVERY,
        "a log-softmax in half precision is off by hundredths of a nat",
        "call .float() on the logits before log_softmax", WARNING,
    ),
    Entry(
        "KLG855", "cache-in-training", 48, "engine",
        "no key-value cache in training passes; no gradient checkpointing in generate()",
        "exact", EVERY,
        "the cache is built and dropped, or generate() loses it and degenerates",
        "pass use_cache=False in training passes, and switch checkpointing off around generate()", WARNING,
    ),
    Entry(
        "KLG861", "value-head", 50, "signals",
        "the value head explains some of the returns",
        "explained variance above -0.5, or rising, over 20 steps; its median above -0.5 after 50 steps", EVERY,
        "values are worse than a constant: wrong targets, wrong rows, or no gradient",
        "look at the order of rows and the mask of the value loss", WARNING,
    ),
    Entry(
        "KLG862", "entropy-drift", 51, "signals",
        "entropy neither collapses nor explodes",
        "0.3 to 2 times the first, over 20 steps (up to half a nat more is no breach)", EVERY,
        "the policy collapses, or runs away",
        "look at the sign of the advantages, the KL coefficient and the learning rate", WARNING,
    ),
    Entry(
        "KLG863", "completion-length", 52, "signals",
        "responses have tokens, end by themselves and are longer than a few tokens",
        "none empty (an error where all are); at most half cut off, mean length at least 3, after 5 steps", EVERY,
        "most responses are cut off, or there is nothing to train on",
        "raise max_new_tokens, or look at the stop tokens", WARNING,
    ),
    Entry(
        "KLG864", "reward-of-another", 53, "signals",
        "a reward belongs to the sample it is stored with, and is finite",
        "1e-3, or a tenth of the spread of rewards, in all of four rows or in three steps in a row", SAMPLED,
        "rows were reordered between sampling and rewarding",
        "carry an id with each row through every reordering",
    ),
    Entry(
        "KLG865", "packing", 54, "signals",
        "a sequence has the same log-probabilities alone and packed",
        "1e-4 nats (fp32), 3e-2 (bf16)", BEFORE,
        "packed sequences see each other",
        "use an attention implementation that respects sequence boundaries, with position_ids restarted",
    ),
    Entry(
        "KLG866", "reordered-rows", 55, "signals",
        "rows keep their own tokens and mask after reordering",
        "exact; a mask may shrink", EVERY,
        "a row is trained with the tokens or the mask of another",
        "index every tensor of the minibatch with the same permutation",
    ),
    Entry(
        "KLG867", "other-tokens", 56, "signals",
        "the tokens that are trained are the tokens that were sampled",
        "exact", EVERY,
        "decoding and encoding again changed the tokens",
        "keep the ids of the rollout; never tokenise the response text again",
    ),
    Entry(
        "KLG868", "minibatch-coverage", 57, "signals",
        "the minibatches of an epoch cover the rollout exactly once",
        "exact; epochs may stop early, and a dropped remainder is a warning", EVERY,
        "some rows are trained twice and others never",
        "split one permutation of all rows into minibatches, each epoch anew",
    ),
    Entry(
        "KLG869", "filtered-first", 58, "signals",
        "statistics are taken on unfiltered rollouts",
        "exact; rows not scored: in 2 steps", EVERY,
        "rows were dropped after their tokens were seen: no statement about the sampler is valid any more",
        "hand every sampled row to the guard before dynamic sampling or length filters drop some", WARNING,
    ),
)  # fmt: skip

BY_CODE = {entry.code: entry for entry in CATALOGUE}
BY_ROW = {entry.row: entry for entry in CATALOGUE if entry.row is not None}


def find(code_or_name: str) -> Entry | None:
    """The entry called `KLG831` or `first-ratio`, in any case."""
    wanted = code_or_name.strip()
    by_name = (entry for entry in CATALOGUE if entry.name == wanted.lower())
    return BY_CODE.get(wanted.upper()) or next(by_name, None)


SETTINGS_ROW = 5
"""Row 5 speaks with the codes of the settings rules (KLG1xx to KLG5xx), read from the live objects."""

UNCHECKED = {
    44: ("prefix and key-value caches of the engine are reset after a sync", "needs an inference engine"),
    49: ("mixture-of-experts routes agree between sampler and trainer", "needs the engine's routes"),
}
"""Rows that are not checked: what would hold, and why the guard cannot see it."""
