"""Base classes of distillation losses: checks, precision, masks, temperature."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import arguments, backend
from keras_distill.batch import Batch
from keras_distill.losses import checks
from keras_distill.losses.weighting import both, masked_weights
from keras_distill.types import Tensor
from keras_distill.values import Value

BatchContext = Batch

# Replaces infinite logits, which mask classes, because 0 * inf and inf - inf are NaN.
# Quotients and differences of it are finite in float32.
INFINITE = 1e30


class DistillationLoss(checks.ChecksShapes, keras.losses.Loss, ABC):
    """A Keras loss whose `y_true` is the teacher's output.

    Subclasses implement `compare(teacher_logits, student_logits)`, which returns a
    value per example. Reductions, sample weights and masks work as in
    `keras.losses.Loss`. The loss is computed in float32 or wider, whatever the dtype of
    the outputs. No gradient reaches the teacher's output.

    A subclass with arguments of its own returns them in `get_config`. Register it with
    `keras.saving.register_keras_serializable`, because a saved `Distiller` contains its
    loss.

    A subclass may also override these methods:

    - `for_batch` returns the loss for one batch of training data, if the loss depends
      on labels, inputs or the step. `Distiller` calls it.
    - `for_weights` returns the loss for given sample weights and a mask, if values
      depend on them. Every call of the loss calls it.
    - `counted` returns which values count, if the loss leaves some out.

    The first two must not change the loss itself. To store data of the batch, they set
    attributes of `self.copied()` and return this copy.

    Args:
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the loss's result. Defaults to `keras.config.floatx()`.

    Example:
        >>> class LogitMAE(DistillationLoss):
        ...     def compare(self, teacher_logits, student_logits):
        ...         difference = ops.abs(teacher_logits - student_logits)
        ...         return ops.mean(difference, axis=self.axis)
        >>> float(LogitMAE()([[1.0, 3.0]], [[2.0, 1.0]]))
        1.5
    """

    # The temperature, in losses that have one.
    tempering: Value | None = None
    # Whether `y_true` isn't the teacher's output, but a part of it in another form, or
    # hidden states from which the output is computed.
    reads_packed = False

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
        """Return the loss per example.

        Args:
            teacher_logits: Finite logits in float32 or float64. No gradient passes
                through them.
            student_logits: Logits of the same shape.

        Returns:
            A tensor of the logits' shape without `axis`. Don't reduce it further, or
            sample weights and masks have no effect.
        """

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables that a call reads."""
        return [] if self.tempering is None else [self.tempering.state]

    @property
    def trains(self) -> Sequence[keras.Variable]:
        """The trainable variables that the loss computes with.

        They must be weights of the student. Otherwise nothing updates them.
        """
        return ()

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss for one batch of training data; by default the loss itself.

        Args:
            batch: The record of the output that the loss compares, as
                `Batch.of_output` returns it.
        """
        return self

    def for_weights(self, sample_weight: Tensor, mask: Tensor) -> Self:
        """Return the loss for a call with these weights and this Keras mask.

        Args:
            sample_weight: The sample weights of the call, or None.
            mask: The mask of the student's output, or None.
        """
        return self

    def counted(self, y_true: Any, y_pred: Tensor) -> Tensor | None:
        """Return a boolean tensor: which values count in the reduction of a call.

        Values that don't count have weight 0, and a mean is over the other values. The
        default is None: all values count.

        Args:
            y_true: The teacher's output, as passed to `call`.
            y_pred: The student's output.
        """
        return None

    def __call__(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Return the reduced loss; `y_true` is the teacher's output."""
        return self.with_mask(y_true, y_pred, sample_weight, backend.keras_mask(y_pred))

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `mask` is the Keras mask of `y_pred`, or None."""
        loss = self.for_weights(sample_weight, mask)
        counted = both(mask, loss.counted(y_true, y_pred))
        weight = masked_weights(counted, sample_weight, self.reduction, self.dtype)
        if mask is not None:
            # Without the copy, Keras would apply the mask of the output once more.
            y_pred = ops.copy(y_pred)
        return super(DistillationLoss, loss).__call__(y_true, y_pred, weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss per example; `y_true` is the teacher's output."""
        return self.compare(*self.prepared(y_true, y_pred))

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of an output; `whose` is `"teacher"` or `"student"`."""
        return output

    def prepared(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both outputs, checked, and without infinite values."""
        # Keras has converted only the leaves of nested lists.
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        self.check_outputs(y_true, y_pred)
        # `Distiller` stops the gradient for all Keras losses. Custom loops need it
        # here.
        teacher_output = ops.stop_gradient(computable(y_true))
        return (
            self.logits(teacher_output, "teacher"),
            self.logits(computable(y_pred), "student"),
        )

    def check_outputs(self, teacher_output: Tensor, student_output: Tensor) -> None:
        """Raise ValueError if the shapes of the outputs don't fit."""
        checks.check_same_shape(teacher_output, student_output)
        checks.check_axis(student_output, self.axis)

    def copied(self) -> Self:
        """Return a copy that shares all attributes, including the temperature."""
        # `copy.copy` would serialise the loss and build another temperature.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        return {**config, "axis": self.axis, "dtype": self.dtype}


class TemperedLoss(DistillationLoss):
    """A divergence of tempered distributions, times the squared temperature.

    Subclasses implement `divergence(teacher_logits, student_logits, temperature)`. It
    divides the logits of both models by the temperature, and doesn't multiply the
    result by the squared temperature.

    Gradients of tempered divergences shrink with `1 / temperature**2`. The factor
    `temperature**2` keeps the balance with the label loss when the temperature changes
    (Hinton, Vinyals, Dean 2015, section 2.1). Only this class applies the factor.

    Args:
        temperature: Divides the logits; positive. Either a float, which a callback may
            assign while `fit` runs, or a `LearningRateSchedule`, which `Distiller`
            evaluates at the optimiser's step. In a custom loop, assign `loss.step`.
            Otherwise the schedule is evaluated at step 0. On JAX, assigning another
            temperature affects compiled steps of a `Distiller` only. For other compiled
            functions the temperature is a constant. Defaults to 1.
        from_logits: Whether both outputs are logits (default) or probabilities. The
            loss computes the logarithm of probabilities. A 0 counts as the smallest
            positive number of its dtype.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the loss's result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `temperature` isn't positive. When called, if the outputs' shapes
            differ.
    """

    # False for divergences whose bounds don't depend on the temperature.
    times_squared_temperature = True
    # The function that turns logits into probabilities.
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
        # The step at which a schedule of the temperature is evaluated.
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
        """Return the divergence per example, without the squared temperature.

        Args:
            teacher_logits: As in `compare`, before the division by the temperature.
            student_logits: Logits of the same shape.
            temperature: A scalar tensor.

        Returns:
            A tensor of the logits' shape without `axis`.
        """

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

    def for_batch(self, batch: Batch) -> Self:
        """Return a copy of the loss with its temperature at the batch's step."""
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
        # So versions without the argument can read files that don't use it.
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
        """Warn, once for each output, that probabilities are used as logits."""
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


def computable(x: Tensor) -> Tensor:
    """Return an output in float32 or wider, without infinite values."""
    narrow = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.clip(ops.cast(x, "float32") if narrow else x, -INFINITE, INFINITE)


def smallest(x: Tensor) -> float:
    """Return the smallest positive normal number of the tensor's dtype."""
    return float(np.finfo(keras.backend.standardize_dtype(x.dtype)).tiny)
