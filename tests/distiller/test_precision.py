"""Models that compute in different dtypes; the loss is float32 throughout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    mlp,
)

X, Y = data()


@contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def under(name: str, build: Callable[[], keras.Model] = mlp) -> keras.Model:
    with policy(name):
        return build()


def distilled(
    student: keras.Model, teacher: keras.Model, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        kwargs.pop("optimizer", None) or keras.optimizers.SGD(0.2),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=2.0),
        **kwargs,
    )
    return distiller


FLOAT16 = pytest.mark.slow("fits in another precision")


@pytest.mark.parametrize(
    "student, teacher, tolerance",
    [
        ("mixed_bfloat16", "float32", 0.03),
        ("float32", "mixed_bfloat16", 0.03),
        pytest.param("mixed_float16", "float32", 3e-3, marks=FLOAT16),
        pytest.param("float32", "mixed_float16", 3e-3, marks=FLOAT16),
    ],
)
def test_a_step_of_mixed_precision_is_near_that_of_float32(
    student: str, teacher: str, tolerance: float
) -> None:
    expected = distilled(mlp(seed=0), mlp(seed=1))
    mixed = distilled(under(student), under(teacher, lambda: mlp(seed=1)))
    logs, expected_logs = (
        model.train_on_batch(X, Y, return_dict=True) for model in (mixed, expected)
    )
    for name, value in expected_logs.items():
        np.testing.assert_allclose(logs[name], value, rtol=tolerance, err_msg=name)
    assert_same_weights(mixed.student, expected.student, atol=tolerance)
    assert all(v.dtype == "float32" for v in mixed.trainable_variables)


def test_the_loss_of_bfloat16_outputs_is_taken_in_float32() -> None:
    student = under("mixed_bfloat16")
    teacher = under("mixed_bfloat16", lambda: mlp(seed=1))
    s, t = (
        keras.ops.convert_to_numpy(keras.ops.cast(model(X), "float32"))
        for model in (student, teacher)
    )
    # eagerly, for a compiled graph rounds the outputs themselves elsewhere
    distiller = distilled(student, teacher, run_eagerly=True)
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s, 2.0).mean(), rtol=1e-5
    )


def masked() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(5, 4, "orthogonal", mask_zero=True),
            layers.Dense(CLASSES),
        ]
    )


def test_masks_survive_mixed_precision() -> None:
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    student, teacher = under("mixed_bfloat16", masked), masked()
    s = keras.ops.convert_to_numpy(keras.ops.cast(student(tokens), "float32"))
    t = teacher(tokens).numpy()
    loss = distilled(student, teacher).train_on_batch(
        tokens, tokens % CLASSES, return_dict=True
    )["distillation_loss"]
    expected = forward_kl(t, s, 2.0)[tokens != 0].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_float16_student_has_its_loss_scaled_and_its_schedules_go_on() -> None:
    student = under("mixed_float16")
    distiller = distilled(student, mlp(seed=1), alpha=kd.schedules.LinearWarmup(4))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    alphas = [
        distiller.train_on_batch(X, Y, return_dict=True)["alpha"] for _ in range(3)
    ]
    np.testing.assert_allclose(alphas, [0.0, 0.25, 0.5])


def test_an_optimizers_loss_scale_factor_leaves_updates_and_logs_alone() -> None:
    plain = distilled(mlp(), mlp(seed=1))
    scaled = distilled(
        mlp(), mlp(seed=1), optimizer=keras.optimizers.SGD(0.2, loss_scale_factor=256.0)
    )
    logs = [d.train_on_batch(X, Y, return_dict=True) for d in (plain, scaled)]
    assert logs[0] == logs[1]
    assert_same_weights(scaled.student, plain.student, atol=1e-7)


def rescaling() -> keras.Model:
    """Its inputs have more digits than bfloat16, and need them."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Rescaling(1.0, offset=-1000.0, dtype="float32"),
            layers.Dense(CLASSES),
        ]
    )


def test_alpha_0_is_plain_training_in_mixed_precision() -> None:
    plain, student = (under("mixed_bfloat16", rescaling) for _ in range(2))
    distiller = distilled(student, rescaling(), alpha=0.0)
    plain.compile(keras.optimizers.SGD(0.2), crossentropy())
    for model in (plain, distiller):
        model.fit(X + 1000.0, Y, batch_size=8, shuffle=False, verbose=0)
    assert_same_weights(student, plain)


def test_losses_may_be_of_different_precision() -> None:
    distiller = kd.Distiller(mlp(), mlp(seed=1))
    t, s = distiller.teacher(X), distiller.student(X)
    distiller.compile(
        "sgd",
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(dtype="float64"),
    )
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s).mean(), rtol=1e-5
    )


def test_float64_throughout() -> None:
    keras.config.set_floatx("float64")
    try:
        with policy("float64"):
            student = keras.Sequential(
                [
                    keras.Input((FEATURES,)),
                    layers.Dense(CLASSES, kernel_regularizer="l2"),
                ]
            )
            teacher = mlp(seed=1)
            t, s = teacher(X).numpy(), student(X).numpy()
            distiller = distilled(student, teacher)
            logs = distiller.train_on_batch(X, Y, return_dict=True)
    finally:
        keras.config.set_floatx("float32")
    assert s.dtype == np.float64
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s, 2.0).mean(), rtol=1e-12
    )
