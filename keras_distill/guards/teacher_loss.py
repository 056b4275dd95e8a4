"""The label loss of a fixed teacher, logged."""

import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import per_output
from keras_distill.guards.look import Seen
from keras_distill.labels import LabelMask
from keras_distill.labels.units import (
    masked_by_unit,
    weights_of_units,
    with_unit_axis,
)
from keras_distill.losses.calling import with_known_shape
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.monitoring import replicas

tree = keras.tree

# Operations that write variables, such as those of Keras' and TensorFlow's seeds.
_CHANGING = re.compile("Assign|ResourceScatter|Rng")


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
        self._is_checked = False
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
        losses, weights = (
            per_output.as_structured(each, seen.student, names)
            for each in (self._losses, self._loss_weights)
        )
        by_unit = masked_by_unit(seen.label_masks, seen.student)
        given = (
            with_unit_axis(seen.labels, by_unit),
            self._label_mask.mask_predictions(inputs, _shaped(seen)),
            weights_of_units(seen.sample_weight, seen.student, by_unit),
        )
        of_outputs = PerOutputLoss(losses, output_names=names, of_labels=True)
        if not self._is_checked:
            self._is_checked = True
            _check_keeps_nothing(losses, lambda: of_outputs(*given))
        found = of_outputs(*given)
        weights = per_output.by_path(
            1.0 if weights is None else weights,
            seen.student,
            names=names,
            what="`loss_weights`",
            partial=True,
        )
        total = sum(
            (weights.get(path, 1.0) * loss for path, loss in found.items()),
            start=ops.zeros(()),
        )
        rows = ops.shape(tree.flatten(seen.student)[0])[0]
        self.metric.update_state(total * replicas(), sample_weight=rows)


def _shaped(seen: Seen) -> Any:
    """Return the teacher's outputs with what the student's tell of their shapes."""
    shaped = [
        with_known_shape(
            per_output.at(tuple(path), seen.teacher, "the teacher's output"), student
        )
        for path, student in tree.flatten_with_path(seen.student)
    ]
    return tree.pack_sequence_as(seen.student, shaped)


def _check_keeps_nothing(losses: Any, call: Callable[[], Any]) -> None:
    """Raise ValueError if a call of losses changes what another call returns.

    They are called in a graph that never runs.
    """
    graph = tf.__internal__.FuncGraph("called_again")
    with graph.as_default():
        call()
    traced = graph.as_graph_def()
    nodes = [*traced.node, *(n for f in traced.library.function for n in f.node_def)]
    changing = {node.op for node in nodes if _CHANGING.search(node.op)}
    if changing:
        raise ValueError(
            "`log_teacher=True` calls the label loss another time, but this one keeps "
            "a variable or a seed, which the call would change. Compile without "
            f"`log_teacher`. Received: loss={losses}, which runs {sorted(changing)}"
        )
