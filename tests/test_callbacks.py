"""The callbacks' logs are those that NumPy computes, and other callbacks see them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import expit, log_expit, log_softmax, softmax

import keras_distill as kd
from keras_distill.callbacks import TeacherAgreement
from tests.guards.setups import (
    FEATURES,
    binary,
    classes,
    clicks,
    inputs,
    linear,
    sparse,
    student,
)

X = inputs(96)
LOGITS = ops.convert_to_numpy(linear(4)(X))
Y = classes(LOGITS)
NAMES = ("agreement", "teacher_kl", "teacher_entropy", "student_entropy")


def distilled(
    pupil: keras.Model, teacher: Any, loss: Any = None, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(pupil, teacher)
    # Tracing the steps is what a test costs.
    given = {"run_eagerly": True, **kwargs}
    distiller.compile("sgd", sparse() if loss is None else loss, **given)
    return distiller


def logged(
    distiller: kd.Distiller,
    agreement: TeacherAgreement,
    x: Any = X,
    y: Any = Y,
    *others: keras.callbacks.Callback,
    **fit: Any,
) -> dict[str, list[float]]:
    given = {"batch_size": 48, "verbose": 0, "shuffle": False, **fit}
    return distiller.fit(x, y, callbacks=[agreement, *others], **given).history


def expected(log_p: np.ndarray, log_q: np.ndarray) -> dict[str, float]:
    p, q = np.exp(log_p), np.exp(log_q)
    values = {
        "agreement": p.argmax(-1) == q.argmax(-1),
        "teacher_kl": (p * (log_p - log_q)).sum(-1),
        "teacher_entropy": -(p * log_p).sum(-1),
        "student_entropy": -(q * log_q).sum(-1),
    }
    return {name: value.mean() for name, value in values.items()}


def check(history: dict[str, list[float]], by_numpy: dict[str, float], name="") -> None:
    for key, value in by_numpy.items():
        assert history[f"val_{name}{key}"][-1] == pytest.approx(value, rel=1e-4)


def of_classes(model: keras.Model, x: np.ndarray = X) -> np.ndarray:
    return log_softmax(ops.convert_to_numpy(model(x)), axis=-1)


def of_units(logits: np.ndarray) -> np.ndarray:
    return np.stack([log_expit(-logits), log_expit(logits)], axis=-1)


@pytest.mark.parametrize("epochs", [1, 3])
def test_values(epochs: int) -> None:
    distiller = distilled(student(4), linear(4), run_eagerly=False)
    history = logged(distiller, TeacherAgreement((X, Y), 40), epochs=epochs)
    check(history, expected(of_classes(linear(4)), of_classes(distiller.student)))
    assert [len(history[f"val_{name}"]) for name in NAMES] == [epochs] * 4


def test_probabilities_and_a_teacher_of_another_kind() -> None:
    loss = kd.losses.ForwardKL(from_logits=False, teacher_from_logits=True)
    pupil = student(4, "softmax")
    labels = "sparse_categorical_crossentropy"
    distiller = distilled(pupil, linear(4), labels, distillation_loss=loss)
    history = logged(distiller, TeacherAgreement(X))
    log_q = np.log(ops.convert_to_numpy(pupil(X)))
    check(history, expected(of_classes(linear(4)), log_q))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_units_of_a_sigmoid(activation: str | None) -> None:
    loss = kd.losses.BinarySoftTargets(from_logits=activation is None)
    teacher, pupil = linear(1, activation=activation), student(1, activation)
    distiller = distilled(pupil, teacher, alpha=1.0, distillation_loss=loss, loss=[])
    history = logged(distiller, TeacherAgreement(X), y=None)
    t, s = (ops.convert_to_numpy(model(X)) for model in (teacher, pupil))
    if activation is not None:
        t, s = (np.log(p) - np.log1p(-p) for p in (t, s))
    check(history, expected(of_units(t), of_units(s)))


def of_two(kind: keras.Model, click: keras.Model, score: keras.Model) -> keras.Model:
    given = keras.Input((FEATURES,), name="x")
    outputs = {"kind": kind(given), "click": click(given), "score": score(given)}
    return keras.Model(given, outputs)


def test_several_outputs_of_which_one_has_no_classes() -> None:
    teacher = of_two(linear(4), linear(1), linear(1))
    pupil = of_two(student(4), student(1), student(1))
    y = {"kind": Y, "click": clicks(X[:, :1]), "score": X[:, :1]}
    distiller = distilled(
        pupil,
        teacher,
        {"kind": sparse(), "click": binary(), "score": "mse"},
        distillation_loss={
            "kind": kd.losses.ForwardKL(),
            "click": kd.losses.BinarySoftTargets(),
            "score": "mse",
        },
    )
    history = logged(distiller, TeacherAgreement((X, y)), y=y)
    assert not [name for name in history if name.startswith("val_score")]
    t, s = (
        {name: ops.convert_to_numpy(out) for name, out in model(X).items()}
        for model in (teacher, pupil)
    )
    of_kind = (log_softmax(each["kind"], axis=-1) for each in (t, s))
    check(history, expected(*of_kind), "kind_")
    of_click = (of_units(each["click"]) for each in (t, s))
    check(history, expected(*of_click), "click_")


def named(model: keras.Model, *more: str) -> keras.Model:
    given = {"x": keras.Input((FEATURES,), name="x")}
    given |= {name: keras.Input((FEATURES,), name=name) for name in more}
    return keras.Model(given, model(sum(given.values())))


def test_recorded_outputs_and_the_kind_that_the_label_loss_shows() -> None:
    x, teacher = {"x": X, "said": LOGITS}, kd.teachers.Recorded("said")
    distiller = distilled(named(student(4)), teacher, distillation_loss="mse")
    history = logged(distiller, TeacherAgreement(x), x)
    own = of_classes(distiller.student, {"x": X})
    check(history, expected(log_softmax(LOGITS, axis=-1), own))


def test_privileged_features() -> None:
    x = {"x": X, "p": inputs(96, seed=5)}
    distiller = distilled(named(student(4)), named(linear(4), "p"))
    history = logged(distiller, TeacherAgreement((x, Y)), x)
    log_p = of_classes(linear(4), X + x["p"])
    check(history, expected(log_p, of_classes(distiller.student, {"x": X})))


def test_a_data_set_that_shuffles() -> None:
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(96).batch(40)
    distiller = distilled(student(4), linear(4))
    history = logged(distiller, TeacherAgreement(data), epochs=3)
    check(history, expected(of_classes(linear(4)), of_classes(distiller.student)))


def test_a_teacher_of_vectors() -> None:
    loss, head = kd.losses.BinarySoftTargets(), linear(1)
    distiller = distilled(
        student(1), lambda x: head(x)[:, 0], distillation_loss=loss, loss=[], alpha=1.0
    )
    history = logged(distiller, TeacherAgreement(X), y=None)
    logits = (ops.convert_to_numpy(model(X)) for model in (head, distiller.student))
    check(history, expected(*map(of_units, logits)))


class Counted:
    """A teacher that counts the batches that it sees."""

    def __init__(self, scale: keras.Variable) -> None:
        self.scale, self.model = scale, linear(4)

    def __call__(self, x: Any) -> Any:
        return self.scale * self.model(x)


@pytest.mark.parametrize("changes", [False, True])
def test_the_teacher_is_asked_again_only_if_it_changes(
    changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = keras.Variable(1.0, trainable=False)
    distiller = distilled(student(4), Counted(scale))
    agreement = TeacherAgreement(X, batch_size=24)
    asked = []
    compared = TeacherAgreement._compared
    monkeypatch.setattr(
        TeacherAgreement,
        "_compared",
        lambda self, given: asked.append(1) or compared(self, given),
    )
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: scale.assign(1.0 + changes * epoch)
    )
    history = logged(distiller, agreement, X, Y, change, epochs=2)
    # One batch before the first step, and the first of each later epoch.
    assert len(asked) == 1 + 4 + (4 if changes else 1)
    log_p = log_softmax((1.0 + changes) * LOGITS, axis=-1)
    check(history, expected(log_p, of_classes(distiller.student)))


def test_a_teacher_that_follows_the_student() -> None:
    pupil = student(4)
    distiller = distilled(pupil, lambda x: pupil(x, training=False))
    history = logged(distiller, TeacherAgreement(X), epochs=2)
    assert history["val_agreement"] == [1.0, 1.0]
    assert history["val_teacher_kl"] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_teacher_that_trains() -> None:
    teacher = linear(4)
    distiller = distilled(student(4), teacher, teacher_loss=sparse())
    history = logged(distiller, TeacherAgreement(X), epochs=2)
    check(history, expected(of_classes(teacher), of_classes(distiller.student)))


def test_masked_classes() -> None:
    """A class that the teacher excludes has a log-probability of -inf."""
    excluded = np.array([0.0, 0.0, 0.0, -np.inf], "float32")
    teacher = kd.teachers.Recorded("said")
    x = {"x": X, "said": LOGITS + excluded}
    distiller = distilled(named(student(4)), teacher, check_teacher=False)
    history = logged(distiller, TeacherAgreement(x), x)
    p = softmax(x["said"], axis=-1)
    log_q = of_classes(distiller.student, {"x": X})
    kl = (p[:, :3] * (np.log(p[:, :3]) - log_q[:, :3])).sum(-1).mean()
    assert history["val_teacher_kl"][0] == pytest.approx(kl, rel=1e-4)


def test_later_callbacks_see_the_values(tmp_path: Path) -> None:
    stop = keras.callbacks.EarlyStopping("val_agreement", mode="min", min_delta=2.0)
    file = tmp_path / "log.csv"
    log = keras.callbacks.CSVLogger(file)
    distiller = distilled(student(4), linear(4))
    history = logged(distiller, TeacherAgreement(X), X, Y, stop, log, epochs=5)
    assert len(history["val_agreement"]) < 5
    assert "val_teacher_kl" in file.read_text().splitlines()[0]


def test_training_is_what_it_is_without() -> None:
    distillers = [distilled(student(4), linear(4)) for _ in range(2)]
    distillers[0].fit(X, Y, batch_size=48, epochs=2, verbose=0, shuffle=False)
    logged(distillers[1], TeacherAgreement(X), epochs=2)
    weights = [distiller.student.get_weights() for distiller in distillers]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


class TestRefusals:
    def test_other_models(self) -> None:
        model = student(4)
        model.compile("sgd", sparse())
        with pytest.raises(TypeError, match="the student of a `Distiller`.*Received"):
            model.fit(X, Y, verbose=0, callbacks=[TeacherAgreement(X)])

    @pytest.mark.parametrize(
        ("teacher", "loss", "message"),
        [
            (linear(4), "mse", "show none.*Received: distillation_loss=mse"),
            (lambda x: None, None, "the teacher returned none for this batch"),
        ],
    )
    def test_before_the_first_step(self, teacher: Any, loss: Any, message: str) -> None:
        distiller = distilled(student(4), teacher, "mse", distillation_loss=loss)
        with pytest.raises(ValueError, match=message):
            logged(distiller, TeacherAgreement(X), y=LOGITS)
        assert int(ops.convert_to_numpy(distiller.optimizer.iterations)) == 0

    def test_another_number_of_classes(self) -> None:
        distiller = distilled(student(4), linear(5))
        with pytest.raises(ValueError, match=r"\(32, 5\) from the teacher, \(32, 4\)"):
            logged(distiller, TeacherAgreement(X))

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (
                ((X, Y, Y),),
                ValueError,
                "all rows count alike. Received: sample weights",
            ),
            ((X[:0],), ValueError, r"must have rows.*Received: arrays of \[0\] rows"),
            (((X, Y[:9]),), ValueError, r"as many labels.*arrays of \[9, 96\] rows"),
            ((iter([X]),), TypeError, "arrays or a `tf.data.Dataset`. Received: list_"),
            ((X, 0), ValueError, "must be positive. Received: batch_size=0"),
        ],
    )
    def test_data(self, given: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            TeacherAgreement(*given)

    def test_an_empty_data_set(self) -> None:
        tf = pytest.importorskip("tensorflow")
        agreement = TeacherAgreement(tf.data.Dataset.from_tensor_slices(X[:0]).batch(8))
        with pytest.raises(ValueError, match="have rows. Received: an empty data set"):
            logged(distilled(student(4), linear(4)), agreement)

    def test_a_batch_size_of_a_data_set(self) -> None:
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices(X).batch(8)
        with pytest.raises(ValueError, match="Received: batch_size=8 and a data set"):
            TeacherAgreement(data, batch_size=8)


def test_the_shared_formulas() -> None:
    """Those of probabilities, which the report uses too."""
    from keras_distill.metrics import distributions

    p = np.array([[1.0, 0.0], [0.25, 0.75]])
    log_p = distributions.log_of_classes(p, from_logits=False)
    np.testing.assert_allclose(np.exp(log_p), p, atol=1e-30)
    units = distributions.log_of_units(np.array([0.5]), from_logits=True)
    np.testing.assert_allclose(np.exp(units), [[1 - expit(0.5), expit(0.5)]])
    np.testing.assert_allclose(distributions.entropy(log_p)[1], 0.5623, rtol=1e-4)
