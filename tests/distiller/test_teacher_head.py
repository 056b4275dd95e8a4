"""A student with a head for its teacher keeps its other head calibrated."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd

ROWS = 4000
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).astype("float32")
TRUTH = X @ np.array([[1.0], [-2.0], [0.5]], "float32") - 1.0
Y = (RNG.random((ROWS, 1)) < 1 / (1 + np.exp(-TRUTH))).astype("float32")
# It ranks rows rightly, but predicts far too many, too surely.
TEACHER = 3.0 * TRUTH + 4.0
LOSS = keras.losses.BinaryCrossentropy(from_logits=True)
SOFT = kd.losses.BinarySoftTargets()


def student(*heads: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((3,), name="x")
    trunk = layers.Dense(8, "relu", name="trunk")(x)
    outputs = {name: layers.Dense(1, name=name)(trunk) for name in heads}
    return keras.Model(x, outputs if len(heads) > 1 else outputs[heads[0]])


def fit(model: keras.Model, teacher: Any, **terms: Any) -> keras.Model:
    distiller = kd.Distiller(model, teacher)
    distiller.compile(keras.optimizers.Adam(0.02), **terms)
    labels = {"label": Y} if isinstance(model.output, dict) else Y
    batch = {"inputs": X, "said": TEACHER.astype("float32")}
    distiller.fit(batch, labels, batch_size=500, epochs=15, verbose=0)
    return model


def predicted_over_observed(logits: Any) -> float:
    metric = kd.metrics.PredictedOverObserved(from_logits=True)
    return float(metric(Y, logits))


@pytest.fixture(scope="module")
def two_heads() -> keras.Model:
    return fit(
        student("label", "teacher"),
        kd.teachers.Recorded({"label": "said", "teacher": "said"}),
        loss={"label": LOSS, "teacher": None},
        distillation_loss={"label": None, "teacher": SOFT},
        alpha={"teacher": 1.0},
    )


def test_the_label_head_is_calibrated_and_the_teacher_s_is_the_teacher_s(
    two_heads: keras.Model,
) -> None:
    given = two_heads(X)
    wrong = predicted_over_observed(TEACHER)
    assert wrong > 1.5
    assert abs(predicted_over_observed(given["label"]) - 1.0) < 0.05
    assert abs(predicted_over_observed(given["teacher"]) - wrong) < 0.1


def test_one_head_under_both_is_not() -> None:
    """The control: the same trunk, labels and teacher."""
    recorded = kd.teachers.Recorded("said")
    model = fit(student("label"), recorded, loss=LOSS, distillation_loss=SOFT)
    assert predicted_over_observed(model(X)) > 1.2
