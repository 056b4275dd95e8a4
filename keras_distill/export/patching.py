"""Attributes of Keras that are replaced while a model is traced."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# All threads see what is replaced, so one thread at a time may replace it. What runs
# inside may replace more.
_LOCK = threading.RLock()


@contextmanager
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Replace attributes of a module or a class; put them back afterwards."""
    with _LOCK:
        before = {name: getattr(owner, name) for name in attributes}
        try:
            for name, value in attributes.items():
                setattr(owner, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(owner, name, value)
