"""One export of `export_applications.py`, in a process of its own."""

import json
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_distill.export import export

# Keras' own float32 is 2.9e-5 away from float64 for MobileNetV2 with these weights.
TOLERANCE = 1e-4


def build(name: str) -> keras.Model:
    """Build the model with random kernels and statistics of the examples."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make(
        weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
    )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics of the last batch
        elif hasattr(layer, "gamma") and type(layer).__name__ == "LayerScale":
            # From 1e-6, the blocks would add nothing.
            layer.gamma.assign(np.full(layer.gamma.shape, 0.3))
    model(images(32), training=True)
    return model


def images(size: int) -> np.ndarray:
    """Draw images that differ: 4x4 patches of colours between 0 and 255."""
    colours = np.random.default_rng(0).uniform(0, 255, (size, 4, 4, 3))
    return colours.repeat(24, axis=1).repeat(24, axis=2).astype("float32")


def main() -> None:
    """Export, and write what was measured."""
    name, form, result = sys.argv[1:]
    model = build(name)
    examples = images(4)
    # All examples of one class would say nothing.
    spread = np.ptp(model(examples).numpy(), axis=0).max()
    assert spread > 1e-3, f"{name} gives the same for every image: {spread}"
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        manifest = export(
            model,
            f"{folder}/out",
            [form],
            example_batch=examples,
            tolerance=TOLERANCE,
        )
        seconds = time.perf_counter() - begin
    [artefact] = manifest["artefacts"].values()
    measured = {
        "parameters": model.count_params(),
        "seconds": seconds,
        "difference": artefact["max_relative_difference"],
    }
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
