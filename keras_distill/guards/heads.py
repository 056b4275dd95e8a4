"""The outputs of a model that are logits according to its graph."""

from typing import Any

import keras

from keras_distill.types import Nested

tree = keras.tree


def linear_outputs(model: Any) -> Nested:
    """Return which outputs are those of a dense or convolutional layer, not activated.

    Such outputs are logits, whatever their values: the logits of a student that has
    learned nothing may all lie between 0 and 1.

    Args:
        model: A model, or any other object.

    Returns:
        Bools in the structure of the model's outputs. None for objects that are neither
        Functional nor Sequential models, and for models that aren't built.
    """
    if not (_is_a_graph(model) and model.built):
        return None
    # If another model contains a Sequential model, its `output` is that of this call.
    is_sequential = isinstance(model, keras.Sequential)
    output = model.outputs[0] if is_sequential else model.output
    return tree.map_structure(_is_linear, output)


def _is_linear(output: Any) -> bool:
    layer, _, index = output._keras_history
    if isinstance(layer, keras.Model):
        return _is_a_graph(layer) and _is_linear(layer.outputs[index])
    known = _is_of_keras(layer) and hasattr(layer, "kernel")
    return known and getattr(layer, "activation", None) is keras.activations.linear


def _is_a_graph(model: Any) -> bool:
    """Return whether a model calls the layers of its graph, and nothing else."""
    is_model = isinstance(model, keras.Model) and _is_of_keras(model)
    return is_model and hasattr(model, "outputs")


def _is_of_keras(layer: keras.Layer) -> bool:
    """Return whether a layer's class is one of Keras' own, not a subclass."""
    return type(layer).__module__.partition(".")[0] == "keras"
