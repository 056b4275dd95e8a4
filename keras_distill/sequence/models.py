"""Token models of any kind: their logits, context length and vocabulary size."""

from typing import Any

import keras
from keras import ops

from keras_distill import backend, inputs
from keras_distill.types import Tensor


def logits_of(
    model: Any, tokens: Tensor, mask: Tensor | None = None, training: bool = False
) -> Tensor:
    """Return a token model's logits: `logits[:, i]` for the token after `tokens[:, i]`.

    Args:
        model: A causal Keras model. Its input is token ids of shape `(batch, time)`, or
            it declares the inputs `token_ids` and `padding_mask`, as the `CausalLM`s of
            keras-hub do. It returns logits of shape `(batch, time, vocabulary)`.
        tokens: Token ids of shape `(batch, time)`. If the model declares a fixed time,
            shorter rows are padded at the right, and the logits of the padding are
            removed.
        mask: True at tokens and False at padding, of the shape of `tokens`. Only models
            that declare `padding_mask` read it. Defaults to True everywhere.
        training: Whether layers such as dropout act as in training. Defaults to False.

    Returns:
        Logits of shape `(batch, time, vocabulary)`, in the dtype of the model.

    Raises:
        ValueError: If the rows are longer than the model's context, or its output
            isn't one tensor of rank 3.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((None,), dtype="int32"), keras.layers.Embedding(5, 8),
        ...      keras.layers.GRU(8, return_sequences=True), keras.layers.Dense(5)])
        >>> tuple(logits_of(model, ops.ones((2, 3), "int32")).shape)
        (2, 3, 5)
    """
    length = tokens.shape[1]
    check_length(model, length)
    fixed = declared_length(model)
    if fixed is not None and length is not None and length < fixed:
        room = [[0, 0], [0, fixed - length]]
        tokens = ops.pad(tokens, room)
        mask = None if mask is None else ops.pad(mask, room)
    x = tokens
    if len(inputs.declared_names(model) or [""]) > 1 or isinstance(
        getattr(model, "input", None), dict
    ):
        if mask is None:
            mask = ops.ones_like(tokens, dtype="bool")
        x = inputs.select(model, {"token_ids": tokens, "padding_mask": mask})
    logits = model(x, training=training)
    if len(getattr(logits, "shape", ())) != 3:
        received = keras.tree.map_structure(lambda y: tuple(y.shape), logits)
        raise ValueError(
            f"Model '{model.name}' must return logits of shape (batch, time, "
            f"vocabulary) for token ids of shape (batch, time). Received: output of "
            f"shape {received} for token ids of shape {tuple(tokens.shape)}"
        )
    return logits if length is None else logits[:, :length]


def check_length(model: Any, length: int | None) -> None:
    """Raise ValueError if rows are longer than the context that a model declares.

    Args:
        model: The model.
        length: The number of tokens in a row, or None if it isn't known.
    """
    context = context_length(model)
    if length is not None and context is not None and length > context:
        raise ValueError(
            f"Rows have {length} tokens, prompt and completion together, but the "
            f"context of model '{model.name}' has {context}. Shorten the prompts, "
            "remove columns of padding, or lower `max_new_tokens`. Received: rows of "
            f"{length} tokens"
        )


def context_length(model: Any) -> int | None:
    """Return the largest number of tokens that a model can read, None without a limit.

    It is the smallest of three values, where they are declared: `max_sequence_length`
    of the model, that of its backbone, and the time dimension of its first input.
    """
    holders = (model, getattr(model, "backbone", None))
    declared = [getattr(holder, "max_sequence_length", None) for holder in holders]
    known = [length for length in [*declared, declared_length(model)] if length]
    return min(known, default=None)


def vocabulary_size(model: Any) -> int:
    """Return the number of tokens for which a model returns a logit."""
    outputs = getattr(model, "outputs", None)
    if outputs:
        return int(outputs[0].shape[-1])
    spec = keras.KerasTensor((1, 2), "int32")
    return int(backend.traced(lambda tokens: logits_of(model, tokens), spec).shape[-1])


def check_same_vocabulary(student: Any, teacher: Any) -> None:
    """Raise ValueError if two models have vocabularies of different sizes."""
    sizes = vocabulary_size(student), vocabulary_size(teacher)
    if sizes[0] != sizes[1]:
        raise ValueError(
            "The student and the teacher must have the same tokenizer: their outputs "
            "are compared token by token, and the id of a token must mean the same "
            "text to both. Different tokenizers also split a text into different "
            "numbers of tokens. If only the padding of the vocabulary differs, wrap "
            "the larger model in one that returns `logits[..., :size]`. Received: "
            f"student '{student.name}' with a vocabulary of {sizes[0]}, teacher "
            f"'{teacher.name}' with {sizes[1]}"
        )


def declared_length(model: Any) -> int | None:
    """Return the time dimension of a model's first input, None if it may vary."""
    declared = getattr(model, "inputs", None)
    if not declared or len(declared[0].shape) < 2:
        return None
    length: int | None = declared[0].shape[1]
    return length
