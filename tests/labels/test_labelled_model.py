"""A model around another, trained on the labelled rows by Keras' own trainer."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_distill import backend
from keras_distill.labels import LabelledModel, LabelMask

RNG = np.random.default_rng(5)
X = RNG.normal(size=(16, 3)).astype("float32")
Y = RNG.integers(0, 2, (16, 1)).astype("float32")
LABELLED = np.arange(16) % 3 != 0
WEIGHT = RNG.random(16).astype("float32")
BATCH = {"x": X, "labelled": LABELLED}


def student(policy: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,), name="x")
    head = keras.layers.Dense(1, kernel_regularizer="l2", dtype=policy)
    return keras.Model(inputs, head(inputs))


class Around(LabelledModel):
    """The smallest model around another."""

    def __init__(self, model: keras.Model, keys: Any = "labelled") -> None:
        super().__init__()
        self.model = model
        self._mask = LabelMask(keys, output_names=model.output_names)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.model(self._read(inputs), training=training)

    def _read(self, x: Any) -> Any:
        return x["x"]

    @property
    def output_names(self) -> Any:
        return self.model.output_names

    @property
    def _label_mask(self) -> LabelMask:
        return self._mask

    @property
    def _trained_model(self) -> keras.Model:
        return self.model


def compiled(model: Any = None, loss: Any = None, **kwargs: Any) -> Around:
    around = Around(model or student())
    loss = loss or keras.losses.BinaryCrossentropy(from_logits=True)
    around.compile(keras.optimizers.SGD(0.1), loss, **kwargs)
    return around


def plain(loss: Any = None, policy: str = "float32") -> keras.Model:
    model = student(policy)
    loss = loss or keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, weighted_metrics=["mae"])
    return model


@pytest.mark.parametrize(
    ("how", "weight"),
    [
        ("eager", None),
        ("compiled", None),
        pytest.param("by XLA", None, marks=pytest.mark.slow("XLA")),
        ("eager", WEIGHT),
        ("compiled", WEIGHT),
        ("by XLA", WEIGHT),
    ],
)
def test_it_trains_on_the_labelled_rows_alone(how: str, weight: Any) -> None:
    around, alone = compiled(weighted_metrics=["mae"]), plain()
    around.run_eagerly = alone.run_eagerly = how == "eager"
    if backend.is_tensorflow():
        around.jit_compile = alone.jit_compile = how == "by XLA"
    labels = np.where(LABELLED[:, None], Y, np.nan)
    kept = None if weight is None else weight[LABELLED]
    fit = {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0}
    logs = around.fit(BATCH, labels, sample_weight=weight, **fit).history
    expected = alone.fit(X[LABELLED], Y[LABELLED], sample_weight=kept, **fit).history
    for of, other in zip(around.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(of, other, rtol=1e-5, atol=1e-7)
    for name, values in expected.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)
    found = around.evaluate(BATCH, labels, verbose=0, return_dict=True)
    there = alone.evaluate(X[LABELLED], Y[LABELLED], verbose=0, return_dict=True)
    for name, value in there.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_class_weights_meet_a_mask() -> None:
    around, alone = compiled(), plain()
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0}
    labels = np.where(LABELLED[:, None], Y, 0.0)
    class_weight = {0: 0.5, 1: 2.0}
    logs = around.fit(BATCH, labels, class_weight=class_weight, **fit).history
    of_rows = X[LABELLED], Y[LABELLED]
    expected = alone.fit(*of_rows, class_weight=class_weight, **fit).history
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)


def test_mixed_precision() -> None:
    around, alone = compiled(student("mixed_bfloat16")), plain(policy="mixed_bfloat16")
    logs = around.train_on_batch(BATCH, Y, return_dict=True)
    expected = alone.train_on_batch(X[LABELLED], Y[LABELLED], return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-2)


@pytest.mark.parametrize("value", [2.0, np.nan])
def test_bad_labels_show_in_an_evaluation_that_cannot_raise(value: float) -> None:
    around = compiled()
    labels = Y.copy()
    labels[1] = value
    around.jit_compile = True
    assert np.isnan(around.evaluate(BATCH, labels, verbose=0))
    assert np.isfinite(around.evaluate(BATCH, Y, verbose=0))


def test_bad_labels_leave_the_weights_finite() -> None:
    around = compiled(jit_compile=True)
    around.fit(BATCH, np.full_like(Y, 3.0), verbose=0)
    assert all(np.isfinite(weight).all() for weight in around.get_weights())
