"""The teacher compared with a student that has trained, on each backend of Keras."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill.guards.against_student import AgainstStudent
from tests.guards.setups import FEATURES, classes, inputs, linear, sparse, warned_of

X = inputs(960)
# Their labels have little noise.
LOGITS = ops.convert_to_numpy(linear(4, scale=6.0)(X))
Y = classes(LOGITS)
MESSAGE = "The teacher is no better than the student"


def poor(share: float = 0.4, scale: float = 6.0) -> keras.Model:
    """A teacher that knows a part of what it should."""
    model, other = linear(4, scale), linear(4, scale, seed=7)
    weights = zip(model.get_weights(), other.get_weights(), strict=True)
    model.set_weights([share * one + (1.0 - share) * two for one, two in weights])
    return model


def pupil(like: keras.Model | None = None) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = linear(4, scale=0.01, seed=5)
    if like is not None:
        model.set_weights(like.get_weights())
    return model


def fitted(
    teacher: Any,
    student: keras.Model | None = None,
    *,
    x: Any = X,
    y: Any = Y,
    loss: Any = None,
    fit: dict[str, Any] | None = None,
    **kwargs: Any,
) -> kd.Distiller:
    distiller = kd.Distiller(student or pupil(), teacher)
    loss = loss or sparse()
    distiller.compile(keras.optimizers.Adam(0.1), loss, **{"alpha": 0.1, **kwargs})
    given = {"batch_size": 32, "epochs": 3, "verbose": 0, **(fit or {})}
    distiller.fit(x, y, **given)
    return distiller


def of_two(kind: keras.Model, other: keras.Model) -> keras.Model:
    given = keras.Input((FEATURES,))
    return keras.Model(given, {"kind": kind(given), "other": other(given)})


def two_outputs() -> None:
    models = of_two(poor(), linear(4, scale=6.0)), of_two(pupil(), pupil())
    losses = dict.fromkeys(("kind", "other"), sparse())
    fitted(*models, y={"kind": Y, "other": Y}, loss=losses)


def listed_outputs() -> None:
    def of_both(left: keras.Model, right: keras.Model) -> keras.Model:
        given = keras.Input((FEATURES,))
        left.name, right.name = "left", "right"
        return keras.Model(given, [left(given), right(given)])

    models = of_both(poor(), linear(4, scale=6.0)), of_both(pupil(), pupil())
    fitted(*models, y=[Y, Y], loss=[sparse(), sparse()])


def epoch_by_epoch() -> None:
    distiller = fitted(poor(), fit={"epochs": 1})
    for _ in range(2):
        distiller.fit(X, Y, batch_size=32, verbose=0)


def list_of_callbacks() -> None:
    """It may be given to more than one `fit`."""
    distiller = fitted(poor(), fit={"epochs": 1})
    callbacks = keras.callbacks.CallbackList(add_history=True, model=distiller)
    for _ in range(2):
        distiller.fit(X, Y, batch_size=32, verbose=0, callbacks=callbacks)
    assert len(callbacks.callbacks) == 2


def named(model: keras.Model) -> keras.Model:
    given = {"x": keras.Input((FEATURES,), name="x")}
    return keras.Model(given, model(given["x"]))


def recorded(outputs: np.ndarray) -> None:
    teacher = kd.teachers.Recorded("said")
    fitted(teacher, named(pupil()), x={"x": X, "said": outputs})


POOR: dict[str, Callable[[], Any]] = {
    "poor": lambda: fitted(poor()),
    "XLA": lambda: fitted(poor(), jit_compile=True),
    "several steps at once": lambda: fitted(poor(), steps_per_execution=3),
    "recorded": lambda: recorded(ops.convert_to_numpy(poor()(X))),
    "two outputs": two_outputs,
    "a list": listed_outputs,
    "epoch by epoch": epoch_by_epoch,
    "Keras' list of callbacks": list_of_callbacks,
}


@pytest.mark.parametrize("name", POOR)
def test_a_teacher_worse_than_its_student_is_warned_of_once(name: str) -> None:
    (found,) = warned_of(POOR[name])
    assert found.startswith(MESSAGE)
    several = {"two outputs": " in output 'kind':", "a list": " in output 'left':"}
    assert several.get(name, "the student: on") in found


def test_the_figures() -> None:
    """They are those of the second epoch, in which this student doesn't learn."""
    distiller = fitted(poor(), fit={"epochs": 1})
    distiller.optimizer.learning_rate = 0.0
    given = {"batch_size": 960, "verbose": 0, "shuffle": False}
    (found,) = warned_of(functools.partial(distiller.fit, X, Y, **given))
    differ, rows = Y != Y[::-1], np.arange(960)
    expected = []
    for model in (poor(), distiller.student):
        log_p = ops.convert_to_numpy(ops.log_softmax(model(X), axis=-1))
        own, others = -log_p[rows, Y], -log_p[::-1][rows, Y]
        won = (own < others)[differ].mean()
        expected += [f"{own[differ].mean():.3g}", f"{won:.0%}"]
    assert f"on {differ.sum()} rows, its own label loss is {expected[0]} and" in found
    assert f"that of the student {expected[2]}." in found
    assert f"{expected[1]} of the pairs, the student's in {expected[3]}." in found


def masked() -> None:
    """Where there is no label, the label is wrong."""
    has_label = np.arange(960) % 3 == 0
    y = np.where(has_label, Y, LOGITS.argmin(-1))
    x = {"x": X, "labelled": has_label}
    fitted(named(linear(4, 6.0)), named(pupil()), x=x, y=y, label_mask="labelled")


def weighted() -> None:
    weight = (np.arange(960) % 3 == 0).astype("float32")
    y = np.where(weight > 0, Y, LOGITS.argmin(-1))
    fitted(linear(4, 6.0), y=y, fit={"sample_weight": weight})


def noisy() -> None:
    """A sure teacher that is right, and labels of which 4 in 10 are wrong."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(960) < 0.4, rng.integers(0, 4, 960), LOGITS.argmax(-1))
    fitted(linear(4, scale=15.0), y=y)


def pretrained() -> None:
    student = linear(4, scale=6.0, seed=5)
    student.compile(keras.optimizers.Adam(0.1), sparse())
    student.fit(X, Y, epochs=3, verbose=0)
    teacher = poor(0.9)
    fitted(teacher, student)


def deep() -> keras.Model:
    keras.utils.set_random_seed(6)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            *(layers.Dense(16, "relu") for _ in range(3)),
            layers.Dense(4),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), sparse())
    model.fit(X, Y, epochs=2, verbose=0)
    return model


def partly_absent() -> None:
    """Every fourth row has no output of the teacher."""
    recorded(np.where(np.arange(960)[:, None] % 4, LOGITS, 0.0))


SOUND: dict[str, Callable[[], Any]] = {
    "sound": lambda: fitted(linear(4, scale=6.0)),
    "XLA": lambda: fitted(linear(4, scale=6.0), jit_compile=True),
    "accurate, far too sure": lambda: fitted(linear(4, scale=60.0)),
    "accurate, hardly sure": lambda: fitted(linear(4, scale=0.1)),
    "a copy of a poor teacher": lambda: fitted(poor(), pupil(like=poor())),
    "a copy": lambda: fitted(linear(4, 6.0), pupil(like=linear(4, 6.0))),
    "pre-trained": pretrained,
    "quantisation-aware": lambda: fitted(
        teacher := deep(), kd.students.quantization_aware(teacher, "int8", None)
    ),
    "without a layer": lambda: fitted(
        teacher := deep(), kd.students.drop_layers(teacher, every=2)
    ),
    "trained together": lambda: fitted(poor(), teacher_loss=sparse()),
    "partly absent": partly_absent,
    "noisy labels": noisy,
    "label mask": masked,
    "sample weights": weighted,
    "labels of one class": lambda: fitted(poor(0.6), y=0 * Y),
    "few rows": lambda: fitted(poor(), x=X[:250], y=Y[:250], fit={"epochs": 9}),
    "only one epoch": lambda: fitted(poor(), fit={"epochs": 1}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_set_ups_are_not_warned_of(name: str) -> None:
    assert warned_of(SOUND[name]) == []


def of_sums(
    *, rows: int = 1024, gap: float = 0.1, by_student: float = 1.0, like: float = 2.0
) -> np.ndarray:
    """Sums in which the teacher has a loss of 2, and tells `gap` fewer pairs apart."""
    both = [1.0, 2.0, by_student, 0.8 - gap, 0.8, 2.0 * gap, 1.0, like]
    return rows * np.array([0.0] * 9 + both)


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({}, True),
        ({"by_student": 2.0}, True),
        ({"by_student": 2.1}, False),
        ({"gap": 0.04}, False),
        ({"rows": 300, "gap": 0.07}, False),
        ({"rows": 250, "gap": 0.7}, False),
        ({"by_student": np.nan}, False),
    ],
)
def test_how_much_worse_it_must_be(given: dict[str, Any], warns: bool) -> None:
    compared = AgainstStudent("", None)
    compared.begin(of_sums())
    assert bool(warned_of(functools.partial(compared.check, of_sums(**given)))) == warns


def test_a_student_that_began_as_a_copy_is_not_compared() -> None:
    compared = AgainstStudent("", None)
    compared.begin(of_sums(rows=10))  # too few to tell
    compared.begin(of_sums(like=0.1))
    compared.begin(of_sums())
    assert not compared.check(of_sums())
