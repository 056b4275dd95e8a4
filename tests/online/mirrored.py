"""Two devices against one: `python -m tests.online.mirrored`, for devices are fixed
when TensorFlow starts."""

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import CLASSES, FEATURES, crossentropy, data


def peer(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(4 + seed, "tanh", kernel_regularizer="l2"),
            layers.Dense(CLASSES),
        ],
        name=f"peer{seed}",
    )


def train(scope: Any, staleness: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    with scope:
        model = kd.online.MutualLearning([peer(0), peer(1)], staleness=staleness)
        model.compile(
            keras.optimizers.SGD(0.3, momentum=0.9),
            crossentropy(),
            alpha=kd.schedules.LinearWarmup(6, 0.7),
            metrics=["accuracy"],
        )
    x, y = data(33)
    batches = tf.data.Dataset.from_tensor_slices((x[:27], y[:27])).batch(8)
    validation = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    history = model.fit(
        batches, epochs=2, validation_data=validation, shuffle=False, verbose=0
    ).history
    return model.get_weights(), history


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for staleness in (0, 3):
        one, history = train(contextlib.nullcontext(), staleness)
        two, mirrored = train(strategy.scope(), staleness)
        for weight, expected in zip(two, one, strict=True):
            np.testing.assert_allclose(weight, expected, atol=1e-5)
        assert mirrored.keys() == history.keys(), (mirrored, history)
        for name, values in history.items():
            np.testing.assert_allclose(mirrored[name], values, rtol=1e-4, err_msg=name)
    print("two devices train as one")


if __name__ == "__main__":
    main()
