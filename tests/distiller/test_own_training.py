"""Methods of training that a student's class overrides: as in Keras, or refused."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.own_training import (
    REFUSED,
    REFUSED_IN_TRAINING,
    UNCALLED,
    UNCALLED_IN_TRAINING,
)
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
        weighted = model.train_on_batch(
            X, *DATA[kind][1:] or (None,), sample_weight=WEIGHTS, return_dict=True
        )
        seen.append((history, weighted))
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


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_would_not_run_are_refused(name: str) -> None:
    student = with_own(name)
    with pytest.raises(ValueError, match=f"student has its own `{name}`.*type Own"):
        kd.Distiller(student, mlp()).compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=f"peer has its own `{name}`.*type Own"):
        kd.online.MutualLearning([student, mlp()]).compile("sgd", crossentropy())
    distiller = kd.Distiller(mlp(), student)
    if name in REFUSED_IN_TRAINING:
        with pytest.raises(ValueError, match=f"trains has its own `{name}`"):
            distiller.compile("sgd", "mse", teacher_loss="mse")
    distiller.compile("sgd", "mse")  # a fixed teacher is only called


@pytest.mark.parametrize("name", UNCALLED)
def test_methods_that_are_not_called_are_named(name: str) -> None:
    """As those of KerasHub's tasks, which prepare the data."""
    student = with_own(name)
    with pytest.warns(UserWarning, match=f"student has its own `{name}`") as caught:
        kd.Distiller(student, mlp()).compile("sgd", crossentropy())
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=f"peer has its own `{name}`"):
        kd.online.MutualLearning([student, mlp()]).compile("sgd", crossentropy())
    distiller = kd.Distiller(mlp(), student)
    if name in UNCALLED_IN_TRAINING:
        with pytest.warns(UserWarning, match=f"trains has its own `{name}`"):
            distiller.compile("sgd", "mse", teacher_loss="mse")
    distiller.compile("sgd", "mse")


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


# Names of what is logged.


class Alpha(Regularised):
    """Logs under a name that a distiller logs under, by each way that there is."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        if way == "own metric":
            self.own = keras.metrics.Mean("alpha")

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, **({"alpha": 1.0} if self.way == "compute_metrics" else {})}

    def get_metrics_result(self) -> Any:
        logs = super().get_metrics_result()
        named = {"alpha": 1.0} if self.way == "get_metrics_result" else {}
        return {**logs, **named}

    def test_step(self, data: Any) -> Any:
        return {**super().test_step(data), "alpha": 1.0}


def alpha(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_mean(y_pred, -1)


@pytest.mark.parametrize(
    "name",
    ["alpha", "temperature", "student_loss", "distillation_loss", "teacher_loss"],
)
def test_metrics_of_names_that_are_logged_are_refused(name: str) -> None:
    distiller = kd.Distiller(mlp(), mlp(1))
    distiller.compile(
        "sgd",
        crossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name=name)],
        distillation_loss=kd.losses.ForwardKL(
            keras.optimizers.schedules.PolynomialDecay(4.0, 10)
        ),
        log_teacher=True,
        run_eagerly=True,
    )
    for use in (distiller.train_on_batch, distiller.test_on_batch):
        with pytest.raises(ValueError, match=rf"another.*metrics named \['{name}'\]"):
            use(X, Y)


@pytest.mark.parametrize(
    "way", ["own metric", "compute_metrics", "get_metrics_result", "function"]
)
def test_whatever_logs_a_name_twice_is_refused(way: str) -> None:
    student = Alpha(way)
    student(X)
    distiller = kd.Distiller(student, mlp())
    metrics = [alpha] if way == "function" else None
    distiller.compile("sgd", crossentropy(), metrics=metrics, run_eagerly=True)
    with pytest.raises(ValueError, match=r"another.*metrics named \['alpha'\]"):
        distiller.train_on_batch(X, Y)
    with pytest.raises(ValueError, match=r"another.*metrics named \['alpha'\]"):
        distiller.test_on_batch(X, Y)  # its own `test_step`


def test_names_of_teachers_and_peers_that_are_logged_are_refused() -> None:
    distiller = kd.Distiller(mlp(), mlp(1))
    distiller.compile(
        "sgd",
        crossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="teacher_accuracy")],
        teacher_loss=crossentropy(),
        teacher_metrics=["accuracy"],
        run_eagerly=True,
    )
    with pytest.raises(ValueError, match="metrics named.*teacher_accuracy"):
        distiller.train_on_batch(X, Y)
    mutual = kd.online.MutualLearning([mlp(), mlp(1)])
    named = keras.metrics.SparseCategoricalAccuracy(name="distillation_loss")
    mutual.compile("sgd", crossentropy(), metrics=[named], run_eagerly=True)
    with pytest.raises(ValueError, match="metrics named.*distillation_loss"):
        mutual.train_on_batch(X, Y)


def test_names_that_distillation_does_not_log_are_free() -> None:
    distiller = kd.Distiller(mlp(), mlp(1))
    metrics = [keras.metrics.SparseCategoricalAccuracy(name="temperature")]
    distiller.compile("sgd", crossentropy(), metrics=metrics, run_eagerly=True)
    assert "temperature" in distiller.train_on_batch(X, Y, return_dict=True)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
@pytest.mark.parametrize("peers", [False, True])
def test_a_student_without_trainable_weights_is_warned_of(peers: bool) -> None:
    frozen = mlp()
    frozen.trainable = False
    model = kd.Distiller(frozen, mlp(1))
    if peers:
        other = mlp(1)
        other.trainable = False
        model = kd.online.MutualLearning([frozen, other])
    model.compile("sgd", crossentropy(), run_eagerly=True)
    with pytest.warns(UserWarning, match="no trainable weights"):
        model.train_on_batch(X, Y)


def test_one_own_loss_of_all_outputs_takes_one_alpha() -> None:
    student = with_own("compute_loss")
    with pytest.raises(ValueError, match="student has its own `compute_loss`.*alpha="):
        kd.Distiller(student, mlp()).compile("sgd", alpha={"a": 0.5})
    with pytest.raises(ValueError, match="peer has its own `compute_loss`.*alpha="):
        kd.online.MutualLearning([mlp(), student]).compile(
            "sgd", "mse", alpha={"a": 0.5}
        )
