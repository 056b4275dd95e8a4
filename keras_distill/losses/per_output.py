"""One loss for each output of a model."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from keras_distill import per_output
from keras_distill.losses.base import BatchContext, DistillationLoss
from keras_distill.losses.calling import as_loss, call_loss
from keras_distill.per_output import Path
from keras_distill.types import Tensor
from keras_distill.values import Value

tree = keras.tree


class PerOutputLoss:
    """The distillation losses of a model's outputs.

    Args:
        losses: A loss for every output, or a list, tuple or dict of losses that
            mirrors the outputs, with None for those that aren't distilled. A loss is
            what `keras.Model.compile` takes: a `keras.losses.Loss`, a function of
            `(teacher_output, student_output)`, or a name that Keras knows.
        output_names: The names of the outputs in order, where the model has any, so
            that a dict of losses may be given for a list of outputs.
        of_labels: Whether these are label losses, called as Keras calls them.
    """

    def __init__(
        self,
        losses: Any,
        *,
        output_names: Sequence[str] | None,
        of_labels: bool = False,
    ) -> None:
        self._of_labels = of_labels
        self._losses = tree.map_structure(as_loss, losses)
        self._output_names = output_names
        if all(loss is None for loss in tree.flatten(self._losses)):
            raise ValueError(
                "`distillation_loss` must hold a loss for one output at least. "
                f"Received: distillation_loss={losses}"
            )

    def __call__(
        self,
        teacher_output: Any,
        student_output: Any,
        sample_weight: Any = None,
        *,
        inputs: Any = None,
        labels: Any = None,
        label_masks: Mapping[Path, Tensor] | None = None,
        step: Any = 0,
    ) -> dict[Path, Tensor]:
        """Return the loss of each distilled output, scalars, by the output's path.

        Args:
            teacher_output: The targets.
            student_output: What is held against them.
            sample_weight: One for all outputs, or a structure that mirrors them.
            inputs: The batch's inputs, for losses that read lists from them.
            labels: The labels in the structure of the outputs, for losses that read
                them too.
            label_masks: Which rows have a label, by the path of outputs where some
                have none.
            step: The optimiser's step, which scheduled temperatures are read at.
        """
        label_masks = label_masks or {}
        terms = {}
        for path, loss in self._by_path(student_output).items():
            weight = per_output.weight_at(path, sample_weight)
            teacher = per_output.at(path, teacher_output, "the teacher's output")
            student = per_output.at(path, student_output, "the student's output")
            if isinstance(loss, DistillationLoss):
                loss = loss.for_batch(
                    BatchContext(
                        inputs=inputs,
                        labels=per_output.found(path, labels),
                        labelled=label_masks.get(path),
                        step=step,
                    )
                )
            call = loss if self._of_labels else partial(call_loss, loss)
            terms[path] = call(teacher, student, weight)
        return terms

    def scheduled(self) -> Iterator[tuple[DistillationLoss, Value]]:
        """Yield the losses whose temperature is a schedule, with the temperature."""
        for loss in dict.fromkeys(tree.flatten(self._losses)):
            tempering = loss.tempering if isinstance(loss, DistillationLoss) else None
            if tempering is not None and tempering.scheduled:
                yield loss, tempering

    def _by_path(self, student_output: Any) -> dict[Path, keras.losses.Loss]:
        losses = self._losses
        if isinstance(losses, list | tuple) and isinstance(student_output, Mapping):
            # in the order in which Keras takes the outputs
            losses = per_output.as_structured(
                losses, student_output, self._output_names
            )
        return per_output.by_path(
            losses,
            student_output,
            names=self._output_names,
            what="`loss`" if self._of_labels else "`distillation_loss`",
        )
