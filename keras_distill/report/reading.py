"""Models and data of a comparison, and each model's outputs for the same rows."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill import inputs
from keras_distill.export.loading import load_served
from keras_distill.export.quiet import no_remarks
from keras_distill.guards.heads import linear_outputs
from keras_distill.report.tasks import Array
from keras_distill.types import Nested

tree = keras.tree


class Read(NamedTuple):
    """A model and its outputs.

    Args:
        model: The model; of a trainer, the model that it trains.
        inputs: The part of the rows' inputs that the model reads.
        outputs: Its outputs by name; a single output is named "".
        linear: Whether each output is known to be logits.
        seconds: How long `predict` took, tracing included.
    """

    model: keras.Model
    inputs: Nested
    outputs: dict[str, Array]
    linear: dict[str, bool]
    seconds: float


def rows_of(data: Any) -> tuple[Nested, Nested]:
    """Return inputs and labels as arrays, whole.

    Args:
        data: `(x, y)` of arrays, or an iterable of such batches, e.g. a
            `tf.data.Dataset`.

    Raises:
        ValueError: If there are no rows or no labels, or sample weights; or if arrays
            have different numbers of rows.
    """
    if isinstance(data, tuple):
        batches = [data]
    elif isinstance(data, np.ndarray | Mapping | keras.KerasTensor):
        raise ValueError(
            "`data` must be `(x, y)`, or a data set of such batches. Received: "
            f"{type(data).__name__}"
        )
    else:
        batches = list(data)
    if not batches:
        raise ValueError("`data` must have rows. Received: an empty data set")
    whole = [_arrays(*keras.utils.unpack_x_y_sample_weight(batch)) for batch in batches]
    joined = whole[0]
    if len(whole) > 1:
        joined = tree.map_structure(lambda *parts: np.concatenate(parts), *whole)
    x, y = joined
    sizes = {len(array) for array in tree.flatten(joined)}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "`data` must have rows, and as many labels as inputs. Received: arrays of "
            f"{sorted(sizes)} rows"
        )
    return x, y


def _arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Nested, Nested]:
    if y is None:
        raise ValueError(
            "`data` must have labels, as `(x, y)`: without them nothing tells which "
            "model is right. Received: inputs alone"
        )
    if sample_weight is not None:
        raise ValueError(
            "`data` must be `(x, y)`: all rows count alike. Received: sample weights. "
            "Leave out the rows that don't count"
        )
    both: tuple[Nested, Nested] = tree.map_structure(keras.ops.convert_to_numpy, (x, y))
    return both


def read(name: str, model: Any, x: Nested, batch_size: int) -> Read:
    """Run a model over all rows.

    Args:
        name: Its name in the comparison, for errors.
        model: A Keras model, a trainer such as a `Distiller`, or a `.keras` file.
        x: The inputs of all rows. A dict is read by name.
        batch_size: The rows of a batch.

    Raises:
        ValueError: If the model can't read the rows, or returns NaN or infinity.
    """
    if not isinstance(model, keras.Model | str | os.PathLike):
        raise TypeError(
            "`models` must hold Keras models, or paths of `.keras` files. Received: "
            f"{name!r} of type {type(model).__name__}"
        )
    model, selected = load_served(model)
    try:
        given = inputs.select(model, selected(x))
        begin = time.perf_counter()
        with no_remarks():
            predicted = model.predict(given, batch_size=batch_size, verbose=0)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"The model {name!r} can't read `data`: {error}. Compare models of the "
            "same data; a dict may hold the inputs of all of them"
        ) from error
    seconds = time.perf_counter() - begin
    outputs = dict(_named(model, predicted))
    for output, values in outputs.items():
        if not np.all(np.isfinite(values)):
            bad = int(np.sum(~np.isfinite(values)))
            where = f" in its output {output!r}" if output else ""
            raise ValueError(
                f"The model {name!r} returns {bad} values that are NaN or infinite"
                f"{where}, of {values.size}. Look at its weights and at these inputs"
            )
    linear = linear_outputs(model)
    known = dict.fromkeys(outputs, False)
    if linear is not None:
        known |= {key: bool(value) for key, value in _named(model, linear)}
    return Read(model, given, outputs, known, seconds)


def labels_of(y: Nested, names: list[str]) -> dict[str, Array]:
    """Return labels by the name of their output.

    Raises:
        ValueError: If they aren't labels of these outputs.
    """
    if not tree.is_nested(y):
        y = {names[0]: y} if len(names) == 1 else y
    elif isinstance(y, list | tuple) and len(y) == len(names):
        y = dict(zip(names, y, strict=True))
    if isinstance(y, Mapping) and len(y) == len(names) == 1:
        y = {names[0]: next(iter(y.values()))}
    if not isinstance(y, Mapping) or set(y) != set(names):
        received = sorted(y) if isinstance(y, Mapping) else type(y).__name__
        raise ValueError(
            f"Labels must be given for each of the outputs {names}. Received: "
            f"{received}"
        )
    return {name: np.asarray(y[name]) for name in names}


def _named(model: keras.Model, outputs: Nested) -> Iterator[tuple[str, Any]]:
    """Yield a model's outputs with their names."""
    if isinstance(outputs, Mapping):
        yield from outputs.items()
    elif isinstance(outputs, list | tuple):
        names = getattr(model, "output_names", None) or range(len(outputs))
        yield from zip(map(str, names), outputs, strict=True)
    else:
        yield "", outputs
