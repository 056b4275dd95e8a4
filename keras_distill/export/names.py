"""Names of layers and weights that TensorFlow refuses as scopes of a graph."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_distill.export.patching import replaced

# The first characters that a node's name may have, and those that it can't contain.
_BEGIN = re.compile(r"[A-Za-z0-9.]")
_REFUSED = re.compile(r"[^A-Za-z0-9_./>-]")


@contextmanager
def any_name() -> Iterator[None]:
    """Allow any names of models and layers in tracing and saving, e.g. "my model".

    Keras allows nearly every name, but TensorFlow allows few as scopes of a graph's
    nodes. The nodes get an allowed name. Layers and weights keep their names.
    """
    with replaced(tf.Graph, {"name_scope": _any_scope}):
        yield


def _any_scope(name_scope: Callable[..., Any]) -> Callable[..., Any]:
    def any_scope(graph: Any, name: str | None) -> Any:
        return name_scope(graph, _taken(name) if name else name)

    return any_scope


def _taken(name: str) -> str:
    name = _REFUSED.sub("_", name)
    return name if _BEGIN.match(name) else f"layer{name}"
