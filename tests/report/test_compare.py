"""Comparisons of all kinds of models, and what is refused."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.report import compare
from tests.backends import tensorflow_only
from tests.report.models import Answering, dense, features, numbers

X = features()
IDS = np.random.default_rng(1).integers(3, size=len(X))
QUICK = {"batch_sizes": (), "resamples": 100}
NAMES = ("teacher", "student alone", "distilled")


def three(build):
    return {name: build(seed) for seed, name in enumerate(NAMES)}


def test_roles():
    report = compare(three(lambda seed: dense(3, seed=seed)), (X, IDS), **QUICK)
    assert (report.teacher, report.baseline) == ("teacher", "student alone")
    assert set(report.outputs[""].differences) == {"teacher", "distilled"}
    assert "agreement" not in report.outputs[""].measures["teacher"]
    assert report.outputs[""].kind == "classes"
    assert report.rows == len(X)


def test_roles_by_other_names():
    models = {"large": dense(3), "small": dense(3, seed=1), "tiny": dense(3, seed=2)}
    report = compare(models, (X, IDS), **QUICK)
    assert (report.teacher, report.baseline) == (None, "large")
    report = compare(models, (X, IDS), teacher="large", baseline="tiny", **QUICK)
    assert (report.teacher, report.baseline) == ("large", "tiny")


def test_a_model_against_itself():
    models = {"a": dense(3), "b": dense(3)}
    report = compare(models, (X, IDS), **QUICK)
    assert report.verdict("b") == "no difference shown"
    assert report.outputs[""].differences["b"]["accuracy"].p == 1.0
    assert "No difference is shown" in report.verdicts[0]


def test_logits_and_probabilities_are_told_apart():
    logits, probabilities = dense(3), keras.Sequential([dense(3), layers.Softmax()])
    report = compare({"a": logits, "b": probabilities}, (X, IDS), **QUICK)
    a, b = (report.outputs[""].measures[name]["nll"].value for name in "ab")
    assert a == pytest.approx(b, rel=1e-5)


def test_logits_between_0_and_1():
    """The graph shows that they are logits."""
    model = dense(1)
    model.set_weights([np.full((4, 1), 1e-3), np.full(1, 0.5)])
    labels = IDS % 2
    report = compare({"a": model, "b": dense(1)}, (X, labels), **QUICK)
    mean = report.outputs[""].measures["a"]["predicted_to_observed"].value
    assert mean * labels.mean() == pytest.approx(1 / (1 + np.exp(-0.5)), rel=1e-2)
    report = compare(
        {"a": model, "b": dense(1)}, (X, labels), from_logits={"a": False}, **QUICK
    )
    mean = report.outputs[""].measures["a"]["predicted_to_observed"].value
    assert mean * labels.mean() == pytest.approx(0.5, rel=1e-2)


def test_two_outputs():
    def build(seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((4,), name="x")
        heads = {"kind": layers.Dense(3)(x), "click": layers.Dense(1, "sigmoid")(x)}
        return keras.Model(x, heads)

    report = compare(three(build), (X, {"kind": IDS, "click": IDS % 2}), **QUICK)
    assert {name: it.kind for name, it in report.outputs.items()} == {
        "kind": "classes",
        "click": "binary",
    }
    assert report.outputs["click"].primary == "auc"
    assert len(report.verdicts) == 4
    assert all(sentence in str(report) for sentence in report.verdicts)


def test_a_privileged_teacher_reads_its_own_inputs():
    x = {"x": X, "later": X[:, :1]}
    read = {"x": keras.Input((4,), name="x"), "later": keras.Input((1,), name="later")}
    joined = layers.Concatenate()([read["x"], read["later"]])
    teacher = keras.Model(read, layers.Dense(3)(joined))
    student = keras.Model({"x": read["x"]}, layers.Dense(3)(read["x"]))
    distiller = kd.Distiller(student, teacher, privileged_features=["later"])
    models = {"teacher": teacher, "student alone": dense(3), "distilled": distiller}
    report = compare(models, (x, IDS), **QUICK)
    assert report.models["distilled"]["parameters"] == student.count_params()


def test_files_and_data_sets(tmp_path):
    model = dense(3)
    model.save(tmp_path / "model.keras")
    data = tf.data.Dataset.from_tensor_slices((X, IDS)).batch(64)
    report = compare({"file": tmp_path / "model.keras", "model": model}, data, **QUICK)
    assert report.rows == len(X)
    found = report.outputs[""].measures
    assert found["file"] == found["model"]


def test_models_are_as_they_were():
    model = dense(3)
    model.compile("adam", "mse")
    weights = model.get_weights()
    compare({"a": model, "b": dense(3, seed=1)}, (X, IDS), **QUICK)
    assert model.compiled and model.loss == "mse"
    assert all(map(np.array_equal, model.get_weights(), weights))


def test_parameters_and_operations():
    report = compare({"a": dense(3), "b": dense(3, seed=1)}, (X, IDS), **QUICK)
    assert report.models["a"]["parameters"] == 15
    assert report.models["a"]["flops"] == pytest.approx(2 * 12, abs=3)


@tensorflow_only("exports are made there")
def test_costs(tmp_path):
    from keras_distill.export import export

    model = dense(3)
    export(model, tmp_path / "out", ["litert"], example_batch=X[:4])
    report = compare(
        {"a": model, "b": dense(3, seed=1)},
        (X, IDS),
        batch_sizes=(1, 4),
        exports={"a": tmp_path / "out"},
    )
    assert report.files["a"]["litert"] > 100
    timed = {(r["model"], r["side"], r["batch_size"]) for r in report.latencies}
    assert timed == {
        ("a", "keras", 1),
        ("a", "keras", 4),
        ("b", "keras", 1),
        ("b", "keras", 4),
        ("a", "litert", 1),
        ("a", "litert", 4),
    }
    assert all(row["p95_ms"] >= row["p50_ms"] > 0 for row in report.latencies)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@tensorflow_only("exports are made there")
def test_peak_memory(tmp_path):
    """As much as the weights at least, of each side; nothing of the runtimes."""
    from keras_distill.export import export

    wide = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2**20)])
    wide.add(keras.layers.Dense(3))
    weights = 4 * wide.count_params()
    export(wide, tmp_path / "out", ["litert"], example_batch=X[:4])
    report = compare(
        {"a": wide, "b": dense(3)},
        (X, IDS),
        batch_sizes=(),
        peak_memory=True,
        exports={"a": tmp_path / "out"},
    )
    assert not report.latencies
    taken = {(row["model"], row["side"]): row["bytes"] for row in report.memory}
    assert set(taken) == {("a", "keras"), ("a", "litert"), ("b", "keras")}
    assert weights < taken["a", "litert"] < 4 * weights
    assert weights < taken["a", "keras"] < 12 * weights
    assert taken["b", "keras"] < weights
    assert "peak memory, litert, batch 1" in str(report)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.slow("starts processes")
def test_peak_memory_of_a_model_that_only_this_process_knows():
    class Local(keras.Sequential):
        pass

    models = {"a": dense(3), "b": Local([keras.Input((4,)), layers.Dense(3)])}
    with pytest.raises(ValueError, match="process of its own.*Local"):
        compare(models, (X, IDS), batch_sizes=(), peak_memory=True)
    models["b"], data = Answering(np.eye(3)), (numbers(3), np.arange(3))
    models["a"] = Answering(np.eye(3))  # which can't even be saved
    with pytest.raises(ValueError, match="process of its own.*get_config"):
        compare(models, data, batch_sizes=(), peak_memory=True)


def test_a_report_is_json():
    """Also where a measure can't be computed: without a positive label, no area."""
    report = compare({"a": dense(1), "b": dense(1)}, (X, 0 * IDS), **QUICK)
    described = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert described["outputs"][""]["measures"]["a"]["auc"]["value"] is None
    assert report.verdict("b") == "no difference shown"


def broken(value):
    table = np.zeros((len(X), 3))
    table[5, 1] = value
    return Answering(table)


@pytest.mark.parametrize(
    ("models", "data", "kwargs", "message"),
    [
        ({"a": dense(3)}, (X, IDS), {}, "two models or more.*Received: \\['a'\\]"),
        ([dense(3)], (X, IDS), {}, "must be a dict.*Received: list"),
        ({"a": dense(3), "b": dense(4)}, (X, IDS), {}, "same outputs.*'a'.*3.*'b'.*4"),
        ({"a": dense(3), "b": dense(3, features=5)}, (X, IDS), {}, "'b' can't read"),
        ({"a": dense(3), "b": dense(3)}, (X[:0], IDS[:0]), {}, "must have rows"),
        ({"a": dense(3), "b": dense(3)}, (X, IDS[:-1]), {}, "as many labels"),
        ({"a": dense(3), "b": dense(3)}, X, {}, "must be `\\(x, y\\)`.*ndarray"),
        ({"a": dense(3), "b": dense(3)}, (X,), {}, "must have labels"),
        ({"a": dense(3), "b": dense(3)}, (X, IDS, IDS), {}, "Received: sample weights"),
        ({"a": dense(3), "b": dense(3)}, (X, IDS + 1), {}, "ids from 0 to 2.*1 to 3"),
        ({"a": dense(3), "b": dense(3)}, (X, IDS - 1), {}, "ids from -1 to 1"),
        ({"a": dense(3), "b": dense(3)}, (X, {"z": IDS, "y": IDS}), {}, "each of the"),
        (
            {"a": dense(3), "b": dense(3)},
            (X, IDS),
            {"baseline": "c"},
            "baseline='c'",
        ),
        (
            {"a": dense(3), "b": dense(3)},
            (X, IDS),
            {"exports": {"c": "."}},
            "names of models.*\\['c'\\]",
        ),
        (
            {"a": dense(3), "b": dense(3)},
            (X, IDS),
            {"task": "ranking"},
            "task='ranking'",
        ),
        (
            {"a": dense(3), "b": dense(3)},
            (X, IDS),
            {"primary": "auc"},
            "one of \\['accuracy'.*primary='auc'",
        ),
    ],
)
def test_what_is_refused(models, data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compare(models, data, **{**QUICK, **kwargs})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers(value):
    data = numbers(len(X)), IDS
    models = {"good": broken(0.0), "bad": broken(value)}
    with pytest.raises(ValueError, match="'bad' returns 1 values that are NaN or inf"):
        compare(models, data, **QUICK)


def test_what_is_no_model():
    with pytest.raises(TypeError, match="'b' of type function"):
        compare({"a": dense(3), "b": lambda x: x}, (X, IDS), **QUICK)
