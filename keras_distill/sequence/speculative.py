"""Completions that one model drafts and another one checks."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.sequence.blocks import DRAFTED, NUMBERS, REPLACED, Blocks
from keras_distill.sequence.cached import decoder_of
from keras_distill.sequence.compiled import run
from keras_distill.sequence.models import check_same_vocabulary, vocabulary_size
from keras_distill.sequence.rows import checked_prompts, rows
from keras_distill.sequence.sampling import Sampling, check_count, choose, uniform
from keras_distill.types import Nested, Tensor


class Proposals(NamedTuple):
    """Prompts with completions that a student proposed and its teacher corrected.

    Attributes:
        tokens: Int32 token ids of shape `(batch, prompt_length + max_new_tokens)`. Each
            row is its prompt, then its completion, then padding.
        is_completion: True at the tokens of completions, end tokens included.
        is_replaced: True at the teacher's tokens that replaced tokens of the student.

    Example:
        >>> is_completion = ops.array([[False, True, True]])
        >>> rows = Proposals(ops.array([[3, 4, 1]]), is_completion, ~is_completion)
        >>> int(ops.sum(rows.is_replaced))
        1
    """

    tokens: Tensor
    is_completion: Tensor
    is_replaced: Tensor


class Decoded(NamedTuple):
    """Prompts with a target model's completions, and statistics of the drafts.

    Attributes:
        tokens: Int32 token ids of shape `(batch, prompt_length + max_new_tokens)`. Each
            row is its prompt, then its completion, then padding.
        is_completion: True at the tokens of completions, end tokens included.
        acceptance_rate: The share of drafted tokens that the target kept, among those
            that it checked. NaN if it checked none.
        target_calls: The number of calls of the target.

    Example:
        >>> rows = Decoded(
        ...     ops.array([[3, 4]]), ops.array([[False, True]]), ops.array(0.5), 2)
        >>> float(rows.acceptance_rate)
        0.5
    """

    tokens: Tensor
    is_completion: Tensor
    acceptance_rate: Tensor
    target_calls: Tensor


class _TopK(NamedTuple):
    """Speculative KD: keep tokens among the teacher's `top_k` most probable ones."""

    top_k: int
    adds: bool = False

    def keeps(
        self, tokens: Tensor, drafter: Tensor, checker: Tensor, numbers: Tensor
    ) -> Tensor:
        own = ops.take_along_axis(checker, tokens[..., None], axis=-1)
        rank = ops.sum(ops.cast(checker > own, "int32"), axis=-1)
        return rank < self.top_k

    def replaces(
        self, drafter: Tensor, checker: Tensor, is_draft: Tensor, numbers: Tensor
    ) -> Tensor:
        return choose(ops.softmax(checker, axis=-1), numbers[:, :2])


class _Lossless(NamedTuple):
    """Speculative decoding: the completions follow the checker's distribution."""

    sampling: Sampling
    adds: bool = True

    def keeps(
        self, tokens: Tensor, drafter: Tensor, checker: Tensor, numbers: Tensor
    ) -> Tensor:
        q, p = (
            ops.take_along_axis(self.sampling.probabilities(x), tokens[..., None], -1)
            for x in (drafter, checker)
        )
        return numbers[..., 2] * q[..., 0] < p[..., 0]

    def replaces(
        self, drafter: Tensor, checker: Tensor, is_draft: Tensor, numbers: Tensor
    ) -> Tensor:
        p = self.sampling.probabilities(checker)
        over = ops.maximum(p - self.sampling.probabilities(drafter), 0.0)
        # If both are equal up to rounding, all differences may be 0.
        left = is_draft[:, None] & (ops.sum(over, axis=-1, keepdims=True) > 0)
        return choose(ops.where(left, over, p), numbers[:, :2])


def propose_and_check(
    student: keras.Model,
    teacher: keras.Model,
    prompts: Any,
    *,
    max_new_tokens: int,
    teacher_top_k: int = 25,
    block: int = 4,
    end_token: int | None = None,
    padding_token: int = 0,
    prompt_mask: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | keras.random.SeedGenerator | None = None,
    use_cache: bool = True,
) -> Proposals:
    """Return a student's completions in which the teacher replaced improbable tokens.

    The student draws a token `y`. If fewer than `teacher_top_k` tokens are more
    probable than `y` for the teacher, `y` is kept. Otherwise the teacher replaces `y`
    with a token that it draws from its whole distribution. The student continues from
    the result. The teacher's predictions can be poor after a weak student's own
    prefixes: these replacements make such prefixes rarer. `teacher_top_k=1`
    keeps only the teacher's most probable token. If `teacher_top_k` is the size of the
    vocabulary, all tokens are the student's.

    The result doesn't depend on `block`.

    Args:
        student: The model that proposes, as in `generate`.
        teacher: The model that checks, with the same vocabulary.
        prompts: Token ids of shape `(batch, prompt_length)`, as in `generate`.
        max_new_tokens: The most tokens that a completion has.
        teacher_top_k: The teacher keeps a token of the student that is among the
            teacher's `teacher_top_k` most probable tokens. Defaults to 25.
        block: The number of tokens that the student proposes before the teacher checks
            them in one call. Defaults to 4.
        end_token: As in `generate`.
        padding_token: As in `generate`.
        prompt_mask: As in `generate`.
        temperature: Divides the student's logits, as in `generate`. The teacher draws
            at temperature 1.
        top_k: Limits the tokens that the student draws from, as in `generate`.
        top_p: Limits the tokens that the student draws from, as in `generate`.
        seed: As in `generate`.
        use_cache: Whether to use the cache of a model that has one. Defaults to True.

    Returns:
        `Proposals(tokens, is_completion, is_replaced)`, all of shape `(batch,
        prompt_length + max_new_tokens)`.

    Raises:
        ValueError: If the models have different vocabularies, or as in `generate`.
        TypeError: If the prompts aren't whole numbers.

    Example:
        >>> import numpy as np
        >>> def model(units):
        ...     return keras.Sequential(
        ...         [keras.Input((None,), dtype="int32"),
        ...          keras.layers.Embedding(5, units),
        ...          keras.layers.GRU(units, return_sequences=True),
        ...          keras.layers.Dense(5)])
        >>> prompts = np.array([[3, 1, 4], [0, 0, 2]])  # 0 is padding
        >>> proposed = propose_and_check(
        ...     model(4), model(8), prompts, max_new_tokens=6, teacher_top_k=2)
        >>> proposed.is_replaced.shape == (2, 9)
        True

    Reference:
        Xu et al. 2024, "Speculative Knowledge Distillation",
        https://arxiv.org/abs/2410.11325.
    """
    sampling = Sampling(temperature, top_k, top_p)
    check_count("teacher_top_k", teacher_top_k)
    tokens, completion, origins, _ = _in_blocks(
        (student, teacher),
        prompts,
        prompt_mask,
        _TopK(teacher_top_k),
        sampling,
        (max_new_tokens, block, end_token, padding_token, use_cache),
        seed,
    )
    return Proposals(tokens, completion, origins == REPLACED)


def speculative_decode(
    draft: keras.Model,
    target: keras.Model,
    prompts: Any,
    *,
    max_new_tokens: int,
    block: int = 4,
    end_token: int | None = None,
    padding_token: int = 0,
    prompt_mask: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | keras.random.SeedGenerator | None = None,
    use_cache: bool = True,
) -> Decoded:
    """Return completions that a small model drafts, with a large model's distribution.

    The draft model draws tokens `y` from its distribution `q`. The target computes its
    own distributions `p` at all of them in one call. `y` is kept with the probability
    `min(1, p(y) / q(y))`. The first token that isn't kept is drawn again, in proportion
    to `max(p - q, 0)`. If all are kept, the target adds a token of its own. So each
    token follows the target's distribution, whatever the draft model is. The better the
    draft model agrees with the target, the fewer calls of the target are needed. A
    student that was distilled from the target is a good draft model.

    In a batch, each call of the target starts at the shortest unfinished row. So the
    gain is largest for one row.

    Args:
        draft: The model that drafts, as in `generate`.
        target: The model whose distribution the completions follow. It has the same
            vocabulary.
        prompts: Token ids of shape `(batch, prompt_length)`, as in `generate`.
        max_new_tokens: The most tokens that a completion has.
        block: The number of tokens that are drafted for each call of the target.
            Defaults to 4.
        end_token: As in `generate`.
        padding_token: As in `generate`.
        prompt_mask: As in `generate`.
        temperature: Divides the logits of both models, as in `generate`.
        top_k: Limits the tokens that both models draw from, as in `generate`.
        top_p: Limits the tokens that both models draw from, as in `generate`.
        seed: As in `generate`.
        use_cache: Whether to use the cache of a model that has one. Defaults to True.

    Returns:
        `Decoded(tokens, is_completion, acceptance_rate, target_calls)`.

    Raises:
        ValueError: If the models have different vocabularies, or as in `generate`.
        TypeError: If the prompts aren't whole numbers.

    Example:
        >>> import numpy as np
        >>> def model(units):
        ...     return keras.Sequential(
        ...         [keras.Input((None,), dtype="int32"),
        ...          keras.layers.Embedding(5, units),
        ...          keras.layers.GRU(units, return_sequences=True),
        ...          keras.layers.Dense(5)])
        >>> decoded = speculative_decode(
        ...     model(4), model(8), np.array([[3, 1, 4]]), max_new_tokens=8, seed=1)
        >>> 0 <= float(decoded.acceptance_rate) <= 1
        True

    Reference:
        Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via
        Speculative Decoding", https://arxiv.org/abs/2211.17192; Zhou et al. 2024,
        "DistillSpec", https://arxiv.org/abs/2310.08461.
    """
    sampling = Sampling(temperature, top_k, top_p)
    tokens, completion, origins, calls = _in_blocks(
        (draft, target),
        prompts,
        prompt_mask,
        _Lossless(sampling),
        sampling,
        (max_new_tokens, block, end_token, padding_token, use_cache),
        seed,
    )
    kept, replaced = (
        ops.sum(ops.cast(origins == origin, "float32"))
        for origin in (DRAFTED, REPLACED)
    )
    return Decoded(tokens, completion, kept / (kept + replaced), calls)


def _in_blocks(
    models: tuple[keras.Model, keras.Model],
    prompts: Any,
    mask: Any,
    check: _TopK | _Lossless,
    sampling: Sampling,
    options: tuple[int, int, int | None, int, bool],
    seed: int | keras.random.SeedGenerator | None,
) -> Nested:
    """Return what `_written` returns, after checks of the arguments."""
    max_new_tokens, block, end_token, padding_token, _ = options
    check_count("block", block)
    check_same_vocabulary(*models)
    prompts, masks = checked_prompts(
        models,
        prompts,
        mask,
        max_new_tokens=max_new_tokens,
        end_token=end_token,
        padding_token=padding_token,
    )
    numbers = uniform(prompts, max_new_tokens, NUMBERS, seed)
    return run(_written, models, (check, sampling, *options), prompts, numbers, *masks)


def _written(
    drafter: Any,
    checker: Any,
    check: _TopK | _Lossless,
    sampling: Sampling,
    max_new_tokens: int,
    block: int,
    end_token: int | None,
    padding_token: int,
    use_cache: bool,
    prompts: Tensor,
    numbers: Tensor,
    mask: Tensor | None = None,
) -> Nested:
    """Return tokens, the mask of completions, origins and the number of checks."""
    begun = rows(
        prompts, mask, max_new_tokens=max_new_tokens, padding_token=padding_token
    )
    blocks = Blocks(
        decoder_of(drafter, use_cache),
        decoder_of(checker, use_cache),
        check,
        draw=sampling.choose,
        block=min(block, max_new_tokens),
        end_token=end_token,
        vocabulary=vocabulary_size(drafter),
        numbers=numbers,
    )
    found = blocks.write(begun)
    completion = begun.completed(found.limits)
    positions = ops.arange(ops.shape(begun.tokens)[1], dtype="int32")[None]
    tokens = ops.where(positions < found.limits[:, None], found.tokens, padding_token)
    return tokens, completion, ops.where(completion, found.origins, 0), found.calls
