"""What is logged of tokens, against NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from keras_distill.sequence import TokenLoss
from keras_distill.sequence.token_metrics import NAMES, TokenMetrics
from tests.sequence import reference

RNG = np.random.default_rng(5)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 3, 4, 6))).astype("float32")
WEIGHT = np.array([[0, 1, 1, 0], [1, 1, 1, 2], [0, 0, 0, 0]], "float32")


@pytest.mark.parametrize(
    "loss", [None, TokenLoss(losses.GeneralizedJSD())], ids=["without", "of tokens"]
)
def test_means_over_tokens_of_several_batches(loss: TokenLoss | None) -> None:
    metrics, other = TokenMetrics(), np.roll(STUDENT, 1, axis=0)
    for student in (STUDENT, other):
        assert metrics.update(loss, TEACHER, student, WEIGHT) == set(NAMES)
    valid = WEIGHT > 0
    expected = [reference.compared(TEACHER, student) for student in (STUDENT, other)]
    for name in NAMES:
        values = np.concatenate([each[name][valid] for each in expected])
        result = float(metrics.metrics[name].result())
        assert result == pytest.approx(values.mean(), rel=1e-5), name


def test_probabilities_and_values_where_no_token_is() -> None:
    loss = TokenLoss(losses.ForwardKL(from_logits=False))
    metrics = TokenMetrics()
    student = ops.where(WEIGHT[..., None] > 0, ops.softmax(STUDENT), np.nan)
    metrics.update(loss, ops.softmax(TEACHER), student, WEIGHT)
    expected = reference.compared(TEACHER, STUDENT)
    for name, metric in metrics.metrics.items():
        value = expected[name][WEIGHT > 0].mean()
        assert float(metric.result()) == pytest.approx(value, rel=1e-4), name


def test_equal_distributions_and_no_tokens() -> None:
    metrics = TokenMetrics()
    metrics.update(None, TEACHER, TEACHER, WEIGHT)
    results = {name: float(m.result()) for name, m in metrics.metrics.items()}
    assert results["forward_kl"] == results["reverse_kl"] == 0.0
    assert results["teacher_agreement"] == 1.0
    assert results["student_entropy"] == results["teacher_entropy"] > 0.0
    metrics = TokenMetrics()
    metrics.update(None, TEACHER, STUDENT, 0.0 * WEIGHT)
    assert not any(float(m.result()) for m in metrics.metrics.values())
