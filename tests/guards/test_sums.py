"""The sums that a step adds up, against NumPy, on each backend of Keras."""

from typing import Any

import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, softmax

from keras_distill.guards import chance, evidence, kinds, pairs
from tests.guards.setups import binary, classes, inputs, linear, sparse

RNG = np.random.default_rng(3)
OUTPUT = RNG.normal(size=(32, 5)).astype("float32")
LABELS = RNG.integers(0, 5, 32)
OF_STUDENT = np.random.default_rng(4).normal(size=(32, 5)).astype("float32")
OF_LOGITS = kinds.of_labels(sparse())


@pytest.mark.parametrize("shape", [(32, 5), (4, 8, 5), (160,)])
def test_of_values(shape: tuple[int, ...]) -> None:
    values = OUTPUT.reshape(shape)
    found = ops.convert_to_numpy(evidence.sums(values, -1))
    rows = values.sum(-1)
    expected = [
        values.size,
        (values < -1e-3).sum(),
        (values > 1.01).sum(),
        values.sum(),
        (values**2).sum(),
        rows.size,
        (np.abs(rows - 1.0) <= 1e-2).sum(),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_of_values_on_another_axis() -> None:
    values = softmax(OUTPUT, axis=0)
    found = ops.convert_to_numpy(evidence.sums(values, 0))
    assert found[5] == found[6] == 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_probabilities_of_any_precision(dtype: str) -> None:
    output = ops.cast(ops.softmax(OUTPUT), dtype)
    found = ops.convert_to_numpy(evidence.sums(output, -1))
    kind = kinds.Kind("logits", hint="A hint.")
    seen = evidence.Evidence(found, "teacher", 5)
    with pytest.warns(UserWarning, match="looks like probabilities.*A hint."):
        assert seen.check("mse", kind)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_logits_are_no_probabilities(scale: float) -> None:
    found = ops.convert_to_numpy(evidence.sums(scale * OUTPUT, -1))
    seen = evidence.Evidence(found, "teacher", 5)
    assert not seen.check("mse", kinds.Kind("logits"))
    with pytest.warns(UserWarning, match="The teacher's output looks like logits"):
        assert seen.check("mse", kinds.Kind("probabilities"))


def by_numpy(labels: Any, output: Any, of_student: Any, counts: Any) -> list[float]:
    """The sums of pairs of rows, the n-th with the n-th from the end."""

    def loss(labels: Any, output: Any) -> Any:
        return -log_softmax(output, axis=-1)[np.arange(len(labels)), labels]

    own, other = loss(labels, output), loss(labels, output[::-1])
    mean = loss(labels, (output + output[::-1]) / 2)
    none = loss(labels, 0 * output)
    paired = counts * counts[::-1] * (labels != labels[::-1])
    gain, wins = mean - own, (own < other) + 0.5 * (own == other)
    by_student = loss(labels, of_student), loss(labels, of_student[::-1])
    won = (by_student[0] < by_student[1]) + 0.5 * (by_student[0] == by_student[1])
    margins = other - own, by_student[1] - by_student[0]
    both = [own, by_student[0], wins, won, (won - wins) ** 2]
    both += [margins[0] ** 2, (margins[1] - margins[0]) ** 2]
    of_pairs = [np.ones(32), gain, gain**2, wins, mean]
    summed = [paired * each for each in of_pairs]
    summed += [counts * each for each in (np.ones(32), own, none, own**2)]
    summed += [paired * each for each in (np.ones(32), *both)]
    return [each.sum() for each in summed]


@pytest.mark.parametrize("counted", [False, True])
def test_of_chance(counted: bool) -> None:
    counts = RNG.integers(0, 2, 32) if counted else np.ones(32)
    given = ops.cast(counts, "bool") if counted else None
    found = pairs.sums(sparse(), OF_LOGITS, LABELS, OUTPUT, OF_STUDENT, given)
    expected = by_numpy(LABELS, OUTPUT, OF_STUDENT, counts)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-4)


def test_of_chance_by_position() -> None:
    """Each row counts once, with the mean over its positions."""
    output, labels = OUTPUT.reshape(8, 4, 5), LABELS.reshape(8, 4)
    found = pairs.sums(sparse(), OF_LOGITS, labels, output, output, None)
    loss = -np.take_along_axis(log_softmax(output, -1), labels[..., None], -1)
    sums = ops.convert_to_numpy(found)
    assert sums[5] == 8
    np.testing.assert_allclose(sums[6], loss.mean((1, 2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums[7], 8 * np.log(5.0), rtol=1e-5)


def test_of_chance_of_units() -> None:
    x = inputs(256)
    head = linear(1)
    y = (ops.convert_to_numpy(head(x)) > 0.0).astype("float32")
    kind = kinds.of_labels(binary(), 1)
    for output, knows in ((head(x), True), (linear(1, seed=9)(x), False)):
        sums = pairs.sums(binary(), kind, y, output, output, None)
        found = ops.convert_to_numpy(sums)
        compared = chance.Comparison(found, kind, "")
        assert compared._knows() == knows
        assert found[5] == 256


def test_a_loss_of_the_batch_has_no_sums() -> None:
    loss = sparse()
    loss.call = lambda y_true, y_pred: ops.mean(y_pred)
    assert pairs.sums(loss, OF_LOGITS, LABELS, OUTPUT, OUTPUT, None) is None


def test_logits_that_are_too_large() -> None:
    x = inputs(512)
    head = linear(4)
    logits = ops.convert_to_numpy(head(x))
    far_off, y = 500.0 * logits, classes(logits)
    found = pairs.sums(sparse(), OF_LOGITS, y, far_off, far_off, None)
    compared = chance.Comparison(ops.convert_to_numpy(found), OF_LOGITS, "")
    with pytest.warns(UserWarning, match="it is far too sure where it is wrong"):
        assert compared.check()
