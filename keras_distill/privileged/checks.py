"""Checks of the arguments of an audit, which all run before the first fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import inputs
from keras_distill.privileged.folds import Array, Fold
from keras_distill.tuning.checks import check_counts, check_labelled
from keras_distill.tuning.fits import Rows

# Arguments of `Distiller.compile` that the audit doesn't accept: it trains the teacher
# itself, and all its rows have labels.
_REFUSED = ("label_mask", "teacher_loss", "teacher_metrics", "teacher_optimizer")


def check_functions(functions: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument that isn't a function."""
    for name, value in functions.items():
        if not callable(value) or isinstance(value, keras.Model):
            raise TypeError(
                f"`{name}` must be a function. Models, optimisers and losses serve one "
                f"fit, so that each fit makes its own. Received: {name}={value!r}"
            )


def check_numbers(counts: Mapping[str, int | None], seeds: int) -> None:
    """Raise ValueError for a number out of its range."""
    check_counts(counts)
    if seeds < 2:
        raise ValueError(
            f"`seeds` must be 2 or more, for an interval. Received: seeds={seeds}"
        )


def arrays(data: Any, privileged_features: Sequence[str]) -> Rows:
    """Return the rows as NumPy arrays.

    Raises:
        TypeError: If `privileged_features` is a string.
        ValueError: If labels or a privileged feature are missing, or if arrays have
            different numbers of rows.
    """
    check_labelled("data", data, "arrays with a label for each row")
    if not isinstance(data[0], Mapping):
        raise ValueError(
            "`data` must have a dict of columns as `x`, from which each model reads "
            f"its own. Received: x of {type(data[0]).__name__}"
        )
    if isinstance(privileged_features, str):
        raise TypeError(
            "`privileged_features` must be a list of names. Received: "
            f"privileged_features={privileged_features!r}"
        )
    unknown = [name for name in privileged_features if name not in data[0]]
    if unknown or not privileged_features:
        raise ValueError(
            "`privileged_features` must name a column of `x` or more. Received: "
            f"privileged_features={list(privileged_features)}, of which {unknown} "
            f"aren't among {sorted(data[0])}"
        )
    rows: Rows = keras.tree.map_structure(np.asarray, tuple(data))
    counts = {
        "/".join(map(str, path)): len(array) if array.ndim else 0
        for path, array in keras.tree.flatten_with_path(rows)
    }
    if len(set(counts.values())) != 1:
        raise ValueError(
            "All arrays of `data` must have the same number of rows. Received: "
            f"{counts}"
        )
    return rows


def one_per_row(name: str, values: Any, rows: int) -> Array | None:
    """Return `time` or `groups` as an array of one value per row; None for None."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.size != rows or array.shape[:1] != (rows,):
        raise ValueError(
            f"`{name}` must have a value for each row. Received: {name} of shape "
            f"{array.shape} for {rows} rows"
        )
    array = array.reshape(rows)
    _check_present(name, array)
    return array


def check_values(
    rows: Rows, privileged_features: Sequence[str], folds: Sequence[Fold]
) -> None:
    """Raise ValueError for missing values, or columns or labels that don't vary."""
    x, y = rows[:2]
    for part, name in zip(rows, ("x", "y", "sample_weight"), strict=False):
        for path, array in keras.tree.flatten_with_path(part):
            _check_present("/".join(map(str, (name, *path))), array)
    first = folds[0].train
    of_labels = [("y", *path) for path, _ in keras.tree.flatten_with_path(y)]
    labels = zip(of_labels, keras.tree.flatten(y), strict=True)
    columns = [(("x", name), x[name]) for name in privileged_features]
    for path, array in [*columns, *labels]:
        if (array[first] == array[0]).all():
            raise ValueError(
                "Privileged features and labels must vary in the rows that the first "
                "fold trains on, which are the earlier half. Leave the column out, or "
                f"take rows in which it varies. Received: {'/'.join(map(str, path))} "
                f"is {array[0]} in all of the first {len(first)} rows"
            )


def check_groups(groups: Array) -> None:
    """Raise ValueError if all test rows are of the same group."""
    if groups.max() < 1:
        raise ValueError(
            "`groups` must have two values or more among the test rows, which are the "
            "later half. Received: 1 group"
        )


def check_models(
    build_student: Callable[[], Any],
    build_teacher: Callable[[], Any],
    x: Mapping[str, Array],
    privileged_features: Sequence[str],
) -> Any:
    """Return a student, or raise an error if a model doesn't read the right columns."""
    student, teacher = build_student(), build_teacher()
    for name, model in (("build_student", student), ("build_teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise TypeError(f"`{name}` must return a Keras model. Received: {model!r}")
        inputs.select(model, x, withheld=privileged_features)
    inputs.check_not_declared(student, privileged_features, what="privileged features")
    declared = inputs.declared_names(teacher)
    unread = sorted(set(privileged_features) - set(declared or privileged_features))
    if unread:
        raise ValueError(
            "The teacher must declare all privileged features as inputs. Received: "
            f"inputs {declared} without {unread}"
        )
    return student


def check_compile(given: Any) -> None:
    """Raise an error unless the arguments of `Distiller.compile` suit an audit."""
    if not isinstance(given, Mapping) or given.get("loss") is None:
        raise TypeError(
            "`compile` must return a dict of arguments of `Distiller.compile`, with a "
            f"`loss`. Received: {given!r}"
        )
    refused = [name for name in _REFUSED if given.get(name) is not None]
    if refused:
        raise ValueError(
            f"`compile` must not return {refused}. The audit trains the teacher first, "
            "on `loss`. Leave rows without a label out of `data`. Received: "
            f"{dict(given)}"
        )
    alpha = given.get("alpha", 0.5)
    if not any(callable(it) or it for it in keras.tree.flatten(alpha)):
        raise ValueError(
            f"`alpha` must be above 0, or nothing is distilled. Received: alpha={alpha}"
        )


def _check_present(name: str, array: Array) -> None:
    missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(1, bool)
    if array.dtype.kind in "mM":
        missing = np.isnat(array)
    if missing.any():
        raise ValueError(
            f"`{name}` must not have missing values. Replace them by a value, and add "
            "a column that says where they were, or leave these rows out. Received: "
            f"NaN in {missing.reshape(len(array), -1).any(axis=1).sum()} of "
            f"{len(array)} rows"
        )
