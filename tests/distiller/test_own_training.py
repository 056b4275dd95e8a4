"""Methods of training that a student's class overrides: as in Keras, or refused."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.own_training import REPLACED, REPLACED_IN_TRAINING
from tests.distiller.models import (
    CLASSES,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)

X, Y = data()
WEIGHTS = np.linspace(0.0, 2.0, 24).astype("float32")


class Regularised(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(CLASSES, kernel_regularizer="l2")

    def call(self, x: Any) -> Any:
        return self.dense(x)


class AddsLosses(Regularised):
    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True
    ) -> Any:
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


class LeavesLossesOut(Regularised):
    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True
    ) -> Any:
        return crossentropy()(y, y_pred, sample_weight)


class Autoencoder(Regularised):
    """Needs no labels; weighs its rows itself; measures its own error."""

    def __init__(self) -> None:
        super().__init__()
        self.error = keras.metrics.Mean("error")

    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True
    ) -> Any:
        errors = tf.reduce_mean(tf.square(x[:, :CLASSES] - y_pred), -1)
        self.error.update_state(errors)
        if sample_weight is not None:
            errors *= sample_weight
        return tf.reduce_mean(errors) + self.losses[0]


class OwnMetrics(Regularised):
    """Adds to what is logged, changes it, and keeps a metric over the epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = keras.metrics.Mean("kept")

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        self.kept.update_state(y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> Any:
        logs = super().get_metrics_result()
        percent = 100.0 * logs["accuracy"]
        return {**logs, "accuracy": percent, "error": 100.0 - percent}

    def reset_metrics(self) -> None:
        for metric in self.metrics:
            if metric is not self.kept:
                metric.reset_state()


def built(kind: type[keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = kind()
    model(X)
    return model


KINDS: dict[type[keras.Model], dict[str, Any]] = {
    AddsLosses: {"loss": crossentropy()},
    LeavesLossesOut: {},
    Autoencoder: {},
    OwnMetrics: {"loss": crossentropy(), "metrics": ["accuracy"]},
}
DATA = {kind: (X,) if kind is Autoencoder else (X, Y) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_0_a_student_trains_as_alone(kind: type[keras.Model]) -> None:
    plain, student = built(kind), built(kind)
    distiller = kd.Distiller(student, mlp(1))
    seen = []
    for model, own in ((plain, {}), (distiller, {"alpha": 0.0})):
        optimizer = keras.optimizers.SGD(0.1)
        model.compile(optimizer, **KINDS[kind], run_eagerly=True, **own)
        history = model.fit(
            *DATA[kind],
            validation_data=DATA[kind],
            shuffle=False,
            batch_size=12,
            epochs=2,
            verbose=0,
        ).history
        logs = model.evaluate(*DATA[kind], batch_size=24, verbose=0, return_dict=True)
        weighted = model.train_on_batch(
            X, *DATA[kind][1:] or (None,), sample_weight=WEIGHTS, return_dict=True
        )
        seen.append((history, logs, weighted))
    for of_plain, of_distiller in zip(*seen, strict=True):
        assert {name: of_distiller[name] for name in of_plain} == of_plain
    assert_same_weights(student, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_weighs_what_the_students_own_loss_returns(
    kind: type[keras.Model],
) -> None:
    plain, student = built(kind), built(kind)
    plain.compile("sgd", **KINDS[kind], run_eagerly=True)
    alone = plain.evaluate(*DATA[kind], batch_size=24, verbose=0, return_dict=True)
    distiller = kd.Distiller(student, mlp(1))
    distiller.compile(
        "sgd", **KINDS[kind], distillation_loss="mse", alpha=0.25, run_eagerly=True
    )
    logs = distiller.train_on_batch(*DATA[kind], return_dict=True)
    added = 0.0 if kind is not OwnMetrics else float(plain.losses[0])
    np.testing.assert_allclose(logs["student_loss"], alone["loss"] - added, rtol=1e-6)
    total = 0.75 * logs["student_loss"] + 0.25 * logs["distillation_loss"] + added
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-6)


def test_a_peers_own_loss_is_weighed_whole() -> None:
    peers = [built(LeavesLossesOut), built(Regularised)]
    mutual = kd.online.MutualLearning(peers)
    mutual.compile("sgd", crossentropy(), alpha=0.25, run_eagerly=True)
    logs = mutual.train_on_batch(X, Y, return_dict=True)
    own, other = (logs[f"{peer.name}_loss"] for peer in peers)
    taught = sum(logs[f"{peer.name}_distillation_loss"] for peer in peers)
    added = logs[f"{peers[1].name}_loss"] - crossentropy()(Y, built(Regularised)(X))
    total = 0.75 * (own + other - added) + added + 0.25 * taught
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_a_student_that_needs_no_labels_may_learn_from_the_teacher_alone() -> None:
    distiller = kd.Distiller(built(LeavesLossesOut), mlp(1))
    distiller.compile("sgd", distillation_loss="mse", alpha=1.0, run_eagerly=True)
    logs = distiller.train_on_batch(X, return_dict=True)
    assert "student_loss" not in logs


# What can't be honoured.


def with_own(name: str) -> keras.Model:
    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    return built(type("Own", (Regularised,), {name: own}))


@pytest.mark.parametrize("name", REPLACED)
def test_methods_that_would_not_run_are_refused(name: str) -> None:
    student = with_own(name)
    with pytest.raises(ValueError, match=f"student has its own `{name}`.*type Own"):
        kd.Distiller(student, mlp()).compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=f"peer has its own `{name}`.*type Own"):
        kd.online.MutualLearning([student, mlp()]).compile("sgd", crossentropy())
    distiller = kd.Distiller(mlp(), student)
    if name in REPLACED_IN_TRAINING:
        with pytest.raises(ValueError, match=f"trains has its own `{name}`"):
            distiller.compile("sgd", "mse", teacher_loss="mse")
    distiller.compile("sgd", "mse")  # a fixed teacher is only called


@pytest.mark.parametrize("name", ["compute_loss", "compute_metrics", "test_step"])
def test_methods_that_would_see_no_label_mask_are_refused(name: str) -> None:
    student = with_own(name)
    mask = {"label_mask": "labelled"}
    with pytest.raises(ValueError, match=rf"student .* `{name}`.*\['labelled'\]"):
        kd.Distiller(student, mlp()).compile("sgd", crossentropy(), **mask)
    with pytest.raises(ValueError, match=rf"peer .* `{name}`.*\['labelled'\]"):
        kd.online.MutualLearning([mlp(), student]).compile("sgd", "mse", **mask)
    with pytest.raises(ValueError, match=rf"trains has .*`{name}`.*\['labelled'\]"):
        kd.Distiller(mlp(), student).compile("sgd", "mse", teacher_loss="mse", **mask)


def test_one_own_loss_of_all_outputs_takes_one_alpha() -> None:
    student = with_own("compute_loss")
    with pytest.raises(ValueError, match="student has its own `compute_loss`.*alpha="):
        kd.Distiller(student, mlp()).compile("sgd", alpha={"a": 0.5})
    with pytest.raises(ValueError, match="peer has its own `compute_loss`.*alpha="):
        kd.online.MutualLearning([mlp(), student]).compile(
            "sgd", "mse", alpha={"a": 0.5}
        )
