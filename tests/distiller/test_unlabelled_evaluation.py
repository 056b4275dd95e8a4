"""Evaluation without labels: the distillation loss against the teacher."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    CountsCalls,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data()
HELD_OUT, HELD_OUT_LABELS = data(count=20, seed=1)
# Leaves a last batch of `HELD_OUT` that is smaller.
BATCH = 8


def compiled(
    teacher: Any = None, *, student: keras.Model | None = None, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(student or mlp(seed=0), teacher or mlp(seed=1))
    given: dict[str, Any] = {
        "loss": crossentropy(),
        "distillation_loss": kd.losses.ForwardKL(),
    }
    distiller.compile(keras.optimizers.SGD(0.1), **{**given, **kwargs})
    return distiller


def outputs(model: Any, x: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(model(x)))


def loss_by_hand(distiller: kd.Distiller, x: np.ndarray) -> float:
    teacher = outputs(distiller.teacher, x)
    return float(forward_kl(teacher, outputs(distiller.student, x)).mean())


def as_arrays(x: np.ndarray) -> dict[str, Any]:
    return {"validation_data": (x,), "validation_batch_size": BATCH}


def with_no_labels(x: np.ndarray) -> dict[str, Any]:
    return {"validation_data": (x, None), "validation_batch_size": BATCH}


def as_dataset(x: np.ndarray) -> dict[str, Any]:
    return {"validation_data": tf.data.Dataset.from_tensor_slices(x).batch(BATCH)}


def as_dataset_of_tuples(x: np.ndarray) -> dict[str, Any]:
    return {"validation_data": tf.data.Dataset.from_tensor_slices((x,)).batch(BATCH)}


FORMS = [as_arrays, with_no_labels, as_dataset, as_dataset_of_tuples]


@pytest.mark.parametrize("given", FORMS)
def test_fit_logs_the_distillation_loss_of_unlabelled_data(
    given: Callable[[np.ndarray], dict[str, Any]],
) -> None:
    distiller = compiled()
    history = distiller.fit(X, Y, epochs=2, verbose=0, **given(HELD_OUT)).history
    trained = {"loss", "student_loss", "distillation_loss", "alpha"}
    assert history.keys() == trained | {"val_loss", "val_distillation_loss"}
    expected = loss_by_hand(distiller, HELD_OUT)
    for name in ("val_loss", "val_distillation_loss"):
        np.testing.assert_allclose(history[name][-1], expected, rtol=1e-5)
    first, last = history["val_distillation_loss"]
    assert first != last


def test_training_and_evaluation_may_both_be_unlabelled() -> None:
    distiller = compiled(loss=None, alpha=1.0)
    history = distiller.fit(X, epochs=1, verbose=0, **as_arrays(HELD_OUT)).history
    assert history.keys() == {
        *("loss", "distillation_loss", "alpha"),
        *("val_loss", "val_distillation_loss"),
    }
    expected = loss_by_hand(distiller, HELD_OUT)
    np.testing.assert_allclose(history["val_distillation_loss"][0], expected, rtol=1e-5)


def test_early_stopping_acts_on_it() -> None:
    """At a learning rate below 0, the student moves away from its teacher."""
    distiller = compiled(alpha=1.0)
    distiller.optimizer.learning_rate = -0.1
    stopping = keras.callbacks.EarlyStopping(
        "val_distillation_loss", mode="min", patience=2, restore_best_weights=True
    )
    history = distiller.fit(
        X, Y, epochs=9, verbose=0, callbacks=[stopping], **as_arrays(HELD_OUT)
    ).history
    values = history["val_distillation_loss"]
    assert len(values) == 3
    assert values[0] < values[1] < values[2]
    # The weights are those of the first epoch.
    np.testing.assert_allclose(loss_by_hand(distiller, HELD_OUT), values[0], rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, 1.0, kd.schedules.LateStart(100, 0.5)])
def test_evaluate_returns_the_loss_computed_by_hand(alpha: Any) -> None:
    distiller = compiled(alpha=alpha, metrics=["accuracy"])
    logs = distiller.evaluate(HELD_OUT, batch_size=BATCH, verbose=0, return_dict=True)
    assert logs.keys() == {"loss", "distillation_loss"}
    expected = loss_by_hand(distiller, HELD_OUT)
    for value in logs.values():
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert int(distiller.optimizer.iterations) == 0


def test_regularisers_are_in_the_loss_only() -> None:
    student = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES, kernel_regularizer="l2")]
    )
    kernel = ops.convert_to_numpy(student.layers[0].kernel)
    distiller = compiled(student=student)
    logs = distiller.evaluate(HELD_OUT, batch_size=20, verbose=0, return_dict=True)
    expected = loss_by_hand(distiller, HELD_OUT)
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-5)
    penalty = 0.01 * (kernel**2).sum()
    np.testing.assert_allclose(logs["loss"], expected + penalty, rtol=1e-5)


def test_with_labels_evaluation_is_of_the_student_alone() -> None:
    distiller = compiled(metrics=["accuracy"])
    distiller.evaluate(HELD_OUT, verbose=0)
    logs = distiller.evaluate(HELD_OUT, HELD_OUT_LABELS, verbose=0, return_dict=True)
    assert logs.keys() == {"loss", "accuracy"}
    student = outputs(distiller.student, HELD_OUT)
    expected = label_loss(HELD_OUT_LABELS, student).mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_the_teacher_runs_once_a_batch_and_never_with_labels() -> None:
    counts = CountsCalls()
    teacher = keras.Sequential([keras.Input((FEATURES,)), counts, mlp(seed=1)])

    def calls() -> int:
        return int(ops.convert_to_numpy(counts.calls))

    distiller, before = compiled(teacher), calls()
    distiller.evaluate(HELD_OUT, HELD_OUT_LABELS, batch_size=BATCH, verbose=0)
    assert calls() == before
    distiller.evaluate(HELD_OUT, batch_size=BATCH, verbose=0)
    assert calls() == before + 3
    labelled = (HELD_OUT, HELD_OUT_LABELS)
    distiller.fit(X, Y, batch_size=24, validation_data=labelled, verbose=0)
    # One for the step; Keras and the guards add none.
    assert calls() == before + 4


def heads(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    kind = layers.Dense(CLASSES, name="kind")(inputs)
    size = layers.Dense(2, name="size")(inputs)
    return keras.Model(inputs, {"kind": kind, "size": size})


@pytest.mark.parametrize("alpha", [0.5, {"kind": 0.25, "size": 0.75}])
def test_several_outputs_add_up_by_their_weights(alpha: Any) -> None:
    student, teacher = heads(0), heads(1)
    distiller = compiled(
        teacher,
        student=student,
        loss={"kind": crossentropy(), "size": "mse"},
        distillation_loss={"kind": kd.losses.ForwardKL(), "size": "mse"},
        distillation_loss_weights={"kind": 3.0, "size": 0.5},
        alpha=alpha,
    )
    logs = distiller.evaluate(HELD_OUT, batch_size=BATCH, verbose=0, return_dict=True)
    s, t = (
        {name: ops.convert_to_numpy(output) for name, output in model(HELD_OUT).items()}
        for model in (student, teacher)
    )
    expected = 3.0 * forward_kl(t["kind"], s["kind"]).mean()
    expected += 0.5 * ((t["size"] - s["size"]) ** 2).mean()
    assert logs.keys() == {"loss", "distillation_loss"}
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


NOT_MEASURED = "Evaluation without labels measures the distillation loss"


def needs_labels(kind: str) -> kd.Distiller:
    if kind == "loss":
        return compiled(distillation_loss=kd.losses.DecoupledKD())
    if kind == "loss of an output":
        return compiled(
            heads(1),
            student=heads(0),
            loss={"kind": crossentropy(), "size": "mse"},
            distillation_loss={"kind": kd.losses.DecoupledKD(), "size": "mse"},
        )
    weighted = kd.teachers.CorrectnessWeighted([mlp(seed=1), mlp(seed=2)])
    if kind == "teacher":
        return compiled(weighted)
    assert kind == "adapted teacher"
    return compiled(kd.teachers.Adapted(weighted, inputs=layers.Rescaling(1.0)))


@pytest.mark.parametrize(
    "kind", ["loss", "loss of an output", "teacher", "adapted teacher"]
)
@pytest.mark.parametrize("given", [as_arrays, as_dataset])
def test_what_needs_labels_is_found_before_the_first_step(
    kind: str, given: Callable[[np.ndarray], dict[str, Any]]
) -> None:
    distiller = needs_labels(kind)
    y = {"kind": Y, "size": np.ones((24, 2))} if kind == "loss of an output" else Y
    with pytest.raises(ValueError, match=NOT_MEASURED):
        distiller.fit(X, y, verbose=0, **given(HELD_OUT))
    assert int(distiller.optimizer.iterations) == 0
    with pytest.raises(ValueError, match="label"):
        distiller.evaluate(HELD_OUT, verbose=0)


def test_a_missing_teacher_is_found_before_the_first_step() -> None:
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=NOT_MEASURED):
        distiller.fit(X, Y, verbose=0, **as_arrays(HELD_OUT))
    assert int(distiller.optimizer.iterations) == 0
    with pytest.raises(ValueError, match=f"{NOT_MEASURED}|has no teacher"):
        distiller.evaluate(HELD_OUT, verbose=0)


def test_a_teacher_without_outputs_for_a_batch_is_an_error() -> None:
    class Silent(kd.teachers.Teacher):
        def teach(self, batch: Any) -> kd.teachers.Lesson:
            return kd.teachers.Lesson(None)

    with pytest.raises(ValueError, match="no labels to evaluate with"):
        compiled(Silent()).evaluate(HELD_OUT, verbose=0)
