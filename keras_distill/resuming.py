"""What Keras leaves out of files although training can't go on without it."""

from typing import Any

import keras

from keras_distill import shared_weights


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


def models_config(
    student: keras.Model, teacher: keras.Model | None = None
) -> dict[str, Any]:
    """Return both models serialised, and what of them is the same."""
    config = {"student": keras.saving.serialize_keras_object(student)}
    if teacher is not None:
        config |= {
            "teacher": keras.saving.serialize_keras_object(teacher),
            "shared_layers": shared_weights.shared_layers(teacher, student),
            "shared_weights": shared_weights.count_shared(teacher, student),
        }
    return config


def with_models(
    config: dict[str, Any], custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a config that holds `models_config`'s result with the models made of it.

    Raises:
        ValueError: If they share weights otherwise than by whole layers.
    """
    config = dict(config)
    names, count = config.pop("shared_layers", []), config.pop("shared_weights", 0)
    for name in ("student", "teacher"):
        if name in config:
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
    taken_apart = isinstance(config.get("teacher"), keras.Sequential) or getattr(
        config.get("teacher"), "inputs", None
    )
    if names and taken_apart:
        config["teacher"] = shared_weights.with_layers_of(
            config["teacher"], config["student"], names
        )
    if count != shared_weights.count_shared(config.get("teacher"), config["student"]):
        raise ValueError(
            "Keras can't tell from a file how these two models share weights. Build "
            "both, make and compile the `Distiller`, and read the file with "
            f"`distiller.load_weights`. Received: {count} shared weights, in layers "
            f"{names} and deeper"
        )
    return config
