"""Rows that one model drafts and another checks, a block of tokens at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from keras import ops

from keras_distill.sequence.cached import Decoder
from keras_distill.sequence.rows import Rows
from keras_distill.types import Nested, Tensor

# Where a token of a completion comes from.
DRAFTED, REPLACED, ADDED = 1, 2, 3


class Check(Protocol):
    """What the checking model does with drafted tokens."""

    # Whether it adds a token of its own to a block in which it has kept every token.
    adds: bool

    def keeps(
        self, tokens: Tensor, drafter: Tensor, checker: Tensor, numbers: Tensor
    ) -> Tensor:
        """Return True at the tokens that are kept, of shape `(batch, block)`.

        Args:
            tokens: The drafted tokens, of shape `(batch, block)`.
            drafter: The drafter's logits, of shape `(batch, block, vocabulary)`.
            checker: The checker's logits, of the same shape.
            numbers: Uniform numbers of shape `(batch, block, 3)`.
        """

    def replaces(
        self, drafter: Tensor, checker: Tensor, is_draft: Tensor, numbers: Tensor
    ) -> Tensor:
        """Return tokens, of shape `(batch,)`, where one isn't kept or one is added.

        Args:
            drafter: The drafter's logits, of shape `(batch, vocabulary)`.
            checker: The checker's logits, of the same shape.
            is_draft: False where a token is added, of which there is no draft.
            numbers: Uniform numbers of shape `(batch, 3)`.
        """


class Written(NamedTuple):
    """Rows that are being written, or are finished.

    Args:
        known: The number of tokens of each row that are decided, of shape `(batch,)`.
        limits: Where each completion must have ended, of shape `(batch,)`.
        tokens: The rows, of shape `(batch, length)`. What stands behind the tokens
            that are decided has no meaning.
        origins: `DRAFTED`, `REPLACED` or `ADDED` at the tokens of completions, else 0.
        calls: The number of calls of the checking model.
    """

    known: Tensor
    limits: Tensor
    tokens: Tensor
    origins: Tensor
    calls: Tensor


def written_in_blocks(
    drafter: Decoder,
    checker: Decoder,
    begun: Rows,
    *,
    draw: Callable[[Tensor, Tensor], Tensor],
    check: Check,
    block: int,
    end_token: int | None,
    vocabulary: int,
    numbers: Tensor,
) -> Written:
    """Return the rows after one model has drafted them and another checked them.

    All rows are drafted from the same position, the first that isn't decided in one of
    them. Rows that are further keep their tokens. So both caches are written at one
    position, and a cache is rewound by writing at an earlier one.

    Args:
        drafter: The model that drafts.
        checker: The model that checks.
        begun: The rows that begin with the prompts.
        draw: Returns a drafted token for logits `(batch, vocabulary)` and two uniform
            numbers.
        check: What the checker keeps and writes.
        block: The number of tokens in a draft, at most that of a completion.
        end_token: The token that ends a completion, or None.
        vocabulary: The size of the vocabulary.
        numbers: Uniform numbers of shape `(batch, length, 5)`: two for a draft, and
            three for its check.
    """
    batch, length = ops.shape(begun.tokens)
    positions = ops.arange(length, dtype="int32")[None]
    width = block + int(check.adds)

    def drafted(start: Tensor, rows: Written, cache: Nested) -> Nested:
        def going_on(count: Tensor, tokens: Tensor, logits: Tensor, _: Any) -> Tensor:
            return count < width

        def step(count: Tensor, tokens: Tensor, logits: Tensor, cache: Any) -> Nested:
            index = start + count
            read, cache = drafter.logits(tokens, cache, index - 1, 1)
            # The last call only fills the cache where the checker may add a token.
            number = ops.take(numbers, ops.minimum(index, length - 1), axis=1)
            token = draw(read[:, 0], number[:, :2])
            here = (positions == index) & (rows.known[:, None] <= positions)
            here = here & (positions < rows.limits[:, None]) & (count < block)
            tokens = ops.where(here, token[:, None], tokens)
            read = ops.cast(read, "float32")
            return (
                count + 1,
                tokens,
                ops.slice_update(logits, [0, count, 0], read),
                cache,
            )

        logits = ops.zeros((batch, width, vocabulary), "float32")
        zero = ops.zeros((), "int32")
        state = (zero, rows.tokens, logits, cache)
        return ops.while_loop(going_on, step, state)[1:]

    def step(rows: Written, of_drafter: Nested, of_checker: Nested) -> Nested:
        first = ops.min(ops.where(rows.known < rows.limits, rows.known, length))
        start = ops.minimum(first, length - block)
        tokens, logits, of_drafter = drafted(start, rows, of_drafter)
        checked, of_checker = checker.logits(tokens, of_checker, start - 1, width)
        rows = _checked(
            rows._replace(tokens=tokens, calls=rows.calls + 1),
            start,
            (logits, ops.cast(checked, "float32")),
            check,
            block,
            numbers[..., 2:],
        )
        return rows, of_drafter, of_checker

    def checked(rows: Written, *caches: Nested) -> Nested:
        before = rows.known
        rows, *caches = step(rows, *caches)
        if end_token is not None:
            found = (before[:, None] <= positions) & (positions < rows.known[:, None])
            found = found & (rows.tokens == end_token)
            ends = ops.where(found, positions + 1, length)
            rows = rows._replace(limits=ops.minimum(rows.limits, ops.min(ends, axis=1)))
        return (rows, *caches)

    state = Written(
        begun.begins,
        begun.limits,
        begun.tokens,
        ops.zeros_like(begun.tokens),
        ops.zeros((), "int32"),
    )
    caches = drafter.start(begun.tokens), checker.start(begun.tokens)
    return ops.while_loop(
        lambda rows, *_: ops.any(rows.known < rows.limits), checked, (state, *caches)
    )[0]


def _checked(
    rows: Written,
    start: Tensor,
    logits: tuple[Tensor, Tensor],
    check: Check,
    block: int,
    numbers: Tensor,
) -> Written:
    """Return rows after the check of the block that begins at `start`."""
    batch, length = ops.shape(rows.tokens)
    positions = ops.arange(length, dtype="int32")[None]
    of_block = start + ops.arange(block, dtype="int32")[None]
    drafts = ops.slice(rows.tokens, [0, start], [batch, block])
    keeps = check.keeps(
        drafts,
        logits[0][:, :block],
        logits[1][:, :block],
        ops.slice(numbers, [0, start, 0], [batch, block, 3]),
    )
    is_draft = (rows.known[:, None] <= of_block) & (of_block < rows.limits[:, None])
    kept = ops.cumprod(ops.cast(keeps | ~is_draft, "int32"), axis=1)
    end = start + ops.sum(kept, axis=1)
    written = (rows.known <= end) & (end < rows.limits)
    if not check.adds:
        written = written & (end < start + block)
    # Where nothing is written, any position will do.
    last = ops.shape(logits[1])[1] - 1
    place = ops.minimum(end - start, last)[:, None, None]
    at_end = [ops.take_along_axis(part, place, axis=1)[:, 0] for part in logits]
    number = ops.minimum(end, length - 1)[:, None, None]
    number = ops.take_along_axis(numbers, number, axis=1)[:, 0]
    token = check.replaces(*at_end, end < start + block, number)
    here = written[:, None] & (positions == end[:, None])
    known = ops.maximum(rows.known, end + ops.cast(written, "int32"))
    decided = (rows.known[:, None] <= positions) & (positions < known[:, None])
    decided = decided & (positions < rows.limits[:, None])
    own = ops.where(end < start + block, REPLACED, ADDED)[:, None]
    origins = ops.where(decided, ops.where(here, own, DRAFTED), rows.origins)
    tokens = ops.where(here, token[:, None], rows.tokens)
    return rows._replace(known=known, tokens=tokens, origins=origins)
