"""Two devices against one: `python -m tests.distiller.mirrored`, for devices are fixed
when TensorFlow starts."""

import contextlib
import tempfile
import warnings
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    crossentropy,
    data,
    first_layer,
    mlp,
    regularized_mlp,
)
from tests.distiller.pairs import clicks, pair, together
from tests.sequence.texts import REFERENCES, on_policy

# Of four batches each; a hundred steps in all.
EPOCHS, REPEATS = 2, 13


def train(scope: Any, labelled: bool) -> tuple[list[np.ndarray], dict[str, Any]]:
    x, y = data(33)
    with scope:
        student = regularized_mlp()
        hint = kd.hints.Hint(
            first_layer, first_layer, projector=layers.Dense(5), name="hidden"
        )
        distiller = kd.Distiller(student, mlp(seed=1), hints=[hint])
        distiller.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            crossentropy() if labelled else None,
            distillation_loss=kd.losses.ForwardKL(
                keras.optimizers.schedules.PolynomialDecay(4.0, 6, 1.0)
            ),
            alpha=kd.schedules.LinearWarmup(6) if labelled else 1.0,
            metrics=["accuracy"],
        )
    inputs = (x[:27], y[:27]) if labelled else (x[:25],)
    # The devices get two rows and one of the last batch, or one and none.
    dataset = tf.data.Dataset.from_tensor_slices(inputs).batch(8).repeat(REPEATS)
    validation = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    history = distiller.fit(
        dataset, epochs=EPOCHS, validation_data=validation, shuffle=False, verbose=0
    ).history
    return distiller.get_weights(), history


def train_together(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """A teacher that trains and shares a layer, rows without a label, integers."""
    with scope:
        student, teacher = pair("items")
        distiller = together(
            student,
            teacher,
            # Larger steps let rounding grow.
            optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
            alpha=kd.schedules.LinearWarmup(6),
            label_mask="labelled",
            weighted_metrics=["accuracy"],
            teacher_metrics=["accuracy"],
        )
    x, y = clicks(32)
    # No boolean, of which Keras can't take the mean that it takes of devices.
    labelled = np.random.default_rng(5).integers(0, 2, 32)
    masked = {**x, "labelled": labelled}
    batches, validation = (
        tf.data.Dataset.from_tensor_slices((inputs, y)).batch(8)
        for inputs in (masked, x)
    )
    batches = batches.repeat(REPEATS)
    history = distiller.fit(
        batches, epochs=EPOCHS, validation_data=validation, shuffle=False, verbose=0
    ).history
    return student.get_weights() + teacher.get_weights(), history


def train_under_its_average(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """A teacher that follows the student."""
    x, y = data(32)
    with scope:
        student = mlp()
        teacher = kd.teachers.EMA(student, decay=0.8)
        distiller = kd.Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.3, momentum=0.9), crossentropy())
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat(REPEATS)
    history = distiller.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0).history
    return student.get_weights() + teacher.get_weights(), history


def train_weighted(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """An ensemble, and rows of unlike weights."""
    with scope:
        teacher = kd.teachers.Ensemble([mlp(seed=1), mlp(seed=2)], weights=[1, 2])
        distiller = kd.Distiller(mlp(), teacher)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        distiller.compile(optimizer, crossentropy(), weighted_metrics=["accuracy"])
    weights = np.random.default_rng(3).uniform(0.5, 2.0, 27).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((*data(27), weights)).batch(8)
    batches = batches.repeat(REPEATS)
    history = distiller.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0).history
    return distiller.student.get_weights(), history


def train_recorded(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Recorded outputs, which each worker reads by itself."""
    batches = tf.data.Dataset.from_tensor_slices(data(27)).batch(8)
    with scope:
        distiller = kd.Distiller(mlp(), kd.teachers.Recorded("teacher"))
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    with tempfile.TemporaryDirectory() as folder:
        kd.targets.record(mlp(seed=1), batches, f"{folder}/recording")
        taught = kd.targets.join(batches, f"{folder}/recording").repeat(REPEATS)
        fitted = distiller.fit(taught, epochs=EPOCHS, shuffle=False, verbose=0)
    return distiller.student.get_weights(), fitted.history


def train_on_tokens(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The devices get different numbers of tokens, and each token weighs the same."""
    with scope:
        distiller = on_policy(student_fraction=0.0)
        distiller.compile(keras.optimizers.SGD(0.3))
    batches = tf.data.Dataset.from_tensors((REFERENCES,)).unbatch().batch(4)
    batches = batches.repeat(REPEATS)
    history = distiller.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0).history
    return distiller.get_weights(), history


def check_the_look(scope: Any) -> None:
    """What is summed up on each device is looked at together."""
    x, y = data(256)
    with scope:
        distiller = kd.Distiller(mlp(), mlp(seed=1))
        distiller.compile("sgd", crossentropy(), distillation_loss="kl_divergence")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller.fit(batches, shuffle=False, verbose=0)
    messages = [str(warning.message) for warning in caught]
    messages = [text for text in messages if text.startswith("The teacher")]
    assert len(messages) == 1, messages
    assert "of 96 values" in messages[0], messages  # of the first batch, 32 by 3


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for fit in (
        partial(train, labelled=True),
        partial(train, labelled=False),
        train_together,
        train_under_its_average,
        train_weighted,
        train_recorded,
        train_on_tokens,
    ):
        one, history = fit(contextlib.nullcontext())
        two, mirrored = fit(strategy.scope())
        for weight, expected in zip(two, one, strict=True):
            np.testing.assert_allclose(weight, expected, atol=1e-5)
        assert mirrored.keys() == history.keys(), (mirrored, history)
        for name, values in history.items():
            np.testing.assert_allclose(mirrored[name], values, rtol=1e-4, err_msg=name)
    check_the_look(strategy.scope())
    print("two devices train as one")


if __name__ == "__main__":
    main()
