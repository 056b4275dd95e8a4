"""Models of `keras.applications` at half their widths, as docs/compression.md says."""

import keras
import numpy as np
import pytest

from keras_distill.students import slice_widths
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


@pytest.mark.slow("six models of up to 28 million parameters")
@pytest.mark.parametrize("name", NAMES)
def test_half_the_widths(name):
    build = getattr(keras.applications, name)
    shape = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}
    # With offsets, the many gates of a deep net leave little of its input.
    teacher = randomize(build(**shape, classifier_activation=None), offsets=0.0)
    if name == "ConvNeXtTiny":  # It normalises over units.
        repeat_first_half(teacher)
        student = slice_widths(teacher, 0.5, importance=FirstHalf())
    else:
        zero_removed(teacher, 0.5, consumers=True)
        student = slice_widths(teacher, 0.5)
    assert 0.25 <= student.count_params() / teacher.count_params() < 0.27
    x = np.random.default_rng(0).uniform(0.0, 255.0, (4, 32, 32, 3))
    assert_same(student, teacher, x.astype("float32"), 1e-4)
