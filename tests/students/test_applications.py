"""Models of `keras.applications` at half their widths, as docs/compression.md says."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.export import export
from keras_distill.students import slice_widths
from tests.students.teachers import batch, encoder
from tests.students.zeroing import (
    FirstHalf,
    assert_same,
    randomize,
    repeat_first_half,
    zero_removed,
)

NAMES = (
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetV2B0",
    "ResNet50V2",
    "DenseNet121",
    "ConvNeXtTiny",
)


def application(name):
    """Return a model of logits for images of 32 x 32, with random weights."""
    build = getattr(keras.applications, name)
    shape = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}
    return build(**shape, classifier_activation=None)


def images(rows):
    """Return random images."""
    x = np.random.default_rng(0).uniform(0.0, 255.0, (rows, 32, 32, 3))
    return x.astype("float32")


@pytest.mark.slow("six models of up to 28 million parameters")
@pytest.mark.parametrize("name", NAMES)
def test_half_the_widths(name):
    # With offsets, the many gates of a deep net leave little of its input.
    teacher = randomize(application(name), offsets=0.0)
    if name == "ConvNeXtTiny":  # It normalises over units.
        repeat_first_half(teacher)
        student = slice_widths(teacher, 0.5, importance=FirstHalf())
    else:
        zero_removed(teacher, 0.5, consumers=True)
        student = slice_widths(teacher, 0.5)
    assert 0.25 <= student.count_params() / teacher.count_params() < 0.27
    assert_same(student, teacher, images(4), 1e-4)


@pytest.mark.slow("exports of models of up to seven million parameters")
@pytest.mark.parametrize("name", [*NAMES, "encoder"])
def test_half_the_widths_train_and_are_exported(name, tmp_path):
    teacher = encoder(4, 32) if name == "encoder" else application(name)
    x = batch(teacher, rows=8) if name == "encoder" else images(8)
    student = slice_widths(teacher, 0.5)
    before = [np.array(weight) for weight in student.trainable_weights]
    distiller = kd.Distiller(student, teacher)
    distiller.compile("adam", alpha=1.0)
    losses = distiller.fit(x, batch_size=8, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    for weight, old in zip(student.trainable_weights, before, strict=True):
        assert np.any(np.array(weight) != old), weight.path
    formats = ["saved_model", "onnx", "litert"]
    manifest = export(student, tmp_path / "exported", formats, example_batch=x)
    assert set(manifest["artefacts"]) == set(formats)  # each agrees with Keras
