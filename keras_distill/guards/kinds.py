"""Which values a loss takes: logits, probabilities, or any."""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.losses import (
    DistillationLoss,
    LogitMSE,
    Standardized,
    TemperedLoss,
)
from keras_distill.losses.calling import FunctionLoss, as_loss, crossentropy

_KERAS = "keras.src.losses"
# Methods through which outputs come to a loss.
_TAKING = ("__call__", "call", "prepared", "logits")

_OF_ROWS = ("categorical_crossentropy", "categorical_focal_crossentropy")
_OF_CLASS_IDS = ("sparse_categorical_crossentropy",)
_OF_PROBABILITIES = ("kl_divergence", "categorical_generalized_cross_entropy")
_OF_UNITS = ("binary_crossentropy", "binary_focal_crossentropy", "dice", "tversky")
# They warn of a softmax or a sigmoid before `from_logits=True`.
_WARNING = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
)
# Their values aren't those of rows.
_OF_BATCHES = ("circle", "dice", "tversky")
# Their output is divided by its sum first, so that it may exceed 1.
_NORMALIZING = ("categorical_crossentropy", "categorical_focal_crossentropy")


class Kind(NamedTuple):
    """What a loss takes an output for.

    Args:
        values: `"logits"`, `"probabilities"`, or `"positive"`: a rate, or scores that
            are divided by their sum.
        per_unit: Whether each unit is one of its own, as of a sigmoid; otherwise the
            units of an example belong together, as of a softmax.
        axis: The class axis.
        hint: What a user can do where the output is of the other kind.
    """

    values: str
    per_unit: bool = False
    axis: int = -1
    hint: str = ""


def of_teacher(loss: Any, units: int | None = None) -> Kind | None:
    """Return what a distillation loss takes the teacher's output for.

    Args:
        loss: The loss, as `keras.Model.compile` takes it.
        units: How many units the output has, None where it isn't known.
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
    """Return what a distillation loss takes the student's output for."""
    ours = _of_ours(loss, "student")
    if ours is not None:
        return ours
    kind = of_labels(loss, units)
    if kind is None or kind.values == "logits":
        return kind
    return kind._replace(hint=_BINARY if kind.per_unit else _FORWARD_KL)


def of_labels(loss: Any, units: int | None = None) -> Kind | None:
    """Return what a label loss takes a model's output for."""
    name, arguments = _function(loss, units)
    axis, per_unit = arguments.get("axis", -1), name in _OF_UNITS
    activation = "sigmoid" if per_unit else "softmax"
    if name == "poisson":
        return Kind("positive", True, -1, _ENDS.format("softplus"))
    if name in (*_OF_PROBABILITIES, "dice", "tversky"):
        # the axes of the latter two are those of the examples
        axis = -1 if per_unit else axis
        return Kind("probabilities", per_unit, axis, _ENDS.format(activation))
    if not per_unit and name not in (*_OF_ROWS, *_OF_CLASS_IDS):
        return None
    if arguments.get("from_logits", False):
        return Kind("logits", per_unit, axis, _OF_LOGITS.format(activation))
    values = "positive" if name in _NORMALIZING else "probabilities"
    return Kind(values, per_unit, axis, _FROM_LOGITS.format(activation))


def of_combination(combine: str, activation: str) -> list[tuple[Any, Kind]]:
    """Return what the mean of several outputs takes each of them for.

    Args:
        combine: What the mean is taken of, `"logits"`, which may be anything, or
            `"probabilities"`.
        activation: What makes probabilities of outputs.
    """
    if combine != "probabilities":
        return []
    hint = f'Remove the model\'s final {activation}, or pass `combine="logits"`.'
    taker = SimpleNamespace(name='combine="probabilities"')
    return [(taker, Kind("logits", activation == "sigmoid", -1, hint))]


def is_known(loss: Any) -> bool:
    """Return whether a distillation loss compares outputs that mean the same."""
    inner = loss.loss if isinstance(loss, Standardized) else loss
    if isinstance(inner, DistillationLoss):
        return _is_as_made(inner, "keras_distill")
    return _function(loss)[0] != ""


def may_be_called_again(loss: Any) -> bool:
    """Return whether another call of a loss changes nothing, and is of rows alone.

    That is known of Keras' own losses. Another's may count its calls, draw random
    numbers, or check what it is given.
    """
    name, _ = _function(loss)
    return name != "" and name not in _OF_BATCHES


def warns_itself(loss: Any, output: Any) -> bool:
    """Return whether Keras warns where a loss takes an output's softmax for logits.

    It does where it knows the softmax itself, which it then leaves out.
    """
    dtype = keras.backend.standardize_dtype(output.dtype)
    if _function(loss)[0] not in _WARNING or loss.dtype != dtype:
        return False
    operation = None if hasattr(output, "numpy") else getattr(output, "op", None)
    shown = operation is not None and operation.type in ("Softmax", "Sigmoid")
    return shown or hasattr(output, "_keras_logits")


_FORWARD_KL = (
    "Pass `distillation_loss=keras_distill.losses.ForwardKL(temperature=4.0)`, which "
    "takes logits."
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
_FROM_LOGITS = (
    "Pass the loss as an object with `from_logits=True`, or end the model in a {}."
)
_ENDS = "End the model in a {}, or choose a loss of logits."


def _of_ours(loss: Any, whose: str) -> Kind | None:
    """Return what one of this package's losses takes, None for another's."""
    inner = loss.loss if isinstance(loss, Standardized) else loss
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
    """Return the loss of this package that takes the outputs, None for another's."""
    if isinstance(loss, Standardized):
        loss = loss.loss
    is_ours = isinstance(loss, TemperedLoss) and _is_as_made(loss, "keras_distill")
    return loss if is_ours else None


def as_students(loss: Any, output: Any) -> Any:
    """Return a teacher's output as what a distillation loss takes the student's for."""
    ours = tempered(loss)
    if ours is None or ours.takes_logits("teacher") == ours.takes_logits("student"):
        return output
    if not ours.takes_logits("teacher"):
        return ours.logits_of_probabilities(output)
    if ours.activation == "sigmoid":
        return ops.sigmoid(output)
    return ops.softmax(output, axis=ours.axis)


def name_of(loss: Any) -> str:
    """Return what messages call a loss."""
    return str(getattr(loss, "name", None) or _function(loss)[0])


def _function(loss: Any, units: int | None = None) -> tuple[str, dict[str, Any]]:
    """Return the name of Keras' function behind a loss, and its arguments.

    The name is empty where the loss isn't Keras' own.
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
        # whether the labels are ids isn't asked: both take no negative values
        name = "binary_crossentropy" if units == 1 else "categorical_crossentropy"
        return name, arguments
    return (loss.__name__ if _is_of(loss, _KERAS) else ""), arguments


def _is_as_made(loss: Any, package: str) -> bool:
    """Return whether a package's own methods take a loss's outputs.

    A subclass may convert them first, and so take others than its base does.
    """
    methods = (getattr(type(loss), name, None) for name in _TAKING)
    return all(_is_of(method, package) for method in methods if method is not None)


def _is_of(function: Any, package: str) -> bool:
    module = getattr(function, "__module__", None) or ""
    return f"{module}.".startswith((f"{package}.", f"{_KERAS}."))
