"""The losses of a model's outputs, one loss for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from keras_distill import per_output
from keras_distill.batch import Batch
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.calling import as_loss, call_loss
from keras_distill.types import Nested, Path, Tensor
from keras_distill.values import Value

tree = keras.tree


class PerOutputLoss:
    """The distillation losses of a model's outputs.

    Args:
        losses: One loss for all outputs, or a list, tuple or dict of losses that
            mirrors the outputs, with None for outputs that aren't distilled. As in
            `keras.Model.compile`, a loss is a `keras.losses.Loss`, a function of
            `(teacher_output, student_output)`, or the name of a Keras loss.
        output_names: The names of the outputs in order, if the model has any. With
            names, a dict of losses also fits a list of outputs.
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

    def __call__(self, teacher_output: Nested, batch: Batch) -> dict[Path, Tensor]:
        """Return the scalar loss of each distilled output, by the output's path.

        Args:
            teacher_output: The targets, in the structure of the outputs. If
                `of_labels`, these are the labels.
            batch: The record of the step. `output` holds the outputs that are compared
                with the targets, and `labels` are in the structure of the outputs.
        """
        terms = {}
        for path, loss in self._by_path(batch.output).items():
            target = per_output.at(path, teacher_output, "the teacher's output")
            output = per_output.at(path, batch.output, "the student's output")
            record = batch.of_output(path)
            if isinstance(loss, DistillationLoss):
                loss = loss.for_batch(record)
            call = loss if self._of_labels else partial(call_loss, loss)
            terms[path] = call(target, output, record.sample_weight)
        return terms

    @property
    def state(self) -> list[keras.Variable]:
        """The variables that the losses read, each once."""
        return self._variables(lambda loss: loss.state)

    @property
    def trains(self) -> list[keras.Variable]:
        """The weights of the student that the losses compute with, each once."""
        return self._variables(lambda loss: loss.trains)

    @property
    def values(self) -> list[Value]:
        """The temperatures of the losses, each once."""
        losses = [x for x in tree.flatten(self._losses) if x is not None]
        found = [getattr(loss, "tempering", None) for loss in losses]
        return list({id(value): value for value in found if value is not None}.values())

    def scheduled(self) -> Iterator[tuple[DistillationLoss, Value]]:
        """Yield the losses whose temperature is a schedule, with the temperature."""
        for loss in dict.fromkeys(tree.flatten(self._losses)):
            tempering = loss.tempering if isinstance(loss, DistillationLoss) else None
            if tempering is not None and tempering.scheduled:
                yield loss, tempering

    def _variables(
        self, of_loss: Callable[[DistillationLoss], Sequence[keras.Variable]]
    ) -> list[keras.Variable]:
        losses = tree.flatten(self._losses)
        ours = [loss for loss in losses if isinstance(loss, DistillationLoss)]
        found = [variable for loss in ours for variable in of_loss(loss)]
        return list({id(variable): variable for variable in found}.values())

    def _by_path(self, student_output: Nested) -> dict[Path, keras.losses.Loss]:
        losses = self._losses
        if isinstance(losses, list | tuple) and isinstance(student_output, Mapping):
            # Keras matches a list with a dict in the order of the outputs' names.
            losses = per_output.as_structured(
                losses, student_output, self._output_names
            )
        return per_output.by_path(
            losses,
            student_output,
            names=self._output_names,
            what="`loss`" if self._of_labels else "`distillation_loss`",
        )
