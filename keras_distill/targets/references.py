"""References to teachers and data sets, which each process loads for itself."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_distill.teachers.base import Teacher, TeacherLike

# The path of a `.keras` file, a function that returns a teacher, or its reference.
TeacherReference = str | Path | Callable[[], TeacherLike]
# A function that returns a data set, or its reference.
DatasetReference = str | Callable[..., Any]

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PICKLED = (
    "`module:function`, or a function. Each worker loads it for itself, so that it "
    "can't be an object"
)


def checked_teacher(teacher: Any) -> TeacherReference:
    """Return the reference of a teacher, with an absolute path.

    Raises:
        TypeError: If it is a teacher itself.
        ValueError: If it is text of another form.
    """
    if isinstance(teacher, Path) or _is_file(teacher):
        return str(Path(teacher).expanduser().absolute())
    if isinstance(teacher, keras.Layer | Teacher):
        raise TypeError(
            f"`teacher` must be the path of a `.keras` file, {_PICKLED}. Received: an "
            f"object of {type(teacher).__name__}"
        )
    _check("teacher", teacher, "the path of a `.keras` file, ")
    return teacher  # type: ignore[no-any-return]


def checked_dataset(dataset: Any) -> DatasetReference:
    """Return the reference of a data set.

    Raises:
        TypeError: If it is a data set itself.
        ValueError: If it is text of another form.
    """
    _check("dataset", dataset, "")
    return dataset  # type: ignore[no-any-return]


def teacher_of(reference: TeacherReference) -> TeacherLike:
    """Return the teacher of a reference. Files are loaded in safe mode."""
    if isinstance(reference, str | Path) and _is_file(str(reference)):
        from keras_distill.export.loading import load_model

        teacher: TeacherLike = load_model(reference)
    else:
        teacher = _function("teacher", reference)()
    return teacher


def dataset_of(reference: DatasetReference) -> Any:
    """Return a data set, or a function of a range of rows, as for `Recorder`."""
    function = _function("dataset", reference)
    names = inspect.signature(function).parameters
    return function if {"start", "stop"} <= set(names) else function()


def whole(dataset: Any) -> Any:
    """Return the whole data set, given the result of `dataset_of`."""
    return dataset(start=0, stop=None) if callable(dataset) else dataset


def _is_file(reference: Any) -> bool:
    return isinstance(reference, str) and reference.endswith(".keras")


def _check(argument: str, value: Any, or_else: str) -> None:
    text = isinstance(value, str)
    if (text and not FUNCTION.fullmatch(value)) or not (text or callable(value)):
        raise (ValueError if text else TypeError)(
            f"`{argument}` must be {or_else}{_PICKLED}. Received: {argument}="
            + (repr(value) if text else f"an object of {type(value).__name__}")
        )


def _function(argument: str, reference: Any) -> Callable[..., Any]:
    if isinstance(reference, str):
        return _imported(argument, reference)
    function: Callable[..., Any] = reference
    return function


def _imported(argument: str, reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"`{argument}` must be a function that each worker can import. Received: "
            f"{reference!r} ({type(error).__name__}: {error})"
        ) from error
    if not callable(function):
        raise TypeError(
            f"`{argument}` must be a function. Received: {reference!r}, an object of "
            f"{type(function).__name__}"
        )
    return function
