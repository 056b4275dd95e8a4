"""The label loss of a fixed teacher, logged."""

from typing import Any

import keras
from keras import ops

from keras_distill import outputs
from keras_distill.guards.look import Seen
from keras_distill.labels import LabelMask
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.monitoring import replicas


class TeacherLabelLoss:
    """Logs the label loss that a teacher's outputs have, as `teacher_loss`.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        losses: The student's label losses, as in `keras.Model.compile`.
        loss_weights: As there.
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
        self.metric = keras.metrics.Mean("teacher_loss")

    def update(self, inputs: Any, seen: Seen, names: Any = None) -> None:
        """Take in a batch, where it has labels and the teacher says something.

        Args:
            inputs: The batch's inputs.
            seen: Its outputs and labels.
            names: The names of the student's outputs in order, where it has any.
        """
        if seen.teacher is None or seen.labels is None:
            return
        of_outputs = PerOutputLoss(self._losses, output_names=names)
        masked = self._label_mask.mask_predictions(inputs, seen.teacher)
        losses = of_outputs(seen.labels, masked, seen.sample_weight)
        weights = outputs.by_path(
            1.0 if self._loss_weights is None else self._loss_weights,
            seen.teacher,
            names=names,
            what="`loss_weights`",
            partial=True,
        )
        total = sum(
            (weights.get(path, 1.0) * loss for path, loss in losses.items()),
            start=ops.zeros(()),
        )
        rows = ops.shape(keras.tree.flatten(seen.student)[0])[0]
        self.metric.update_state(total * replicas(), sample_weight=rows)
