"""`targets.from_function`: what a NumPy function returns, as logits in the batches."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.targets import from_function
from keras_distill.targets.conversions import converted
from tests.distiller.models import crossentropy
from tests.targets.recordings import CLASSES, dataset, inputs, model

WEIGHTS = np.random.default_rng(0).normal(size=(4, CLASSES))


def logits(x: np.ndarray) -> np.ndarray:
    """In float64, as scikit-learn computes."""
    return x.astype("float64") @ WEIGHTS


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def added(taught: tf.data.Dataset, key: str = "teacher") -> np.ndarray:
    return np.concatenate([batch[0][key] for batch in taught.as_numpy_iterator()])


def test_probabilities_of_classes_are_logits_but_for_a_constant() -> None:
    taught = from_function(
        lambda x: softmax(logits(x)), dataset(), outputs="probabilities"
    )
    z = logits(inputs())
    expected = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(added(taught), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_the_probability_of_an_event_becomes_its_log_odds(shape: Any) -> None:
    taught = from_function(
        lambda x: sigmoid(logits(x)[:, 0]).reshape(shape),
        dataset(),
        outputs="probabilities",
    )
    np.testing.assert_allclose(added(taught), logits(inputs())[:, :1], rtol=1e-6)


@pytest.mark.parametrize("outputs", ["log_odds", "logits"])
def test_scores_stay_as_they_are(outputs: str) -> None:
    taught = from_function(lambda x: logits(x)[:, 0], dataset(), outputs=outputs)
    expected = logits(inputs())[:, :1].astype("float32")
    np.testing.assert_array_equal(added(taught), expected)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-30, np.log(1e-30)),
        (0.0, -87.3365),
        (1.0, 87.3365),
        (1.0 + 1e-9, 87.3365),
        (1.0 - 2.0**-40, 40 * np.log(2.0)),
    ],
)
def test_extreme_probabilities_are_finite(p: float, expected: float) -> None:
    (given,) = converted("It", [p], "probabilities", 1)
    np.testing.assert_allclose(given, [expected], rtol=1e-5)
    if p < 1:
        (given,) = converted("It", [[1 - p, p]], "probabilities", 1)
        np.testing.assert_allclose(given, np.log([1 - p, max(p, 1.17549e-38)]), 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_types_of_outputs(dtype: str) -> None:
    given = converted("It", np.array([[1, 0]], dtype), "logits", 1)
    assert given.dtype == "float32"
    np.testing.assert_array_equal(given, [[1, 0]])


WRONG = [
    ([[0.5, np.nan]], "logits", r"not be NaN.*1 of 1.*row 0: \[0.5 nan\]"),
    ([[np.inf, 0.0]], "logits", "finite as float32.*inf"),
    ([[1e39, 0.0]], "log_odds", r"finite as float32.*1\.e\+39"),
    ([[0.5, 0.6]], "probabilities", r"sum to 1.*outputs='log_odds'.*\[0.5 0.6\]"),
    ([[-0.5, 1.5]], "probabilities", r"\[0, 1\]. Pass.*'log_odds'` or 'logits'.*-0.5"),
    ([2.5], "probabilities", r"in \[0, 1\].*2.5"),
    ([[0.5], [0.5]], "logits", r"a row for each.*float64 of shape \(2, 1\) for 1 rows"),
    (0.5, "logits", r"a row for each of the batch.*float64 of shape \(\) for 1"),
    ([["a"]], "logits", r"array of numbers.*<U1 of shape \(1, 1\)"),
    ([[None]], "logits", "array of numbers.*object"),
]


@pytest.mark.parametrize(
    ("given", "outputs", "message"), WRONG, ids=[f"{g}" for g, *_ in WRONG]
)
def test_values_that_can_not_be(given: Any, outputs: str, message: str) -> None:
    """The first batch's raise at once."""
    with pytest.raises(ValueError, match=f"(?s)What `predict` returns must.*{message}"):
        from_function(lambda x: given, dataset(1, 1), outputs=outputs)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (lambda z: np.where(z == z.max(), np.nan, z), "must not be NaN"),
        (lambda z: z[:-1], "a row for each"),
        (lambda z: z[:, :-1], r"the same shape in each batch. Received: \(4,\) after"),
    ],
)
def test_a_later_batch_ends_the_iteration(later: Any, message: str) -> None:
    calls: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return logits(x) if len(calls) < 4 else later(logits(x))

    taught = from_function(predict, dataset(), outputs="logits")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(taught)


ARGUMENTS = [
    ({"predict": 3}, TypeError, "must be a function.*predict of type int"),
    ({"dataset": inputs()}, TypeError, "must be a `tf.data.Dataset`.*ndarray"),
    ({"dataset": dataset().unbatch()}, ValueError, "must have batches"),
    ({"dataset": dataset().take(0)}, ValueError, "an empty data set"),
    ({"outputs": "proba"}, ValueError, r"\['log_odds', 'logits', 'prob.*'proba'"),
    ({"outputs": None}, ValueError, "outputs=None"),
    ({"outputs": {}}, ValueError, "outputs={}"),
    ({"outputs": {"a": "logit"}}, ValueError, "outputs={'a': 'logit'}"),
    ({"outputs": {"a": "logits"}}, ValueError, r"must return a dict .*\['a'\].*ndarr"),
    ({"key": "inputs"}, ValueError, "isn't a key of the inputs yet"),
    ({"key": ""}, ValueError, "key=''"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), ARGUMENTS, ids=[str([*it[0]]) for it in ARGUMENTS]
)
def test_arguments_that_can_not_be(change: Any, error: Any, message: str) -> None:
    usual = {"predict": logits, "dataset": dataset(), "outputs": "logits"}
    with pytest.raises(error, match=message):
        from_function(**{**usual, **change})


def test_columns_come_as_numpy_and_text_as_str() -> None:
    x = {
        "job": np.array([["clerk"], ["\u00e9t\u00e9"], [b"\xff"]], object),
        "nested": {"age": np.array([1, 2, 3])},
    }
    seen: list[Any] = []

    def predict(x: Any) -> Any:
        seen.append(x)
        return x["nested"]["age"]

    data = tf.data.Dataset.from_tensor_slices(x).batch(3)
    (batch,) = from_function(predict, data, outputs="logits")
    assert set(batch) == {"job", "nested", "teacher"}
    for given in seen:
        assert given["job"].tolist() == [["clerk"], ["\u00e9t\u00e9"], ["\udcff"]]
        assert given["nested"]["age"].dtype == "int64"
    np.testing.assert_array_equal(batch["teacher"], [[1], [2], [3]])


@pytest.mark.parametrize("form", ["x", "(x,)", "(x, y)", "(x, y, w)"])
def test_batches_of_every_form(form: str) -> None:
    parts = (inputs(9), np.arange(9), np.ones(9, "float32"))
    parts = parts[: max(1, form.count(",") + ("y" in form))]
    data = tf.data.Dataset.from_tensor_slices(parts[0] if form == "x" else parts)
    taught = from_function(logits, data.batch(4), outputs="logits", key="t")
    assert int(taught.cardinality()) == 3
    first = taught.element_spec if form == "x" else taught.element_spec[0]
    assert first["t"] == tf.TensorSpec((None, CLASSES), tf.float32)
    rows = [batch if form == "x" else batch[0] for batch in taught]
    np.testing.assert_allclose(
        np.concatenate([it["t"] for it in rows]), logits(inputs(9)), rtol=1e-5
    )


def test_several_outputs_have_a_key_each() -> None:
    def predict(x: np.ndarray) -> Any:
        z = logits(x)
        return {"class": softmax(z), "click": z[:, 0]}

    kinds = {"class": "probabilities", "click": "log_odds"}
    taught = from_function(predict, dataset(), outputs=kinds)
    z = logits(inputs())
    np.testing.assert_allclose(added(taught, "teacher_click"), z[:, :1], rtol=1e-5)
    np.testing.assert_allclose(
        softmax(added(taught, "teacher_class")), softmax(z), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"with the keys of .*Received: \['class'\]"):
        from_function(lambda x: {"class": softmax(logits(x))}, dataset(), outputs=kinds)


def test_a_cached_set_asks_once_a_row_and_a_recording_holds_it(tmp_path: Any) -> None:
    calls: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return logits(x)

    cached = from_function(predict, dataset(), outputs="logits").cache()
    for _ in range(3):
        np.testing.assert_allclose(added(cached), logits(inputs()), rtol=1e-5)
    assert sum(calls) == len(inputs()) + 8  # the first batch was asked at once too
    teacher = kd.teachers.Recorded("teacher")
    kd.targets.record(teacher, cached, tmp_path, hash_keys=["inputs"])
    joined = kd.targets.join(dataset(), tmp_path, key="teacher")
    np.testing.assert_allclose(added(joined), logits(inputs()), rtol=1e-4, atol=1e-5)


def test_the_student_learns_as_under_the_same_logits_in_the_data() -> None:
    weights = []
    data = dataset(32)
    by_hand = data.map(lambda x, y: ({"inputs": x, "teacher": hand(x)}, y))
    given = from_function(lambda x: softmax(logits(x)), data, outputs="probabilities")
    for taught in (given, by_hand):
        distiller = kd.Distiller(model(seed=3), kd.teachers.Recorded("teacher"))
        loss = kd.losses.ForwardKL(temperature=2.0)
        distiller.compile("sgd", crossentropy(), distillation_loss=loss)
        distiller.fit(taught, epochs=2, shuffle=False, verbose=0)
        weights.append(distiller.student.get_weights()[0])
    np.testing.assert_allclose(*weights, atol=1e-6)
    assert not np.allclose(weights[0], model(seed=3).get_weights()[0], atol=1e-2)


def hand(x: Any) -> Any:
    return tf.cast(keras.ops.matmul(x, WEIGHTS.astype("float32")), "float32")


def test_two_columns_for_one_unit_are_an_error_of_the_loss() -> None:
    """scikit-learn's `predict_proba` of a yes or no has two columns."""
    taught = from_function(
        lambda x: softmax(logits(x)[:, :2]), dataset(), outputs="probabilities"
    )
    distiller = kd.Distiller(model(outputs=1), kd.teachers.Recorded("teacher"))
    distiller.compile("sgd", distillation_loss=kd.losses.BinarySoftTargets(), alpha=1.0)
    with pytest.raises(ValueError, match="must have the same shape"):
        distiller.fit(taught.map(lambda x, y: (x,)), shuffle=False, verbose=0)
