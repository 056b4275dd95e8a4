"""What a training step watches: values to log, and a teacher that has gone wrong."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import own_training
from keras_distill.types import Tensor

BAD_TEACHER = (
    "The teacher's output is NaN or infinite, so the student would learn nothing from "
    "it. Look at the teacher's weights, at the inputs of this batch and, where the "
    "teacher computes in float16, at overflow. `compile(check_teacher=False)` switches "
    "this check off, e.g. for a teacher that masks classes with -inf."
)

# What a step compiled by XLA, which drops assertions silently, logs in the place of a
# loss that it can't go on from: no batch has it of its own.
BAD_LOSS = -float("inf")


def log_loss(model: keras.Model, loss: Tensor, x: Any) -> None:
    """Take a batch's loss into what `fit` shows as `loss`, as Keras' own step does.

    Args:
        model: The compiled model whose loss it is.
        loss: The loss as it trains: divided by the number of devices.
        x: The batch's inputs.
    """
    tracker = next(metric for metric in model.metrics if metric.name == "loss")
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    tracker.update_state(loss * replicas(), sample_weight=tf.shape(first)[0])


def additional_loss(model: keras.Model) -> Tensor:
    """Return a model's regularisers and `add_loss` terms, scaled as Keras does."""
    dtype = keras.config.floatx()
    terms = [ops.cast(ops.sum(loss), dtype) for loss in model.losses]
    return sum(terms, start=ops.zeros(())) / replicas()


def label_loss(model: keras.Model, trained: keras.Model, own_loss: Tensor) -> Tensor:
    """Return the part of a model's own loss that `alpha` weighs against.

    That is the loss of the labels, without what layers add. What a class's own
    `compute_loss` returns is weighed whole: nothing says what it consists of.

    Args:
        model: The compiled model.
        trained: The model that it trains, whose class may have its own `compute_loss`.
        own_loss: What `model.compute_loss` returned.
    """
    if own_training.overrides(trained, "compute_loss"):
        return own_loss
    return own_loss - additional_loss(model)


def replicas() -> int:
    """Return among how many devices Keras divides the loss of a batch."""
    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


class TeacherGuard:
    """Stops training at the step at which the teacher's output isn't finite.

    Args:
        message: What it says then. Defaults to `BAD_TEACHER`.
        xla: Whether the step is compiled by XLA, which drops assertions silently.
            There zeros take the place of the teacher's output, so that this one step
            teaches uniform targets instead of NaN; the step logs a distillation loss
            of `BAD_LOSS`, which `stopping` looks for.
    """

    def __init__(self, *, xla: bool, message: str = BAD_TEACHER) -> None:
        self._xla = xla
        self._message = message

    def watch(self, outputs: Any) -> tuple[Any, Tensor | None]:
        """Return the teacher's outputs, checked; called in the step.

        Returns:
            The outputs, and with XLA whether they are finite, a boolean scalar.
        """
        if not self._xla:
            return keras.tree.map_structure(self._stop_if_bad, outputs), None
        finite = tf.constant(True)
        for output in keras.tree.flatten(outputs):
            if output.dtype.is_floating:
                finite &= tf.reduce_all(tf.math.is_finite(output))
        spared = keras.tree.map_structure(
            lambda output: tf.where(finite, output, tf.zeros_like(output)), outputs
        )
        return spared, finite

    def _stop_if_bad(self, output: Tensor) -> Tensor:
        if not output.dtype.is_floating:
            return output
        return tf.debugging.check_numerics(output, self._message)


def stopping(step: Callable[..., Any], messages: dict[str, str]) -> Callable[..., Any]:
    """Return `step` followed by a look at what it logged.

    Args:
        step: A training step that XLA compiles, a function of the data's iterator.
        messages: What to raise by the name of the loss that is `BAD_LOSS`.
    """

    def checked_step(iterator: Any) -> Any:
        logs = step(iterator)
        for name, message in messages.items():
            if name in logs and float(logs[name]) == BAD_LOSS:
                raise tf.errors.InvalidArgumentError(None, None, message)
        return logs

    return checked_step
