"""Names of layers and weights that TensorFlow doesn't take for scopes of a graph."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_distill.export.patching import replaced

# What the name of a graph's node has to begin with, and what it can't hold.
_BEGIN = re.compile(r"[A-Za-z0-9.]")
_REFUSED = re.compile(r"[^A-Za-z0-9_./>-]")


@contextmanager
def any_name() -> Iterator[None]:
    """Let models and layers of any name be traced and saved, such as "my model".

    Keras takes nearly every name, and TensorFlow few as the scope of a graph's nodes.
    Nodes get a name that it takes. Layers and weights keep theirs.
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
