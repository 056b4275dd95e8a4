"""The loss of rows: its mean is the loss that Keras reports."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.privileged.scores import checked, label_loss

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
CLASSES = RNG.integers(0, 3, 24)
CLICKS = RNG.integers(0, 2, (24, 1)).astype("float32")
WEIGHT = RNG.random(24).astype("float32")


def model(*units: int) -> keras.Model:
    x = keras.Input((4,))
    outputs = {f"head{n}": layers.Dense(n, name=f"head{n}")(x) for n in units}
    return keras.Model(x, outputs if len(units) > 1 else outputs[f"head{units[0]}"])


def both(net: keras.Model, y: Any, weight: Any, **given: Any) -> tuple[Any, float]:
    """Return the values of rows, and what Keras evaluates the loss to."""
    prediction = net.predict(X, verbose=0)
    score = label_loss(given, prediction, net.output_names)
    values = checked(score, y, prediction, weight)
    net.compile(**given)
    logs = net.evaluate(X, y, sample_weight=weight, verbose=0, return_dict=True)
    return values, logs["loss"]


@pytest.mark.parametrize("weight", [None, WEIGHT, WEIGHT[:, None]])
@pytest.mark.parametrize(
    ("units", "y", "loss"),
    [
        (1, CLICKS, keras.losses.BinaryCrossentropy(from_logits=True)),
        (1, CLICKS[:, 0], "mse"),
        (3, CLASSES, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        (3, np.eye(3)[CLASSES], keras.losses.CategoricalHinge(reduction="sum")),
        (3, np.eye(3)[CLASSES], lambda y, p: keras.ops.mean((y - p) ** 2, -1)),
    ],
)
def test_the_mean_is_the_loss_of_keras(
    units: int, y: np.ndarray, loss: Any, weight: np.ndarray | None
) -> None:
    values, expected = both(model(units), y, weight, loss=loss)
    assert values.shape == (24,)
    summed = getattr(loss, "reduction", "") == "sum"
    np.testing.assert_allclose(
        values.sum() if summed else values.mean(), expected, 1e-5
    )


@pytest.mark.parametrize("weights", [None, {"head1": 0.2, "head3": 3.0}])
def test_losses_of_outputs_are_summed_by_their_weights(weights: Any) -> None:
    values, expected = both(
        model(1, 3),
        {"head1": CLICKS, "head3": CLASSES},
        {"head1": WEIGHT, "head3": CLICKS[:, 0]},
        loss={
            "head1": keras.losses.BinaryCrossentropy(from_logits=True),
            "head3": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights=weights,
    )
    np.testing.assert_allclose(values.mean(), expected, 1e-5)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (lambda y, p, w: 1.0, r"shape \(\) for 24 rows"),
        (lambda y, p, w: np.full(24, np.nan), "from nan to nan"),
        (lambda y, p, w: np.full(24, -1.0), "mean -1"),
    ],
)
def test_errors(values: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        checked(values, CLICKS, CLICKS, None)


def test_a_loss_of_the_whole_batch_needs_a_score() -> None:
    score = label_loss({"loss": lambda y, p: keras.ops.mean(y - p)}, CLICKS, None)
    with pytest.raises(ValueError, match="Pass a function of"):
        checked(score, CLICKS, CLICKS, None)
