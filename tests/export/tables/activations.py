"""Every function of `keras.activations`."""

import functools

import keras

from tests.export.tables.case import Case

# They look activations up.
NOT_AN_ACTIVATION = {"deserialize", "get", "serialize"}


def _activation(name):
    function = getattr(keras.activations, name)
    if name == "threshold":
        function = functools.partial(function, threshold=0.5, default_value=-1.0)
    return lambda x: keras.layers.Activation(function, name=f"layer_{name}")(x)


ACTIVATIONS = {
    name: Case(_activation(name))
    for name in dir(keras.activations)
    if not name.startswith("_") and name not in NOT_AN_ACTIVATION
}
