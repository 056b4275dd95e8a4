"""What is checked before a training and after it, on each backend of Keras."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_distill import backend
from keras_distill.guards.planned_steps import updates_of, warn_of_idle
from keras_distill.guards.validation import check_validation_data, labels_of
from keras_distill.schedules import LateStart
from keras_distill.values import Value
from tests.guards.setups import FEATURES, inputs, student

X, Y = inputs(8), np.arange(8)


class Unshaped:
    """Labels of a shape that isn't known."""

    shape = None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X,), "Evaluation needs labels"),
        ((X, np.eye(8)), r"the form of the labels.*\(8, 8\).*\(8,\)"),
        (({"z": X}, Y), r"declares inputs that the batch doesn't hold: \['x'\]"),
    ],
    ids=["no labels", "other labels", "other keys"],
)
def test_validation_data_that_does_not_fit(data: Any, message: str) -> None:
    read = keras.Input((FEATURES,), name="x")
    model = keras.Model(read, keras.layers.Dense(4)(read))
    with pytest.raises(ValueError, match=message):
        check_validation_data(model, data, Y)


@pytest.mark.parametrize(
    "data",
    [(X, Y), (X, Y[:, None]), (X, Y, Y), (X, Unshaped()), "a generator", None],
    ids=["the same", "a column", "weights", "no shape", "unknown", "None"],
)
def test_validation_data_that_fits(data: Any) -> None:
    check_validation_data(student(4), data, Y)


def test_data_sets_of_tensorflow_are_taken_on_every_backend() -> None:
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, np.eye(8))).batch(4)
    assert backend.dataset_spec(data) == data.element_spec
    assert labels_of(data, None).shape == (None, 8)
    with pytest.raises(ValueError, match=r"the form of the labels.*None, 8"):
        check_validation_data(student(4), data, Y)
    with pytest.raises(ValueError, match="Evaluation needs labels"):
        check_validation_data(student(4), data.map(lambda x, y: x), Y)


def test_other_data_are_no_data_set() -> None:
    assert backend.dataset_spec((X, Y)) is None
    assert labels_of(X, None) is None
    assert labels_of(X, Y) is Y


@pytest.mark.parametrize("accumulated", [None, 2])
def test_updates_are_counted(accumulated: int | None) -> None:
    model = student(4)
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulated)
    model.compile(optimizer, "mse")
    model.fit(X, np.eye(8)[:, :4], batch_size=2, epochs=3, verbose=0)
    assert updates_of(model.optimizer) == (12 if accumulated is None else 6)


def alpha(schedule: Any) -> dict[str, Value]:
    value = Value(
        "alpha", schedule, requirement="in [0, 1]", accepts=lambda n: 0 <= n <= 1
    )
    return {"alpha": value}


def test_schedules_that_never_start() -> None:
    late = alpha(LateStart(500, 0.5))
    with pytest.warns(UserWarning, match="`alpha` never started: in all 20 steps, 5 t"):
        assert warn_of_idle(late, 5, 25)
    assert not warn_of_idle(late, 490, 510)
    assert not warn_of_idle(late, 5, 5)
    assert not warn_of_idle(alpha(0.5), 5, 25)
