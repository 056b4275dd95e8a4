"""The record of one training step: what teachers and losses may read of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import keras
from keras import ops

from keras_distill import backend, per_output
from keras_distill.types import Nested, Path, Tensor


class Batch(NamedTuple):
    """All that one step knows of its batch.

    A `Distiller` hands it to its teacher, and to the losses that depend on more than
    the outputs of both models. Such a loss gets the record of its own output, as
    `of_output` returns it.

    Args:
        inputs: The inputs of the batch, with all keys where they are a dict.
        labels: The labels in the structure of the student's outputs; None without.
        labelled: Which rows have a label. By the path of their output, boolean tensors
            for the outputs in which some rows have none. In the record of one output,
            its tensor; None where all rows have a label.
        sample_weight: The sample weights, one tensor for all outputs or a structure
            like theirs; None without.
        output: The student's outputs; None before the student ran.
        step: The number of the optimiser's updates so far, at which schedules are
            read.
        withheld: Keys of the inputs that a teacher without declared inputs isn't given.
        withheld_from_student: The same for the student.

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
        loss: The loss as it trains. Keras divides it by the number of devices.
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
