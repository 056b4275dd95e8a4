"""Texts that a teacher writes, for students that learn from them."""

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
    """Let a teacher complete prompts, for sequence-level distillation.

    A student learns from the result as from given texts:
    `OnPolicyDistiller(student, teacher, student_fraction=0.0, ...).fit(sample(...))`.

    Args:
        model: The teacher, a causal model as in `generate`.
        prompts: An array of token ids of shape `(rows, prompt_length)`, padded at
            either side.
        max_new_tokens: The most tokens that a completion has.
        samples: The number of completions of each prompt. They follow each other.
            Defaults to 1.
        batch_size: The number of rows that are written at once. Defaults to 32.
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
    options = {
        "max_new_tokens": max_new_tokens,
        "end_token": end_token,
        "padding_token": padding_token,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "use_cache": use_cache,
    }
    return _texts(model, prompts, prompt_mask, samples, batch_size, seed, options)


def _texts(
    model: keras.Model,
    prompts: Any,
    prompt_mask: Any,
    samples: int,
    batch_size: int,
    seed: int | None,
    options: dict[str, Any],
) -> dict[str, np.ndarray]:
    """Return what `sample` returns, `options` being arguments of `generate`."""
    prompts = np.asarray(prompts)
    check_shape(prompts)
    if prompt_mask is None:
        prompt_mask = ops.convert_to_numpy(
            token_mask(prompts, options["padding_token"])
        )
    mask = np.asarray(prompt_mask, "bool")
    generator = keras.random.SeedGenerator(seed)
    rows = np.repeat(np.arange(len(prompts)), samples)
    written = [
        _written(model, prompts[part], mask[part], batch_size, generator, options)
        for part in np.split(rows, range(batch_size, len(rows), batch_size))
    ]
    completions, masks = (np.concatenate(parts) for parts in zip(*written, strict=True))
    return {
        "prompts": prompts[rows],
        "prompt_mask": mask[rows],
        "completions": completions,
        "completion_mask": masks,
    }


def _written(
    model: keras.Model,
    prompts: np.ndarray,
    mask: np.ndarray,
    batch_size: int,
    generator: keras.random.SeedGenerator,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the completions of a batch and their mask."""
    # Rows of padding fill the last batch, for which nothing more is compiled then.
    count = len(prompts)
    room = [(0, batch_size - count), (0, 0)]
    written = generate(
        model,
        np.pad(prompts, room, constant_values=options["padding_token"]),
        prompt_mask=np.pad(mask, room),
        seed=generator,
        **options,
    )
    begins = mask.sum(axis=1, keepdims=True)
    places = begins + np.arange(options["max_new_tokens"])
    tokens, is_completion = (
        np.take_along_axis(ops.convert_to_numpy(part)[:count], places, axis=1)
        for part in written
    )
    return tokens, is_completion
