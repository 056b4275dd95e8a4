"""The elements of data sets: inputs, labels, weights, and keys that are added."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_distill.inputs import TENSOR
from keras_distill.types import Nested, Tensor


def of_arguments(parts: tuple[Any, ...]) -> Any:
    """Return an element, given the arguments of a function that a data set maps."""
    return parts if len(parts) > 1 else parts[0]


def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `tf.data` maps without converting its code."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)  # type: ignore[no-any-return]


def ahead(dataset: Any) -> Any:
    """Return a data set whose next batch is made while a step trains."""
    import tensorflow as tf

    # The wait for answers has a thread of its own. TensorFlow has one thread a core,
    # and the training needs them all.
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1 + (os.cpu_count() or 1)
    return dataset.prefetch(1).with_options(options)


def inputs_of(element: Any) -> Nested:
    """Return `x` of an element `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
    return element[0] if isinstance(element, tuple) else element


def labels_of(element: Any) -> Nested:
    """Return `y` of an element, or None if it has no labels."""
    return element[1] if isinstance(element, tuple) and len(element) > 1 else None


def with_inputs(element: Any, x: Nested) -> Any:
    """Return an element with other inputs."""
    return (x, *element[1:]) if isinstance(element, tuple) else x


def as_dict(x: Nested) -> dict[str, Any]:
    """Return inputs as a dict. A single tensor gets the key `"inputs"`."""
    return dict(x) if isinstance(x, Mapping) else {TENSOR: x}


def leaves(x: Nested, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in inputs, with their keys joined by `/`, in sorted order."""
    given = as_dict(x) if not prefix else x
    for key in sorted(given):
        path = f"{prefix}{key}"
        if isinstance(given[key], Mapping):
            yield from leaves(given[key], f"{path}/")
        else:
            yield path, given[key]


def chosen(x: Nested, keys: Sequence[str], *, argument: str) -> list[tuple[str, Any]]:
    """Return the named tensors of inputs.

    Raises:
        ValueError: If the inputs lack one of the keys.
    """
    found = dict(leaves(x))
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(
            f"The data set must hold the keys of `{argument}` in its inputs. Received: "
            f"{argument}={list(keys)}, a data set without {missing}, with "
            f"{sorted(found)}"
        )
    return [(key, found[key]) for key in sorted(keys)]
