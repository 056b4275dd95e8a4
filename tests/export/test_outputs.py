"""`export(..., outputs=[...])`: some outputs of a model, and what they need."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.cli import main
from keras_distill.export import Evaluation, export
from keras_distill.export.outputs import chosen
from keras_distill.export.serving import serve, tensors_of

ROWS = 6


def batch():
    rng = np.random.default_rng(0)
    sizes = {"item": 3, "late": 2}
    return {
        name: rng.random((ROWS, it)).astype("float32") for name, it in sizes.items()
    }


def heads(inputs=dict, outputs=dict):
    """A trunk, a head on it, and one that also reads an input of its own."""
    keras.utils.set_random_seed(0)
    item, late = keras.Input((3,), name="item"), keras.Input((2,), name="late")
    trunk = layers.Dense(4, "relu", name="trunk")(item)
    label = layers.Dense(1, name="label")(trunk)
    other = layers.Dense(5, name="other")(layers.Concatenate()([trunk, late]))
    both = {"label": label, "other": other}
    given = {"item": item, "late": late}
    return keras.Model(
        given if inputs is dict else list(given.values()),
        both if outputs is dict else list(both.values()),
        name="heads",
    )


def outputs_of(model, x):
    served = serve(model, x)
    return served, served.call(tensors_of(served.arrays(x, "x")))


@pytest.mark.parametrize("outputs", [dict, list])
@pytest.mark.parametrize("inputs", [dict, list])
@pytest.mark.parametrize(
    ("names", "kept", "parameters"),
    [
        (["label"], ["item"], 21),
        (["other"], ["item", "late"], 51),
        (["other", "label"], ["item", "late"], 56),
    ],
)
def test_what_others_need_is_left_out(inputs, outputs, names, kept, parameters):
    model, x = heads(inputs, outputs), batch()
    x = x if inputs is dict else list(x.values())
    weights = model.get_weights()
    _, whole = outputs_of(model, x)
    part, select = chosen(model, names)
    served, given = outputs_of(part, select(x))
    assert (list(served.inputs), list(served.outputs)) == (kept, names)
    assert part.count_params() == parameters
    for name in names:
        np.testing.assert_array_equal(given[name], whole[name])
    # The caller's model is as it was, and the part's batches are taken too.
    assert len(model.outputs) == 2 and len(model.inputs) == 2
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(select(select(x))) == len(kept)


def test_the_names_are_those_of_the_whole_export():
    """A layer that is used twice, an unnamed operation, an input as an output."""
    x, y = keras.Input((2,), name="x"), keras.Input((2,), name="y")
    shared = layers.Dense(1, name="shared")
    model = keras.Model([x, y], [shared(x), shared(y), x])
    values = [np.ones((2, 2), "float32"), np.zeros((2, 2), "float32")]
    _, whole = outputs_of(model, values)
    assert list(whole) == ["shared", "shared_1", "x_1"]
    for name, kept in zip(whole, (["x"], ["y"], ["x"]), strict=True):
        part, select = chosen(model, [name])
        served, given = outputs_of(part, select(values))
        assert (list(served.inputs), list(given)) == (kept, [name])
        np.testing.assert_array_equal(given[name], whole[name])


def test_a_sequential_model_has_one():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="scores")])
    part, _ = chosen(model, ["scores"])
    assert list(outputs_of(part, batch()["item"])[1]) == ["scores"]
    with pytest.raises(ValueError, match=r"some of the model's \['scores'\]"):
        chosen(model, ["label"])


@pytest.mark.parametrize(
    "outputs",
    [[], "label", ["lable"], ["label", "label"], 3, {"label"}, [3], [["label"]]],
)
def test_names_that_are_none(outputs):
    message = r"some of the model's \['label', 'other'\]. Received: outputs="
    with pytest.raises(ValueError, match=message):
        chosen(heads(), outputs)


def test_a_subclassed_model_does_not_show_its_layers():
    class Two(keras.Model):
        def call(self, x):
            return {"a": x, "b": -x}

    model, x = Two(), np.ones((2, 3), "float32")
    model(x)
    with pytest.raises(ValueError, match="must be of a Functional model.*Two"):
        chosen(model, ["b"])
    # The remedy of the message.
    given = keras.Input((3,), name="given")
    wrapped = keras.Model(given, {"b": model(given)["b"]})
    np.testing.assert_array_equal(outputs_of(wrapped, x)[1]["b"], -x)


def test_a_student_without_the_head_that_its_teacher_taught(tmp_path, runtimes):
    """In every format, of a distiller and of training's batches."""
    model, x = heads(), batch()
    distiller = kd.Distiller(model, kd.teachers.Recorded({"other": "said"}))
    data = {**x, "said": np.zeros((ROWS, 5), "float32")}
    labels = np.arange(ROWS)[:, None] % 2
    metric = keras.metrics.BinaryAccuracy(threshold=0)
    manifest = export(
        distiller,
        tmp_path,
        example_batch=data,
        evaluation=Evaluation((data, labels), metric, max_drop=0.0),
        outputs=["label"],
    )
    assert [it["name"] for it in manifest["signature"]["inputs"]] == ["item"]
    assert manifest["parameters"] == 21
    expected = model(x)["label"]
    for run in runtimes.values():
        given = run(tmp_path, {"item": x["item"]})
        assert list(given) == ["label"]
        np.testing.assert_allclose(given["label"], expected, rtol=1e-5, atol=1e-6)


def test_inputs_stay_that_preprocessing_makes(tmp_path):
    raw = {name: keras.Input(it.shape[1:], name=name) for name, it in batch().items()}
    doubled = keras.Model(raw, {name: 2.0 * it for name, it in raw.items()})
    manifest = export(
        heads(),
        tmp_path,
        ["saved_model"],
        example_batch=batch(),
        preprocessing=doubled,
        outputs=["label"],
    )
    inputs, outputs = (
        [it["name"] for it in manifest["signature"][kind]]
        for kind in ("inputs", "outputs")
    )
    assert (inputs, outputs) == (["item", "late"], ["label"])


def test_from_the_shell(tmp_path, capsys):
    heads().save(tmp_path / "heads.keras")
    np.savez(tmp_path / "x.npz", **batch())
    out = tmp_path / "out"
    command = f"export {tmp_path / 'heads.keras'} --to onnx --outputs label --out {out}"
    main([*command.split(), "--examples", str(tmp_path / "x.npz"), "--json"])
    outputs = json.loads(capsys.readouterr().out)["signature"]["outputs"]
    assert [it["name"] for it in outputs] == ["label"]
