"""Calibration against scikit-learn and NumPy, in batches, with weights, in graphs."""

import json

import keras
import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve

import keras_distill as kd
from keras_distill import backend
from keras_distill.metrics import ExpectedCalibrationError, PredictedOverObserved

RNG = np.random.default_rng(5)
PREDICTIONS = RNG.random(500).astype("float32")
LABELS = (RNG.random(500) < PREDICTIONS**2).astype("int32")
WEIGHTS = RNG.integers(0, 4, 500)

METRICS = [ExpectedCalibrationError, PredictedOverObserved]
both = pytest.mark.parametrize("metric_class", METRICS)
of_tensorflow = pytest.mark.skipif(
    not backend.is_tensorflow(), reason="TensorFlow's own compilers"
)


def by_loop(labels, predictions, bins, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    error = 0.0
    for b in range(bins):
        low, high = np.float32(b / bins), np.float32((b + 1) / bins)
        inside = (predictions > low) & (predictions <= high)
        if b == 0:
            inside |= predictions == 0.0
        if weights[inside].sum():
            predicted = np.average(predictions[inside], weights=weights[inside])
            observed = np.average(labels[inside], weights=weights[inside])
            error += weights[inside].sum() * abs(predicted - observed)
    return error / weights.sum()


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_ece_is_the_gap_in_scikit_learns_calibration_curve(bins):
    observed, predicted = calibration_curve(LABELS, PREDICTIONS, n_bins=bins)
    count = np.histogram(PREDICTIONS, bins, (0.0, 1.0))[0]
    expected = np.average(np.abs(observed - predicted), weights=count)
    metric = ExpectedCalibrationError(bins)
    np.testing.assert_allclose(metric(LABELS, PREDICTIONS), expected, rtol=1e-5)


@pytest.mark.parametrize("bins", [1, 3, 10, 15, 49])
def test_ece_of_predictions_on_the_edges(bins):
    edges = (np.arange(bins + 1) / bins).astype("float32")
    above = np.nextafter(edges[1:-1], np.float32(1.0))
    predictions = np.concatenate([edges, above])
    labels = np.arange(len(predictions)) % 2
    metric = ExpectedCalibrationError(bins)
    metric.update_state(labels, predictions)
    # the first bin holds 0 and its upper edge, each other what is above its lower edge
    np.testing.assert_array_equal(metric.weight, np.full(bins, 2))
    np.testing.assert_allclose(
        metric.result(), by_loop(labels, predictions, bins), rtol=1e-5
    )


def test_ece_keeps_what_a_reliability_diagram_shows():
    metric = ExpectedCalibrationError(10)
    metric.update_state(LABELS, PREDICTIONS)
    observed, predicted = calibration_curve(LABELS, PREDICTIONS, n_bins=10)
    np.testing.assert_allclose(metric.observed / metric.weight, observed, rtol=1e-5)
    np.testing.assert_allclose(metric.predicted / metric.weight, predicted, rtol=1e-5)


def test_ece_weighted():
    metric = ExpectedCalibrationError()
    expected = by_loop(LABELS, PREDICTIONS, 15, WEIGHTS)
    actual = metric(LABELS, PREDICTIONS, WEIGHTS)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_predicted_over_observed():
    metric = PredictedOverObserved()
    expected = PREDICTIONS.sum() / LABELS.sum()
    np.testing.assert_allclose(metric(LABELS, PREDICTIONS), expected, rtol=1e-5)
    metric.reset_state()
    expected = (WEIGHTS @ PREDICTIONS) / (WEIGHTS @ LABELS)
    actual = metric(LABELS, PREDICTIONS, WEIGHTS)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_predicted_over_observed_is_0_where_nothing_was_observed():
    assert float(PredictedOverObserved()([0, 0], [0.5, 0.25])) == 0.0


@both
def test_nothing_seen_is_0(metric_class):
    assert float(metric_class().result()) == 0.0


@both
def test_zero_at_perfection(metric_class):
    perfect = 0.0 if metric_class is ExpectedCalibrationError else 1.0
    assert float(metric_class()(LABELS, LABELS)) == perfect


@both
def test_batches_give_what_all_at_once_does(metric_class):
    at_once, in_batches = metric_class(), metric_class()
    in_batches.update_state([1, 1], [0.1, 0.1])
    in_batches.reset_state()
    for part in np.array_split(np.arange(500), [1, 2, 130, 131, 400]):
        in_batches.update_state(LABELS[part], PREDICTIONS[part], WEIGHTS[part])
    expected = at_once(LABELS, PREDICTIONS, WEIGHTS)
    np.testing.assert_allclose(in_batches.result(), expected, rtol=1e-5)
    assert [v.shape for v in in_batches.variables] == [
        v.shape for v in metric_class().variables
    ]


@both
def test_whole_weights_are_repeated_rows(metric_class):
    repeated = metric_class()(LABELS.repeat(WEIGHTS), PREDICTIONS.repeat(WEIGHTS))
    weighted = metric_class()(LABELS, PREDICTIONS, WEIGHTS)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)


@both
@pytest.mark.parametrize("weights", [(500,), (500, 1), None])
@pytest.mark.parametrize("predictions", [(500,), (500, 1)])
@pytest.mark.parametrize("labels", [(500,), (500, 1)])
def test_one_unit_needs_no_axis(metric_class, labels, predictions, weights):
    weight = None if weights is None else WEIGHTS.reshape(weights)
    actual = metric_class()(
        LABELS.reshape(labels), PREDICTIONS.reshape(predictions), weight
    )
    expected = metric_class()(LABELS, PREDICTIONS, weights and WEIGHTS)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@both
def test_units_share_one_total(metric_class):
    labels, predictions = LABELS.reshape(100, 5), PREDICTIONS.reshape(100, 5)
    expected = metric_class()(LABELS, PREDICTIONS)
    np.testing.assert_allclose(metric_class()(labels, predictions), expected, rtol=1e-5)
    each = WEIGHTS.reshape(100, 5)
    np.testing.assert_allclose(
        metric_class()(labels, predictions, each),
        metric_class()(LABELS, PREDICTIONS, WEIGHTS),
        rtol=1e-5,
    )
    of_rows = WEIGHTS[:100]
    np.testing.assert_allclose(
        metric_class()(labels, predictions, of_rows),
        metric_class()(LABELS, PREDICTIONS, of_rows.repeat(5)),
        rtol=1e-5,
    )


@both
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_logits(metric_class, dtype):
    logits = np.array([-1e4, -40.0, -2.0, 0.0, 3.0, 30.0, 1e4], dtype)
    labels = np.array([0, 1, 0, 1, 1, 0, 1])
    expected = metric_class()(labels, expit(logits.astype("float64")))
    actual = metric_class(from_logits=True)(labels, logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@both
def test_soft_labels(metric_class):
    """A teacher's probabilities may stand for labels."""
    metric = metric_class()
    metric.update_state([0.25, 0.75], [0.5, 0.9])
    is_ece = metric_class is ExpectedCalibrationError
    expected = 0.2 if is_ece else 1.4
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6)


@both
def test_config_round_trip(metric_class):
    # JAX has no 64 bits unless it is told so.
    dtype = "float16" if backend.is_jax() else "float64"
    arguments = {"from_logits": True, "name": "mine", "dtype": dtype}
    if metric_class is ExpectedCalibrationError:
        arguments["bins"] = 7
    metric = metric_class(**arguments)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(metric)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is metric_class
    assert again.get_config() == metric.get_config() == arguments


@pytest.mark.parametrize("bins", [0, -1, 2.5, float("nan"), "15", None, True])
def test_bins_must_be_a_positive_integer(bins):
    message = f"`bins` must be an integer >= 1. Received: bins={bins!r}"
    with pytest.raises(ValueError, match=message):
        ExpectedCalibrationError(bins)


@both
@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0.2, 1.5], "`y_pred` must .*from_logits=True`. .*from 0.2.* to 1.5"),
        ([0, 1], [-0.5, 0.2], "`y_pred` must be in .* Received: from -0.5 to 0.2"),
        ([0, 2], [0.5, 0.5], r"`y_true` must be in \[0, 1\]. Received: from 0.0 to 2"),
        ([-1, 1], [0.5, 0.5], r"`y_true` must be in \[0, 1\]. Received: from -1.0 to"),
    ],
)
class TestOutOfRange:
    def test_eagerly(self, metric_class, labels, predictions, message):
        metric = metric_class()
        with pytest.raises(ValueError, match=message):
            metric.update_state(labels, predictions)
        assert float(metric.result()) == 0.0

    @of_tensorflow
    def test_in_a_graph(self, metric_class, labels, predictions, message):
        import tensorflow as tf

        metric = metric_class()
        update = tf.function(lambda y, p: metric.update_state(y, p))
        with pytest.raises(tf.errors.InvalidArgumentError, match=message[:15]):
            update(tf.constant(labels, "float32"), tf.constant(predictions))

    @of_tensorflow
    def test_under_xla(self, metric_class, labels, predictions, message):
        import tensorflow as tf

        metric = metric_class()
        update = tf.function(lambda y, p: metric.update_state(y, p), jit_compile=True)
        update(tf.constant(labels, "float32"), tf.constant(predictions))
        assert np.isnan(metric.result())

    @pytest.mark.skipif(not backend.is_jax(), reason="JAX's own compiler")
    def test_under_jit(self, metric_class, labels, predictions, message):
        import jax

        metric = metric_class()
        update = jax.jit(metric.stateless_update_state)
        values = [variable.value for variable in metric.variables]
        state = update(values, np.float32(labels), np.float32(predictions))
        assert np.isnan(metric.stateless_result(state))


@both
@pytest.mark.parametrize(
    "shapes",
    [
        ((4,), (5,), None),
        ((4, 2), (4, 3), None),
        ((4,), (4, 3), None),
        ((4, 3, 1), (4, 3, 1), None),
        ((4, 3), (4, 3), (3,)),
        ((4, 3), (4, 3), (4, 2)),
        ((4,), (4,), ()),
    ],
)
def test_shapes_must_fit(metric_class, shapes):
    labels, predictions, weights = (
        shape if shape is None else np.zeros(shape) for shape in shapes
    )
    with pytest.raises(ValueError, match=r"must have one shape, .* Received: shapes "):
        metric_class()(labels, predictions, weights)


def test_a_diverged_model_shows_as_nan():
    assert np.isnan(ExpectedCalibrationError()([0, 1], [0.5, float("nan")]))


def model_of_probabilities():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, "sigmoid")])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_fit_and_evaluate(jit_compile):
    x = RNG.standard_normal((500, 3)).astype("float32")
    model = model_of_probabilities()
    model.compile(
        keras.optimizers.SGD(0.0),
        "binary_crossentropy",
        metrics=[PredictedOverObserved(name="unweighted")],
        weighted_metrics=[ExpectedCalibrationError(), PredictedOverObserved()],
        jit_compile=jit_compile,
    )
    predictions = model.predict(x, verbose=0)
    expected = {
        "expected_calibration_error": by_loop(
            LABELS, predictions[:, 0], 15, WEIGHTS.astype("float64")
        ),
        "predicted_over_observed": (WEIGHTS @ predictions[:, 0]) / (WEIGHTS @ LABELS),
        "unweighted": predictions.sum() / LABELS.sum(),
    }
    history = model.fit(
        x, LABELS, sample_weight=WEIGHTS, batch_size=64, epochs=2, verbose=0
    )
    evaluated = model.evaluate(
        x, LABELS, sample_weight=WEIGHTS, verbose=0, return_dict=True
    )
    for name, value in expected.items():
        np.testing.assert_allclose(history.history[name], value, rtol=1e-4)
        np.testing.assert_allclose(evaluated[name], value, rtol=1e-4)


def test_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of_probabilities()
        model.compile("sgd", "mse", weighted_metrics=[ExpectedCalibrationError()])
        x = RNG.standard_normal((500, 3)).astype("float32")
        value = model.evaluate(x, LABELS, verbose=0, return_dict=True)
    finally:
        keras.config.set_dtype_policy("float32")
    predictions = model.predict(x, verbose=0)[:, 0].astype("float32")
    np.testing.assert_allclose(
        value["expected_calibration_error"],
        by_loop(LABELS, predictions, 15),
        rtol=1e-4,
    )


def test_is_saved_with_a_distiller(tmp_path):
    x = RNG.standard_normal((500, 3)).astype("float32")
    teacher = model_of_probabilities()
    distiller = kd.Distiller(model_of_probabilities(), teacher)
    distiller.compile(
        "adam",
        "binary_crossentropy",
        distillation_loss=kd.losses.BinarySoftTargets(from_logits=False),
        weighted_metrics=[ExpectedCalibrationError(bins=9)],
    )
    distiller.fit(x, LABELS, verbose=0)
    before = distiller.evaluate(x, LABELS, verbose=0, return_dict=True)
    distiller.save(tmp_path / "run.keras")
    again = kd.Distiller.load(tmp_path / "run.keras", teacher=teacher)
    after = again.evaluate(x, LABELS, verbose=0, return_dict=True)
    assert before["expected_calibration_error"] > 0.0
    assert after == pytest.approx(before)
