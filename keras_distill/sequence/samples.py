"""Completions of a teacher as training data for sequence-level distillation."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.sequence.generation import generate
from keras_distill.sequence.rows import check_shape, token_mask
from keras_distill.sequence.sampling import check_count


def sample(
    model: keras.Model,
    prompts: Any,
    *,
    max_new_tokens: int,
    samples: int = 1,
    batch_size: int = 32,
    end_token: int | None = None,
    padding_token: int = 0,
    prompt_mask: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    use_cache: bool = True,
) -> dict[str, np.ndarray]:
    """Return a teacher's completions of prompts, for sequence-level distillation.

    A student learns from the result as from other texts:
    `OnPolicyDistiller(student, teacher, student_fraction=0.0, ...).fit(sample(...))`.

    Args:
        model: The teacher, a causal model as in `generate`.
        prompts: An array of token ids of shape `(rows, prompt_length)`, padded at one
            or both ends.
        max_new_tokens: The most tokens that a completion has.
        samples: The number of completions of each prompt. Their rows are adjacent.
            Defaults to 1.
        batch_size: The number of rows that are completed at once. Defaults to 32.
        end_token: As in `generate`.
        padding_token: As in `generate`.
        prompt_mask: As in `generate`.
        temperature: As in `generate`.
        top_k: As in `generate`.
        top_p: As in `generate`.
        seed: An integer gives the same samples in each call. Defaults to None.
        use_cache: As in `generate`.

    Returns:
        The arrays `"prompts"` and `"prompt_mask"`, of shape `(rows * samples,
        prompt_length)`, and `"completions"` and `"completion_mask"`, of shape `(rows *
        samples, max_new_tokens)`. Completions are padded at the right. The masks are
        False at padding.

    Raises:
        ValueError: As in `generate`, or if `samples` or `batch_size` isn't a whole
            number from 1 on.
        TypeError: If the prompts aren't whole numbers.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((None,), dtype="int32"), keras.layers.Embedding(5, 8),
        ...      keras.layers.GRU(8, return_sequences=True), keras.layers.Dense(5)])
        >>> texts = sample(
        ...     model, np.array([[3, 1], [0, 2]]), max_new_tokens=4, samples=3)
        >>> texts["prompts"].shape, texts["completions"].shape
        ((6, 2), (6, 4))

    Reference:
        Kim, Rush 2016, "Sequence-Level Knowledge Distillation",
        https://arxiv.org/abs/1606.07947.
    """
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    texts = _read(prompts, prompt_mask, padding_token)
    prompts, mask = (np.repeat(part, samples, axis=0) for part in texts)
    options = {
        "max_new_tokens": max_new_tokens,
        "end_token": end_token,
        "padding_token": padding_token,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "use_cache": use_cache,
        "seed": keras.random.SeedGenerator(seed),
    }
    ends = range(batch_size, len(prompts), batch_size)
    batches = zip(np.split(prompts, ends), np.split(mask, ends), strict=True)
    written = [_written(model, *batch, batch_size, options) for batch in batches]
    completions, masks = (np.concatenate(parts) for parts in zip(*written, strict=True))
    return {
        "prompts": prompts,
        "prompt_mask": mask,
        "completions": completions,
        "completion_mask": masks,
    }


def _read(
    prompts: Any, prompt_mask: Any, padding_token: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts and their mask as arrays."""
    prompts = np.asarray(prompts)
    check_shape(prompts)
    if prompt_mask is None:
        prompt_mask = ops.convert_to_numpy(token_mask(prompts, padding_token))
    return prompts, np.asarray(prompt_mask, "bool")


def _written(
    model: keras.Model,
    prompts: np.ndarray,
    mask: np.ndarray,
    batch_size: int,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the completions of a batch and their mask."""
    # Rows of padding fill the last batch, so that no other shape is compiled.
    count = len(prompts)
    room = [(0, batch_size - count), (0, 0)]
    written = generate(
        model,
        np.pad(prompts, room, constant_values=options["padding_token"]),
        prompt_mask=np.pad(mask, room),
        **options,
    )
    begins = mask.sum(axis=1, keepdims=True)
    places = begins + np.arange(options["max_new_tokens"])
    tokens, is_completion = (
        np.take_along_axis(ops.convert_to_numpy(part)[:count], places, axis=1)
        for part in written
    )
    return tokens, is_completion
