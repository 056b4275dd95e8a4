"""Seeds that layers draw in inference. Layers of augmentation draw unused ones."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.graphs import behind
from keras_distill.export.patching import replaced

# Keras' global generator. It is made when a layer without a generator draws.
_OWN = "global_seed_generator"


class Drawn(list[tuple[keras.random.SeedGenerator, Any]]):
    """The seeds of one trace: pairs of a generator and a seed that it returned."""

    def of_outputs(self) -> list[keras.random.SeedGenerator]:
        """Return the generators whose seeds reach an output, in the order of draws."""
        return [generator for generator, seed in self if _reaches_an_output(seed)]


@contextmanager
def frozen(drawn: Drawn) -> Iterator[None]:
    """Make this thread's seed generators return constants, with unchanged states.

    Keras' global generator isn't changed: its seeds differ from call to call, and the
    comparison of the outputs detects that.

    Args:
        drawn: The list to which the seeds are added.
    """
    from keras.src.backend.common import global_state

    thread = threading.get_ident()

    def giving_constants(original: Callable[..., Any]) -> Callable[..., Any]:
        def constant(generator: Any, ordered: bool = True) -> Any:
            own = global_state.get_global_attribute(_OWN)
            if threading.get_ident() != thread or generator is own:
                return original(generator, ordered)
            # Each seed has its own identity node, as converters merge equal constants.
            seed = tf.identity(tf.zeros(generator.state.shape, generator.state.dtype))
            drawn.append((generator, seed))
            return seed

        return constant

    with replaced(keras.random.SeedGenerator, {"next": giving_constants}):
        yield


@contextmanager
def kept(*models: keras.layers.Layer | None) -> Iterator[None]:
    """Restore the seeds of the models and Keras' global seed after the block."""
    from keras.src.backend.common import global_state

    own = global_state.get_global_attribute(_OWN)
    states = [
        generator.state
        for model in models
        if model is not None
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    ]
    if own is not None:
        states.append(own.state)
    before = [state.numpy() for state in states]
    try:
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        global_state.set_global_attribute(_OWN, own)


def _reaches_an_output(seed: Any) -> bool:
    """Return whether an output of the function that draws a seed depends on it."""
    dependent = behind([seed])
    return any(tensor.ref() in dependent for tensor in seed.graph.outputs)
