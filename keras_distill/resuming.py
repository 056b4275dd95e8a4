"""Saved trainers: configs, states of random numbers, and loading with a teacher."""

from typing import Any, Self

import keras

from keras_distill import shared_weights


class RandomStates(keras.Model):
    """A model that saves the states of its random numbers with its weights.

    So dropout continues after a resume as if training hadn't been stopped.
    """

    def save_own_variables(self, store: Any) -> None:
        """Write the states."""
        for i, state in enumerate(self._random_states()):
            store[str(i)] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store: Any) -> None:
        """Read the states."""
        for i, state in enumerate(self._random_states()):
            # Older files lack the state of a layer that was added later.
            if str(i) in store.keys():
                state.assign(store[str(i)])

    def _random_states(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.non_trainable_weights}
        # Not `non_trainable_variables`: on JAX, they include the teacher's.
        variables = self.variables
        if self.trainable:
            variables = [v for v in variables if not v.trainable]
        return [v for v in variables if id(v) not in weights]


class SavedCompilation(RandomStates):
    """A trainer whose files hold the arguments of its `compile`."""

    alpha: Any
    # What `compile` set up; its `config` has the arguments that Keras doesn't know.
    _setup: Any

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile`, serialised."""
        config: dict[str, Any] = super().get_compile_config()
        if config:
            ours = {**self._setup.config, "alpha": self.alpha}
            config |= keras.saving.serialize_keras_object(ours)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with `get_compile_config`'s result."""
        self.compile(**keras.saving.deserialize_keras_object(config))


class SavedDistiller(SavedCompilation):
    """A distiller that is saved with its compiled state, and loaded with a teacher."""

    student: keras.Model
    teacher: Any
    privileged_features: tuple[str, ...]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with the teacher only if it changes."""
        changes = self.teacher_in_training or self.following_teacher
        hints = self._lent.hints.settled()
        return {
            **super().get_config(),
            **models_config(self.student, self.teacher if changes else None),
            "privileged_features": list(self.privileged_features),
            "hints": keras.saving.serialize_keras_object(hints),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        """Build a distiller from `get_config`'s result."""
        config = with_models(config, custom_objects)
        if "hints" in config:
            config["hints"] = keras.saving.deserialize_keras_object(
                config["hints"], custom_objects=custom_objects
            )
        return cls(**config)

    @classmethod
    def load(cls, filepath: Any, teacher: Any = None, **kwargs: Any) -> Self:
        """Load a saved distiller with its compiled state, and set its teacher.

        Args:
            filepath: A `.keras` file that `distiller.save` wrote.
            teacher: The teacher. The file holds it only if it trains or follows the
                student.
            **kwargs: Arguments of `keras.saving.load_model`.

        Raises:
            TypeError: If the file holds another kind of model.
        """
        distiller = keras.saving.load_model(filepath, **kwargs)
        if not isinstance(distiller, cls):
            raise TypeError(
                f"The file must hold a `Distiller`. Received: {filepath}, which holds "
                f"a {type(distiller).__name__}"
            )
        if teacher is not None:
            distiller.teacher = teacher
        return distiller


def models_config(
    student: keras.Model, teacher: keras.Model | None = None
) -> dict[str, Any]:
    """Return both models serialised, and the layers and weights that they share."""
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
    """Return a config with models in place of `models_config`'s serialised ones.

    Raises:
        ValueError: If the models share weights, but not by whole layers.
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
