"""The teacher as a compiled function of batches, on any backend of Keras."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import backend
from keras_distill.batch import Batch
from keras_distill.targets.manifest import Output
from keras_distill.teachers.base import Teacher, TeacherLike, as_teacher, ask
from keras_distill.types import Nested, Tensor

# Returns the packed columns of all outputs for the inputs and labels of a batch.
Asked = Callable[[Nested, Nested], dict[str, Tensor]]


def outputs_of(given: TeacherLike, x: Nested, y: Nested) -> list[tuple[Any, str, Any]]:
    """Return path, name and tensor of each output of a teacher for a batch.

    Raises:
        TypeError: If the teacher changes while it teaches.
        ValueError: If it returns no outputs, or a structure that can't be stored.
    """
    teacher = as_teacher(given)
    if teacher.changes:
        raise TypeError(
            "A teacher that changes while a student trains can't be recorded. "
            f"Received: teacher={given!r}"
        )
    targets = ask(teacher, Batch(inputs=native(x), labels=native(y))).targets
    if targets is None:
        raise ValueError(
            "`teacher` must return outputs for each batch. Received: None from "
            f"teacher={given!r}"
        )
    return _named(given, targets)


def asked(given: TeacherLike, outputs: Sequence[Output], from_logits: bool) -> Asked:
    """Return a function that runs a teacher and packs its outputs.

    The function is compiled like Keras' `predict`.

    Args:
        given: The teacher.
        outputs: Its outputs.
        from_logits: Whether they are logits.
    """
    teacher = as_teacher(given)

    def function(x: Nested, y: Nested) -> dict[str, Tensor]:
        targets = ask(teacher, Batch(inputs=x, labels=y)).targets
        flat = [tensor for _, _, tensor in _named(given, targets)]
        return {
            f"{output.name}/{name}": value
            for output, tensor in zip(outputs, flat, strict=True)
            for name, value in output.stored.pack(tensor, from_logits).items()
        }

    # Other callables may compute with NumPy, which can't be compiled.
    may_be_eager = not isinstance(given, Teacher | keras.Layer)
    if backend.is_tensorflow():
        return _in_graph(function, given, may_be_eager)
    if backend.is_jax() and not may_be_eager:
        return _in_jax(function, teacher)
    return lambda x, y: function(native(x), native(y))


def native(structure: Nested) -> Nested:
    """Return tensors of a data set as tensors of the backend. Text isn't converted."""
    if backend.is_tensorflow():
        return structure

    def converted(leaf: Any) -> Any:
        if leaf is None:
            return None
        array = np.asarray(leaf)
        return leaf if array.dtype == object else keras.ops.convert_to_tensor(array)

    return keras.tree.map_structure(converted, structure)


def _in_graph(function: Asked, given: TeacherLike, may_be_eager: bool) -> Asked:
    import tensorflow as tf

    # As `predict` does.
    jit_compile = isinstance(given, keras.Model) and bool(given.jit_compile)
    compiled = tf.function(
        function, autograph=False, jit_compile=jit_compile, reduce_retracing=True
    )
    chosen: list[Asked] = []

    def call(x: Nested, y: Nested) -> dict[str, Tensor]:
        if not chosen:
            signature = tf.nest.map_structure(_any_rows, (x, y))
            try:
                chosen.append(compiled.get_concrete_function(*signature) and compiled)
            except Exception:
                if not may_be_eager:
                    raise
                # If the callable is at fault, it raises its error again here.
                chosen.append(function)
        return chosen[0](x, y)

    return call


def _any_rows(tensor: Tensor | None) -> Any:
    import tensorflow as tf

    if tensor is None:
        return None
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _in_jax(function: Asked, teacher: Teacher) -> Asked:
    import jax

    variables = list(teacher.state)

    @jax.jit
    def stateless(values: Sequence[Any], x: Nested, y: Nested) -> dict[str, Tensor]:
        state = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return function(x, y)

    def call(x: Nested, y: Nested) -> dict[str, Tensor]:
        values = [variable.value for variable in variables]
        columns: dict[str, Tensor] = stateless(
            values, native(_without_text(x)), native(y)
        )
        return columns

    return call


def _without_text(x: Nested) -> Nested:
    """Return inputs without keys of text, such as ids, which JAX can't compile."""
    if not isinstance(x, Mapping):
        return x
    kept = {key: _without_text(value) for key, value in x.items()}
    return {
        key: value
        for key, value in kept.items()
        if isinstance(value, Mapping) or np.asarray(value).dtype != object
    }


def _named(given: TeacherLike, targets: Nested) -> list[tuple[Any, str, Any]]:
    """Return path, name and tensor of each output."""
    if isinstance(targets, dict):
        found = [([key], str(key), targets[key]) for key in sorted(targets)]
    elif isinstance(targets, list | tuple):
        names = list(getattr(given, "output_names", None) or ())
        if len(names) != len(targets):
            names = [str(number) for number in range(len(targets))]
        found = [
            ([number], name, target)
            for number, (name, target) in enumerate(zip(names, targets, strict=True))
        ]
    else:
        found = [([], "output", targets)]
    for _, name, target in found:
        if not hasattr(target, "shape"):
            raise ValueError(
                "`teacher` must return a tensor, or a list or dict of tensors. "
                f"Received: output '{name}' of type {type(target).__name__}"
            )
    return found
