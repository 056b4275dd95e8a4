"""Keras' scopes: open names, casts of variables, and inference within training."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import ops


@contextmanager
def scopes_kept() -> Iterator[None]:
    """Restore Keras' scopes after the block, also if it raises an error.

    Keras opens the scope of a layer's name before TensorFlow refuses the name in a
    graph, as it refuses "my model". All later names in the process would begin with it.
    """
    from keras.src.backend.common import global_state

    stack = list(global_state.get_global_attribute("name_scope_stack") or [])
    context = global_state.get_global_attribute("current_call_ctx")
    try:
        yield
    finally:
        # In place, because open scopes of Keras refer to this list.
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


@contextmanager
def inference(*models: keras.Model) -> Iterator[None]:
    """Let code run models as in inference, also within the `call` of a training model.

    Layers that don't get `training` act as in inference. No gradient reaches the
    models' variables, and values that layers assign to them are dropped.
    """
    from keras.src.backend.common import global_state

    with uncast():
        values = [(v, ops.stop_gradient(v.value)) for m in models for v in m.variables]
    context = global_state.get_global_attribute("current_call_ctx")
    global_state.set_global_attribute("current_call_ctx", None)
    try:
        with keras.StatelessScope(state_mapping=values):
            yield
    finally:
        global_state.set_global_attribute("current_call_ctx", context)
