"""Sums of label losses over pairs of rows that have different labels.

Row n of a batch is paired with row n from the end. Pairs with equal labels don't count,
so a batch with a single label has no pairs.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_distill.guards.kinds import Kind
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

# The number of rows in pairs that a comparison needs to warn, and the number with which
# it needs no more rows.
LEAST, ENOUGH = 64, 1024
# The numbers of sums that describe the teacher, and both models.
OF_TEACHER, OF_BOTH = 9, 8
# If a loss differs by no more than this from that of an output that is equal for all
# classes, the two count as the same.
_SAME = 1e-6


class _Losses(NamedTuple):
    """A model's label losses, and which rows or positions are in pairs.

    Args:
        own: The losses of the outputs.
        others: The losses of the outputs for the other row of each pair.
    """

    own: Tensor
    others: Tensor

    @property
    def wins(self) -> Tensor:
        """1 if the row's own output fits its label better; 0.5 if both fit equally."""
        own, others = self
        won = ops.cast(own < others, own.dtype)
        return won + 0.5 * ops.cast(own == others, own.dtype)


def sums(
    loss: Any,
    kind: Kind | None,
    labels: Tensor,
    teacher: Tensor,
    student: Tensor,
    counts: Tensor | None,
) -> Tensor | None:
    """Return the sums over one batch, a vector.

    `chance.Comparison` reads the first `OF_TEACHER` sums, `AgainstStudent` the
    `OF_BOTH` sums after them. Each training traces every operation in this function, so
    there are few of them.

    Args:
        loss: The label loss. It must be a Keras loss, whose calls change no state.
        kind: The kind of values that it expects; None if unknown.
        labels: The labels of one output.
        teacher: The teacher's output.
        student: The student's output.
        counts: Which rows or positions count; None if all do.

    Returns:
        The sums, or None for a loss that returns one value for the whole batch.
    """
    labels = ops.convert_to_tensor(labels)
    teacher, student = (ops.cast(each, "float32") for each in (teacher, student))
    other = ops.flip(teacher, axis=0)
    outputs = [teacher, other, (teacher + other) / 2.0, _uninformed(teacher, kind)]
    outputs += [student, ops.flip(student, axis=0)]
    # The loss is called once for all outputs, so that it is traced once.
    values = loss.call(
        ops.concatenate([_of_loss(loss, labels)] * len(outputs), axis=0),
        ops.concatenate([_of_loss(loss, each) for each in outputs], axis=0),
    )
    if len(values.shape) == 0:
        return None
    own, others, mean, uninformed, *of_student = ops.split(values, len(outputs))
    valid = ops.ones_like(own)
    if counts is not None:
        valid = valid * ops.cast(of_rank(counts, own), own.dtype)
    paired = _in_pairs(valid) * _differ(labels, own)
    both = _Losses(own, others), _Losses(*of_student)
    found = [
        *_of_teacher(both[0], mean, uninformed, paired, valid),
        # A teacher may return zeros for rows that it has no output for.
        *_of_both(*both, paired * _in_pairs(_unlike(own, uninformed))),
    ]
    return ops.sum(ops.cast(ops.stack(found), "float32"), axis=-1)


def _of_teacher(
    teacher: _Losses, mean: Tensor, uninformed: Tensor, paired: Tensor, valid: Tensor
) -> list[Tensor]:
    """Return the values of each row that are summed for the comparison with chance."""
    own, gain = teacher.own, mean - teacher.own
    has_pair, (gain, won, of_mean) = _by_row(paired, [gain, teacher.wins, mean])
    has_label, of_rows = _by_row(valid, [own, uninformed, own**2])
    return [has_pair, gain, gain**2, won, of_mean, has_label, *of_rows]


def _of_both(teacher: _Losses, student: _Losses, paired: Tensor) -> list[Tensor]:
    """Return the values of each row that are summed for that with the student."""
    margins = [each.others - each.own for each in (teacher, student)]
    has_pair, values = _by_row(
        paired, [teacher.own, student.own, teacher.wins, student.wins, *margins]
    )
    *of_losses, won, won_by_student, margin, margin_of_student = values
    squares = won_by_student - won, margin, margin_of_student - margin
    return [has_pair, *of_losses, won, won_by_student, *(each**2 for each in squares)]


def _in_pairs(truths: Tensor) -> Tensor:
    """Return 1 where both rows of a pair have a 1, else 0."""
    return truths * ops.flip(truths, axis=0)


def _unlike(values: Tensor, others: Tensor) -> Tensor:
    return ops.cast(ops.abs(values - others) > _SAME, values.dtype)


def _uninformed(output: Tensor, kind: Kind | None) -> Tensor:
    """Return an output that is the same for each row and each class."""
    if kind is None or kind.values == "logits" or len(output.shape) < 2:
        return ops.zeros_like(output)
    share = 0.5 if kind.per_unit else 1.0 / max(output.shape[kind.axis] or 1, 1)
    return ops.full_like(output, share)


def _differ(labels: Tensor, values: Tensor) -> Tensor:
    """Return 1 for each value of a loss whose label differs from its pair's, else 0."""
    differ = ops.not_equal(labels, ops.flip(labels, axis=0))
    while len(differ.shape) > len(values.shape):
        differ = ops.any(differ, axis=-1)
    return ops.cast(of_rank(differ, values), values.dtype)


def _by_row(counts: Tensor, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return which rows count, and the mean of each row's values that count.

    The mean of a row that doesn't count is 0.
    """
    counting = ops.where(counts > 0, ops.stack(values), 0.0)
    if len(counts.shape) == 1:
        return counts, ops.unstack(counting, len(values))
    axes = tuple(range(1, len(counts.shape)))
    number = ops.sum(counts, axis=axes)
    of_rows = ops.sum(counting, axis=tuple(axis + 1 for axis in axes))
    means = ops.unstack(of_rows / ops.maximum(number, 1.0), len(values))
    return ops.cast(number > 0, counts.dtype), means


def _of_loss(loss: Any, tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that Keras gives the loss."""
    return ops.convert_to_tensor(tensor, dtype=loss.dtype)
