"""Functions that adapt a teacher's inputs and outputs, and orders of classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.types import Nested, Tensor

# A function of a tensor, or of a structure of tensors.
Adapter = Callable[[Any], Any]


class ClassOrder:
    """Picks a teacher's logits or probabilities in the order of a student's classes.

    Args:
        order: The teacher's class index for each of the student's classes. Classes of
            the teacher that the student lacks are left out.
        name: The name of the argument, for error messages.

    Raises:
        TypeError: If an index isn't a whole number.
        ValueError: If `order` is empty, has a negative index, or has an index twice.
            When called, if the teacher has no class of an index, or several outputs.

    Example:
        >>> logits = ClassOrder([2, 0])(keras.ops.array([[1.0, 2.0, 3.0]]))
        >>> keras.ops.convert_to_numpy(logits).tolist()
        [[3.0, 1.0]]
    """

    def __init__(
        self, order: Sequence[int] | np.ndarray[Any, Any], *, name: str = "outputs"
    ) -> None:
        self.name = name
        self.order = self._checked(order)

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the outputs of the student's classes, along the last axis."""
        if keras.tree.is_nested(outputs):
            raise ValueError(
                f"`{self.name}` is an order of classes of one output, and the teacher "
                "has several. Pass a dict of orders by the name of the output, or a "
                f"function of all. Received: {self.name}={list(self.order)}"
            )
        classes = outputs.shape[-1]
        beyond = [index for index in self.order if classes and index >= classes]
        if beyond:
            raise ValueError(
                f"`{self.name}` must hold indices of the teacher's {classes} classes, "
                f"from 0 to {classes - 1}: for each class of the student, that of the "
                f"teacher. Received: {self.name}={list(self.order)}, with {beyond}"
            )
        return ops.take(outputs, list(self.order), axis=-1)

    def check_length(self, student: Tensor) -> None:
        """Raise ValueError if a student's output has another number of classes."""
        if keras.tree.is_nested(student) or student.shape[-1] in (
            None,
            len(self.order),
        ):
            return
        raise ValueError(
            f"`{self.name}` must hold an index for each of the student's "
            f"{student.shape[-1]} classes. Received: {self.name}={list(self.order)}, "
            f"{len(self.order)} indices"
        )

    def _checked(self, order: Any) -> tuple[int, ...]:
        """Return the indices as a tuple of ints."""
        received = f"Received: {self.name}={order!r}"
        indices = np.asarray(order)
        if indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"`{self.name}` must hold the teacher's class index for each of the "
                f"student's classes, at least one. {received}"
            )
        if indices.dtype.kind not in "iu":
            raise TypeError(
                f"`{self.name}` must hold indices of classes, whole numbers. {received}"
            )
        values, counts = np.unique(indices, return_counts=True)
        if values[0] < 0:
            raise ValueError(
                f"`{self.name}` must hold indices of classes from 0 on. {received}, "
                f"with {values[values < 0].tolist()}"
            )
        if (counts > 1).any():
            raise ValueError(
                f"`{self.name}` must hold each class of the teacher at most once. For "
                "classes that are one for the teacher, pass a function instead. "
                f"{received}, with {values[counts > 1].tolist()} more than once"
            )
        return tuple(int(index) for index in indices)


def as_adapters(name: str, given: Any, *, may_be_orders: bool = False) -> Any:
    """Return an argument in which each sequence of classes became a `ClassOrder`.

    Args:
        name: The name of the argument, for error messages.
        given: None, a function, a sequence, or a dict of functions and sequences.
        may_be_orders: Whether sequences of classes are permitted.

    Raises:
        TypeError: If `given` is or holds something else.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {
            key: as_adapters(f"{name}[{key!r}]", item, may_be_orders=may_be_orders)
            for key, item in given.items()
        }
    if may_be_orders and isinstance(given, list | tuple | range | np.ndarray):
        return ClassOrder(given, name=name)
    if callable(given):
        return given
    raise TypeError(
        f"`{name}` must be a function or a Keras layer. Received: {name}={given!r} of "
        f"type {type(given).__name__}"
    )


def images_as_floats(x: Nested) -> Nested:
    """Return inputs with uint8 tensors of three axes or more cast to float32."""

    def cast(tensor: Tensor) -> Tensor:
        if "uint8" not in str(getattr(tensor, "dtype", None)):
            return tensor
        return ops.cast(tensor, "float32") if len(tensor.shape) >= 3 else tensor

    return keras.tree.map_structure(cast, x)


def serialized(name: str, adapters: Any) -> Any:
    """Return the config of adapters that `as_adapters` returned.

    Raises:
        TypeError: If a function is neither a Keras layer nor registered.
    """
    if adapters is None:
        return None
    if isinstance(adapters, Mapping):
        return {
            key: serialized(f"{name}[{key!r}]", item) for key, item in adapters.items()
        }
    if isinstance(adapters, ClassOrder):
        return list(adapters.order)
    # Files hold the name of a function, or of another object's class.
    named = adapters if hasattr(adapters, "__name__") else type(adapters)
    found = keras.saving.get_registered_object(keras.saving.get_registered_name(named))
    if not isinstance(adapters, keras.Layer) and found is not named:
        raise TypeError(
            "An adapted teacher can be saved where its functions are Keras layers, or "
            "are registered with `keras.saving.register_keras_serializable`. Received: "
            f"{name}={adapters!r}"
        )
    return keras.saving.serialize_keras_object(adapters)
