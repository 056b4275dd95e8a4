"""The base classes of distillation losses: checks, precision, temperature."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import arguments
from keras_distill.losses import checks
from keras_distill.types import Tensor
from keras_distill.values import Value

# Stands in for infinite outputs (logits of classes masked with -inf), because 0 * inf
# and inf - inf are NaN; small enough that quotients and differences of it stay finite
# in float32.
INFINITE = 1e30


class BatchContext(NamedTuple):
    """What a training step holds beside the two outputs that a loss compares.

    Args:
        inputs: The batch's inputs.
        labels: The labels of the output; None where there are none.
        labelled: Boolean, which rows have a label; None where all have one.
        step: The optimiser's step, which schedules are read at.

    Example:
        >>> from keras_distill.losses import DecoupledKD
        >>> loss = DecoupledKD().for_batch(BatchContext(labels=[0]))
        >>> round(float(loss([[2.0, 0.0, 1.0]], [[0.0, 2.0, 0.0]])), 4)
        8.9448
    """

    inputs: Any = None
    labels: Any = None
    labelled: Any = None
    step: Any = 0


class DistillationLoss(checks.ChecksShapes, keras.losses.Loss, ABC):
    """A Keras loss whose `y_true` is the teacher's output.

    Subclasses implement `compare(teacher_logits, student_logits)`, which returns a
    value per example. Everything else is `keras.losses.Loss`: reductions, sample
    weights, masks. The maths is done in float32 at least, whatever the dtype of the
    outputs, and no gradient reaches the teacher's.

    A loss that depends on more of a batch than both outputs overrides `for_batch`,
    which `Distiller` calls, or `for_weights`, which every call does. Both return the
    loss to compute with, a copy that holds what it needs; the loss itself stays as it
    was made.

    Args:
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the loss's result. Defaults to `keras.config.floatx()`.
    """

    # of losses that have one
    tempering: Value | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = arguments.explained(cls.__init__)  # type: ignore[method-assign]

    @arguments.explained
    def __init__(
        self,
        *,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.axis = axis

    @abstractmethod
    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the loss per example from logits of one shape."""

    def for_batch(self, batch: BatchContext) -> Self:
        """Return the loss for one batch of training data."""
        return self

    def for_weights(self, sample_weight: Tensor, mask: Tensor) -> Self:
        """Return the loss for a call with these weights and Keras mask, or None."""
        return self

    def __call__(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Return the loss, reduced; `y_true` is the teacher's output."""
        mask = getattr(y_pred, "_keras_mask", None)
        loss = self.for_weights(sample_weight, mask)
        return super(DistillationLoss, loss).__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss per example; `y_true` is the teacher's output."""
        return self.compare(*self.prepared(y_true, y_pred))

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of the `"teacher"`'s or the `"student"`'s output."""
        return output

    def prepared(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both outputs, checked and fit to compute with."""
        # Keras converts the leaves only, so nested lists of numbers are lists still
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        checks.check_same_shape(y_true, y_pred)
        checks.check_axis(y_pred, self.axis)
        # also in `Distiller`, for any Keras loss; here for custom training loops
        teacher_output = ops.stop_gradient(_finite(_at_least_float32(y_true)))
        student_output = _finite(_at_least_float32(y_pred))
        return (
            self.logits(teacher_output, "teacher"),
            self.logits(student_output, "student"),
        )

    def copied(self) -> Self:
        """Return a copy that shares its attributes, temperature included."""
        # not `copy.copy`, for which Keras would write the loss to a file
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        return {**config, "axis": self.axis, "dtype": self.dtype}


class TemperedLoss(DistillationLoss):
    """A divergence of tempered distributions, times the squared temperature.

    Gradients of tempered divergences shrink with `1 / temperature**2`; the factor
    keeps the balance with the label loss when the temperature changes (Hinton,
    Vinyals, Dean 2015, section 2.1). It is applied here and nowhere else.

    Args:
        temperature: Divides the logits; positive. A float, which a callback may
            assign while `fit` runs, or a `LearningRateSchedule` of the optimiser's
            step, which `Distiller` reads; elsewhere, assign `loss.step`, or the
            schedule stays at its step 0. Defaults to 1.
        from_logits: Whether both outputs are logits (default) or probabilities. Of
            probabilities the logarithm is taken; a 0 counts as the smallest positive
            number of its dtype.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the loss's result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `temperature` isn't positive, or, when called, if the outputs'
            shapes differ or the class axis has one unit only.
    """

    # False for divergences that are bounded whatever the temperature
    times_squared_temperature = True
    # what makes probabilities of its logits
    activation = "softmax"

    tempering: Value

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(axis=axis, reduction=reduction, name=name, dtype=dtype)
        self.tempering = Value(
            "temperature",
            temperature,
            requirement="positive and finite",
            accepts=lambda value: 0.0 < value < np.inf,
        )
        self.from_logits = from_logits
        self.teacher_from_logits = teacher_from_logits
        # a scheduled temperature is read there
        self.step: Any = 0
        self._warned: set[str] = set()

    @property
    def temperature(self) -> float | LearningRateSchedule:
        """The temperature as given or last assigned."""
        return self.tempering.value

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.tempering.value = value

    @abstractmethod
    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example, without the squared temperature."""

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return `temperature**2` times the divergence, per example."""
        return self.tempered(self.divergence, teacher_logits, student_logits)

    def tempered(
        self,
        divergence: Callable[[Tensor, Tensor, Tensor], Tensor],
        teacher_logits: Tensor,
        student_logits: Tensor,
    ) -> Tensor:
        """Return `temperature**2` times a divergence."""
        temperature = ops.cast(self.tempering.at(self.step), student_logits.dtype)
        values = divergence(teacher_logits, student_logits, temperature)
        if self.times_squared_temperature:
            values = values * temperature**2
        return values

    def for_batch(self, batch: BatchContext) -> Self:
        """Return the loss with its temperature at the batch's step."""
        loss = self.copied()
        loss.step = batch.step
        return loss

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        temperature = self.temperature
        if isinstance(temperature, LearningRateSchedule):
            temperature = keras.saving.serialize_keras_object(temperature)
        config = {
            **super().get_config(),
            "temperature": temperature,
            "from_logits": self.from_logits,
        }
        # only where it is given, so that versions without it read the others' files
        if self.teacher_from_logits is not None:
            config["teacher_from_logits"] = self.teacher_from_logits
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TemperedLoss":
        """Build the loss from `get_config`'s result."""
        if isinstance(config.get("temperature"), dict):
            temperature = keras.saving.deserialize_keras_object(config["temperature"])
            config = {**config, "temperature": temperature}
        return cls(**config)

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of an output, which may be probabilities."""
        if not self.takes_logits(whose):
            return self.logits_of_probabilities(output)
        if checks.are_probabilities(output, self.axis, self.activation):
            self.warn_of_probabilities(whose)
        return output

    def takes_logits(self, whose: str) -> bool:
        """Return whether the `"teacher"`'s or the `"student"`'s output is logits."""
        if whose == "teacher" and self.teacher_from_logits is not None:
            return self.teacher_from_logits
        return self.from_logits

    def warn_of_probabilities(self, whose: str) -> None:
        """Warn, once for each output, that probabilities are taken for logits."""
        if whose in self._warned:
            return
        self._warned.add(whose)
        remedy = "`from_logits=False`"
        if whose == "teacher":
            remedy = "`teacher_from_logits=False`, or for both outputs " + remedy
        warnings.warn(
            f"The {whose}'s output looks like probabilities, but `{self.name}` was "
            "told `from_logits=True` and takes them for logits. Remove the model's "
            f"final {self.activation}, or pass {remedy}.",
            stacklevel=2,
        )

    def logits_of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return logits whose softmax is `probabilities`."""
        return ops.log(ops.maximum(probabilities, smallest(probabilities)))


def smallest(x: Tensor) -> float:
    """Return the smallest positive normal number of the tensor's dtype."""
    return float(np.finfo(keras.backend.standardize_dtype(x.dtype)).tiny)


def _at_least_float32(x: Tensor) -> Tensor:
    narrow = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if narrow else x


def _finite(x: Tensor) -> Tensor:
    return ops.clip(x, -INFINITE, INFINITE)
