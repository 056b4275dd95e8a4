"""The variables that an object reads, found through its attributes and closures."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_distill.lending import Borrower

# Other objects and functions of these packages are skipped: they hold no variables, but
# refer to many other objects.
_OTHERS = ("builtins", "numpy", "tensorflow", "jax", "jaxlib", "torch", "keras")

_FUNCTIONS = (types.FunctionType, functools.partial)


def reached_variables(*objects: Any) -> list[keras.Variable]:
    """Return the variables that objects hold or refer to, each once.

    It searches Keras' layers, metrics and seed generators, containers, attributes of
    instances, and the closures, defaults and global names that functions refer to.

    Example:
        >>> layer = keras.layers.Dropout(0.1, seed=1)
        >>> len(reached_variables(lambda x: layer(x, training=True)))
        1
    """
    found: dict[int, keras.Variable] = {}
    # Objects are kept, so that no other gets the id of one that was seen.
    seen: dict[int, Any] = {}
    waiting = list(objects)
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, keras.Variable):
            found[id(each)] = each
        else:
            waiting += _parts(each)
    return list(found.values())


def _parts(each: Any) -> Iterator[Any]:
    """Return the objects that an object refers to and that may hold variables."""
    if isinstance(each, Borrower):
        return  # A trainer, such as the `model` of a callback, lists its own variables.
    if isinstance(each, keras.random.SeedGenerator):
        yield each.state
    elif isinstance(each, keras.Layer | keras.metrics.Metric):
        yield from each.variables
        # Keras doesn't list variables that functions read, as those of `Lambda` layers.
        parts = each._flatten_layers() if isinstance(each, keras.Layer) else [each]
        for part in parts:
            values = vars(part).values()
            yield from (value for value in values if isinstance(value, _FUNCTIONS))
    elif isinstance(each, Mapping):
        yield from each.values()
    elif isinstance(each, list | tuple | set | frozenset):
        yield from each
    elif isinstance(each, functools.partial):
        yield from (each.func, *each.args, *each.keywords.values())
    elif inspect.ismethod(each):
        yield from (each.__func__, each.__self__)
    elif _is_foreign(each):
        return
    elif inspect.isfunction(each):
        yield from _referred(each)
    elif hasattr(type(each), "teach"):
        yield from each.state  # Another teacher lists its own variables.
    elif hasattr(each, "__dict__") and not inspect.isclass(each):
        yield from vars(each).values()


def _referred(function: Callable[..., Any]) -> Iterator[Any]:
    closed = inspect.getclosurevars(function)
    names = {**closed.globals, **closed.nonlocals}
    yield from names.values()
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _is_foreign(each: Any) -> bool:
    module = each.__module__ if inspect.isfunction(each) else type(each).__module__
    return (module or "").partition(".")[0] in _OTHERS
