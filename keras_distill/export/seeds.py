"""Seeds that layers draw in inference, as layers of augmentation do to no effect."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.graphs import behind
from keras_distill.export.patching import replaced

# Keras' own generator, made when a layer without one draws.
_OWN = "global_seed_generator"


class Drawn(list[tuple[keras.random.SeedGenerator, Any]]):
    """The seeds of one trace: pairs of a generator and the seed that it gave."""

    def of_outputs(self) -> list[keras.random.SeedGenerator]:
        """Return the generators whose seeds reach an output, in the order of draws."""
        return [generator for generator, seed in self if _reaches_an_output(seed)]


@contextmanager
def frozen(drawn: Drawn) -> Iterator[None]:
    """Let this thread's seed generators give constants, and keep their states.

    Keras' own generator is left as it is: what it draws differs from call to call, and
    comparing the outputs shows that.

    Args:
        drawn: Gets the seeds.
    """
    from keras.src.backend.common import global_state

    thread = threading.get_ident()

    def giving_constants(original: Callable[..., Any]) -> Callable[..., Any]:
        def constant(generator: Any, ordered: bool = True) -> Any:
            own = global_state.get_global_attribute(_OWN)
            if threading.get_ident() != thread or generator is own:
                return original(generator, ordered)
            # The identity is the seed's own: converters merge equal constants.
            seed = tf.identity(tf.zeros(generator.state.shape, generator.state.dtype))
            drawn.append((generator, seed))
            return seed

        return constant

    with replaced(keras.random.SeedGenerator, {"next": giving_constants}):
        yield


@contextmanager
def kept(*models: keras.layers.Layer | None) -> Iterator[None]:
    """Put the seeds of the models and Keras' own back, whatever calls inside draw."""
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
    """Whether a seed reaches an output of the function that draws it."""
    dependent = behind([seed])
    return any(tensor.ref() in dependent for tensor in seed.graph.outputs)
