"""A row of a table, and the inputs that its models read."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np


@dataclass(frozen=True)
class Case:
    """A piece of a model.

    Attributes:
        make: Returns the piece's output.
        reads: The names of `INPUTS` that it takes; those of its parameters unless
            given.
    """

    make: Callable = field(repr=False)
    reads: tuple[str, ...] = ()

    def inputs(self):
        """The names of the inputs that it takes."""
        return self.reads or tuple(inspect.signature(self.make).parameters)


# Kept coarse, so that rows have ties, zeros and negative numbers.
def _coarse(rng, size, *shape):
    return (rng.integers(-6, 7, (size, *shape)) / 4).astype("float32")


def _unit(rng, size, *shape):
    return (rng.integers(-9, 10, (size, *shape)) / 10).astype("float32")


def _positive(rng, size, *shape):
    return rng.uniform(0.1, 2.0, (size, *shape)).astype("float32")


def _whole(rng, size, *shape):
    return rng.integers(1, 10, (size, *shape)).astype("int32")


def _flags(rng, size, *shape):
    return rng.integers(0, 2, (size, *shape)).astype(bool)


def _definite(rng, size, *shape):
    values = rng.standard_normal((size, *shape)).astype("float32")
    return values @ values.swapaxes(-1, -2) + np.eye(shape[-1], dtype="float32")


def _words(rng, size, *shape):
    return rng.choice(np.array(["a", "b", "b c"], dtype=object), (size, *shape))


# Name to shape, dtype and what draws it.
INPUTS = {
    "x": ((4,), "float32", _coarse),
    "y": ((4,), "float32", _coarse),
    "unit": ((4,), "float32", _unit),
    "positive": ((4,), "float32", _positive),
    "whole": ((4,), "int32", _whole),
    "other": ((4,), "int32", _whole),
    "flags": ((4,), "bool", _flags),
    "flags_too": ((4,), "bool", _flags),
    "sequence": ((6, 4), "float32", _coarse),
    "matrix": ((3, 4), "float32", _coarse),
    "memory": ((5, 4), "float32", _coarse),
    "definite": ((3, 3), "float32", _definite),
    "image": ((8, 8, 4), "float32", _coarse),
    "picture": ((8, 8, 3), "float32", _positive),
    "pictures": ((5, 6, 6, 2), "float32", _coarse),
    "volume": ((6, 6, 6, 2), "float32", _coarse),
    "tokens": ((5,), "int32", _whole),
    "words": ((1,), "string", _words),
    "audio": ((64,), "float32", _coarse),
    "wave": ((64, 1), "float32", _coarse),
    "frames": ((3, 5, 2), "float32", _coarse),
    "volumes": ((2, 4, 4, 4, 1), "float32", _coarse),
}


def batch(names, size):
    """Draw one batch of the inputs `names`."""
    return {
        name: INPUTS[name][2](np.random.default_rng([size, i]), size, *INPUTS[name][0])
        for i, name in enumerate(INPUTS)
        if name in names
    }


def model_of(cases):
    """One model with an output a case, under the name of the case."""
    wanted = {name for case in cases.values() for name in case.inputs()}
    inputs = {
        name: keras.Input(shape, dtype=dtype, name=name)
        for name, (shape, dtype, _) in INPUTS.items()
        if name in wanted
    }
    outputs = {
        name: case.make(*(inputs[read] for read in case.inputs()))
        for name, case in cases.items()
    }
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(3)
    for weight in model.weights:
        # No weight stays at 0 or 1, where a wrong one might not show.
        if weight.dtype == "float32":
            weight.assign(weight.numpy() + 0.2 * rng.uniform(0.5, 1.5, weight.shape))
    return model


def operations_of(model):
    """The names of the layers and operations that each output is made by."""
    found = {}
    for name, tensor in model.output.items():
        names, ends = set(), [tensor]
        while ends:
            history = ends.pop()._keras_history
            node = history.operation._inbound_nodes[history.node_index]
            if not node.is_input:
                names.add(history.operation.name)
                ends.extend(node.input_tensors)
        found[name] = names
    return found
