"""Checks of the outputs, labels and arguments that losses are called with.

Shapes are checked in every call. Values are checked if a tensor has values, so not
while a step is traced. A TensorFlow graph checks the values when it runs. XLA removes
these assertions, and JAX has none, so steps that they compile don't check values.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_distill import backend
from keras_distill.types import Tensor

# How far probabilities may exceed 1, e.g. as the weighted mean of an ensemble's.
_ROUNDING = 1e-3
# How far the sum of a row of probabilities may be from 1, rounded to half precision or
# to float32, and the least number of rows: the logits of a few rows may sum to 1 too.
_OF_HALF, _ROWS_OF_HALF = 1e-2, 8
_OF_SINGLE, _ROWS_OF_SINGLE = 1e-5, 2


class ChecksShapes:
    """A loss that checks shapes and applies Keras masks itself."""

    def with_mask(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `mask` is the Keras mask of `y_pred`, or None."""
        raise NotImplementedError


def check_same_shape(teacher_output: Tensor, student_output: Tensor) -> None:
    """Raise ValueError unless both shapes agree wherever both are known."""
    if not may_have_shape(teacher_output, student_output.shape):
        raise ValueError(
            "The teacher's and the student's output must have the same shape; the "
            "last dimension is usually the number of classes. Received: teacher "
            f"output {tuple(teacher_output.shape)}, student output "
            f"{tuple(student_output.shape)}{_advice(teacher_output, student_output)}"
        )


def _advice(teacher_output: Tensor, student_output: Tensor) -> str:
    """Return advice if the teacher's output may be a recorded part of an output."""
    *rows, width = teacher_output.shape
    if not may_have_shape(student_output, [*rows, None]) or (width or 1) % 2:
        return ""
    return (
        ". If it is a recorded top k, use `TopKForwardKL`; of samples, "
        "`SampledSoftTargets`. No other loss reads them: a top k that is renormalised "
        "has another gradient than the whole distribution, and a reverse KL over a top "
        "k is smallest where the student moves its probability out of it"
    )


def may_have_shape(x: Tensor, shape: Sequence[int | None]) -> bool:
    """Return whether a tensor has a shape, as far as both are known."""
    return len(x.shape) == len(shape) and all(
        size == expected or size is None or expected is None
        for size, expected in zip(x.shape, shape, strict=True)
    )


def checked_weight(name: str, value: float) -> float:
    """Return the weight of a loss's term. Raise ValueError unless finite and >= 0."""
    if not 0.0 <= value < np.inf:
        raise ValueError(
            f"`{name}` must be finite and not negative. Received: {name}={value}"
        )
    return float(value)


def check_axis(output: Tensor, axis: int) -> None:
    """Raise ValueError unless `output` has the axis."""
    rank = len(output.shape)
    if not -rank <= axis < rank:
        raise ValueError(
            f"`axis` must be an axis of the outputs. Received: axis={axis} for outputs "
            f"of shape {tuple(output.shape)}"
        )


def check_classes(output: Tensor, axis: int) -> None:
    """Raise ValueError where a softmax along `axis` would be constant."""
    if output.shape[axis] == 1:
        raise ValueError(
            "A softmax over one unit is always 1, so this loss would be 0 whatever the "
            "student says. Use `keras_distill.losses.BinarySoftTargets` for one-unit "
            f"heads. Received: outputs of shape {tuple(output.shape)}, axis={axis}"
        )


def other_vocabulary(received: str) -> ValueError:
    """Return the error for models whose outputs are over different tokens.

    Args:
        received: The last sentence of the message, which names both sizes.
    """
    return ValueError(
        "Teacher and student must have one vocabulary: token 17 of one tokenizer isn't "
        "token 17 of another, so that distributions over them can't be compared. Use "
        f"models of the same tokenizer, or train on the teacher's texts. {received}"
    )


def check_probabilities(
    output: Tensor, whose: str, loss_name: str, argument: str = "from_logits"
) -> None:
    """Raise ValueError if values lie outside [0, 1].

    NaN passes, because logits in place of probabilities aren't its cause.
    """
    _check_range(
        output,
        -_ROUNDING,
        1.0 + _ROUNDING,
        f"`{loss_name}` was told `{argument}=False`, so the {whose}'s output must be "
        f"probabilities in [0, 1]. Pass `{argument}=True` for logits. Received: values",
    )


def check_class_ids(labels: Tensor, classes: Tensor, loss_name: str) -> None:
    """Raise ValueError if labels aren't ids of classes."""
    labels = ops.cast(labels, "float32")
    _check_range(
        labels,
        0.0,
        ops.cast(classes, "float32") - 1.0,
        f"The labels that `{loss_name}` reads must be ids of classes, from 0 to one "
        "less than their number. Name a `label_mask` where rows have no label. "
        "Received: labels",
    )


def _check_range(values: Tensor, least: Tensor, greatest: Tensor, message: str) -> None:
    inside = ~ops.any((values < least) | (values > greatest))
    extremes = ops.min(values, initial=np.inf), ops.max(values, initial=-np.inf)
    if backend.is_traced(values):
        backend.assert_in_graph(inside, message + " (least, greatest)", extremes)
    elif not inside:
        found_least, found_greatest = (float(extreme) for extreme in extremes)
        raise ValueError(f"{message} from {found_least} to {found_greatest}")


def are_probabilities(output: Tensor, axis: int, activation: str) -> bool:
    """Return whether `output` looks like probabilities, if that is cheap to find out.

    In a TensorFlow graph, the operation that computes the tensor decides. If a tensor
    has values, the sums of its rows show whether it is a softmax. The result is False
    while JAX traces a step.
    """
    if backend.is_traced(output):
        return backend.comes_from(output, activation.capitalize())
    return activation == "softmax" and _rows_are_probabilities(output, axis)


def _rows_are_probabilities(output: Tensor, axis: int) -> bool:
    values = ops.convert_to_numpy(output).astype("float32")
    if values.size == 0 or values.min() < 0.0 or values.max() > 1.0:
        return False
    off = np.abs(values.sum(axis=axis) - 1.0)
    if off.size >= _ROWS_OF_HALF:
        return bool(off.max() <= _OF_HALF)
    return bool(off.size >= _ROWS_OF_SINGLE and off.max() <= _OF_SINGLE)
