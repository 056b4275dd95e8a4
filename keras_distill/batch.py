"""The record of one step: the parts of a batch that teachers and losses may read."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import keras
from keras import ops

from keras_distill import backend, per_output
from keras_distill.types import Nested, Path, Tensor


class Batch(NamedTuple):
    """The record of one step: its inputs, labels, weights and outputs.

    A `Distiller` passes it to its teacher, and to the losses that depend on more than
    the outputs of both models. Such a loss gets the record of its own output, as
    `of_output` returns it.

    Args:
        inputs: The inputs of the batch, with all keys if they are a dict.
        labels: The labels in the structure of the student's outputs, or None.
        labelled: Boolean masks of the rows that have a label, by the path of their
            output, for the outputs in which some rows have no label. In the record of
            one output, its mask; None if all rows have a label.
        sample_weight: The sample weights, one tensor for all outputs or a structure
            like that of the outputs; None if there are none.
        output: The student's outputs; None before the student ran.
        step: The number of the optimiser's updates so far. Schedules are read at it.
        withheld: Keys of the inputs that a teacher without declared inputs doesn't get.
        withheld_from_student: Keys that a student without declared inputs doesn't get.

    Example:
        >>> from keras_distill.losses import DecoupledKD
        >>> loss = DecoupledKD().for_batch(Batch(labels=[0]))
        >>> round(float(loss([[2.0, 0.0, 1.0]], [[0.0, 2.0, 0.0]])), 4)
        8.9448
    """

    inputs: Nested = None
    labels: Nested = None
    labelled: Mapping[Path, Tensor] | Tensor | None = None
    sample_weight: Nested = None
    output: Nested = None
    step: Any = 0
    withheld: Sequence[str] = ()
    withheld_from_student: Sequence[str] = ()

    def of_output(self, path: Path) -> Self:
        """Return the record of one output: its labels, rows, weights and tensor."""
        return self._replace(
            labels=per_output.found(path, self.labels),
            labelled=(self.labelled or {}).get(path),
            sample_weight=per_output.weight_at(path, self.sample_weight),
            output=per_output.found(path, self.output),
        )


def log_batch_mean(metric: keras.metrics.Mean, loss: Tensor, tensors: Nested) -> None:
    """Add the mean loss of a batch to a mean over all rows.

    Args:
        metric: The mean over rows.
        loss: The minimised loss. Keras divides it by the number of devices.
        tensors: Any tensors with the batch's rows, such as its inputs or outputs.
    """
    loss = loss * backend.replicas()
    metric.update_state(loss, sample_weight=count_rows(tensors))


def count_rows(tensors: Nested) -> Any:
    """Return the number of rows of a batch.

    Args:
        tensors: Any tensors with the batch's rows, such as its inputs or outputs.
    """
    first = next(leaf for leaf in keras.tree.flatten(tensors) if leaf is not None)
    return ops.shape(first)[0]
