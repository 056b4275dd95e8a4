"""Token losses: values and gradients against NumPy, masks, padding, errors."""

import re
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from keras_distill.sequence import TokenLoss
from tests.backends import compiled, gradients
from tests.losses import cases
from tests.losses import reference as of_classes
from tests.sequence import reference

RNG = np.random.default_rng(3)
BATCH, TIME, VOCABULARY = 4, 5, 6
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, BATCH, TIME, VOCABULARY))).astype(
    "float32"
)
# Padding on either side, none, and a row of padding only.
WEIGHT = np.array(
    [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], "float32"
)

DIVERGENCES = {
    "SoftTargets": (losses.SoftTargets, of_classes.soft_targets),
    "ForwardKL": (losses.ForwardKL, of_classes.forward_kl),
    "ReverseKL": (losses.ReverseKL, of_classes.reverse_kl),
    "Jeffreys": (losses.Jeffreys, of_classes.jeffreys),
    "TotalVariation": (losses.TotalVariation, of_classes.total_variation),
    "JSD(0.5)": (
        losses.GeneralizedJSD,
        partial(of_classes.generalized_jsd, beta=0.5),
    ),
    "JSD(0.1, normalize)": (
        partial(losses.GeneralizedJSD, 0.1, normalize=True),
        partial(of_classes.generalized_jsd, beta=0.1, normalize=True),
    ),
}


def test_every_divergence_is_tried() -> None:
    cases.assert_all_divergences(
        make(temperature=1.0) for make, _ in DIVERGENCES.values()
    )


def value_and_gradient(
    loss: Any, teacher: Any, student: Any, weight: Any = None
) -> tuple[float, np.ndarray]:
    variable = keras.Variable(student)
    value = float(loss(teacher, student, weight))
    return value, *gradients(lambda: loss(teacher, variable, weight), [variable])


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_agrees_with_numpy(name: str, reduction: str) -> None:
    ours, theirs = DIVERGENCES[name]
    weight = WEIGHT * np.array([[1.0], [0.5], [2.0], [1.0]], "float32")
    loss = TokenLoss(ours(temperature=1.5), reduction=reduction)
    value, gradient = value_and_gradient(loss, TEACHER, STUDENT, weight)
    expected = reference.token_mean(
        partial(theirs, temperature=1.5),
        TEACHER.astype("float64"),
        STUDENT.astype("float64"),
        weight,
        reduction,
    )
    assert value == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-7)


def test_by_hand() -> None:
    """Of three tokens, one differs: log 2 each, over three tokens or two sequences."""
    certain, even = [40.0, 0.0], [0.0, 0.0]
    teacher = [[certain, even], [even, even]]
    weight = [[1.0, 0.0], [1.0, 1.0]]
    student = np.zeros((2, 2, 2), "float32")
    by_token = TokenLoss()(teacher, student, weight)
    by_sequence = TokenLoss(reduction="sequence")(teacher, student, weight)
    assert float(by_token) == pytest.approx(np.log(2) / 3, rel=1e-6)
    assert float(by_sequence) == pytest.approx(np.log(2) / 2, rel=1e-6)


def padded(x: np.ndarray, value: float, side: str) -> np.ndarray:
    padding = np.full((BATCH, 3, *x.shape[2:]), value, "float32")
    parts = [padding, x] if side == "left" else [x, padding]
    longer = np.concatenate(parts, axis=1)
    return np.concatenate([longer, np.full_like(longer[:1], value)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("value", [0.0, 1e4, np.inf])
def test_padding_changes_nothing(value: float, reduction: str, side: str) -> None:
    """Positions on either side and a whole row, whatever the models put out there."""
    loss = TokenLoss(losses.ReverseKL(), reduction=reduction)
    plain, gradient = value_and_gradient(loss, TEACHER, STUDENT, WEIGHT)
    longer = value_and_gradient(
        loss,
        padded(TEACHER, -value, side),
        padded(STUDENT, value, side),
        padded(WEIGHT, 0.0, side),
    )
    assert longer[0] == pytest.approx(plain, rel=1e-6)
    expected = padded(gradient, 0.0, side)
    np.testing.assert_allclose(longer[1], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_without_valid_tokens_it_is_zero(reduction: str) -> None:
    loss = TokenLoss(losses.GeneralizedJSD(), reduction=reduction)
    value, gradient = value_and_gradient(loss, TEACHER, STUDENT, 0.0 * WEIGHT)
    assert value == 0.0 and not gradient.any()


def test_a_mask_of_keras_and_weights_of_rows_act_as_weights_of_tokens() -> None:
    loss = TokenLoss(losses.ForwardKL(), reduction="sequence")
    rows = np.array([1.0, 0.5, 2.0, 1.0], "float32")
    expected = float(loss(TEACHER, STUDENT, WEIGHT * rows[:, None]))
    for of_rows in (rows, rows[:, None]):
        value = loss.with_mask(TEACHER, STUDENT, of_rows, WEIGHT.astype("bool"))
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_masked_classes_and_low_precision() -> None:
    teacher = np.where(np.arange(VOCABULARY) == 2, -np.inf, TEACHER)
    student = np.where(np.arange(VOCABULARY) == 2, -np.inf, STUDENT)
    loss = TokenLoss(losses.ForwardKL())
    without = [np.delete(x, 2, axis=-1) for x in (TEACHER, STUDENT)]
    expected = float(loss(*without, WEIGHT))
    assert float(loss(teacher, student, WEIGHT)) == pytest.approx(expected, rel=1e-5)
    half = [ops.cast(x, "bfloat16") for x in without]
    assert float(loss(*half, WEIGHT)) == pytest.approx(expected, rel=3e-2)
    # In half precision, 4,096 tokens couldn't be counted.
    many = np.ones((64, 64, 2), "float16")
    other = many * np.array([3.0, 0.0], "float16")
    each = of_classes.forward_kl(np.array([1.0, 1.0]), np.array([3.0, 0.0]), 1.0)[0]
    assert float(loss(many, other)) == pytest.approx(each, rel=1e-3)


def test_other_losses_within() -> None:
    """Standardised logits, recorded top k, samples: their values token by token."""
    flat = [x.reshape(-1, VOCABULARY) for x in (TEACHER, STUDENT)]
    counted = WEIGHT.reshape(-1) > 0
    within = losses.Standardized(losses.ForwardKL(temperature=2.0))
    values = within(*(x[counted] for x in flat))
    loss = TokenLoss(within)
    assert float(loss(TEACHER, STUDENT, WEIGHT)) == pytest.approx(float(values))
    loss.temperature = 3.0
    assert within.temperature == 3.0
    log_p = reference.log_softmax(TEACHER)
    ids = np.argsort(-log_p, axis=-1)[..., :2]
    top = np.take_along_axis(log_p, ids, -1)
    rest = np.log1p(-np.exp(top).sum(-1, keepdims=True))
    packed = np.concatenate([ids, top, rest, np.zeros_like(rest)], axis=-1)
    top_k = losses.TopKForwardKL()
    of_rows = packed.reshape(-1, 6)[counted].astype("float32")
    expected = float(top_k(of_rows, flat[1][counted]))
    value = TokenLoss(top_k)(packed.astype("float32"), STUDENT, WEIGHT)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_compiled() -> None:
    for reduction in ("token", "sequence"):
        loss = TokenLoss(losses.GeneralizedJSD(0.3), reduction=reduction)
        inputs = [ops.convert_to_tensor(x) for x in (TEACHER, STUDENT, WEIGHT)]
        value = float(compiled(loss, reads=loss.state)(*inputs))
        assert value == pytest.approx(float(loss(*inputs)), rel=1e-6)


def test_files_hold_it() -> None:
    loss = TokenLoss(losses.ReverseKL(2.0), reduction="sequence", name="tokens")
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == loss.get_config()
    assert float(again(TEACHER, STUDENT)) == float(loss(TEACHER, STUDENT))
    assert isinstance(TokenLoss().loss, losses.ForwardKL)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"loss": "mse"}, TypeError, "must be a distillation loss"),
        ({"reduction": "sum"}, ValueError, "('token', 'sequence'). Received: "),
        ({"loss": losses.ForwardKL(axis=1)}, ValueError, "must be the last axis"),
    ],
    ids=["another loss", "another reduction", "another axis"],
)
def test_wrong_arguments(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        TokenLoss(**given)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, 3, 5), (2, 3, 4), "must have one vocabulary"),
        ((2, 3, 4), (2, 2, 4), "must have the same shape"),
        ((6, 4), (6, 4), "must be of shape (batch, time, vocabulary)"),
    ],
    ids=str,
)
def test_wrong_outputs(teacher: Any, student: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenLoss()(np.zeros(teacher, "float32"), np.zeros(student, "float32"))
