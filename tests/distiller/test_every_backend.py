"""A distiller on whichever backend Keras runs: steps, files, guards, the teacher."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill import backend
from tests.backends import tensorflow_only
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    CountsCalls,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data(24)
HOW = [{}, {"jit_compile": True}, {"run_eagerly": True}]


def compiled(teacher: Any = None, student: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(student or mlp(0), teacher or mlp(1, units=8))
    distiller.compile(
        kwargs.pop("optimizer", "sgd"), kwargs.pop("loss", crossentropy()), **kwargs
    )
    return distiller


class AtBatch(keras.callbacks.Callback):
    """Does something after one batch of `fit`."""

    def __init__(self, batch: int, action: Any) -> None:
        super().__init__()
        self.batch, self.action = batch, action

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.batch:
            self.action()


@pytest.mark.parametrize("how", HOW, ids=str)
def test_one_step_by_hand(how: dict[str, Any]) -> None:
    teacher, student = mlp(1, units=8), mlp(0)
    losses = kd.losses.ForwardKL(temperature=2.0)
    t, s = teacher.predict(X, verbose=0), student.predict(X, verbose=0)
    distiller = compiled(teacher, student, distillation_loss=losses, alpha=0.3, **how)
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    of_labels, of_teacher = label_loss(Y, s).mean(), forward_kl(t, s, 2.0).mean()
    assert logs["student_loss"] == pytest.approx(of_labels, rel=1e-5)
    assert logs["distillation_loss"] == pytest.approx(of_teacher, rel=1e-5)
    total = 0.7 * of_labels + 0.3 * of_teacher
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    assert logs["alpha"] == pytest.approx(0.3)


def test_evaluation_is_the_students_and_needs_no_teacher() -> None:
    counting = CountsCalls()
    teacher = keras.Sequential([keras.Input((FEATURES,)), counting, mlp(1)])
    distiller = compiled(teacher, metrics=["accuracy"])
    before = float(ops.convert_to_numpy(counting.calls))
    logs = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy"}
    s = distiller.student.predict(X, verbose=0)
    assert logs["loss"] == pytest.approx(label_loss(Y, s).mean(), rel=1e-5)
    np.testing.assert_allclose(distiller.predict(X, verbose=0), s, rtol=1e-6)
    assert float(ops.convert_to_numpy(counting.calls)) == before


@pytest.mark.parametrize("how", HOW, ids=str)
def test_an_assignment_during_fit_acts_in_the_next_step(how: dict[str, Any]) -> None:
    distiller, other = compiled(alpha=0.25, **how), compiled(alpha=0.25, **how)

    def assign() -> None:
        distiller.alpha = 0.75

    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    history = distiller.fit(X, Y, callbacks=[AtBatch(0, assign)], **fit).history
    assert history["alpha"][0] == pytest.approx(0.75)
    other.fit(X[:8], Y[:8], **fit)
    other.alpha = 0.75
    other.fit(X[8:], Y[8:], **fit)
    assert_same_weights(distiller.student, other.student, atol=1e-7)


def test_a_temperature_assigned_during_fit_acts() -> None:
    def trained(temperature: float | None) -> kd.Distiller:
        loss = kd.losses.ForwardKL(temperature=4.0)
        distiller = compiled(distillation_loss=loss, alpha=1.0)

        def assign() -> None:
            if temperature is not None:
                loss.temperature = temperature

        callback = AtBatch(0, assign)
        distiller.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=callback)
        return distiller

    same, kept, changed = trained(4.0), trained(None), trained(1.0)
    assert_same_weights(same.student, kept.student)
    different = zip(
        kept.student.get_weights(), changed.student.get_weights(), strict=True
    )
    assert any(np.abs(one - other).max() > 1e-5 for one, other in different)


def test_the_teacher_is_lent() -> None:
    teacher = mlp(1, units=8)
    weights = teacher.get_weights()
    distiller = compiled(teacher, optimizer="adam")
    distiller.fit(X, Y, epochs=2, verbose=0)
    for weight, before in zip(teacher.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, before)
    assert all(weight.trainable for weight in teacher.trainable_weights)
    own = {id(weight) for weight in distiller.weights}
    assert own == {id(weight) for weight in distiller.student.weights}
    assert distiller.count_params() == distiller.student.count_params()


def test_files(tmp_path: Path) -> None:
    schedule = keras.optimizers.schedules.PolynomialDecay(0.9, 10, 0.1)
    teacher = mlp(1, units=8)
    distiller = compiled(teacher, optimizer="adam", alpha=schedule)
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    distiller.fit(X, Y, **fit)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    loaded = kd.Distiller.load(tmp_path / "distiller.keras", teacher)
    again = compiled(teacher, optimizer="adam", alpha=schedule)
    # Before its first step: `compile` has built the optimiser.
    again.load_weights(tmp_path / "distiller.weights.h5")
    assert int(ops.convert_to_numpy(again.optimizer.iterations)) == 3
    history = distiller.fit(X, Y, **fit).history
    for other in (loaded, again):
        for name, values in other.fit(X, Y, **fit).history.items():
            assert values == pytest.approx(history[name], rel=1e-6), name
        assert_same_weights(other.student, distiller.student, atol=1e-7)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_teacher_that_breaks_stops_fit(how: dict[str, Any]) -> None:
    broken = X.copy()
    broken[8:16] = 1e3

    def teacher(x: Any) -> Any:
        logits = ops.stack([x[:, 0], x[:, 1], x[:, 2]], axis=-1)
        return ops.where(logits > 100.0, float("nan"), logits)

    distiller = compiled(teacher, **how)
    error = type(backend.invalid_values(""))
    with pytest.raises(error, match="teacher's output is NaN"):
        distiller.fit(broken, Y, batch_size=8, shuffle=False, verbose=0)
    for weight in distiller.student.get_weights():
        assert np.isfinite(weight).all()
    distiller.fit(X, Y, verbose=0)
    with pytest.raises(error, match="teacher's output is NaN"):
        distiller.train_on_batch(broken[8:16], Y[8:16])
    distiller.compile("sgd", crossentropy(), check_teacher=False, **how)
    distiller.train_on_batch(broken[8:16], Y[8:16])


@pytest.mark.parametrize("how", HOW[:2], ids=str)
def test_a_refused_fit_leaves_the_model_as_it_was(how: dict[str, Any]) -> None:
    distiller = compiled(lambda x: ops.ones((ops.shape(x)[0], CLASSES + 1)), **how)
    before = distiller.student.get_weights()
    with pytest.raises(ValueError, match="same shape"):
        distiller.fit(X, Y, verbose=0)
    for weight, value in zip(distiller.student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    distiller.teacher = mlp(1)
    assert np.isfinite(distiller.fit(X, Y, verbose=0).history["loss"][0])


def test_privileged_features_and_label_masks() -> None:
    rng = np.random.default_rng(0)
    later = rng.normal(size=(24, 3)).astype("float32")
    labelled = rng.integers(0, 2, 24).astype("bool")
    student = keras.Sequential([keras.Input((FEATURES,), name="x"), layers.Dense(3)])
    widths = {"x": FEATURES, "later": 3}
    inputs = {name: keras.Input((width,), name=name) for name, width in widths.items()}
    joined = layers.Concatenate()([inputs["x"], inputs["later"]])
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(joined))
    distiller = kd.Distiller(student, teacher, privileged_features=["later"])
    distiller.compile("sgd", crossentropy(), label_mask="labelled")
    x = {"x": X, "later": later, "labelled": labelled}
    s = student.predict(X, verbose=0)
    logs = distiller.train_on_batch(x, Y, return_dict=True)
    expected = label_loss(Y, s)[labelled].mean()
    assert logs["student_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"privileged features \['later'\]"):
        distiller.train_on_batch({"x": X, "labelled": labelled}, Y)


def test_sums_of_the_guards_are_read_between_steps() -> None:
    x, y = data(256)
    softened = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES), layers.Softmax()]
    )
    # Rounded, so that no graph shows the softmax.
    distiller = compiled(lambda t: ops.round(softened(t) * 1e4) / 1e4)
    with pytest.warns(UserWarning, match="teacher's output looks like probabilities"):
        distiller.fit(x, y, batch_size=64, verbose=0)


@pytest.mark.skipif(backend.is_tensorflow(), reason="TensorFlow exports")
def test_an_export_names_the_backend_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="made by TensorFlow.*keras-distill export"):
        kd.export.export(mlp(), tmp_path / "out", example_batch=X)


@tensorflow_only("an optimiser that is built early may be built for others")
def test_layers_unfrozen_after_compile_train() -> None:
    student = mlp(0)
    student.layers[0].trainable = False
    distiller = compiled(student=student, optimizer="adam")
    student.layers[0].trainable = True
    before = student.layers[0].get_weights()[0]
    distiller.train_on_batch(X, Y)
    assert np.abs(student.layers[0].get_weights()[0] - before).max() > 0
