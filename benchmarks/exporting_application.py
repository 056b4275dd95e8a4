"""The process of `export_applications.py` that builds or exports one model."""

import json
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_distill.export import export


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


def export_one(path: str, form: str, result: str) -> None:
    """Export a file to one format, and write what was measured."""
    model, examples = keras.saving.load_model(path), images(4)
    # All examples of one class would say nothing.
    spread = np.ptp(model(examples).numpy(), axis=0).max()
    assert spread > 1e-3, f"{path} gives the same for every image: {spread}"
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        manifest = export(model, f"{folder}/out", [form], example_batch=examples)
        seconds = time.perf_counter() - begin
    [artefact] = manifest["artefacts"].values()
    measured = {
        "parameters": model.count_params(),
        "seconds": seconds,
        "difference": artefact["max_relative_difference"],
    }
    Path(result).write_text(json.dumps(measured))


def main() -> None:
    """Build a model into a file, or export one."""
    if sys.argv[1] == "build":
        name, path = sys.argv[2:]
        build(name).save(path)
    else:
        export_one(*sys.argv[2:])


if __name__ == "__main__":
    main()
