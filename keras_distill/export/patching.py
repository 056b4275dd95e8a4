"""Attributes of Keras and TensorFlow that are replaced while a model is traced."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# A replacement affects all threads, so only one thread at a time may replace
# attributes. Within a block, that thread may replace more.
_LOCK = threading.RLock()


@contextmanager
def replaced(
    owner: Any, attributes: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
    """Replace attributes of a module or a class; put them back afterwards.

    Args:
        owner: The module or class.
        attributes: Name to the function that makes the replacement from the original.
    """
    with _LOCK:
        before = {name: getattr(owner, name) for name in attributes}
        try:
            for name, make in attributes.items():
                setattr(owner, name, make(before[name]))
            yield
        finally:
            for name, original in before.items():
                setattr(owner, name, original)
