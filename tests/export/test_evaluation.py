"""What artefacts lose of a task metric, measured, bounded and reported."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.metrics import f1_score, roc_auc_score

from keras_distill.export import (
    Evaluation,
    ParityError,
    arguments,
    export,
    litert,
    onnx,
    verify,
)
from keras_distill.export.evaluation import Judge
from keras_distill.export.serving import serve

CLASSES = 4


@pytest.fixture
def rng():
    return np.random.default_rng(21)


@pytest.fixture(scope="module")
def task():
    """A model of four classes, and labels that it mostly gets right."""
    rng = np.random.default_rng(20)
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((16,), name="x"),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES, name="y"),
        ]
    )
    x = rng.standard_normal((203, 16)).astype("float32")
    noisy = model(x).numpy() + 0.3 * rng.standard_normal((203, CLASSES))
    return model, x, noisy.argmax(-1)


def accuracy(logits, labels, weights=None):
    return np.average(np.argmax(logits, -1) == labels, weights=weights)


def evaluation_of(data, max_drop=1.0, **options):
    metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    return Evaluation(data, metric, max_drop=max_drop, **options)


def evaluated(model, directory, evaluation, formats=("onnx",), **options):
    return export(
        model,
        directory,
        list(formats),
        example_batch=np.random.default_rng(22).standard_normal((8, 16)),
        evaluation=evaluation,
        **options,
    )


def breaking(monkeypatch, own, change):
    """Let a format give `change(outputs, inputs)`, as a wrong file would."""

    def load(path, threads=None):
        loaded = own.load(path, threads)
        return dataclasses.replace(
            loaded, run=lambda arrays: change(loaded.run(arrays), arrays)
        )

    changed = dataclasses.replace(own, load=load)
    formats = tuple(changed if f is own else f for f in arguments._FORMATS)
    monkeypatch.setattr(arguments, "_FORMATS", formats)


def test_the_metric_of_every_artefact_is_that_of_its_runtime(task, tmp_path, runtimes):
    model, x, labels = task
    described = evaluated(
        model,
        tmp_path / "out",
        evaluation_of((x, labels), max_drop=0.1, batch_size=50),
        ["saved_model", "onnx", "litert"],
        quantize=["float16", "int8"],
        calibration_data=x,
    )
    before = accuracy(model(x), labels)
    assert 0.5 < before < 1.0
    assert described["evaluation"] == {
        "metric": "accuracy",
        "output": "y",
        "mode": "max",
        "max_drop": 0.1,
        "examples": 203,
        "keras": pytest.approx(before),
    }
    for artefact in described["artefacts"].values():
        precision = artefact["precision"]
        run = runtimes[artefact["format"]]
        quantised = [precision] * (precision != "float32")
        # Dynamic ranges are those of a batch.
        logits = np.concatenate(
            [
                run(tmp_path / "out", {"x": x[i : i + 50]}, *quantised)["y"]
                for i in range(0, 203, 50)
            ]
        )
        measured = artefact["evaluation"]
        assert measured["metric"] == pytest.approx(accuracy(logits, labels))
        distance = np.abs(logits - model(x).numpy()).max()
        assert measured["max_abs_difference"] == pytest.approx(
            distance, rel=1e-3, abs=1e-6
        )
    assert len(described["artefacts"]) == 7


def test_auc_of_one_logit_with_weights(rng, tmp_path):
    model = keras.Sequential([keras.Input((16,), name="x"), layers.Dense(1, name="y")])
    x = rng.standard_normal((300, 16)).astype("float32")
    labels = (model(x).numpy()[:, 0] + rng.standard_normal(300) > 0).astype("int64")
    weights = rng.exponential(size=300).astype("float32") ** 2
    metric = keras.metrics.AUC(from_logits=True, num_thresholds=4000)
    described = evaluated(
        model,
        tmp_path / "out",
        Evaluation((x, labels[:, None], weights), metric, max_drop=0.01),
    )
    wanted = roc_auc_score(labels, model(x).numpy()[:, 0], sample_weight=weights)
    unweighted = roc_auc_score(labels, model(x).numpy()[:, 0])
    assert abs(wanted - unweighted) > 2e-3
    assert described["evaluation"]["keras"] == pytest.approx(wanted, abs=1e-3)
    measured = described["artefacts"]["onnx"]["evaluation"]["metric"]
    assert measured == pytest.approx(wanted, abs=1e-3)
    # The caller's own object is as it was.
    assert float(metric.result()) == 0.0


def test_a_metric_of_a_plain_function_with_a_state_of_its_own(task, tmp_path):
    model, x, labels = task

    def margin(y_true, y_pred):
        ordered = keras.ops.sort(y_pred, axis=-1)
        return ordered[:, -1] - ordered[:, -2]

    metric = keras.metrics.MeanMetricWrapper(margin, name="margin")
    metric.update_state(labels[:3], [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    described = evaluated(
        model,
        tmp_path / "out",
        Evaluation((x, labels), metric, max_drop=0.01, mode="max"),
    )
    ordered = np.sort(model(x), -1)
    wanted = np.mean(ordered[:, -1] - ordered[:, -2])
    assert described["evaluation"]["keras"] == pytest.approx(wanted, rel=1e-4)
    assert float(metric.result()) == 2.0


def test_a_metric_of_several_numbers_is_refused(task, tmp_path):
    model, x, labels = task
    targets = keras.utils.to_categorical(labels, CLASSES)
    by_class = keras.metrics.F1Score()
    message = r"one number. Received: 'f1_score', which gives .* shape \(4,\)"
    with pytest.raises(ValueError, match=message):
        evaluated(
            model, tmp_path / "out", Evaluation((x, targets), by_class, max_drop=0.1)
        )
    averaged = keras.metrics.F1Score(average="macro")
    described = evaluated(
        model, tmp_path / "out", Evaluation((x, targets), averaged, max_drop=0.1)
    )
    wanted = f1_score(labels, np.argmax(model(x), -1), average="macro")
    assert described["evaluation"]["keras"] == pytest.approx(wanted)


def test_a_drop_that_is_too_large_publishes_nothing(task, tmp_path, monkeypatch):
    model, x, labels = task
    directory = tmp_path / "out"
    evaluated(model, directory, None)
    before = (directory / "model.onnx").read_bytes()
    breaking(monkeypatch, onnx.FORMAT, lambda o, _: {"y": np.roll(o["y"], 1, -1)})
    options = {"quantize": "dynamic_int8", "tolerance": 100.0}
    with pytest.raises(ParityError) as caught:
        evaluated(model, directory, evaluation_of((x, labels), 0.01), **options)
    whole, kept = accuracy(model(x), labels), accuracy(np.roll(model(x), 1, -1), labels)
    message = (
        "The onnx artefact may lose at most 0.01 of the model's accuracy. Received: "
        f"{kept:.6g} where Keras has {whole:.6g}, a loss of {whole - kept:.6g}."
    )
    assert message in str(caught.value)
    assert (directory / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_limit_itself_is_allowed(task, tmp_path, monkeypatch):
    model, x, labels = task

    def one_wrong(outputs, arrays):
        if len(arrays["x"]) < len(labels):
            return outputs
        right = np.flatnonzero(np.argmax(outputs["y"], -1) == labels)[0]
        outputs["y"][right] = np.roll(outputs["y"][right], 1)
        return outputs

    breaking(monkeypatch, onnx.FORMAT, one_wrong)
    options = {"tolerance": 100.0}
    data = (x, labels)
    described = evaluated(
        model, tmp_path / "out", evaluation_of(data, 1.0001 / 203), **options
    )
    lost = (
        described["evaluation"]["keras"]
        - described["artefacts"]["onnx"]["evaluation"]["metric"]
    )
    assert lost == pytest.approx(1 / 203, rel=1e-3)
    with pytest.raises(ParityError, match="may lose at most 0.0049 "):
        evaluated(model, tmp_path / "o", evaluation_of(data, 0.0049), **options)


def test_where_smaller_is_better(task, tmp_path, monkeypatch):
    model, x, labels = task
    loss = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="loss")
    z = model(x).numpy()
    by_hand = np.mean(np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), labels])
    bound = Evaluation((x, labels), loss, max_drop=0.01, mode="min")
    described = evaluated(model, tmp_path / "out", bound)
    assert described["evaluation"]["keras"] == pytest.approx(by_hand, rel=1e-5)
    assert described["evaluation"]["mode"] == "min"
    # Flatter logits keep the accuracy and raise the loss.
    breaking(monkeypatch, onnx.FORMAT, lambda o, _: {"y": 0.2 * o["y"]})
    with pytest.raises(ParityError, match="at most 0.01 of the model's loss"):
        evaluated(model, tmp_path / "o", bound, tolerance=100.0)
    better = Evaluation((x, labels), loss, max_drop=0.01, mode="max")
    evaluated(model, tmp_path / "o", better, tolerance=100.0)


def test_datasets_and_lists_of_batches(task, tmp_path):
    model, x, labels = task
    before = accuracy(model(x), labels)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(64)
    batches = [(x[:100], labels[:100]), (x[100:], labels[100:])]
    for data in (dataset, batches, [(x, labels, None)]):
        described = evaluated(model, tmp_path / "out", evaluation_of(data))
        assert described["evaluation"]["keras"] == pytest.approx(before)
        assert described["evaluation"]["examples"] == 203
        measured = described["artefacts"]["onnx"]["evaluation"]
        assert measured["metric"] == pytest.approx(before)


def test_weights_of_a_dataset(task, rng, tmp_path):
    model, x, labels = task
    weights = rng.uniform(0, 1, len(x)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, labels, weights)).batch(64)
    described = evaluated(model, tmp_path / "out", evaluation_of(dataset))
    wanted = accuracy(model(x), labels, weights)
    assert wanted != pytest.approx(accuracy(model(x), labels), abs=1e-3)
    assert described["evaluation"]["keras"] == pytest.approx(wanted)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_fill_up_a_fixed_batch_do_not_count(task, tmp_path, weighted):
    model, x, labels = task
    # The last row fills up the last batch; here it is the only wrong one.
    order = np.argsort(np.argmax(model(x), -1) != labels, kind="stable")
    first_wrong = int(np.sum(np.argmax(model(x), -1) == labels))
    rows = order[: first_wrong + 1]
    assert len(rows) % 8 not in (0, 7)
    weights = np.linspace(1, 2, len(rows)).astype("float32") if weighted else None
    data = (x[rows], labels[rows], *([weights] if weighted else []))
    described = evaluated(
        model, tmp_path / "out", evaluation_of(data, batch_size=20), batch_size=8
    )
    wanted = accuracy(model(x[rows]), labels[rows], weights)
    assert described["evaluation"]["examples"] == len(rows)
    assert described["evaluation"]["keras"] == pytest.approx(wanted)
    measured = described["artefacts"]["onnx"]["evaluation"]
    assert measured["metric"] == pytest.approx(wanted)


@pytest.fixture(scope="module")
def two_heads():
    x = keras.Input((16,), name="x")
    outputs = {
        "kind": layers.Dense(CLASSES, name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    return keras.Model(x, outputs)


def test_one_of_several_outputs(two_heads, rng, tmp_path):
    x = rng.standard_normal((90, 16)).astype("float32")
    given = two_heads(x)
    kinds, sizes = given["kind"].numpy().argmax(-1), given["size"].numpy() + 0.5
    kinds[:9] = (kinds[:9] + 1) % CLASSES
    for labels in (kinds, {"kind": kinds, "size": sizes}):
        evaluation = evaluation_of((x, labels), output="kind", batch_size=40)
        described = evaluated(two_heads, tmp_path / "out", evaluation)
        assert described["evaluation"]["output"] == "kind"
        assert described["evaluation"]["keras"] == pytest.approx(0.9)
    error = keras.metrics.MeanAbsoluteError()
    evaluation = Evaluation(
        (x, {"kind": kinds, "size": sizes}),
        error,
        max_drop=0.1,
        output="size",
        mode="min",
    )
    described = evaluated(two_heads, tmp_path / "out", evaluation)
    assert described["evaluation"]["keras"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("output", [None, "kinds"])
def test_the_output_has_to_be_named(two_heads, tmp_path, output):
    x = np.ones((4, 16), "float32")
    evaluation = evaluation_of((x, np.zeros(4)), output=output)
    message = (
        rf"`output` of the .* one of .*'kind', 'size'.*Received: output={output!r}"
    )
    with pytest.raises(ValueError, match=message):
        evaluated(two_heads, tmp_path / "out", evaluation)
    assert list(tmp_path.iterdir()) == []


def far_out(outputs, arrays):
    """Wrong by a hundredth, but only where an input is large."""
    large = np.abs(arrays["x"]).max(-1, keepdims=True) > 50
    return {"y": np.where(large, outputs["y"] * 1.01, outputs["y"]).astype("float32")}


@pytest.mark.parametrize("own", [onnx.FORMAT, litert.FORMAT], ids=["onnx", "litert"])
def test_what_is_no_int8_has_to_agree_on_the_data_too(task, tmp_path, monkeypatch, own):
    model, x, _ = task
    x = x.copy()
    x[150] *= 40
    labels = model(x).numpy().argmax(-1)
    breaking(monkeypatch, own, far_out)
    # The example batch alone doesn't show it.
    evaluated(model, tmp_path / "out", None, [own.name])
    with pytest.raises(ParityError, match=f"'y' of the {own.name} artefact must agree"):
        evaluated(model, tmp_path / "o", evaluation_of((x, labels)), [own.name])
    assert not (tmp_path / "o").exists()


def test_int8_is_judged_by_the_metric_alone(task, tmp_path, monkeypatch):
    model, x, labels = task
    # Nothing that a user of the largest score would see.
    breaking(monkeypatch, onnx.FORMAT, lambda o, _: {"y": o["y"] * np.float32(1.5)})
    options = {
        "quantize": "int8",
        "calibration_data": x,
        "tolerance": {"full": 0.6, "int8": 0.2},
    }
    with pytest.raises(ParityError, match="'y' of the onnx_int8 artefact must agree"):
        evaluated(model, tmp_path / "o", None, **options)
    described = evaluated(
        model, tmp_path / "out", evaluation_of((x, labels), 0.02), **options
    )
    artefact = described["artefacts"]["onnx_int8"]
    assert artefact["max_relative_difference"] > 0.4
    # What `verify` will take is what was seen, with some room.
    assert artefact["tolerance"] == 2 * artefact["max_relative_difference"]
    monkeypatch.undo()
    assert not verify(tmp_path / "out", run=False)["problems"]


def test_an_int8_artefact_that_gives_nan_is_refused_all_the_same(
    task, tmp_path, monkeypatch
):
    model, x, labels = task

    def change(outputs, arrays):
        outputs["y"][0, 0] = np.nan
        return outputs

    breaking(monkeypatch, onnx.FORMAT, change)
    with pytest.raises(ParityError, match="Received: nan where Keras gives"):
        evaluated(
            model,
            tmp_path / "out",
            evaluation_of((x, labels)),
            quantize="dynamic_int8",
        )


def test_a_metric_of_nan_is_a_loss(task, tmp_path):
    class Nan(keras.metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(np.nan)

    model, x, labels = task
    with pytest.raises(ParityError, match="Received: nan where Keras has nan"):
        evaluated(
            model,
            tmp_path / "out",
            Evaluation((x, labels), Nan(), max_drop=1.0, mode="max"),
        )


def test_nan_among_the_labels_is_no_fault_of_an_artefact(task, tmp_path):
    model, x, labels = task
    labels = np.where(np.arange(len(x)) == 7, np.nan, labels)[:, None] * np.ones(4)
    metric = keras.metrics.MeanSquaredError()
    with pytest.raises(ParityError, match="is no fault of the artefact: look for NaN"):
        evaluated(model, tmp_path / "out", Evaluation((x, labels), metric, max_drop=1))


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize(
    "name",
    [
        "SparseCategoricalAccuracy",
        "CategoricalAccuracy",
        "SparseTopKCategoricalAccuracy",
        "CategoricalCrossentropy",
    ],
)
def test_metrics_of_classes_measure_nothing_of_one_unit(name, activation, tmp_path):
    layer = layers.Dense(1, activation=activation, name="y")
    model = keras.Sequential([keras.Input((16,), name="x"), layer])
    x, labels = np.ones((6, 16), "float32"), np.zeros((6, 1))
    metric = getattr(keras.metrics, name)()
    with pytest.raises(ValueError, match=f"BinaryAccuracy .*Received: {name}, which"):
        evaluated(
            model, tmp_path / "out", Evaluation((x, labels), metric, max_drop=0.1)
        )


def test_selections_of_inputs_add_up(task):
    _, x, labels = task
    batch = {"a": {"x": x}, "b": x}
    evaluation = evaluation_of([(batch, labels)])
    selecting = evaluation.selecting(lambda it: it["a"]).selecting(lambda it: it["x"])
    assert selecting._select(batch) is x and evaluation._select(batch) is batch


def test_an_iterator_can_be_read_once_only(task):
    _, x, labels = task
    for data in (iter([(x, labels)]), ((x, labels) for _ in range(2))):
        with pytest.raises(ValueError, match="more than once.* Make it a list"):
            evaluation_of(data)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "accuracy"}, TypeError, "`metric` must be a .*'accuracy' of type"),
        ({"metric": keras.metrics.AUC}, TypeError, "`metric` must be"),
        ({"max_drop": -0.1}, ValueError, "at least 0. Received: max_drop=-0.1"),
        ({"max_drop": np.nan}, ValueError, "at least 0. Received: max_drop=nan"),
        ({"mode": "up"}, ValueError, "'max' or 'min'.*Received: mode='up'"),
        (
            {"metric": keras.metrics.FalseNegatives()},
            ValueError,
            "can't be told of the metric 'false_negatives'. Received: mode='auto'",
        ),
        ({"batch_size": 0}, ValueError, "at least 1. Received: batch_size=0"),
    ],
)
def test_arguments(change, error, message):
    arguments = {
        "data": (np.zeros((4, 3)), np.zeros(4)),
        "metric": keras.metrics.SparseCategoricalAccuracy(),
        "max_drop": 0.01,
        **change,
    }
    with pytest.raises(error, match=message):
        Evaluation(arguments.pop("data"), arguments.pop("metric"), **arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "`data` must hold examples"),
        ((np.ones((4, 15)), np.zeros(4)), r"`evaluation` must have shape \(None, 16\)"),
        (({"z": np.ones((4, 16))}, np.zeros(4)), r"`evaluation` must have the keys"),
    ],
)
def test_data_that_does_not_fit_the_model(task, tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        evaluated(task[0], tmp_path / "out", evaluation_of(data))
    assert list(tmp_path.iterdir()) == []


def test_labels_fewer_than_inputs_are_an_error(task, tmp_path):
    model, x, labels = task
    message = r"as many labels and weights as inputs.*\[203, 100\] examples"
    with pytest.raises(ValueError, match=message):
        evaluated(model, tmp_path / "out", evaluation_of((x, labels[:100])))
    batches = [(x[:100], labels[:100]), (x[100:], labels[100:101])]
    with pytest.raises(ValueError, match=r"\[1\] for a batch of 103"):
        evaluated(model, tmp_path / "out", evaluation_of(batches))
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_does_not_fit_says_what_it_got(task, tmp_path):
    model, x, labels = task
    auc = Evaluation((x, labels), keras.metrics.AUC(), max_drop=0.1)
    message = r"must fit the labels.*'auc.*' of labels of shape \(203,\).*\(203, 4\)"
    with pytest.raises(ValueError, match=message):
        evaluated(model, tmp_path / "out", auc)


def test_labels_that_the_model_never_gets_right_measure_nothing(task, tmp_path):
    model, x, labels = task
    with pytest.raises(ValueError, match="Keras has accuracy 0. Do the labels"):
        evaluated(model, tmp_path / "out", evaluation_of((x, labels + CLASSES)))


def test_whether_less_is_better_is_known_of_keras_metrics(task):
    _, x, labels = task
    for metric, mode in (
        (keras.metrics.SparseCategoricalAccuracy(), "max"),
        (keras.metrics.AUC(), "max"),
        (keras.metrics.MeanSquaredError(), "min"),
        (keras.metrics.SparseCategoricalCrossentropy(), "min"),
    ):
        assert Evaluation((x, labels), metric, max_drop=0.1).mode == mode


def test_no_drop_at_all_leaves_room_for_rounding(task, tmp_path):
    model, x, labels = task
    loss = keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
    exact = Evaluation((x, labels), loss, max_drop=0)
    evaluated(model, tmp_path / "out", exact, ["onnx", "litert"])


@pytest.fixture(scope="module")
def held_out(task):
    """Judges labels of four classes, without exporting anything."""
    model, x, labels = task
    served = serve(model, x)

    def judge(metric, labels, weights=None):
        data = (x, labels) if weights is None else (x, labels, weights)
        return Judge(Evaluation(data, metric, max_drop=1.0, mode="max"), served)

    return judge, labels


ONE_BY_ONE = {
    "AUC": {"from_logits": True},
    "Accuracy": {},
    "BinaryAccuracy": {},
    "CategoricalAccuracy": {},
    "CategoricalCrossentropy": {"from_logits": True},
    "CosineSimilarity": {},
    "F1Score": {"average": "macro"},
    "KLDivergence": {},
    "MeanSquaredError": {},
    "PearsonCorrelation": {},
    "Precision": {},
    "TopKCategoricalAccuracy": {"k": 2},
}


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_class_ids_need_a_metric_of_class_ids(name, rank, held_out):
    """Keras broadcasts ids of shape (examples, 1) to all classes."""
    judge, labels = held_out
    metric = getattr(keras.metrics, name)(**ONE_BY_ONE[name])
    ids = labels.astype("float32").reshape((-1, 1)[:rank])
    with pytest.raises(ValueError, match=f"{name} compares.*SparseCategoricalAccuracy"):
        judge(metric, ids)


@pytest.mark.parametrize(
    "name", ["SparseCategoricalAccuracy", "SparseTopKCategoricalAccuracy"]
)
def test_one_hot_labels_need_a_metric_of_them(name, held_out):
    judge, labels = held_out
    with pytest.raises(ValueError, match=f"{name} takes.*need `CategoricalAccuracy`"):
        judge(getattr(keras.metrics, name)(), np.eye(CLASSES)[labels])


@pytest.mark.parametrize("value", [-1, 0.5, np.nan])
def test_labels_that_are_no_ids(value, held_out):
    judge, labels = held_out
    ids = np.where(np.arange(len(labels)) % 100 == 0, value, labels)
    metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    with pytest.raises(ValueError, match=f"from 0 on.*3 others among 203.*{value}"):
        judge(metric, ids)
    for shape in ((-1,), (-1, 1)):  # as padding is left out
        weights = (ids == labels).astype("float32").reshape(shape)
        assert judge(metric, ids, weights).describe()["keras"] > 0.5


def test_nan_labels_that_a_metric_makes_values_of(held_out):
    judge, labels = held_out
    one_hot = np.eye(CLASSES, dtype="float32")[labels]
    one_hot[7, 2] = np.nan
    metric = keras.metrics.BinaryAccuracy()
    with pytest.raises(ValueError, match="no NaN among its labels.*Received: 1 NaN"):
        judge(metric, one_hot)
    weights = np.isfinite(one_hot).all(-1).astype("float32")
    assert judge(metric, one_hot, weights).describe()["keras"] > 0.5
