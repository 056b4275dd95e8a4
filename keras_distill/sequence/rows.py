"""Rows of token ids: a prompt, then its completion, then padding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill import backend
from keras_distill.losses.checks import may_have_shape
from keras_distill.sequence.models import check_length, vocabulary_size
from keras_distill.sequence.sampling import check_count
from keras_distill.types import Tensor


class Rows(NamedTuple):
    """A batch of rows that are completed.

    Args:
        tokens: Int32 ids of shape `(batch, length)`: prompts, then padding.
        begins: The position at which each completion begins, of shape `(batch,)`.
        limits: The position before which each completion ends, of the same shape. It
            is 0 for a row without a prompt, which has no token to predict from.
    """

    tokens: Tensor
    begins: Tensor
    limits: Tensor

    def first(self) -> Tensor:
        """Return the first position at which a completion begins."""
        length = ops.shape(self.tokens)[1]
        return ops.min(ops.where(self.limits > 0, self.begins, length))

    def completed(self, ends: Tensor) -> Tensor:
        """Return True at the tokens of completions, which are before `ends`."""
        positions = ops.arange(ops.shape(self.tokens)[1], dtype="int32")[None]
        return (self.begins[:, None] <= positions) & (positions < ends[:, None])


def rows(
    prompts: Tensor, mask: Tensor | None, *, max_new_tokens: int, padding_token: int
) -> Rows:
    """Return rows that begin with the prompts, with room for their completions.

    Args:
        prompts: Token ids of shape `(batch, time)`, padded at one or both ends.
        mask: True at the tokens of prompts. Tokens where it is False are removed. With
            None, it is False at the padding tokens at both ends of a row only.
        max_new_tokens: The most tokens that a completion has.
        padding_token: The token of padding.
    """
    prompts = ops.cast(prompts, "int32")
    mask = token_mask(prompts, padding_token) if mask is None else mask
    compacted, lengths = compact(prompts, mask, padding_token)
    room = [[0, 0], [0, max_new_tokens]]
    tokens = ops.pad(compacted, room, constant_values=padding_token)
    limits = ops.where(lengths > 0, lengths + max_new_tokens, 0)
    return Rows(tokens, lengths, limits)


def token_mask(tokens: Tensor, padding_token: int) -> Tensor:
    """Return False at the padding at both ends of rows, and True in between."""
    is_token = ops.cast(ops.not_equal(tokens, padding_token), "int32")
    after_first = ops.cumsum(is_token, axis=1) > 0
    before_last = ops.flip(ops.cumsum(ops.flip(is_token, 1), axis=1), 1) > 0
    return ops.logical_and(after_first, before_last)


def compact(
    tokens: Tensor, mask: Tensor, padding_token: int, *others: Tensor
) -> tuple[Tensor, ...]:
    """Return rows without the tokens where a mask is False, padded at the right.

    Args:
        tokens: Token ids of shape `(batch, time)`.
        mask: True at the tokens that are kept.
        padding_token: The token of padding.
        *others: Other masks of the same shape, which are moved with the tokens.

    Returns:
        The tokens, the number of them in each row, and the other masks.
    """
    mask = ops.cast(mask, "bool")
    time = ops.shape(tokens)[1]
    # All keys differ, so the result is the same for stable and unstable sorts.
    positions = ops.arange(time, dtype="int32")[None]
    order = ops.argsort(ops.where(mask, positions, positions + time), axis=1)
    lengths = ops.sum(ops.cast(mask, "int32"), axis=1)
    kept = positions < lengths[:, None]
    moved = ops.take_along_axis(tokens, order, axis=1)
    masks = [
        ops.logical_and(kept, ops.take_along_axis(other, order, axis=1))
        for other in others
    ]
    return ops.where(kept, moved, padding_token), lengths, *masks


def checked_prompts(
    models: Sequence[keras.Model],
    prompts: Any,
    mask: Any,
    *,
    max_new_tokens: int,
    end_token: int | None,
    padding_token: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return prompts and their mask, if there is one, as tensors.

    Raises:
        ValueError: If the prompts are empty, a token isn't in the vocabulary, the rows
            are longer than the context of a model, or a model isn't built.
        TypeError: If the prompts aren't whole numbers.
    """
    check_count("max_new_tokens", max_new_tokens)
    for model in models:
        if not model.built:
            raise ValueError(
                f"Model '{model.name}' must be built. Call it on a batch of token ids "
                f"first. Received: a model of type {type(model).__name__}"
            )
    size = vocabulary_size(models[0])
    _check_token("end_token", end_token, size)
    _check_token("padding_token", padding_token, size)
    prompts, mask = (
        x if x is None or hasattr(x, "shape") else np.asarray(x)
        for x in (prompts, mask)
    )
    _check_ids(prompts, size)
    if mask is not None and not may_have_shape(mask, prompts.shape):
        raise ValueError(
            "`prompt_mask` must have the shape of the prompts. Received: prompt_mask "
            f"of shape {tuple(mask.shape)}, prompts of shape {tuple(prompts.shape)}"
        )
    time = prompts.shape[1]
    for model in models:
        check_length(model, None if time is None else time + max_new_tokens)
    masks = () if mask is None else (ops.cast(mask, "bool"),)
    return ops.cast(prompts, "int32"), masks


def check_shape(prompts: Tensor) -> None:
    """Raise ValueError unless prompts have the shape `(batch, time)`."""
    shape = tuple(prompts.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            "`prompts` must have the shape (batch, time), with at least one row and "
            f"one token. Received: prompts of shape {shape}"
        )


def _check_ids(prompts: Tensor, size: int) -> None:
    check_shape(prompts)
    dtype = keras.backend.standardize_dtype(prompts.dtype)
    if "int" not in dtype:
        raise TypeError(
            f"`prompts` must be token ids, whole numbers. Received: prompts of {dtype}"
        )
    if backend.is_traced(prompts):
        return
    values = ops.convert_to_numpy(prompts)
    wrong = values[(values < 0) | (values >= size)]
    if wrong.size:
        raise ValueError(
            f"`prompts` must hold token ids from 0 to {size - 1}, the vocabulary of "
            f"the model. Received: prompts with the token {wrong[0]}"
        )


def _check_token(name: str, token: int | None, size: int) -> None:
    """Raise ValueError unless a token is in a vocabulary of this size."""
    if token is None:
        return
    whole = isinstance(token, int | np.integer) and not isinstance(token, bool)
    if not whole or not 0 <= token < size:
        raise ValueError(
            f"`{name}` must be a token id from 0 to {size - 1}, the vocabulary of the "
            f"model. Received: {name}={token!r}"
        )
