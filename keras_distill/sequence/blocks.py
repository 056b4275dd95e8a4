"""Rows that one model drafts and another checks, a block of tokens at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from keras import ops

from keras_distill.sequence.cached import Decoder
from keras_distill.sequence.rows import Rows
from keras_distill.types import Nested, Tensor

# Where a token of a completion comes from.
DRAFTED, REPLACED, ADDED = 1, 2, 3

# Uniform numbers that a token uses: two for its draft, three for its check.
NUMBERS = 5


class Check(Protocol):
    """The rule by which a checking model keeps or replaces drafted tokens."""

    @property
    def adds(self) -> bool:
        """Whether the checker adds a token after a block if it has kept all tokens."""

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
        """Return tokens of shape `(batch,)` that are replacements or additions.

        Args:
            drafter: The drafter's logits, of shape `(batch, vocabulary)`.
            checker: The checker's logits, of the same shape.
            is_draft: True where the token replaces a draft. False where it is added.
            numbers: Uniform numbers of shape `(batch, 3)`.
        """


class Written(NamedTuple):
    """Rows whose completions are in progress or finished.

    Args:
        known: The number of tokens of each row that are decided, of shape `(batch,)`.
        limits: The position before which each completion ends, of shape `(batch,)`.
        tokens: The rows, of shape `(batch, length)`. Tokens after those that are
            decided have no meaning.
        origins: `DRAFTED`, `REPLACED` or `ADDED` at the tokens of completions, else 0.
        calls: The number of calls of the checking model.
    """

    known: Tensor
    limits: Tensor
    tokens: Tensor
    origins: Tensor
    calls: Tensor


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Writes rows that one model drafts and another checks, block by block.

    All rows are drafted from the same position: the first that is undecided in any of
    the unfinished rows. Rows that are further ahead keep their decided tokens. So both
    caches are written at the same position in all rows. To rewind a cache, it is
    written at an earlier position.

    Args:
        drafter: The model that drafts.
        checker: The model that checks.
        check: The rule by which the checker keeps and replaces tokens.
        draw: Returns drafted tokens for logits `(batch, vocabulary)` and two uniform
            numbers.
        block: The number of tokens in a draft, at most that of a completion.
        end_token: The token that ends a completion, or None.
        vocabulary: The size of the vocabulary.
        numbers: Uniform numbers of shape `(batch, length, NUMBERS)`: two for a draft,
            and three for its check.
    """

    drafter: Decoder
    checker: Decoder
    check: Check
    draw: Callable[[Tensor, Tensor], Tensor]
    block: int
    end_token: int | None
    vocabulary: int
    numbers: Tensor

    def write(self, begun: Rows) -> Written:
        """Return finished rows that begin with the prompts."""
        rows = Written(
            begun.begins,
            begun.limits,
            begun.tokens,
            ops.zeros_like(begun.tokens),
            ops.zeros((), "int32"),
        )
        state = rows, self.drafter.start(rows.tokens), self.checker.start(rows.tokens)
        written: Written
        written, *_ = ops.while_loop(
            lambda rows, *_: ops.any(rows.known < rows.limits), self._step, state
        )
        return written

    @property
    def _width(self) -> int:
        """The number of drafter calls, and of checked positions, in a step."""
        # A token that the checker may add needs a cache that has read the whole draft.
        return self.block + int(self.check.adds)

    def _step(self, rows: Written, of_drafter: Nested, of_checker: Nested) -> Nested:
        length = ops.shape(rows.tokens)[1]
        first = ops.min(ops.where(rows.known < rows.limits, rows.known, length))
        start = ops.minimum(first, length - self.block)
        tokens, drafts, of_drafter = self._drafted(start, rows, of_drafter)
        checks, of_checker = self.checker.logits(
            tokens, of_checker, start - 1, self._width
        )
        rows = rows._replace(tokens=tokens, calls=rows.calls + 1)
        checked = self._checked(rows, start, drafts, ops.cast(checks, "float32"))
        return self._ended(rows, checked), of_drafter, of_checker

    def _drafted(self, start: Tensor, rows: Written, cache: Nested) -> Nested:
        """Return rows with a draft, its logits, and the drafter's cache."""
        batch, length = ops.shape(rows.tokens)
        positions = ops.arange(length, dtype="int32")[None]

        def step(count: Tensor, tokens: Tensor, drafts: Tensor, cache: Any) -> Nested:
            index = start + count
            logits, cache = self.drafter.logits(tokens, cache, index - 1, 1)
            number = ops.take(self.numbers, ops.minimum(index, length - 1), axis=1)
            token = self.draw(logits[:, 0], number[:, :2])
            here = (positions == index) & (count < self.block) & _open(rows, positions)
            tokens = ops.where(here, token[:, None], tokens)
            logits = ops.cast(logits, "float32")
            drafts = ops.slice_update(drafts, [0, count, 0], logits)
            return count + 1, tokens, drafts, cache

        drafts = ops.zeros((batch, self._width, self.vocabulary), "float32")
        state = ops.zeros((), "int32"), rows.tokens, drafts, cache
        _, *drafted = ops.while_loop(lambda count, *_: count < self._width, step, state)
        return drafted

    def _checked(
        self, rows: Written, start: Tensor, drafts: Tensor, checks: Tensor
    ) -> Written:
        """Return rows in which the draft from `start` on is checked."""
        batch, length = ops.shape(rows.tokens)
        block, numbers = self.block, self.numbers[..., 2:]
        keeps = self.check.keeps(
            ops.slice(rows.tokens, [0, start], [batch, block]),
            drafts[:, :block],
            checks[:, :block],
            ops.slice(numbers, [0, start, 0], [batch, block, numbers.shape[-1]]),
        )
        is_draft = _open(rows, start + ops.arange(block, dtype="int32")[None])
        kept = ops.cumprod(ops.cast(keeps | ~is_draft, "int32"), axis=1)
        end = start + ops.sum(kept, axis=1)
        is_replaced = end < start + block
        writes = (rows.known <= end) & (end < rows.limits)
        if not self.check.adds:
            writes = writes & is_replaced
        token = self.check.replaces(
            # Rows where nothing is written may read any position.
            _at(drafts, ops.minimum(end - start, self._width - 1)),
            _at(checks, ops.minimum(end - start, self._width - 1)),
            is_replaced,
            _at(numbers, ops.minimum(end, length - 1)),
        )
        positions = ops.arange(length, dtype="int32")[None]
        here = writes[:, None] & (positions == end[:, None])
        known = ops.maximum(rows.known, end + ops.cast(writes, "int32"))
        decided = _open(rows, positions) & (positions < known[:, None])
        own = ops.where(here, ops.where(is_replaced, REPLACED, ADDED)[:, None], DRAFTED)
        return rows._replace(
            known=known,
            tokens=ops.where(here, token[:, None], rows.tokens),
            origins=ops.where(decided, own, rows.origins),
        )

    def _ended(self, before: Written, rows: Written) -> Written:
        """Return rows that end at an end token that has been decided since `before`."""
        if self.end_token is None:
            return rows
        length = ops.shape(rows.tokens)[1]
        positions = ops.arange(length, dtype="int32")[None]
        decided = _open(before, positions) & (positions < rows.known[:, None])
        ends = decided & (rows.tokens == self.end_token)
        first = ops.min(ops.where(ends, positions + 1, length), axis=1)
        return rows._replace(limits=ops.minimum(rows.limits, first))


def _open(rows: Written, positions: Tensor) -> Tensor:
    """Return True at positions of shape `(1, any)` that are undecided."""
    return (rows.known[:, None] <= positions) & (positions < rows.limits[:, None])


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Return the part `(batch, any)` of `(batch, time, any)` at a position per row."""
    return ops.take_along_axis(x, places[:, None, None], axis=1)[:, 0]
