"""Fingerprints of the content of rows, and of the teacher that was recorded."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.targets import elements
from keras_distill.teachers.base import TeacherLike, as_teacher
from keras_distill.types import Nested, Tensor

HASH = "uint64"


def of_rows(leaves: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Return a 64-bit fingerprint of each row's content, as int64.

    It depends on the names and the values of all leaves, not on the shape of a row.

    Args:
        leaves: Tensors of a batch by name, of numbers or text.
    """
    import tensorflow as tf

    parts = []
    for name, leaf in leaves:
        # Text of shape (rows,) has another fingerprint than text of shape (rows, 1).
        of_values = tf.fingerprint(tf.reshape(leaf, (tf.shape(leaf)[0], -1)))
        of_name = tf.fingerprint(tf.constant([name]))
        parts += [tf.broadcast_to(of_name, tf.shape(of_values)), of_values]
    return tf.bitcast(tf.fingerprint(tf.concat(parts, axis=1)), tf.int64)


def of_inputs(x: Nested, keys: Sequence[str]) -> Tensor:
    """Return the fingerprint of each row's content under keys of the inputs, as int64.

    Raises:
        ValueError: If the inputs lack one of the keys.
    """
    return of_rows(elements.chosen(x, keys, argument="hash_keys"))


def of_ids(ids: Tensor) -> Tensor:
    """Return ids as int64: whole numbers as they are, text by its fingerprint."""
    import tensorflow as tf

    if ids.dtype == tf.string:
        flat = tf.reshape(ids, (-1, 1))
        return tf.bitcast(tf.fingerprint(flat), tf.int64)
    return tf.cast(tf.reshape(ids, (-1,)), tf.int64)


def shown(fingerprint: int | np.integer[Any]) -> str:
    """Return a fingerprint as 16 hexadecimal digits."""
    return f"{int(fingerprint) % 2**64:016x}"


def of_teacher(given: TeacherLike) -> dict[str, str]:
    """Return what identifies a teacher: its class, config and weights.

    A callable without weights is identified by its name only.
    """
    teacher = as_teacher(given)
    # A function has a name of its own.
    named: Any = given if hasattr(given, "__qualname__") else type(given)
    found = {"class": f"{named.__module__}.{named.__qualname__}"}
    if isinstance(given, keras.Layer):
        found["config"] = _of_config(given)
    # Evaluation changes the state of metrics, but not the teacher's outputs.
    metrics = {id(variable) for variable in getattr(given, "metrics_variables", ())}
    weights = [variable for variable in teacher.state if id(variable) not in metrics]
    if weights:
        found["weights"] = _of_weights(weights)
    return found


def _of_weights(variables: Sequence[keras.Variable]) -> str:
    digest = hashlib.sha256()
    for variable in variables:
        if _is_seed(variable):
            continue
        array = keras.ops.convert_to_numpy(variable.value)
        digest.update(f"{variable.dtype}{tuple(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _is_seed(variable: keras.Variable) -> bool:
    """Return whether a variable is the state of a random generator."""
    return str(variable.dtype).startswith("uint") and "seed" in variable.path


def _of_config(layer: keras.Layer) -> str:
    """Return the hash of a layer's config, without the names that Keras numbers."""
    try:
        config = json.dumps(
            keras.saving.serialize_keras_object(layer),
            sort_keys=True,
            # A repr may hold an address, another one in each process.
            default=lambda given: type(given).__qualname__,
        )
    except Exception:
        # Not every layer has a config. Its class and weights remain.
        return "none"
    names: dict[str, str] = {}
    found = _renamed(json.loads(config), names)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _renamed(config: Any, names: dict[str, str]) -> Any:
    """Return a config in which objects are named by the order of their appearance.

    Keras numbers the names of layers: the same code makes `dense`, or `dense_3` if
    other layers were made before.
    """
    _collect(config, names)
    return _replaced(config, names)


def _collect(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, dict):
        name = config.get("name")
        if isinstance(name, str):
            names.setdefault(name, f"name {len(names)}")
        for item in config.values():
            _collect(item, names)
    if isinstance(config, list):
        for item in config:
            _collect(item, names)


def _replaced(config: Any, names: dict[str, str]) -> Any:
    if isinstance(config, dict):
        return {
            key: value
            if key in ("class_name", "module", "registered_name")
            else _replaced(value, names)
            for key, value in config.items()
            if key not in ("build_config", "compile_config")
        }
    if isinstance(config, list):
        return [_replaced(item, names) for item in config]
    return names.get(config, config) if isinstance(config, str) else config
