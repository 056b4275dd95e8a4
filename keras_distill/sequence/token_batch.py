"""Training batches of token models: tokens, labels and token weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras import ops

from keras_distill.inputs import TENSOR
from keras_distill.losses.checks import may_have_shape
from keras_distill.sequence.generation import Completions
from keras_distill.sequence.rows import compact, token_mask
from keras_distill.types import Nested, Tensor

# Keys of the batch beside `TENSOR`: those of keras-hub's models, and of the teacher.
TOKENS, MASK = "token_ids", "padding_mask"
OF_TEACHER, CONTEXT_LENGTH = "teacher_reads", "context_length"
OTHERS = (TOKENS, MASK, OF_TEACHER, CONTEXT_LENGTH)


class Texts(NamedTuple):
    """The texts of a batch. Masks are True at tokens and False at padding.

    Args:
        prompts: The prompts. All texts are int32 token ids of shape `(batch, time)`.
        prompt_mask: The mask of the prompts.
        completions: The reference completions. None if the student writes all.
        completion_mask: Their mask, False after the first end token.
        context: The tokens that the teacher reads before the prompts, or None.
        context_mask: The mask of the context.
    """

    prompts: Tensor
    prompt_mask: Tensor
    completions: Tensor | None = None
    completion_mask: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None


def read(
    x: Nested, *, context: str | None, end_token: int | None, padding_token: int
) -> Texts:
    """Return the texts of a batch.

    Args:
        x: Prompts, or a dict. Its keys are `"prompts"`, the key of the context if there
            is one, and optionally `"completions"` and the masks: `"prompt_mask"`,
            `"completion_mask"`, `context + "_mask"`.
        context: The key of the context, which only the teacher reads, or None.
        end_token: The token that ends completions, or None.
        padding_token: The token of padding.

    Raises:
        ValueError: If `x` lacks a needed key, or has another key, or if the shape or
            dtype of a value is wrong.
    """
    x = x if isinstance(x, Mapping) else {"prompts": x}
    masks = {"prompts": "prompt_mask", "completions": "completion_mask"}
    if context is not None:
        masks[context] = f"{context}_mask"
    _check_keys(x, masks, needed=set(masks) - {"completions"})

    def found(name: str | None) -> tuple[Tensor | None, Tensor | None]:
        if name is None or name not in x:
            return None, None
        tokens = _ids(name, x[name])
        if masks[name] not in x:
            return tokens, token_mask(tokens, padding_token)
        return tokens, _mask(masks[name], x[masks[name]], tokens)

    completions, mask = found("completions")
    if mask is not None and end_token is not None:
        if end_token == padding_token and masks["completions"] not in x:
            mask = _with_next(mask)
        mask = _until(completions, mask, end_token)
    return Texts(*found("prompts"), completions, mask, *found(context))


def references(texts: Texts, length: Tensor, padding_token: int) -> Completions:
    """Return rows of this length: the prompts, then the reference completions."""
    tokens = ops.concatenate([texts.prompts, texts.completions], axis=1)
    mask = ops.concatenate([texts.prompt_mask, texts.completion_mask], axis=1)
    is_completion = ops.concatenate(
        [ops.zeros_like(texts.prompt_mask), texts.completion_mask], axis=1
    )
    tokens, _, is_completion = compact(tokens, mask, padding_token, is_completion)
    return padded(Completions(tokens, is_completion), length, padding_token)


def padded(rows: Completions, length: Tensor, padding_token: int) -> Completions:
    """Return rows padded at the right to this length."""
    room = [[0, 0], [0, length - ops.shape(rows.tokens)[1]]]
    return Completions(
        ops.pad(rows.tokens, room, constant_values=padding_token),
        ops.pad(rows.is_completion, room, constant_values=False),
    )


def as_batch(
    rows: Completions, texts: Texts, *, padding_token: int, length: int | None
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return inputs, labels and weights. Each position predicts the next token.

    Args:
        rows: Prompts with the completions to learn from.
        texts: The texts of the batch.
        padding_token: The token of padding.
        length: The number of positions that the student declares. None if it may vary.

    Returns:
        The inputs of both models, the next tokens, and their weights. A weight is 1 if
        the next token belongs to a completion, else 0. The tokens and the weights have
        the shape `(batch, positions)`.
    """
    if length is not None:
        rows = padded(rows, length + 1, padding_token)
    lengths = ops.sum(
        ops.cast(texts.prompt_mask, "int32"), axis=1, keepdims=True
    ) + ops.sum(ops.cast(rows.is_completion, "int32"), axis=1, keepdims=True)
    mask = ops.arange(ops.shape(rows.tokens)[1], dtype="int32")[None] < lengths
    x: dict[str, Any] = _inputs(rows.tokens, mask)
    if texts.context is not None:
        tokens, lengths = compact(
            ops.concatenate([texts.context, rows.tokens], axis=1),
            ops.concatenate([texts.context_mask, mask], axis=1),
            padding_token,
        )
        positions = ops.arange(ops.shape(tokens)[1], dtype="int32")[None]
        x[OF_TEACHER] = _inputs(tokens, positions < lengths[:, None])
        x[CONTEXT_LENGTH] = ops.sum(ops.cast(texts.context_mask, "int32"), axis=1)
    weight = ops.cast(rows.is_completion[:, 1:], "float32")
    return x, rows.tokens[:, 1:], weight


def after_context(output: Tensor, context_length: Tensor, length: Tensor) -> Tensor:
    """Return a teacher's output at the student's positions.

    Args:
        output: The output, of shape `(batch, context + length, vocabulary)`.
        context_length: The number of positions before the student's first one, of
            shape `(batch,)`.
        length: The number of the student's positions.
    """
    batch, time = ops.shape(output)[0], ops.shape(output)[1]
    positions = context_length[:, None] + ops.arange(length, dtype="int32")[None]
    rows = ops.arange(batch, dtype="int32")[:, None] * time
    flat = ops.reshape(output, (-1, output.shape[-1]))
    # Whole rows are taken. An index for each number would take the output's memory.
    return ops.take(flat, rows + positions, axis=0)


def _check_keys(
    x: Mapping[str, Any], masks: Mapping[str, str], needed: set[str]
) -> None:
    """Raise ValueError if a batch lacks a key, or has one that nothing reads."""
    needed = needed | {name for name, mask in masks.items() if mask in x}
    if not needed <= set(x) <= {*masks, *masks.values()}:
        raise ValueError(
            "`x` must be prompts, token ids of shape (batch, time), or a dict with the "
            f"keys {list(masks)}, of which 'completions' may be left out, and their "
            f"masks, {list(masks.values())}. Received: keys {sorted(x)}"
        )


def _mask(name: str, value: Any, tokens: Tensor) -> Tensor:
    mask = ops.convert_to_tensor(value)
    if not may_have_shape(mask, tokens.shape):
        raise ValueError(
            f"`{name}` must have the shape of its tokens, {tuple(tokens.shape)}. "
            f"Received: {name} of shape {tuple(mask.shape)}"
        )
    return ops.cast(mask, "bool")


def _ids(name: str, value: Any) -> Tensor:
    tokens = ops.convert_to_tensor(value)
    if len(tokens.shape) != 2 or "int" not in str(tokens.dtype):
        raise ValueError(
            f"`{name}` must be token ids, whole numbers of shape (batch, time). "
            f"Received: {name} of shape {tuple(tokens.shape)} and dtype {tokens.dtype}"
        )
    return ops.cast(tokens, "int32")


def _inputs(tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a model, under the names of all kinds of token models."""
    tokens, mask = tokens[:, :-1], mask[:, :-1]
    return {TENSOR: tokens, TOKENS: tokens, MASK: mask}


def _until(tokens: Tensor, mask: Tensor, end_token: int) -> Tensor:
    """Return a mask without the tokens after the first end token."""
    ends = ops.logical_and(mask, ops.equal(tokens, end_token))
    ends = ops.cast(ends, "int32")
    before = ops.cumsum(ends, axis=1) - ends
    return ops.logical_and(mask, ops.equal(before, 0))


def _with_next(mask: Tensor) -> Tensor:
    """Return a mask that is also True at the position after its last True.

    If the end token is the padding token too, a completion's end token is there.
    """
    before = ops.pad(mask[:, :-1], [[0, 0], [1, 0]], constant_values=False)
    return ops.logical_or(mask, before)
