"""The sum of hint losses that a Distiller adds to its loss."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import layers, ops

from keras_distill.batch import Batch, log_batch_mean
from keras_distill.hints.hint import Hint
from keras_distill.hints.layers import Shape, find, listing, output_shape
from keras_distill.hints.losses import FeatureLoss
from keras_distill.hints.losses.base import same_size
from keras_distill.hints.recorded import Recorded
from keras_distill.hints.taps import Caught, Taps
from keras_distill.losses import DistillationLoss
from keras_distill.losses.calling import call_loss
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor
from keras_distill.values import Value

# The names of losses that are logged already.
_TAKEN = ("student", "distillation", "teacher")


class HintTerm:
    """The hints of one student and its teacher, their projectors and their logs.

    This is a plain object, so a model that has it as an attribute doesn't track or save
    it. The model tracks the `projectors` itself.

    Args:
        student: The student.
        hints: The hints.
    """

    def __init__(self, student: keras.Model, hints: Sequence[Hint]) -> None:
        _check_hints(hints)
        self._student = student
        self._hints = tuple(hints)
        guided = {
            hint.name: find(student, hint.guided, whose="student") for hint in hints
        }
        self._guided = Taps(guided)
        self._shapes = {
            name: output_shape(layer, whose="student") for name, layer in guided.items()
        }
        self._hinting = Taps({})
        self._recorded = {
            hint.name: hint.hint for hint in hints if isinstance(hint.hint, Recorded)
        }
        self._is_attached = False
        # `attach` makes those of "auto", because it needs the teacher's width.
        self.projectors: dict[str, keras.Layer] = {
            hint.name: hint.projector
            for hint in hints
            if isinstance(hint.projector, keras.Layer)
        }
        for name, projector in self.projectors.items():
            if not projector.built:
                projector.build(self._shapes[name])
        scheduled = [hint for hint in hints if hint.weighting.scheduled]
        self.metrics: dict[str, keras.metrics.Metric] = {
            **{name: keras.metrics.Mean(name) for name in map(_logged_as, hints)},
            **{h.weighting.name: h.weighting for h in scheduled},
        }

    @property
    def weights(self) -> dict[str, Value]:
        """The weights of the hints by the names of their logs."""
        return {hint.weighting.name: hint.weighting for hint in self._hints}

    @property
    def reads(self) -> list[str]:
        """The keys of the recorded hints in the inputs."""
        return [recorded.key for recorded in self._recorded.values()]

    def attach(self, teacher: Any) -> None:
        """Find the teacher's layers, and make projectors to their output shapes.

        Raises:
            TypeError: If the teacher has no layers and a hint isn't recorded.
            ValueError: If the teacher lacks a layer, or if shapes can't be compared.
        """
        if not self._hints:
            return
        model = teacher.as_layer()
        found = {}
        for hint in self._hints:
            if isinstance(hint.hint, Recorded):
                shape = hint.hint.batch_shape
            elif model is None:
                raise TypeError(
                    "Hints need a teacher with layers, a Keras model, or the recorded "
                    'output of a layer, `Hint(..., hints.Recorded("key", shape))`. '
                    f"Received: teacher={teacher!r} of type {type(teacher).__name__}"
                )
            else:
                found[hint.name] = find(model, hint.hint, whose="teacher")
                shape = output_shape(found[hint.name], whose="teacher")
            self._fit(hint, shape, model)
        # Files hold the projectors in the order of this dict.
        self.projectors = {
            hint.name: self.projectors[hint.name]
            for hint in self._hints
            if hint.name in self.projectors
        }
        self._hinting = Taps(found)
        self._is_attached = True

    def of_student(self) -> AbstractContextManager[Caught]:
        """Collect the outputs of the guided layers while the student runs."""
        return self._guided.open()

    def of_teacher(self) -> AbstractContextManager[Caught]:
        """Collect the outputs of the hint layers while the teacher runs."""
        return self._hinting.open()

    @property
    def state(self) -> list[keras.Variable]:
        """The variables of the hints' weights."""
        return [hint.weighting.state for hint in self._hints]

    def add_to(
        self, loss: Tensor, guided: Caught | None, hinting: Caught, batch: Batch
    ) -> Tensor:
        """Return the loss of a batch plus the weighted hints, and log the hints.

        Args:
            loss: The loss without hints.
            guided: The outputs of the student's layers; None if the student didn't run.
            hinting: The outputs of the teacher's layers.
            batch: The batch. A sample weight that is one tensor applies to hints too.

        Raises:
            ValueError: If the student wasn't called before with `training=True`.
        """
        if not self._hints:
            return loss
        if guided is None:
            raise ValueError(
                "Hints compare layers in the pass that has made the outputs. Call "
                "`distiller(x, training=True)` before `compute_loss`."
            )
        sample_weight = batch.sample_weight
        if keras.tree.is_nested(sample_weight):
            sample_weight = None
        for hint in self._hints:
            features = guided.output(hint.name)
            if hint.name in self.projectors:
                features = self.projectors[hint.name](features, training=True)
            if hint.name in self._recorded:
                targets = self._recorded[hint.name].read(batch.inputs)
            else:
                targets = hinting.output(hint.name)
            targets = ops.stop_gradient(targets)
            weights = _for_values(hint.compared, sample_weight, features)
            compared = _at(hint.compared, batch.step)
            value = ops.cast(
                call_loss(compared, targets, features, weights), loss.dtype
            )
            log_batch_mean(self.metrics[_logged_as(hint)], value, batch.output)
            weight = hint.weighting.at(batch.step)
            hint.weighting.update_state(weight)
            loss = loss + ops.cast(weight, loss.dtype) * value
        return loss

    def settled(self) -> list[Hint]:
        """Return the hints with the projectors that `"auto"` has made."""
        return [
            hint.with_projector(self.projectors.get(hint.name))
            if self._is_attached or hint.projector != "auto"
            else hint
            for hint in self._hints
        ]

    def _fit(self, hint: Hint, target: Shape, teacher: keras.Layer | None) -> None:
        """Make a hint's projector where one is needed, and check the shapes."""
        shape, loss = self._shapes[hint.name], hint.compared
        by_width = not isinstance(loss, FeatureLoss) or loss.needs_equal_widths
        if hint.name not in self.projectors and hint.projector == "auto" and by_width:
            if len(shape) == len(target) and shape[-1] != target[-1]:
                self.projectors[hint.name] = _projector(hint, shape, target)
        projected = shape
        if hint.name in self.projectors:
            projected = self.projectors[hint.name].compute_output_shape(shape)
        try:
            _check_shapes(loss, target, tuple(projected))
        except ValueError as error:
            through = "" if projected == shape else f", projected to {projected}"
            listed = listing(self._student, whose="student")
            if teacher is not None:
                listed += f" {listing(teacher, whose='teacher')}"
            raise ValueError(
                f"The hint '{hint.name}' can't be given. {error} Received: guided="
                f"{hint.guided!r} of shape {shape}{through}; hint={hint.hint!r} of "
                f"shape {target}. {listed}"
            ) from None


def _check_hints(hints: Sequence[Hint]) -> None:
    for hint in hints:
        if not isinstance(hint, Hint):
            raise TypeError(
                "`hints` must hold `keras_distill.hints.Hint`s. Received: "
                f"{hint!r} of type {type(hint).__name__}"
            )
    names = [hint.name for hint in hints]
    for name in names:
        if names.count(name) > 1 or name in _TAKEN:
            raise ValueError(
                "Each hint is logged under a name of its own. Give it another with "
                f"`Hint(..., name=...)`. Received: hints named {names}, of which "
                f"'{name}' is taken"
            )


def _check_shapes(loss: Any, target: Shape, shape: Shape) -> None:
    if isinstance(loss, FeatureLoss):
        loss.check_shapes(target, shape)
        return
    shorter, longer = sorted((target, shape), key=len)
    if len(longer) == len(shorter) + 1 and longer[-1] == 1:
        # `call_loss` removes a last axis of size 1 where only one of them has it.
        target = shape = longer
    if len(shape) != len(target) or not all(map(same_size, shape, target)):
        raise ValueError(
            "The features of both layers must have the same shape. Choose layers of "
            "the same resolution, or give a `projector` that brings the student's to "
            "the teacher's."
        )


def _projector(hint: Hint, shape: Shape, target: Shape) -> keras.Layer:
    """Return a layer that maps the student's features to the teacher's width."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", f"{hint.name}_projector")
    of_images: dict[int, Callable[..., keras.Layer]] = {
        4: layers.Conv2D,
        5: layers.Conv3D,
    }
    if len(shape) in of_images:
        projector = of_images[len(shape)](
            target[-1], 1, data_format="channels_last", name=name
        )
    else:
        projector = layers.Dense(target[-1], name=name)
    projector.build(shape)
    return projector


def _for_values(loss: Any, sample_weight: Any, features: Tensor) -> Any:
    """Return the sample weights in the rank of the loss's values before reduction."""
    if sample_weight is None or isinstance(loss, FeatureLoss):
        return sample_weight
    return of_rank(sample_weight, features[..., 0])


def _at(loss: Any, step: Any) -> Any:
    """Return a loss with its temperature at a step."""
    if isinstance(loss, DistillationLoss):
        return loss.for_batch(Batch(step=step))
    return loss


def _logged_as(hint: Hint) -> str:
    return f"{hint.name}_loss"
