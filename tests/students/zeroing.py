"""Teachers of which the units that a width removes compute nothing."""

import keras
import numpy as np

from keras_distill.students import Importance, WeightNorm
from keras_distill.students.planning import Plan
from keras_distill.students.rules import rule_of
from keras_distill.students.tracing import Trace


def randomize(model, seed=0, offsets=0.1):
    """Give every weight, statistics and biases too, values that show mistakes."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        # The last axis of a depthwise kernel is 1, and each channel is read alone.
        inputs = shape[:-2] if shape[-1:] == (1,) else shape[:-1]
        value = rng.normal(0.0, (2.0 / max(np.prod(inputs), 1.0)) ** 0.5, shape)
        if len(shape) < 2:
            value = offsets * value
        positive = weight.name in ("moving_variance", "gamma", "variance", "scale")
        weight.assign(0.5 + np.abs(value) if positive else value)
    return model


def zero_removed(model, width, consumers=False):
    """Zero what computes the units that the width removes, or also what reads them."""
    trace = Trace(model, rule_of)
    kept = Plan(trace, WeightNorm().scores(model, trace)).at(width)
    for weight in trace.weights.values():
        if weight.variable.name == "moving_variance":
            continue
        value = keras.ops.convert_to_numpy(weight.variable).copy()
        vector = "kernel" not in weight.variable.name
        for axis, labels in enumerate(weight.axes):
            made = consumers or vector or axis == weight.maker
            if labels is not None and made:
                np.moveaxis(value, axis, 0)[~kept[labels]] = 0.0
        weight.variable.assign(value)
    return int((~kept).sum())


class FirstHalf(Importance):
    """Keeps the units that come first."""

    def lines(self, teacher, trace):
        for made in trace.units.made:
            yield made.labels, np.arange(len(made.labels), 0.0, -1.0)


def repeat_first_half(model):
    """Make the second half of each layer's units equal to the first, and unread.

    A normalisation over units then has the same mean and variance without them.
    """
    trace = Trace(model, rule_of)
    kept = Plan(trace, FirstHalf().scores(model, trace)).at(0.5)
    for weight in trace.weights.values():
        value = keras.ops.convert_to_numpy(weight.variable).copy()
        vector = "kernel" not in weight.variable.name
        for axis, labels in enumerate(weight.axes):
            if labels is None or kept[labels].all():
                continue
            first, second = np.split(np.moveaxis(value, axis, 0), 2)
            second[...] = first if vector or axis == weight.maker else 0.0
        weight.variable.assign(value)


def outputs(model, x):
    """Return the outputs in one list of arrays."""
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x))]


def assert_same(student, teacher, x, tolerance=1e-5):
    """Outputs agree, relative to the largest of them."""
    for ours, theirs in zip(outputs(student, x), outputs(teacher, x), strict=True):
        bound = tolerance * np.abs(theirs).max()
        assert np.isfinite(ours).all()
        # The outputs depend on the inputs; else they would prove nothing.
        assert np.ptp(theirs, axis=0).max() > 10 * bound
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)
