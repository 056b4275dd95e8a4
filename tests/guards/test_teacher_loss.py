"""The label loss of a teacher's outputs, on every backend."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backend
from keras_distill.batch import Batch
from keras_distill.guards.teacher_loss import TeacherLabelLoss
from keras_distill.labels import LabelMask

RNG = np.random.default_rng(6)
Y, STUDENT, TEACHER = RNG.normal(size=(3, 10, 2)).astype("float32")
LABELLED = np.arange(10) % 2 == 0
WEIGHT = RNG.random(10).astype("float32")


def batch(**kwargs: Any) -> Batch:
    given = {"inputs": {"labelled": LABELLED}, "labels": Y, "output": STUDENT}
    return Batch(**{**given, **kwargs})


def logged(losses: Any, *, of: Batch, targets: Any, keys: Any = None, **kw: Any) -> Any:
    names = kw.pop("names", None)
    mask = LabelMask(keys, output_names=names)
    log = TeacherLabelLoss(losses, kw.pop("loss_weights", None), mask)
    targets, output = keras.tree.map_structure(
        lambda x: None if x is None else ops.convert_to_tensor(x), (targets, of.output)
    )
    log.update(of._replace(output=output), targets, names)
    return float(log.metric.result())


def test_it_is_the_loss_of_the_teachers_outputs() -> None:
    found = logged("mse", of=batch(), targets=TEACHER)
    np.testing.assert_allclose(found, ((Y - TEACHER) ** 2).mean(), rtol=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weights"])
def test_it_is_masked_and_weighted(weight: Any) -> None:
    of = batch(sample_weight=weight)
    found = logged("mse", of=of, targets=TEACHER, keys="labelled")
    values = ((Y - TEACHER) ** 2).mean(-1) * (1.0 if weight is None else weight)
    np.testing.assert_allclose(found, values[LABELLED].mean(), rtol=1e-6)


def test_several_outputs() -> None:
    of = batch(labels=[Y, Y], output=[STUDENT, STUDENT])
    found = logged(
        {"a": "mse", "b": "mae"},
        of=of,
        targets=[TEACHER, 2 * TEACHER],
        names=["a", "b"],
        keys={"a": "labelled", "b": None},
        loss_weights={"a": 0.5, "b": 3.0},
    )
    expected = 0.5 * ((Y - TEACHER) ** 2)[LABELLED].mean()
    expected += 3.0 * np.abs(Y - 2 * TEACHER).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("missing", ["labels", "targets"])
def test_a_batch_without_labels_or_targets_is_left_out(missing: str) -> None:
    of = batch(labels=None) if missing == "labels" else batch()
    targets = None if missing == "targets" else TEACHER
    assert logged("mse", of=of, targets=targets) == 0.0


class Counting(keras.losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.calls = keras.Variable(0.0, trainable=False, name="calls")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.calls.assign_add(1.0)
        return ops.mean(ops.square(y_true - y_pred), axis=-1) * self.calls


class Noisy(keras.losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        noise = keras.random.normal(ops.shape(y_pred), seed=self.seed)
        return ops.mean(ops.square(y_true - y_pred + noise), axis=-1)


@pytest.mark.parametrize("make", [Counting, Noisy])
def test_a_loss_with_a_state_is_refused_and_keeps_it(make: Any) -> None:
    loss = make()
    state = loss.calls if make is Counting else loss.seed.state
    before = ops.convert_to_numpy(state)
    with pytest.raises(ValueError, match=rf"keeps a variable .*{make.__name__}.*Ass"):
        logged(loss, of=batch(), targets=TEACHER)
    np.testing.assert_array_equal(ops.convert_to_numpy(state), before)


def test_writes_are_found_within_a_stateless_scope() -> None:
    variable = keras.Variable(1.0)
    seen = []

    def call() -> None:
        seen.append(variable + 0.0)

    with keras.StatelessScope([(variable, ops.convert_to_tensor(5.0))]) as scope:
        assert backend.writes_state(call) == set()
        if not backend.is_tensorflow():
            assert backend.writes_state(lambda: variable.assign(7.0))
            assert float(seen[0]) == 5.0
        assert float(scope.get_current_value(variable)) == 5.0
    assert float(variable) == 1.0
