"""Generation of completions by a token model, token by token."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.sequence.cached import decoder_of
from keras_distill.sequence.compiled import run
from keras_distill.sequence.rows import checked_prompts, rows
from keras_distill.sequence.sampling import NUMBERS, Sampling, check_count, uniform
from keras_distill.types import Nested, Tensor


class Completions(NamedTuple):
    """Prompts with their completions.

    Attributes:
        tokens: Int32 token ids of shape `(batch, prompt_length + max_new_tokens)`. Each
            row is its prompt, then its completion, then padding.
        is_completion: Of the same shape. True at the tokens of completions, end tokens
            included.

    Example:
        >>> is_completion = ops.array([[False, True, False]])
        >>> rows = Completions(ops.array([[3, 4, 0]]), is_completion)
        >>> int(ops.sum(rows.is_completion))
        1
    """

    tokens: Tensor
    is_completion: Tensor


def generate(
    model: keras.Model,
    prompts: Any,
    *,
    max_new_tokens: int,
    end_token: int | None = None,
    padding_token: int = 0,
    prompt_mask: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | keras.random.SeedGenerator | None = None,
    use_cache: bool = True,
) -> Completions:
    """Return a token model's completions of prompts.

    Each token is drawn from `softmax(logits / temperature)`. At temperature 1 this is
    ancestral sampling, from the model's own distribution. Layers act as in inference,
    also within a training step. No gradient flows back.

    If the model has a key-value cache, each step computes one position only. A Keras
    model has a cache if it has two methods:
    `call_with_cache(token_ids, cache, cache_update_index)`, which returns
    `(logits, hidden_states, cache)`, and `build_cache(token_ids)`, which returns
    `(hidden_states, cache)`. All text-only `CausalLM`s of keras-hub have a cache. For
    other models, each step computes whole rows. A step writes the same
    position in all rows. Rows with a longer prompt keep their prompt token at that
    position.

    Outside of a training or evaluation step, the function is compiled once for each
    model, choice of arguments and shape of the prompts.

    Args:
        model: A causal model, as in `logits_of`.
        prompts: Token ids of shape `(batch, prompt_length)`, padded at one or both
            ends. A row that is all padding gets no completion.
        max_new_tokens: The most tokens that a completion has.
        end_token: The token that ends a completion and is its last one. Defaults to
            None: all completions have `max_new_tokens` tokens.
        padding_token: The token that prompts and completions are padded with. Defaults
            to 0.
        prompt_mask: True at the tokens of prompts, of the prompts' shape. Tokens where
            it is False are removed. Needed if the padding token begins or ends the text
            of a prompt. Defaults to None: False at the padding tokens at both ends.
        temperature: Divides the logits. 0 chooses the most probable token. Defaults
            to 1.
        top_k: Draw from the `top_k` most probable tokens. Defaults to None: from all.
        top_p: Of these, draw from the most probable ones that together have at least
            this probability. Defaults to None: from all.
        seed: An integer gives the same completions in each call. A
            `keras.random.SeedGenerator` gives different ones. Within a training step,
            pass a generator. Defaults to None: Keras' global generator.
        use_cache: Whether to use the cache of a model that has one. Defaults to True.

    Returns:
        `Completions(tokens, is_completion)`, both of shape `(batch, prompt_length +
        max_new_tokens)`. The tokens of a prompt begin at position 0.

    Raises:
        ValueError: If the rows are longer than the context that the model declares, a
            token isn't in its vocabulary, the prompts are empty, or an argument is out
            of its range.
        TypeError: If the prompts aren't whole numbers.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((None,), dtype="int32"), keras.layers.Embedding(5, 8),
        ...      keras.layers.GRU(8, return_sequences=True), keras.layers.Dense(5)])
        >>> import numpy as np
        >>> prompts = np.array([[3, 1, 4], [0, 0, 2]])  # 0 is padding
        >>> written = generate(model, prompts, max_new_tokens=4, seed=1)
        >>> written.tokens.shape == written.is_completion.shape == (2, 7)
        True
        >>> ops.convert_to_numpy(ops.sum(written.is_completion, axis=1)).tolist()
        [4, 4]

    Reference:
        The loop follows keras-hub's `CausalLM.generate_step`,
        https://github.com/keras-team/keras-hub.
    """
    sampling = Sampling(temperature, top_k, top_p)
    check_count("max_new_tokens", max_new_tokens)
    prompts, mask = checked_prompts(
        (model,),
        prompts,
        prompt_mask,
        max_new_tokens=max_new_tokens,
        end_token=end_token,
        padding_token=padding_token,
    )
    numbers = uniform(prompts, max_new_tokens, NUMBERS, seed)
    options = (max_new_tokens, end_token, padding_token, sampling, use_cache)
    return Completions(*run(_written, (model,), options, prompts, numbers, *mask))


def _written(
    model: Any,
    max_new_tokens: int,
    end_token: int | None,
    padding_token: int,
    sampling: Sampling,
    use_cache: bool,
    prompts: Tensor,
    numbers: Tensor,
    mask: Tensor | None = None,
) -> Nested:
    begun = rows(
        prompts, mask, max_new_tokens=max_new_tokens, padding_token=padding_token
    )
    decoder = decoder_of(model, use_cache)
    positions = ops.arange(ops.shape(begun.tokens)[1], dtype="int32")

    def unfinished(index: Tensor, tokens: Tensor, limits: Tensor, cache: Any) -> Tensor:
        return ops.any(index < limits)

    def step(index: Tensor, tokens: Tensor, limits: Tensor, cache: Any) -> Nested:
        logits, cache = decoder.logits(tokens, cache, index - 1, 1)
        token = sampling.choose(logits[:, 0], ops.take(numbers, index, axis=1))
        writes = ops.logical_and(begun.begins <= index, index < limits)
        here = ops.logical_and(writes[:, None], positions[None] == index)
        tokens = ops.where(here, token[:, None], tokens)
        if end_token is not None:
            ends = ops.logical_and(writes, token == end_token)
            limits = ops.where(ends, index + 1, limits)
        return index + 1, tokens, limits, cache

    state = (begun.first(), begun.tokens, begun.limits, decoder.start(begun.tokens))
    _, tokens, limits, _ = ops.while_loop(unfinished, step, state)
    return tokens, begun.completed(limits)
