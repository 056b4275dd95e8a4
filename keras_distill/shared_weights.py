"""Searches for weights that two models share."""

from collections.abc import Sequence
from typing import Any

import keras


def shared_weights(teacher: Any, student: keras.Model) -> Sequence[keras.Variable]:
    """Return the student's trainable weights that the teacher holds too."""
    if not isinstance(teacher, keras.Layer):
        return []
    held = {id(weight) for weight in teacher.weights}
    return [weight for weight in student.trainable_weights if id(weight) in held]


def shared_state(teacher: Any, student: keras.Model) -> Sequence[keras.Variable]:
    """Return the variables that the student's training changes and the teacher holds.

    They are trainable weights, and statistics of layers, such as moving averages.
    """
    if not isinstance(teacher, keras.Layer):
        return []
    held = {id(weight) for weight in teacher.weights}
    layers = student._flatten_layers()
    training = [layer for layer in layers if layer.trainable and not layer._layers]
    kept = [weight for layer in training for weight in layer.non_trainable_weights]
    return [w for w in (*student.trainable_weights, *kept) if id(w) in held]


def count_shared(teacher: keras.Model | None, student: keras.Model) -> int:
    """Return how many weights both models hold."""
    held = {id(weight) for weight in student.weights}
    return sum(id(w) in held for w in (teacher.weights if teacher else ()))


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
