"""What Keras leaves out of files although training can't go on without it."""

from collections.abc import Sequence
from typing import Any

import keras


class RandomStates(keras.Model):
    """A model that saves the states of its random numbers with its weights.

    So dropout goes on after a resume as if training hadn't been stopped.
    """

    def save_own_variables(self, store: Any) -> None:
        """Write the states."""
        for i, state in enumerate(self._random_states()):
            store[str(i)] = state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read the states."""
        for i, state in enumerate(self._random_states()):
            if str(i) in store.keys():  # a layer without weights may be an addition
                state.assign(store[str(i)])

    def _random_states(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.non_trainable_weights}
        return [v for v in self.non_trainable_variables if id(v) not in weights]


def shared_layers(model: keras.Model, other: keras.Model) -> list[str]:
    """Return the names of the layers that both models hold."""
    held = {id(layer) for layer in other.layers}
    return [layer.name for layer in model.layers if id(layer) in held]


def with_layers_of(
    model: keras.Model, other: keras.Model, names: Sequence[str]
) -> keras.Model:
    """Return `model` with the named layers of `other` in the place of its own.

    Files of Keras don't say which layers two models share.
    """

    def chosen(layer: keras.Layer) -> keras.Layer:
        return other.get_layer(layer.name) if layer.name in names else layer

    return keras.models.clone_model(model, clone_function=chosen)
