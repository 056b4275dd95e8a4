"""Learning from the teacher alone."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.distiller.models import (
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data()
METRICS = ["accuracy"]


def compiled(loss: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(mlp(seed=0), mlp(seed=1))
    distiller.compile(
        keras.optimizers.SGD(0.3),
        loss,
        distillation_loss=kd.losses.ForwardKL(),
        alpha=1.0,
        **kwargs,
    )
    return distiller


@pytest.mark.parametrize("loss", [None, crossentropy()], ids=["no loss", "a loss"])
def test_no_labels_train_like_labels_of_no_weight(loss: Any) -> None:
    labelled, unlabelled = compiled(crossentropy()), compiled(loss)
    labelled.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    s, t = unlabelled.student(X).numpy(), unlabelled.teacher(X).numpy()
    logs = unlabelled.train_on_batch(X, return_dict=True)
    assert logs.keys() == {"loss", "distillation_loss", "alpha"}
    np.testing.assert_allclose(logs["loss"], forward_kl(t, s).mean(), rtol=1e-5)

    unlabelled = compiled(loss)
    history = unlabelled.fit(
        X, batch_size=8, epochs=2, shuffle=False, verbose=0
    ).history
    assert history.keys() == {"loss", "distillation_loss", "alpha"}
    assert_same_weights(unlabelled.student, labelled.student, atol=1e-7)


@pytest.mark.parametrize("loss", [None, crossentropy()], ids=["no loss", "a loss"])
def test_validation_may_be_labelled_where_training_is_not(loss: Any) -> None:
    distiller = compiled(loss, metrics=METRICS)
    history = distiller.fit(
        X, validation_data=(X, Y), epochs=2, batch_size=8, verbose=0
    ).history
    trained = {"loss", "distillation_loss", "alpha"}
    measured = {"val_accuracy"} if loss is None else {"val_accuracy", "val_loss"}
    assert history.keys() == trained | measured
    logits = distiller.student(X).numpy()
    np.testing.assert_allclose(
        history["val_accuracy"][-1], (logits.argmax(-1) == Y).mean(), rtol=1e-6
    )
    if loss is not None:
        np.testing.assert_allclose(
            history["val_loss"][-1], label_loss(Y, logits).mean(), rtol=1e-5
        )


def test_metrics_of_labels_are_kept_where_there_is_no_label_loss() -> None:
    distiller = compiled(metrics=METRICS)
    accuracy = (distiller.student(X).numpy().argmax(-1) == Y).mean()
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    assert logs.keys() == {"loss", "distillation_loss", "alpha", "accuracy"}
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)


def test_sample_weights_act_without_labels() -> None:
    weights = np.linspace(0, 1, 24).astype("float32")
    distiller = compiled()
    s, t = distiller.student(X).numpy(), distiller.teacher(X).numpy()
    loss = distiller.train_on_batch(X, sample_weight=weights, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, (weights * forward_kl(t, s)).mean(), rtol=1e-5)


@pytest.mark.parametrize("given", ["sample_weight", "validation_data"])
def test_sample_weights_that_keras_would_drop_are_refused(given: str) -> None:
    distiller, weights = compiled(), np.ones(24)
    forms = {
        "sample_weight": {"sample_weight": weights},
        "validation_data": {"y": Y, "validation_data": (X, None, weights)},
    }
    with pytest.raises(ValueError, match=f"drops the weights.*Received: `{given}`"):
        distiller.fit(X, **forms[given], verbose=0)
    assert int(distiller.optimizer.iterations) == 0
    with pytest.raises(
        ValueError, match="drops the weights.*Received: `sample_weight`"
    ):
        distiller.evaluate(X, sample_weight=weights, verbose=0)


def test_datasets_of_weights_without_labels() -> None:
    """What the error above advises."""
    weights = np.linspace(0.0, 2.0, 24).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((X, weights)).batch(24)
    seen = []
    for given in ((X, None, weights), None):
        distiller = compiled(run_eagerly=True)
        if given is None:
            data = batches.map(lambda x, weight: (x, None, weight))
            loss = distiller.fit(data, shuffle=False, verbose=0).history["loss"][0]
        else:
            loss = distiller.train_on_batch(*given, return_dict=True)["loss"]
        seen.append(loss)
    assert seen[0] == seen[1]


def test_datasets_of_inputs_alone() -> None:
    arrays, dataset = compiled(), compiled()
    arrays.fit(X, batch_size=8, shuffle=False, verbose=0)
    batches = tf.data.Dataset.from_tensor_slices(X).batch(8)
    dataset.fit(batches, shuffle=False, verbose=0)
    assert_same_weights(dataset.student, arrays.student)


def test_regularisers_act_without_labels() -> None:
    student = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer="l2")]
    )
    teacher = keras.models.clone_model(student)
    teacher.set_weights(student.get_weights())
    penalty = 0.01 * (student.layers[0].kernel.numpy() ** 2).sum()
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.1), alpha=1.0)
    logs = distiller.train_on_batch(X, return_dict=True)
    np.testing.assert_allclose(logs["loss"], penalty, rtol=1e-5)
    assert abs(logs["distillation_loss"]) < 1e-6


def test_labels_are_needed_unless_the_teacher_is_all_there_is() -> None:
    with pytest.raises(ValueError, match="`alpha` must be 1.*Received: alpha=0.5"):
        kd.Distiller(mlp(), mlp()).compile("sgd", alpha=0.5)
    with pytest.raises(ValueError, match="`alpha` must be 1.*LateStart"):
        kd.Distiller(mlp(), mlp()).compile("sgd", alpha=kd.schedules.LateStart(3))
    distiller = kd.Distiller(mlp(), mlp())
    distiller.compile("sgd", crossentropy(), alpha=0.5)
    with pytest.raises(ValueError, match="no labels.*Received: alpha=0.5, y=None"):
        distiller.fit(X, verbose=0)


def test_evaluation_needs_something_to_measure() -> None:
    for distiller in (compiled(crossentropy()), compiled(metrics=METRICS)):
        logs = distiller.evaluate(X, verbose=0, return_dict=True)
        assert logs.keys() == {"loss", "distillation_loss"}
    with pytest.raises(ValueError, match="Evaluation needs labels.*loss=None"):
        compiled().evaluate(X, Y, verbose=0)


def test_compiled_again_without_a_loss_the_labels_are_forgotten() -> None:
    distiller = compiled(crossentropy(), metrics=METRICS)
    distiller.train_on_batch(X, Y)
    distiller.compile("sgd", distillation_loss=kd.losses.ForwardKL(), alpha=1.0)
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    assert logs.keys() == {"loss", "distillation_loss", "alpha"}
    with pytest.raises(ValueError, match="Evaluation needs labels.*loss=None"):
        distiller.evaluate(X, Y, verbose=0)
