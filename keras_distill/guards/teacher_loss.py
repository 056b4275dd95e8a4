"""A log of the label loss of a fixed teacher's outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import backend, per_output
from keras_distill.batch import Batch, log_batch_mean
from keras_distill.labels import LabelMask
from keras_distill.losses.calling import with_known_shape
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.types import Nested

tree = keras.tree


class TeacherLabelLoss:
    """Logs the label loss of a teacher's outputs, as `teacher_loss`.

    It is a plain object, so a model that holds it neither tracks nor saves it. A step
    writes the variables of `metric`.

    Args:
        losses: The student's label losses, as in `keras.Model.compile`.
        loss_weights: As in `keras.Model.compile`.
        label_mask: Which rows have a label.

    Raises:
        ValueError: If there is no label loss.
    """

    def __init__(self, losses: Any, loss_weights: Any, label_mask: LabelMask) -> None:
        if losses is None:
            raise ValueError(
                "`log_teacher=True` logs the label loss of the teacher's outputs, so "
                "it needs a label `loss`. Received: log_teacher=True, loss=None"
            )
        self._losses, self._loss_weights = losses, loss_weights
        self._label_mask = label_mask
        self._is_checked = False
        self.metric = keras.metrics.Mean("teacher_loss")

    def update(
        self, batch: Batch, targets: Nested, names: Sequence[str] | None = None
    ) -> None:
        """Update the metric with a batch that has labels and targets.

        Args:
            batch: The record of the step, with the student's outputs.
            targets: The teacher's outputs; None if it has none for this batch.
            names: The names of the student's outputs in order, if they have names.

        Raises:
            ValueError: If a loss has state that another call would change.
        """
        if targets is None or batch.labels is None:
            return
        losses, weights = (
            per_output.as_structured(each, batch.output, names)
            for each in (self._losses, self._loss_weights)
        )
        given = self._label_mask.loss_inputs(
            batch.inputs,
            batch.labels,
            _shaped(targets, batch.output),
            batch.sample_weight,
            losses=losses,
            names=names,
        )
        of_outputs = PerOutputLoss(losses, output_names=names, of_labels=True)
        # Keras passes nothing else of the batch to a label loss.
        compared = Batch(output=given.predictions, sample_weight=given.sample_weight)
        if not self._is_checked:
            self._is_checked = True
            _check_keeps_nothing(losses, lambda: of_outputs(given.labels, compared))
        found = of_outputs(given.labels, compared)
        weights = per_output.by_path(
            1.0 if weights is None else weights,
            batch.output,
            names=names,
            what="`loss_weights`",
            partial=True,
        )
        total = sum(
            (weights.get(path, 1.0) * loss for path, loss in found.items()),
            start=ops.zeros(()),
        )
        log_batch_mean(self.metric, total, batch.output)


def _shaped(targets: Nested, outputs: Nested) -> Nested:
    """Return the teacher's outputs with the static shapes of the student's."""
    shaped = [
        with_known_shape(
            per_output.at(tuple(path), targets, "the teacher's output"), output
        )
        for path, output in tree.flatten_with_path(outputs)
    ]
    return tree.pack_sequence_as(outputs, shaped)


def _check_keeps_nothing(losses: Any, call: Callable[[], Any]) -> None:
    """Raise ValueError if a call of losses changes the result of another call."""
    changing = backend.writes_state(call)
    if changing:
        raise ValueError(
            "`log_teacher=True` calls the label loss another time, but this one keeps "
            "a variable or a seed, which the call would change. Compile without "
            f"`log_teacher`. Received: loss={losses}, which runs {sorted(changing)}"
        )
