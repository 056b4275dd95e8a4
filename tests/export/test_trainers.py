"""Of what trains a model, that model is exported, under its own names."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.cli import main
from keras_distill.export import Evaluation, export, split_preprocessing, verify
from keras_distill.export.latency import measure
from keras_distill.export.loading import load_served
from keras_distill.export.serving import serve, tensors_of
from keras_distill.online import MutualLearning

LOSS = keras.losses.BinaryCrossentropy(from_logits=True)
ROWS = 16


def batch():
    """A batch to train on: two keys of serving, three of training alone."""
    rng = np.random.default_rng(0)
    draw = {"item": (ROWS, 4), "age": (ROWS, 2), "dwell": (ROWS, 1)}
    x = {name: rng.random(shape).astype("float32") for name, shape in draw.items()}
    return {**x, "mask": np.arange(ROWS) % 3 > 0, "said": x["dwell"] - 1}


def declared():
    item, age = keras.Input((4,), name="item"), keras.Input((2,), name="age")
    both = layers.Concatenate()([item, age])
    inputs = {"item": item, "age": age}
    return keras.Model(inputs, layers.Dense(1, name="logit")(both), name="student")


@keras.saving.register_keras_serializable(package="tests")
class Undeclared(keras.Model):
    """A student that takes what it finds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(1)

    def call(self, inputs):
        given = [inputs[name] for name in sorted(inputs)]
        return self.dense(keras.ops.concatenate(given, -1))


def teacher():
    inputs = {
        name: keras.Input((size,), name=name)
        for name, size in {"item": 4, "age": 2, "dwell": 1}.items()
    }
    logit = layers.Dense(1)(layers.Concatenate()(list(inputs.values())))
    return keras.Model(inputs, logit)


def undeclared():
    student = Undeclared(name="student")
    student({name: batch()[name] for name in ("item", "age")})
    return student


def single():
    item = keras.Input((4,), name="item")
    return keras.Model(item, layers.Dense(1, name="logit")(item), name="student")


def recorded():
    return kd.teachers.Recorded("said")


# Student, teacher, options of `compile`, the names of inputs and output.
KINDS = {
    "a label mask": (declared, teacher, {"label_mask": "mask"}, ["age", "item"]),
    "recorded outputs, one input": (single, recorded, {}, ["item"]),
    "a teacher that trains": (
        declared,
        teacher,
        {"teacher_loss": LOSS},
        ["age", "item"],
    ),
    "an undeclared student": (
        undeclared,
        recorded,
        {"label_mask": "mask"},
        ["age", "item"],
    ),
}


def distilled(kind):
    make_student, make_teacher, options, _ = KINDS[kind]
    keras.utils.set_random_seed(1)
    student = make_student()
    distiller = kd.Distiller(student, make_teacher(), privileged_features=["dwell"])
    bare = {"distillation_loss": "mse", "run_eagerly": True}
    distiller.compile("sgd", LOSS, **bare, **options)
    return distiller


def signature(manifest):
    return [
        [v["name"] for v in manifest["signature"][it]] for it in ("inputs", "outputs")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_under_its_own_names(kind, tmp_path, runtimes):
    distiller, x = distilled(kind), batch()
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(path)
    labels = np.arange(ROWS) % 2
    distiller.fit(x, labels, batch_size=ROWS, verbose=0, callbacks=[save])
    names = KINDS[kind][-1]
    output = "output" if kind == "an undeclared student" else "logit"
    served = {name: x[name] for name in names}
    expected = distiller.student(served if len(names) > 1 else x["item"])
    for trainer, data in itertools.product([distiller, path], [x, served]):
        model, select = load_served(trainer)
        known = serve(model, select(data))
        assert (sorted(known.inputs), [*known.outputs]) == (names, [output])
        given = known.call(tensors_of(known.arrays(select(data), "x")))[output]
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    manifest = export(path, tmp_path / "out", ["saved_model"], example_batch=x)
    inputs, outputs = signature(manifest)
    assert (sorted(inputs), outputs) == (names, [output])
    assert manifest["parameters"] == distiller.student.count_params()
    got = runtimes["saved_model"](tmp_path / "out", served)[output]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_what_the_student_lacks_is_named():
    x = batch()
    del x["age"]
    with pytest.raises(ValueError, match=r"keys \['age', 'item'\]. Received: .*'item'"):
        export(distilled("a label mask"), "unused", example_batch=x)


def test_a_distiller_in_a_distiller_is_the_inner_student(tmp_path):
    inner = distilled("a label mask")
    outer = kd.Distiller(inner, teacher(), privileged_features=["dwell"])
    manifest = export(outer, tmp_path / "o", ["saved_model"], example_batch=batch())
    assert signature(manifest) == [["item", "age"], ["logit"]]


def test_evaluation_calibration_verify_and_bench_take_batches_of_training(tmp_path):
    distiller, x = distilled("a label mask"), batch()
    labels = np.arange(ROWS) % 2
    evaluation = Evaluation((x, labels), keras.metrics.BinaryAccuracy(), max_drop=1)
    out = tmp_path / "out"
    manifest = export(
        distiller,
        out,
        ["litert"],
        example_batch=x,
        quantize="int8",
        calibration_data={name: array[:4] for name, array in x.items()},
        evaluation=evaluation,
    )
    assert manifest["calibration"] == {"batches": 4, "batch_size": 1}
    assert verify(out, evaluation=evaluation)["ok"]
    sides = measure(out, model=distiller, batch_sizes=[2], calls=10, seconds=0.1)
    assert {row["side"] for row in sides} >= {"keras predict", "keras tf.function"}


def words_student():
    word, item = (
        keras.Input((), dtype="string", name="word"),
        keras.Input((4,), name="item"),
    )
    found = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(word)
    both = layers.Concatenate()([found, item])
    inputs = {"word": word, "item": item}
    return keras.Model(inputs, layers.Dense(1, name="logit")(both), name="student")


def test_preprocessing_is_split_off_the_student(tmp_path, capsys):
    """From Python and from the command line, which has the file and data alone."""
    student = words_student()
    x = {"word": np.array(["a", "b"] * 8), "item": batch()["item"]}
    dwell = {"dwell": batch()["dwell"]}
    distiller = kd.Distiller(
        student, lambda x: x["dwell"], privileged_features=["dwell"]
    )
    distiller.compile("sgd", LOSS, distillation_loss="mse")
    distiller.save(tmp_path / "best.keras")
    np.savez(tmp_path / "x.npz", **x, **dwell)
    for model in (distiller, tmp_path / "best.keras"):
        preprocessing, core = split_preprocessing(model)
        tensors = {name: tf.constant(array) for name, array in x.items()}
        made = core(preprocessing(tensors))
        np.testing.assert_allclose(made, student(tensors), rtol=1e-5)
    line = ["export", tmp_path / "best.keras", "--to", "saved_model", "onnx"]
    line += ["--split-preprocessing", "--examples", tmp_path / "x.npz"]
    assert main([str(it) for it in [*line, "--out", tmp_path / "out", "--json"]]) == 0
    out = capsys.readouterr().out
    assert '"raw_inputs"' in out and "dwell" not in out
    assert '"name": "logit"' in out


def test_peers_are_refused_by_name_with_the_remedy(tmp_path, capsys):
    peers = [
        keras.Sequential([keras.Input((4,)), layers.Dense(2)], name=name)
        for name in ("small", "large")
    ]
    mutual = MutualLearning(peers, name="both")
    mutual.compile("sgd", "mse", distillation_loss="mse")
    x = batch()["item"]
    mutual.save(tmp_path / "peers.keras")
    message = r"(?s)peers\[0\].*'both' with the peers \['small', 'large'\]"
    for model in (mutual, tmp_path / "peers.keras"):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "out", example_batch=x)
        with pytest.raises(ValueError, match=message):
            split_preprocessing(model)
    np.savez(tmp_path / "x.npz", x=x)
    line = ["export", tmp_path / "peers.keras", "--examples", tmp_path / "x.npz"]
    assert main([str(it) for it in [*line, "--out", tmp_path / "out"]]) == 1
    assert "peers[0]" in capsys.readouterr().err
    loaded = keras.saving.load_model(tmp_path / "peers.keras").peers[0]
    manifest = export(loaded, tmp_path / "one", ["saved_model"], example_batch=x)
    assert manifest["model"] == "small"
