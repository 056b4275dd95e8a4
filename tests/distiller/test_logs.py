"""What a step says about itself: the terms of the loss and what is scheduled."""

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.util import event_pb2

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    StepLogs,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data(20)


def regularised() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES, kernel_regularizer="l2")]
    )


def scheduled(student: keras.Model, teacher: Any) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(0.2),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(
            temperature=keras.optimizers.schedules.PolynomialDecay(4.0, 4, 1.0)
        ),
        alpha=kd.schedules.LinearWarmup(4, value=0.8),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return distiller


def test_every_step_logs_terms_that_sum_to_the_loss() -> None:
    student, teacher = regularised(), mlp(seed=1)
    distiller = scheduled(student, teacher)
    t = teacher(X).numpy()
    for step in range(6):
        s, kernel = student(X).numpy(), student.layers[0].kernel.numpy()
        logs = distiller.train_on_batch(X, Y, return_dict=True)
        alpha, temperature = min(0.2 * step, 0.8), max(4.0 - 0.75 * step, 1.0)
        expected = {
            "alpha": alpha,
            "temperature": temperature,
            "student_loss": label_loss(Y, s).mean(),
            "distillation_loss": forward_kl(t, s, temperature).mean(),
            "accuracy": (s.argmax(-1) == Y).mean(),
        }
        expected["loss"] = (
            (1 - alpha) * expected["student_loss"]
            + alpha * expected["distillation_loss"]
            + 0.01 * (kernel**2).sum()
        )
        assert logs.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(logs[name], value, rtol=2e-5, err_msg=name)


def events(directory: Path) -> dict[str, list[float]]:
    """The scalars that TensorBoard would show, by tag."""
    scalars: dict[str, list[float]] = {}
    for path in sorted(directory.rglob("events.out*")):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in event_pb2.Event.FromString(record.numpy()).summary.value:
                if value.tensor.dtype == tf.float32.as_datatype_enum:
                    number = tf.make_ndarray(value.tensor)
                    if number.shape == ():
                        scalars.setdefault(value.tag, []).append(float(number))
    return scalars


def test_an_epoch_logs_means_over_examples_and_the_last_of_what_is_scheduled(
    tmp_path: Path,
) -> None:
    student, teacher = regularised(), mlp(seed=1)
    distiller = scheduled(student, teacher)
    distiller.optimizer.learning_rate = 0.0  # so that every batch sees these outputs
    t, s = teacher(X).numpy(), student(X).numpy()
    table = tmp_path / "log.csv"
    history = distiller.fit(
        X,
        Y,
        batch_size=8,  # 8, 8 and 4 examples
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.CSVLogger(str(table))],
    ).history
    np.testing.assert_allclose(
        history["student_loss"], 2 * [label_loss(Y, s).mean()], rtol=1e-5
    )
    step_of_example = np.repeat(np.arange(6), [8, 8, 4] * 2)
    temperatures = 4.0 - 0.75 * step_of_example.clip(0, 4)
    per_example = [
        forward_kl(t[i % 20], s[i % 20], temperature)
        for i, temperature in enumerate(temperatures)
    ]
    np.testing.assert_allclose(
        history["distillation_loss"],
        np.reshape(per_example, (2, 20)).mean(1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(history["alpha"], [0.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(history["temperature"], [2.5, 1.0], rtol=1e-6)

    with table.open() as file:
        rows = list(csv.DictReader(file))
    for name, values in history.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values)


def test_tensorboard_shows_every_term_by_epoch_and_by_batch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    distiller = scheduled(regularised(), mlp(seed=1))
    history = distiller.fit(
        X,
        Y,
        batch_size=8,
        epochs=2,
        verbose=0,
        callbacks=[keras.callbacks.TensorBoard(str(tmp_path), update_freq=1)],
    ).history
    board = events(tmp_path)
    for name, values in history.items():
        np.testing.assert_allclose(board[f"epoch_{name}"], values, rtol=1e-6)
    np.testing.assert_allclose(
        board["batch_alpha"], [0.0, 0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6
    )


def test_a_float_temperature_is_not_logged_and_a_float_alpha_is() -> None:
    distiller = kd.Distiller(mlp(), mlp(seed=1))
    distiller.compile("sgd", crossentropy(), alpha=0.25)
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    assert sorted(logs) == ["alpha", "distillation_loss", "loss", "student_loss"]
    assert logs["alpha"] == pytest.approx(0.25)


def test_two_scheduled_temperatures_are_logged_under_the_names_of_their_losses() -> (
    None
):
    inputs = keras.Input((FEATURES,))
    outputs = [layers.Dense(CLASSES)(inputs), layers.Dense(CLASSES)(inputs)]
    student = keras.Model(inputs, outputs)
    schedule = keras.optimizers.schedules.PolynomialDecay
    distiller = kd.Distiller(student, lambda x: student(x, training=False))
    distiller.compile(
        "sgd",
        [crossentropy(), crossentropy()],
        distillation_loss=[
            kd.losses.ForwardKL(schedule(4.0, 10, 1.0), name="first"),
            kd.losses.ReverseKL(schedule(2.0, 10, 1.0), name="second"),
        ],
    )
    logs = distiller.train_on_batch(X, [Y, Y], return_dict=True)
    assert logs["first_temperature"] == 4.0
    assert logs["second_temperature"] == 2.0


def test_evaluation_logs_what_evaluation_of_the_student_does() -> None:
    student, teacher = regularised(), mlp(seed=1)
    distiller = scheduled(student, teacher)
    distiller.train_on_batch(X, Y)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    student.compile(loss=crossentropy(), metrics=[accuracy])
    logs = distiller.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    assert logs == student.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    assert logs.keys() == {"loss", "accuracy"}
    listed = distiller.evaluate(X, Y, batch_size=8, verbose=0)
    assert listed == [logs["loss"], logs["accuracy"]]


def test_the_logged_alpha_is_that_of_the_step_that_used_it() -> None:
    distiller = scheduled(regularised(), mlp(seed=1))
    alphas = StepLogs(lambda: float(distiller.get_metrics_result()["alpha"]))
    distiller.fit(X, Y, batch_size=4, verbose=0, callbacks=[alphas])
    np.testing.assert_allclose(alphas.seen, [0.0, 0.2, 0.4, 0.6, 0.8], rtol=1e-6)


def test_a_single_output_may_have_the_name_of_one_of_our_losses() -> None:
    """As of a student that wraps a model named "student", which Keras logs as `loss`.

    The losses of several outputs are logged by their names, where ours would be lost.
    """
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="student")
    wrapped = keras.Model(inputs, inner(inputs))
    loss, (x, y) = crossentropy(), (np.ones((8, 4), "float32"), np.zeros(8))
    distiller = kd.Distiller(wrapped, lambda x: x[:, :3])
    distiller.compile("sgd", loss, metrics=["accuracy"])
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"student_loss", "distillation_loss", "val_loss"} <= set(history)
    twice = keras.Model(inputs, [inner(inputs), layers.Dense(3, name="b")(inputs)])
    distiller = kd.Distiller(twice, lambda x: [x[:, :3]] * 2)
    with pytest.raises(ValueError, match=r"Name the output otherwise.*\['student'\]"):
        distiller.compile("sgd", [loss, loss])
