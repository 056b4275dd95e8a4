"""The kinds of values that losses expect: logits, probabilities or positive numbers."""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import backend
from keras_distill.losses import (
    DistillationLoss,
    LogitMSE,
    SampledSoftTargets,
    TemperedLoss,
)
from keras_distill.losses.around import innermost
from keras_distill.losses.calling import (
    FunctionLoss,
    as_loss,
    crossentropy,
    reads_packed,
)

_KERAS = "keras.src.losses"
# The methods of a loss that are given outputs.
_TAKING = ("__call__", "call", "prepared", "logits")

_OF_ROWS = ("categorical_crossentropy", "categorical_focal_crossentropy")
_OF_CLASS_IDS = ("sparse_categorical_crossentropy",)
_OF_PROBABILITIES = ("kl_divergence", "categorical_generalized_cross_entropy")
_OF_UNITS = ("binary_crossentropy", "binary_focal_crossentropy", "dice", "tversky")
# On TensorFlow, Keras itself warns if these read a softmax or sigmoid as logits.
_WARNING = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
)
# These return one value for a batch, not one for each row.
_OF_BATCHES = ("circle", "dice", "tversky")
# These divide the output by its sum first, so that values may exceed 1.
_NORMALIZING = ("categorical_crossentropy", "categorical_focal_crossentropy")

# Advice at the end of the warnings.
_FORWARD_KL = (
    "Pass `distillation_loss=keras_distill.losses.ForwardKL()`, which takes logits."
)
_BINARY = (
    "Pass `distillation_loss=keras_distill.losses.BinarySoftTargets()`, which takes "
    "logits."
)
_OF_LOGITS = "Remove the model's final {}, or pass `from_logits=False`."
_OF_LOGIT_MSE = (
    "Remove the model's final softmax; for the squared error of probabilities, pass "
    '`distillation_loss="mse"`.'
)
_OF_SAMPLES = "Remove the model's final softmax."
_FROM_LOGITS = (
    "Pass the loss as an object with `from_logits=True`, or end the model in a {}."
)
_ENDS = "End the model in a {}, or choose a loss of logits."


class Kind(NamedTuple):
    """The kind of values that a loss expects.

    Args:
        values: `"logits"`, `"probabilities"`, or `"positive"`: a rate, or scores that
            the loss divides by their sum.
        per_unit: Whether the units are independent, as with a sigmoid. Otherwise they
            are the classes of one softmax.
        axis: The class axis.
        hint: What the user can do if the output is of another kind.
    """

    values: str
    per_unit: bool = False
    axis: int = -1
    hint: str = ""


def of_teacher(loss: Any, units: int | None = None) -> Kind | None:
    """Return the kind of teacher outputs that a distillation loss expects.

    Args:
        loss: The loss, as in `keras.Model.compile`.
        units: The number of units of the output; None if it isn't known.

    Returns:
        The kind; None if it isn't known.
    """
    ours = _of_ours(loss, "teacher")
    if ours is not None:
        return ours
    name, arguments = _function(loss, units)
    if name in (*_OF_ROWS, *_OF_PROBABILITIES):
        return Kind("probabilities", False, arguments.get("axis", -1), _FORWARD_KL)
    if name in _OF_UNITS:
        return Kind("probabilities", True, -1, _BINARY)
    return Kind("positive", True, -1, "") if name == "poisson" else None


def of_student(loss: Any, units: int | None = None) -> Kind | None:
    """Return the kind of student outputs that a distillation loss expects."""
    ours = _of_ours(loss, "student")
    if ours is not None:
        return ours
    kind = of_labels(loss, units)
    if kind is None or kind.values == "logits":
        return kind
    return kind._replace(hint=_BINARY if kind.per_unit else _FORWARD_KL)


def of_labels(loss: Any, units: int | None = None) -> Kind | None:
    """Return the kind of outputs that a label loss expects."""
    name, arguments = _function(loss, units)
    axis, per_unit = arguments.get("axis", -1), name in _OF_UNITS
    activation = "sigmoid" if per_unit else "softmax"
    if name == "poisson":
        return Kind("positive", True, -1, _ENDS.format("softplus"))
    if name in (*_OF_PROBABILITIES, "dice", "tversky"):
        # `axis` of dice and tversky isn't the class axis but that of the examples.
        axis = -1 if per_unit else axis
        return Kind("probabilities", per_unit, axis, _ENDS.format(activation))
    if not per_unit and name not in (*_OF_ROWS, *_OF_CLASS_IDS):
        return None
    if arguments.get("from_logits", False):
        return Kind("logits", per_unit, axis, _OF_LOGITS.format(activation))
    values = "positive" if name in _NORMALIZING else "probabilities"
    return Kind(values, per_unit, axis, _FROM_LOGITS.format(activation))


def of_combination(combine: str, activation: str) -> list[tuple[Any, Kind]]:
    """Return the kind of output that a mean over several models expects, as takers.

    The list of takers, as in `Look`, is empty if outputs may be of any kind.

    Args:
        combine: `"logits"` for the mean of the outputs, which may be of any kind, or
            `"probabilities"` for the mean of the activated outputs.
        activation: `"softmax"` or `"sigmoid"`: turns outputs into probabilities.
    """
    if combine != "probabilities":
        return []
    hint = f'Remove the model\'s final {activation}, or pass `combine="logits"`.'
    taker = SimpleNamespace(name='combine="probabilities"')
    return [(taker, Kind("logits", activation == "sigmoid", -1, hint))]


def is_known(loss: Any) -> bool:
    """Return whether a distillation loss surely compares outputs of the same meaning.

    That is known for the losses of this package and of Keras.
    """
    inner = innermost(loss)
    if reads_packed(inner):
        return False
    if isinstance(inner, DistillationLoss):
        return _is_as_made(inner, "keras_distill")
    return _function(loss)[0] != ""


def may_be_called_again(loss: Any) -> bool:
    """Return whether a loss may be called again: it has no state, and values by row.

    That is known for Keras' own losses only. Others may count their calls, draw random
    numbers, or check their arguments.
    """
    name, _ = _function(loss)
    return name != "" and name not in _OF_BATCHES


def warns_itself(loss: Any, output: Any) -> bool:
    """Return whether Keras itself warns that a loss reads a softmax as logits.

    On TensorFlow, Keras warns if it recognises the softmax. It then computes the loss
    without the softmax.
    """
    if not backend.is_tensorflow():
        return False
    dtype = keras.backend.standardize_dtype(output.dtype)
    if _function(loss)[0] not in _WARNING or loss.dtype != dtype:
        return False
    operation = None if hasattr(output, "numpy") else getattr(output, "op", None)
    shown = operation is not None and operation.type in ("Softmax", "Sigmoid")
    return shown or hasattr(output, "_keras_logits")


def _of_ours(loss: Any, whose: str) -> Kind | None:
    """Return the kind that a loss of this package expects; None for other losses."""
    if whose == "teacher" and reads_packed(loss):
        return None  # A packed output is neither logits nor probabilities.
    inner = innermost(loss)
    if isinstance(inner, SampledSoftTargets) and _is_as_made(inner, "keras_distill"):
        return Kind("logits", False, -1, _OF_SAMPLES)
    if isinstance(inner, LogitMSE) and _is_as_made(inner, "keras_distill"):
        return Kind("logits", False, inner.axis, _OF_LOGIT_MSE)
    ours = tempered(loss)
    if ours is None:
        return None
    logits = ours.takes_logits(whose)
    argument = "from_logits"
    if whose == "teacher" and ours.teacher_from_logits is not None:
        argument = "teacher_from_logits"
    return Kind(
        "logits" if logits else "probabilities",
        ours.activation == "sigmoid",
        ours.axis,
        f"Pass `{argument}=True`.",
    )


def tempered(loss: Any) -> TemperedLoss | None:
    """Return the loss of this package that is called on outputs; None for others."""
    loss = innermost(loss)
    is_ours = isinstance(loss, TemperedLoss) and _is_as_made(loss, "keras_distill")
    return loss if is_ours else None


def as_students(loss: Any, output: Any) -> Any:
    """Return a teacher's output converted to the kind of the student's output."""
    ours = tempered(loss)
    if ours is None or ours.takes_logits("teacher") == ours.takes_logits("student"):
        return output
    if not ours.takes_logits("teacher"):
        return ours.logits_of_probabilities(output)
    if ours.activation == "sigmoid":
        return ops.sigmoid(output)
    return ops.softmax(output, axis=ours.axis)


def name_of(loss: Any) -> str:
    """Return the name of a loss for messages."""
    return str(getattr(loss, "name", None) or _function(loss)[0])


def _function(loss: Any, units: int | None = None) -> tuple[str, dict[str, Any]]:
    """Return the name of the Keras function that a loss calls, and its arguments.

    The name is empty if the loss isn't a loss of Keras.
    """
    if isinstance(loss, str):
        loss = as_loss(loss)
    arguments: dict[str, Any] = {}
    if isinstance(loss, FunctionLoss):
        loss = loss.function
    elif isinstance(loss, keras.losses.Loss) and _is_as_made(loss, _KERAS):
        arguments = dict(getattr(loss, "_fn_kwargs", {}))
        loss = getattr(loss, "fn", None)
    while isinstance(loss, functools.partial):
        arguments = {**loss.keywords, **arguments}
        loss = loss.func
    if loss is crossentropy:
        # Labels may also be ids of classes. Both functions expect the same outputs.
        name = "binary_crossentropy" if units == 1 else "categorical_crossentropy"
        return name, arguments
    return (loss.__name__ if _is_of(loss, _KERAS) else ""), arguments


def _is_as_made(loss: Any, package: str) -> bool:
    """Return whether a loss uses only a package's own methods.

    A subclass with methods of its own may convert outputs first, and so expect another
    kind than its base class.
    """
    methods = (getattr(type(loss), name, None) for name in _TAKING)
    return all(_is_of(method, package) for method in methods if method is not None)


def _is_of(function: Any, package: str) -> bool:
    module = getattr(function, "__module__", None) or ""
    return f"{module}.".startswith((f"{package}.", f"{_KERAS}."))
