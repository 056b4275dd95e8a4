"""Models with several outputs, time steps and padding."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    crossentropy,
    data,
    forward_kl,
    label_loss,
)

X, Y = data()
SIZES = np.random.default_rng(5).normal(size=(24, 2)).astype("float32")


def heads(structure: Any, seed: int) -> keras.Model:
    """A class head and a regression head, packed as `structure` packs a pair."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    kind = layers.Dense(CLASSES, name="kind")(inputs)
    size = layers.Dense(2, name="size")(inputs)
    return keras.Model(inputs, structure((kind, size)))


def as_dict(pair: tuple[Any, Any]) -> dict[str, Any]:
    return {"kind": pair[0], "size": pair[1]}


@keras.saving.register_keras_serializable(package="tests")
class Pair(keras.Model):
    """A subclassed model of two outputs that declares nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = layers.Dense(CLASSES)
        self.size = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.kind(inputs), self.size(inputs)


def square(t: np.ndarray, s: np.ndarray) -> np.ndarray:
    return ((t - s) ** 2).mean(-1)


def first_and_second(outputs: Any) -> tuple[np.ndarray, np.ndarray]:
    kind, size = outputs.values() if isinstance(outputs, dict) else outputs
    return np.asarray(kind), np.asarray(size)


@pytest.mark.parametrize(
    "structure, distilled",
    [(list, "kind only"), (tuple, "both"), (as_dict, "both"), (as_dict, "kind only")],
)
def test_outputs_have_a_loss_each(structure: Any, distilled: str) -> None:
    student, teacher = heads(structure, 0), heads(structure, 1)
    (s_kind, s_size), (t_kind, t_size) = (
        first_and_second(model(X)) for model in (student, teacher)
    )
    both = distilled == "both"
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        "sgd",
        structure((crossentropy(), "mse")),
        distillation_loss=structure((kd.losses.ForwardKL(), "mse" if both else None)),
        alpha=0.25,
    )
    logs = distiller.train_on_batch(X, structure((Y, SIZES)), return_dict=True)
    labels = label_loss(Y, s_kind).mean() + square(SIZES, s_size).mean()
    soft = forward_kl(t_kind, s_kind).mean()
    soft += square(t_size, s_size).mean() if both else 0.0
    np.testing.assert_allclose(logs["student_loss"], labels, rtol=1e-5)
    np.testing.assert_allclose(logs["distillation_loss"], soft, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], 0.75 * labels + 0.25 * soft, rtol=1e-5)
    np.testing.assert_allclose(logs["kind_loss"], label_loss(Y, s_kind).mean(), 1e-5)
    assert distiller.evaluate(
        X, structure((Y, SIZES)), verbose=0, return_dict=True
    ).keys() == {"loss", "kind_loss", "size_loss"}


def test_losses_by_the_names_of_listed_outputs() -> None:
    student, teacher = heads(list, 0), heads(list, 1)
    size = student(X)[1].numpy(), teacher(X)[1].numpy()
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        "sgd",
        {"kind": crossentropy(), "size": "mse"},
        distillation_loss={"kind": None, "size": "mse"},
    )
    logs = distiller.train_on_batch(X, {"kind": Y, "size": SIZES}, return_dict=True)
    np.testing.assert_allclose(logs["distillation_loss"], square(*size).mean(), 1e-5)


def test_an_output_may_have_labels_or_a_teacher_alone() -> None:
    student, teacher = heads(as_dict, 0), heads(as_dict, 1)
    s, t = student(X), teacher(X)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        "sgd",
        {"kind": crossentropy(), "size": None},
        distillation_loss={"kind": None, "size": keras.losses.MeanSquaredError()},
    )
    logs = distiller.fit(
        X, {"kind": Y, "size": SIZES}, batch_size=24, verbose=0
    ).history
    np.testing.assert_allclose(
        logs["student_loss"], label_loss(Y, s["kind"]).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["distillation_loss"],
        square(t["size"].numpy(), s["size"].numpy()).mean(),
        rtol=1e-5,
    )


def test_subclassed_models_with_several_outputs() -> None:
    student, teacher = Pair(), Pair()
    t_kind, t_size = teacher(X)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        (crossentropy(), "mse"),
        distillation_loss=(kd.losses.ForwardKL(), "mse"),
    )
    logs = distiller.train_on_batch(X, (Y, SIZES), return_dict=True)
    s_kind, s_size = student(X)
    np.testing.assert_allclose(
        logs["distillation_loss"],
        forward_kl(t_kind, s_kind).mean()
        + square(t_size.numpy(), s_size.numpy()).mean(),
        rtol=1e-5,
    )


TOKENS = np.random.default_rng(3).integers(1, 9, (24, 5))
TOKENS[::3, 3:] = 0
TOKENS[5] = 0  # padding alone
VALID = TOKENS != 0


def tagger(seed: int, mask: bool = True) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, "orthogonal", mask_zero=mask),
            layers.Dense(CLASSES),
        ]
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_padding_doesnt_count(weighted: bool) -> None:
    student, teacher = tagger(0), tagger(1)
    s, t = student(TOKENS).numpy(), teacher(TOKENS).numpy()
    weights = np.random.default_rng(6).random((24, 5)).astype("float32")
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=3.0),
    )
    logs = distiller.train_on_batch(
        TOKENS,
        TOKENS % CLASSES,
        sample_weight=weights if weighted else None,
        return_dict=True,
    )
    weights = weights if weighted else np.ones_like(weights)
    for name, values in (
        ("distillation_loss", forward_kl(t, s, 3.0)),
        ("student_loss", label_loss(TOKENS % CLASSES, s)),
    ):
        expected = (values * weights)[VALID].sum() / VALID.sum()
        np.testing.assert_allclose(logs[name], expected, rtol=1e-5)


def test_what_the_teacher_says_of_padding_is_of_no_consequence() -> None:
    weights = []
    for noise in (0.0, 100.0):
        distiller = kd.Distiller(
            tagger(0), lambda x, noise=noise: noisy_where_padded(x, noise)
        )
        distiller.compile(keras.optimizers.SGD(1.0), alpha=1.0)
        distiller.train_on_batch(TOKENS)
        weights.append(distiller.student.get_weights())
    for weight, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def noisy_where_padded(tokens: Any, noise: float) -> Any:
    logits = tf.one_hot(tokens % CLASSES, CLASSES)
    return tf.where((tokens == 0)[..., None], noise * tf.range(3.0), logits)


def test_a_weight_for_every_time_step_acts_on_both_terms() -> None:
    student, teacher = tagger(0, mask=False), tagger(1, mask=False)
    s, t = student(TOKENS).numpy(), teacher(TOKENS).numpy()
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", crossentropy(), distillation_loss=kd.losses.ForwardKL())
    logs = distiller.fit(
        TOKENS,
        TOKENS % CLASSES,
        batch_size=24,
        sample_weight=VALID.astype("float32"),
        verbose=0,
    ).history
    for name, values in (
        ("distillation_loss", forward_kl(t, s)),
        ("student_loss", label_loss(TOKENS % CLASSES, s)),
    ):
        np.testing.assert_allclose(logs[name], (values * VALID).mean(), rtol=1e-5)
