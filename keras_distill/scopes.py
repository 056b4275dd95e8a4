"""Keras' scopes: names that an error would leave open, and casts of variables."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scopes_kept() -> Iterator[None]:
    """Leave Keras' scopes as they were, also where what runs inside raises.

    Keras notes the name of a layer before TensorFlow refuses it in a graph, as it
    refuses "my model". All that the process makes later would be named under it.
    """
    from keras.src.backend.common import global_state

    stack = list(global_state.get_global_attribute("name_scope_stack") or [])
    context = global_state.get_global_attribute("current_call_ctx")
    try:
        yield
    finally:
        # In place: Keras' scopes that are open hold on to nothing else.
        global_state.get_global_attribute("name_scope_stack", [], True)[:] = stack
        global_state.set_global_attribute("current_call_ctx", context)


@contextmanager
def uncast() -> Iterator[None]:
    """Let code within a model's `call` read and assign variables in their own dtype.

    Keras casts the variables that a model of mixed precision reads in `call`.
    """
    from keras.src.backend import AutocastScope

    with AutocastScope(None):
        yield
