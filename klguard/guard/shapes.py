"""Checks of what the caller passes in: types, shapes, dtypes and devices, each mistake with its own message.

They look at metadata only, never at values, so they cost no synchronisation with the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

import torch
from torch import Tensor

SHIFT = "logits at a position predict the next token: pass logits[:, :-1] with tokens[:, 1:]"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _entries(values: Sized) -> str:
    return f"{len(values)} {'entry' if len(values) == 1 else 'entries'}"


def _tensor(value: object, name: str) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        hint = f"; pass {name}.logits" if hasattr(value, "logits") else "; pass a torch.Tensor"
        raise TypeError(f"{name} is a {kind}, not a tensor{hint}")


def _rank(tensor: Tensor, name: str, dimensions: str) -> None:
    """ValueError unless `tensor` has the dimensions named, such as "(batch, time)"."""
    wanted = dimensions.count(",") + 1
    if tensor.dim() != wanted:
        raise ValueError(
            f"{name} has {tensor.dim()} dimension{'' if tensor.dim() == 1 else 's'}, shape {_shape(tensor)}; "
            f"expected {wanted}: {dimensions}"
        )


def _floating(tensor: Tensor, name: str) -> None:
    """TypeError unless `tensor` is real floating point."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} have dtype {tensor.dtype}; expected a floating-point dtype")


def _device(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """ValueError unless both are on the same device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} are on {tensor.device} and {other_name} on {other.device}; "
            f"move them together first, for example {name}.to({other_name}.device)"
        )


def _batch_and_time(tensor: Tensor, name: str, other: Tensor, other_name: str, hint: str) -> None:
    """ValueError unless the first two dimensions agree; `hint` is for lengths that differ by exactly one."""
    (batch, time), (other_batch, other_time) = tensor.shape[:2], other.shape[:2]
    if (batch, time) == (other_batch, other_time):
        return
    both = f"{name} have shape {_shape(tensor)} and {other_name} {_shape(other)}"
    if (batch, time) == (other_time, other_batch):
        raise ValueError(f"{both}: batch and time are exchanged in one of them")
    if batch != other_batch:
        raise ValueError(f"{both}: the batch sizes differ, {batch} and {other_batch}")
    if abs(time - other_time) == 1:
        raise ValueError(f"{both}: the times differ by exactly one. {hint}")
    raise ValueError(
        f"{both}: the times differ, {time} and {other_time}; both must cover the same positions, "
        "either the responses alone or prompt and response"
    )


def check_mask(mask: Tensor, values: Tensor, name: str = "values") -> None:
    """Raises unless `mask` selects entries of `values` (B, T): TypeError for its type, ValueError for its shape."""
    _tensor(mask, "mask")
    if mask.dtype.is_complex:
        raise TypeError(f"mask has dtype {mask.dtype}; expected bool, or integers or floats that are 0 or 1")
    if mask.shape != values.shape:
        if mask.dim() == 2 and values.dim() == 2:
            _batch_and_time(
                mask,
                "the entries of mask",
                values,
                name,
                "The mask goes with the tokens that were predicted: shift it too, mask[:, 1:]",
            )
        raise ValueError(
            f"mask has shape {_shape(mask)} and {name} {_shape(values)}; pass one entry for each token, "
            "1 (or True) where the policy sampled it"
        )
    _device(mask, "the entries of mask", values, name)


def check_log_probs(
    logprobs: Tensor, reference_logprobs: Tensor | None = None, mask: Tensor | None = None
) -> None:
    """Raises unless the log-probs of the sampled tokens, those of the reference and the mask go together.

    TypeError for something that is no tensor or has no floating dtype; ValueError for shapes and devices.
    """
    _tensor(logprobs, "logprobs")
    _floating(logprobs, "logprobs")
    if reference_logprobs is not None:
        _tensor(reference_logprobs, "reference_logprobs")
        _floating(reference_logprobs, "reference_logprobs")
        if logprobs.shape != reference_logprobs.shape:
            if logprobs.dim() == 2 and reference_logprobs.dim() == 2:
                _batch_and_time(
                    logprobs,
                    "logprobs",
                    reference_logprobs,
                    "reference_logprobs",
                    "One of them was shifted and the other not; both must score the same tokens",
                )
            raise ValueError(
                f"logprobs have shape {_shape(logprobs)} and reference_logprobs {_shape(reference_logprobs)}; "
                "both must score the same tokens"
            )
        _device(reference_logprobs, "reference_logprobs", logprobs, "logprobs")
    if mask is not None:
        check_mask(mask, logprobs, "logprobs")


def check_shapes(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    reference_logits: Tensor | None = None,
) -> None:
    """Raises unless the arguments of a scoring pass go together; looks at no value.

    logits            (batch, time, vocabulary), floating; `logits[b, t]` scored `tokens[b, t]`.
    tokens            (batch, time), integers.
    mask              (batch, time), bool, integer or floating.
    reference_logits  (batch, time, vocabulary), floating.

    TypeError for a wrong type or dtype, ValueError for a wrong rank, shape or device.
    """
    _tensor(logits, "logits")
    _tensor(tokens, "tokens")
    _floating(logits, "logits")
    if tokens.dtype == torch.bool or tokens.dtype.is_floating_point or tokens.dtype.is_complex:
        raise TypeError(f"tokens have dtype {tokens.dtype}; expected token ids of an integer dtype")
    _rank(logits, "logits", "(batch, time, vocabulary)")
    _rank(tokens, "tokens", "(batch, time)")
    _batch_and_time(logits, "logits", tokens, "tokens", f"Shift them: {SHIFT}")
    if logits.shape[-1] < 1:
        raise ValueError(f"logits have shape {_shape(logits)}: the vocabulary is empty")
    _device(tokens, "tokens", logits, "logits")
    if mask is not None:
        check_mask(mask, tokens, "tokens")
    if reference_logits is not None:
        check_reference(logits, reference_logits)


def check_reference(logits: Tensor, reference_logits: Tensor) -> None:
    """Raises unless the logits of policy and reference cover the same positions and the same vocabulary."""
    _tensor(reference_logits, "reference_logits")
    _floating(reference_logits, "reference_logits")
    _rank(reference_logits, "reference_logits", "(batch, time, vocabulary)")
    _batch_and_time(
        reference_logits,
        "reference_logits",
        logits,
        "logits",
        f"One of them was shifted and the other not; {SHIFT}, for both models",
    )
    if logits.shape[-1] != reference_logits.shape[-1]:
        smaller = min(logits.shape[-1], reference_logits.shape[-1])
        raise ValueError(
            f"the vocabulary of logits has {logits.shape[-1]} entries, that of reference_logits "
            f"{reference_logits.shape[-1]}. If both models use one tokenizer and only the padding of the "
            f"embedding differs, cut both at its length, at most [..., :{smaller}]; else their KL means nothing"
        )
    _device(reference_logits, "reference_logits", logits, "logits")


def check_per_token(name: str, values: Tensor) -> None:
    """Raises unless `values` has one floating-point entry for each token, (B, T): TypeError or ValueError."""
    _tensor(values, name)
    _floating(values, name)
    if values.dim() == 3:
        raise ValueError(
            f"{name} have 3 dimensions, shape {_shape(values)}: these look like logits; pass the log-prob of each"
            " sampled token, (batch, time), or call guard.logprobs(logits, tokens, mask)"
        )
    _rank(values, name, "(batch, time)")


def check_alike(name: str, values: Tensor | None, like: Tensor, like_name: str = "tokens") -> None:
    """Raises unless `values`, where given, has one entry (B, T) for each of `like`: TypeError or ValueError."""
    if values is None:
        return
    _tensor(values, name)
    _tensor(like, like_name)
    if values.shape != like.shape:
        if values.dim() == 2 and like.dim() == 2:
            hint = "One of them was shifted and the other not; both must belong to the same tokens"
            _batch_and_time(values, name, like, like_name, hint)
        raise ValueError(
            f"{name} has shape {_shape(values)} and {like_name} {_shape(like)}; pass one entry for each token"
        )
    _device(values, name, like, like_name)


def check_rollout(responses: Tensor, mask: Tensor | None, prompts: Tensor | None = None) -> None:
    """Raises unless responses (B, T) are token ids, and prompts (B, P) and the mask (B, T) or (B, P + T) fit."""
    _tensor(responses, "responses")
    _rank(responses, "responses", "(batch, time)")
    if responses.dtype == torch.bool or responses.dtype.is_floating_point or responses.dtype.is_complex:
        raise TypeError(f"responses have dtype {responses.dtype}; expected token ids of an integer dtype")
    length = 0
    if prompts is not None:
        _tensor(prompts, "prompts")
        _rank(prompts, "prompts", "(batch, time)")
        length = prompts.shape[1]
        if prompts.shape[0] != responses.shape[0]:
            raise ValueError(
                f"prompts have shape {_shape(prompts)} and responses {_shape(responses)}: the batch sizes differ;"
                " repeat each prompt for each of its responses"
            )
    if mask is None:
        return
    _tensor(mask, "mask")
    batch, time = responses.shape
    if tuple(mask.shape) not in {(batch, time), (batch, length + time)}:
        whole = f" or {(batch, length + time)} with the prompts" if length else ""
        raise ValueError(f"mask has shape {_shape(mask)}; expected {(batch, time)}, as the responses{whole}")


def of_prompts(attention_mask: Tensor, responses: Tensor, prompts: Tensor | None) -> Tensor:
    """The part (B, P) of an attention mask (B, P), or (B, P + T) of whole sequences, that covers the prompts. Raises
    unless it fits responses (B, T) and prompts (B, P), where these are given."""
    _tensor(attention_mask, "attention_mask")
    _rank(attention_mask, "attention_mask", "(batch, time)")
    (batch, time), (rows, width) = responses.shape, attention_mask.shape
    length = width if prompts is None else prompts.shape[1]
    if rows != batch or width not in (length, length + time):
        whole = f" or {(batch, length + time)}, with the responses" if prompts is not None else ""
        raise ValueError(
            f"attention_mask has shape {_shape(attention_mask)}; expected {(batch, length)}, as the prompts{whole}"
        )
    return attention_mask[:, :length]


def check_rows(given: Mapping[str, Tensor | Sequence | None], like: Tensor, like_name: str) -> None:
    """ValueError unless what is given has one entry for each row of `like`."""
    for name, values in given.items():
        if values is not None and hasattr(values, "__len__") and len(values) != len(like):
            raise ValueError(
                f"{name} has {_entries(values)} for {len(like)} rows of {like_name}; pass one for each row"
            )


def check_context(context_ids: Tensor | None, tokens: Tensor) -> None:
    """Raises unless `context_ids`, where given, are the prompts' ids (B, P) of the same rows."""
    if context_ids is None:
        return
    _tensor(context_ids, "context_ids")
    _rank(context_ids, "context_ids", "(batch, time)")
    if context_ids.dtype.is_floating_point or context_ids.dtype.is_complex:
        raise TypeError(f"context_ids have dtype {context_ids.dtype}; expected token ids of an integer dtype")
    if len(context_ids) != len(tokens):
        raise ValueError(
            f"context_ids have shape {_shape(context_ids)} and tokens {_shape(tokens)}: the batch sizes differ;"
            " repeat each prompt for each of its responses"
        )
    _device(context_ids, "context_ids", tokens, "tokens")


def check_weights(advantages: Tensor | None, like: Tensor) -> None:
    """Raises unless the advantages of a minibatch, where given, are (B,), (B, 1) or (B, T)."""
    if advantages is None:
        return
    _tensor(advantages, "advantages")
    batch, time = like.shape
    if tuple(advantages.shape) not in {(batch,), (batch, 1), (batch, time)}:
        raise ValueError(
            f"advantages has shape {_shape(advantages)}; expected {(batch,)} or {(batch, time)}, as new_logprobs"
        )


def check_values(values: Tensor | None, returns: Tensor | None, like: Tensor) -> None:
    """Raises unless values and returns of a minibatch, where given, have one shape: (B,), (B, 1) or (B, T)."""
    batch, time = like.shape
    for name, one in (("values", values), ("returns", returns)):
        if one is None:
            continue
        _tensor(one, name)
        _floating(one, name)
        if tuple(one.shape) not in {(batch,), (batch, 1), (batch, time)}:
            raise ValueError(
                f"{name} have shape {_shape(one)}; expected {(batch, time)}, as new_logprobs, or {(batch,)}, one for"
                " each row"
            )
    if values is not None and returns is not None and values.numel() != returns.numel():
        raise ValueError(
            f"values have shape {_shape(values)} and returns {_shape(returns)}: pass one return for each value"
        )


def check_term(kl_term: Tensor | None) -> None:
    """TypeError unless the KL term of the loss, where given, is a tensor."""
    if kl_term is not None:
        _tensor(kl_term, "kl_term")


def check_rewards(
    scores: Tensor, mask: Tensor | None, token_rewards: Tensor | None, kl: Tensor | None
) -> None:
    """Raises unless scores are (B,), and token_rewards, kl and mask, where given, (B, T) of the same batch."""
    _one_each("scores", scores, None)
    for name, values in (("token_rewards", token_rewards), ("kl", kl), ("mask", mask)):
        if values is None:
            continue
        _tensor(values, name)
        _rank(values, name, "(batch, time)")
        check_alike(name, values, mask if mask is not None else values, "mask")
        if len(values) != len(scores):
            raise ValueError(
                f"{name} has shape {_shape(values)} for {len(scores)} scores; pass one score for each row"
            )


def check_advantages(
    advantages: Tensor,
    mask: Tensor,
    *,
    per_token: Mapping[str, Tensor | None],
    per_row: Mapping[str, Tensor | Sequence[int] | None],
) -> None:
    """Raises unless mask is (B, T), advantages (B,) or (B, T), the others (B, T) or (B,) as named."""
    _tensor(mask, "mask")
    _rank(mask, "mask", "(batch, time)")
    _tensor(advantages, "advantages")
    if advantages.dim() == 1:
        _one_each("advantages", advantages, mask)
    else:
        check_alike("advantages", advantages, mask, "mask")
    for name, values in per_token.items():
        check_alike(name, values, mask, "mask")
    for name, values in per_row.items():
        if values is not None:
            _one_each(name, values, mask)


def _one_each(name: str, values: Tensor | Sequence[int], like: Tensor | None) -> None:
    """Raises unless `values` has one entry for each row of `like`."""
    if (
        isinstance(values, Tensor) or name != "groups"
    ):  # groups are numbers, which loops keep in lists as well
        _tensor(values, name)
        _rank(values, name, "(batch)")
    count = len(values)
    if like is not None and count != len(like):
        raise ValueError(
            f"{name} has {_entries(values)} for {len(like)} rows of the mask; pass one for each row"
        )
