"""The two ends of alpha: plain training at 0, nothing left to learn at 1."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests import slow
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
    twins,
)


@keras.saving.register_keras_serializable(package="tests")
class ActivityLoss(layers.Layer):
    """Adds a loss of its own, as `add_loss` does in users' layers."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def eventful() -> keras.Model:
    """All that a layer can do to a training step: state, chance, extra losses."""
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(5, kernel_regularizer="l2", activity_regularizer="l1"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            ActivityLoss(),
            layers.Dense(CLASSES, bias_regularizer="l1"),
        ]
    )


def two_headed() -> keras.Model:
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(5, "tanh", kernel_regularizer="l2")(inputs)
    outputs = [layers.Dense(CLASSES, name="kind")(hidden)]
    outputs.append(layers.Dense(2, name="size")(hidden))
    return keras.Model(inputs, outputs)


def tagger() -> keras.Model:
    """Logits at each step of a sequence, with the padding masked."""
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.SimpleRNN(4, return_sequences=True),
            layers.Dense(CLASSES),
        ]
    )


def dense() -> keras.Model:
    return mlp(seed=7)


X, Y = data()
TOKENS = np.random.default_rng(3).integers(1, 9, (24, 6))
TOKENS[::2, 4:] = 0
TAGS = TOKENS % CLASSES
RNG = np.random.default_rng(4)
WEIGHTS = RNG.random(24).astype("float32")
TWO_LABELS = [Y, Y % 2]
TWO_LOSSES = [crossentropy(), crossentropy()]

# name: (student, labels, what compile takes, what fit takes)
CASES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "eventful": (eventful, Y, {}, {}),
    "eventful_eager": (eventful, Y, {"run_eagerly": True}, {}),
    "unbuilt_subclass": (Subclassed, Y, {}, {}),
    "sample_weight": (dense, Y, {}, {"sample_weight": WEIGHTS}),
    "class_weight": (dense, Y, {}, {"class_weight": {0: 0.1, 1: 2.0, 2: 0.7}}),
    "sum": (dense, Y, {"loss": crossentropy(reduction="sum")}, {}),
    "mean_with_sample_weight": (
        dense,
        Y,
        {"loss": crossentropy(reduction="mean_with_sample_weight")},
        {"sample_weight": WEIGHTS},
    ),
    "two_outputs": (
        two_headed,
        TWO_LABELS,
        {"loss": TWO_LOSSES, "loss_weights": [0.3, 2.0]},
        {"sample_weight": [WEIGHTS, WEIGHTS[::-1].copy()]},
    ),
    "named_outputs": (
        two_headed,
        {"kind": TWO_LABELS[0], "size": TWO_LABELS[1]},
        {"loss": {"kind": crossentropy(), "size": crossentropy()}},
        {},
    ),
    "masked": (tagger, TAGS, {}, {}),
    "masked_and_weighted": (
        tagger,
        TAGS,
        {},
        {"sample_weight": RNG.random((24, 6)).astype("float32")},
    ),
    "steps_per_execution": (eventful, Y, {"steps_per_execution": 2}, {}),
}


def teacher_of(student: keras.Model) -> keras.Model:
    """A trained-looking model with the student's outputs."""
    teacher = keras.models.clone_model(student)
    teacher.set_weights([w + 0.5 * np.ones_like(w) for w in teacher.get_weights()])
    return teacher


def fit_plain_and_at_zero(
    case: str, alpha: Any = 0.0
) -> tuple[keras.Model, keras.Model, Any, Any]:
    build, labels, compiled, fitted = CASES[case]
    x = TOKENS if build is tagger else X
    plain, student = twins(build)
    teacher = mlp(seed=1) if build is Subclassed else teacher_of(student)
    distiller = kd.Distiller(student, teacher)
    arguments = {"loss": crossentropy(), "metrics": None, **compiled}
    histories = []
    for model, own in ((plain, {}), (distiller, {"alpha": alpha})):
        optimizer = arguments.get("optimizer", keras.optimizers.SGD(0.1, momentum=0.9))
        optimizer = optimizer.from_config(optimizer.get_config())
        model.compile(**{**arguments, "optimizer": optimizer, **own})
        keras.utils.set_random_seed(11)  # the shuffling
        fit = model.fit(x, labels, batch_size=10, epochs=2, verbose=0, **fitted)
        histories.append(fit.history)
    return plain, student, *histories


# In every run.
USUAL = ["eventful", "mean_with_sample_weight", "two_outputs", "masked_and_weighted"]


@pytest.mark.parametrize("case", slow.but(USUAL, CASES, "fits twice"))
def test_alpha_0_is_plain_training_to_the_last_bit(case: str) -> None:
    plain, student, history, distilled = fit_plain_and_at_zero(case)
    assert_same_weights(student, plain)
    for name, values in history.items():
        assert distilled[name] == values, name
    assert all(value > 0.0 for value in distilled["distillation_loss"])


def test_alpha_0_with_jit_compile_is_plain_training_with_it() -> None:
    plain, student = twins(eventful)
    distiller = kd.Distiller(student, teacher_of(student))
    for model, own in ((plain, {}), (distiller, {"alpha": 0.0})):
        model.compile(
            keras.optimizers.SGD(0.1), crossentropy(), jit_compile=True, **own
        )
        history = model.fit(X, Y, batch_size=12, shuffle=False, verbose=0).history
    assert history["distillation_loss"][0] > 0.0
    assert_same_weights(student, plain, atol=1e-6)  # XLA fuses the two differently


KL_FAMILY = {
    "forward_kl": kd.losses.ForwardKL(temperature=4.0),
    "reverse_kl": kd.losses.ReverseKL(temperature=2.0),
    "generalized_jsd": kd.losses.GeneralizedJSD(0.3, temperature=2.0),
    "jeffreys": kd.losses.Jeffreys(temperature=3.0),
    "total_variation": kd.losses.TotalVariation(),
    "binary": kd.losses.BinarySoftTargets(subtract_entropy=True),
    "logit_mse": kd.losses.LogitMSE(),
}


@pytest.mark.parametrize("loss", KL_FAMILY.values(), ids=KL_FAMILY)
def test_alpha_1_teaches_a_clone_of_the_teacher_nothing(loss: Any) -> None:
    teacher, student = mlp(), mlp()
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(1.0), crossentropy(), distillation_loss=loss, alpha=1.0
    )
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    assert abs(logs["loss"]) < 1e-6
    assert abs(logs["distillation_loss"]) < 1e-6
    assert logs["student_loss"] > 0.1
    assert_same_weights(student, teacher, atol=1e-8)


def test_alpha_1_leaves_regularisers_alone() -> None:
    student = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES, kernel_regularizer="l2")]
    )
    kernel = student.layers[0].kernel.numpy()
    teacher = keras.models.clone_model(student)
    teacher.set_weights(student.get_weights())
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.5), crossentropy(), alpha=1.0)
    loss = distiller.train_on_batch(X, Y, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, 0.01 * (kernel**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        student.layers[0].kernel, kernel - 0.5 * 0.02 * kernel, rtol=1e-5
    )


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_a_step_follows_the_gradient_of_the_weighted_sum(alpha: float) -> None:
    student, teacher = mlp(seed=0), mlp(seed=1)
    rows = np.arange(24)
    s, t = student(X).numpy(), teacher(X).numpy()
    kernel, bias = student.layers[-1].get_weights()
    loss = kd.losses.ForwardKL(temperature=2.0)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(1.0), crossentropy(), distillation_loss=loss, alpha=alpha
    )
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    expected = (1 - alpha) * label_loss(Y, s) + alpha * forward_kl(t, s, 2.0)
    np.testing.assert_allclose(logs["loss"], expected.mean(), rtol=1e-5)

    def softmax(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    label_gradient = softmax(s)
    label_gradient[rows, Y] -= 1.0
    distillation_gradient = 2.0 * (softmax(s / 2.0) - softmax(t / 2.0))
    gradient = (1 - alpha) * label_gradient + alpha * distillation_gradient
    np.testing.assert_allclose(
        student.layers[-1].bias, bias - gradient.mean(0), atol=1e-6
    )
