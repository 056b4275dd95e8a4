"""What the example batch doesn't show: odd values, other sizes, rows by themselves."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_distill.export import export, looks, split_preprocessing, verify
from keras_distill.export.parity import ParityError, reference
from keras_distill.export.probes import probes
from keras_distill.export.rows import dependence
from keras_distill.export.serving import serve
from tests import slow


def rowwise(count, *shape):
    draw = np.random.default_rng(count).standard_normal((count, *shape))
    return draw.astype("float32")


def functional(call, shape=(3,)):
    x = keras.Input(shape, name="x")
    return keras.Model(x, {"y": call(x)})


def size_probes(model, batch):
    served = serve(model, batch)
    arrays = served.arrays(batch, "example_batch")
    return [p for p in probes(served, arrays) if "another size" in p.what]


def number(flags):
    return ops.cast(flags, "float32")


LOOKING = {
    "nan_to_num": ops.nan_to_num,
    "isinf": lambda x: number(ops.isinf(x)),
    "isnan": lambda x: number(ops.isnan(x)),
    "isfinite": lambda x: number(ops.isfinite(x)),
    "where isnan": lambda x: ops.where(ops.isnan(x), 0.0, x),
    "x equals x": lambda x: ops.where(ops.equal(x, x), x, ops.zeros_like(x)),
    "a bound": lambda x: ops.where(ops.abs(x) > 1e6, ops.zeros_like(x), x),
    "two bounds": lambda x: ops.where(
        ops.logical_and(x > -9, ops.cast(x, "float32") < 9), x, ops.ones_like(x)
    ),
    "a Dense behind": lambda x: layers.Dense(2)(ops.nan_to_num(x, posinf=3, neginf=0)),
}
NOT_LOOKING = {
    "Dense": layers.Dense(2, "relu"),
    "a threshold of activations": lambda x: ops.threshold(layers.Dense(2)(x), 0.1, 0.0),
    "LayerNormalization": layers.LayerNormalization(),
    "clip": lambda x: ops.clip(x, -1, 1),
    "hard_shrink": ops.hard_shrink,
    "a threshold": lambda x: ops.threshold(x, 0.1, 0.0),
    "sparse_plus": ops.sparse_plus,
    "softmax": ops.softmax,
    "relu6": ops.relu6,
    "hard_swish": ops.hard_swish,
    "another input's bound": lambda x: ops.where(x > x[:, :1], x, ops.zeros_like(x)),
}


def odd_probes(model, batch):
    served = serve(model, batch)
    arrays = served.arrays(batch, "example_batch")
    return [probe for probe in probes(served, arrays) if probe.cleaned]


@pytest.mark.parametrize("kind", LOOKING)
def test_models_that_look_for_infinities_are_probed_with_them(kind):
    model = functional(LOOKING[kind])
    [probe] = odd_probes(model, rowwise(2, 3))
    [(inputs, outputs)] = probe.cases
    odd = inputs["x"]
    assert (odd[0] == np.inf).all() and (odd[1] == -np.inf).all()
    assert np.isnan(odd[2]).all() and (odd[3] == 0).all()
    np.testing.assert_array_equal(odd[4], [np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(outputs["y"], model(odd)["y"])


@pytest.mark.parametrize("kind", NOT_LOOKING)
def test_other_models_are_not(kind):
    assert odd_probes(functional(NOT_LOOKING[kind]), rowwise(2, 3)) == []


def test_each_input_is_probed_beside_usual_ones():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    ids = keras.Input((2,), name="ids", dtype="int32")
    model = keras.Model([a, b, ids], {"y": ops.nan_to_num(a) + b + number(ids)})
    batch = {"a": rowwise(2, 2), "b": rowwise(2, 2), "ids": np.ones((2, 2), "int32")}
    [probe] = odd_probes(model, batch)
    (first, _), (second, _) = probe.cases
    assert np.isinf(first["a"][0]).all() and np.isfinite(first["b"]).all()
    assert np.isinf(second["b"][0]).all() and np.isfinite(second["a"]).all()
    np.testing.assert_array_equal(first["ids"], np.ones((5, 2)))


def test_outputs_that_do_not_look_are_left_out():
    x = keras.Input((3,), name="x")
    outputs = {"a": ops.softmax(x), "b": ops.nan_to_num(x), "c": ops.isnan(x)}
    [probe] = odd_probes(keras.Model(x, outputs), rowwise(2, 3))
    assert probe.outputs == {"b", "c"}


def test_a_test_in_a_nested_function_counts():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, {"y": ops.abs(x), "z": ops.relu(x)})
    served = serve(model, rowwise(2, 3))

    def nested(tensors):
        inner = tf.function(lambda t: tf.where(tf.math.is_nan(t), 0.0, t))
        return {"y": inner(tensors["x"]), "z": tf.nn.relu(tensors["x"])}

    function = tf.function(nested, input_signature=[served.inputs])
    found = looks.find(dataclasses.replace(served, function=function), 1.0)
    assert found.operators == ["IsNan"] and found.outputs == {"y"}


def test_values_that_keras_itself_refuses_are_no_probe():
    def solved(x):
        matrix = ops.reshape(ops.nan_to_num(x), (-1, 2, 2))
        return ops.solve(matrix, ops.ones_like(matrix))

    batch = rowwise(2, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not invertible"):
        functional(solved, (4,))(np.zeros((1, 4), "float32"))
    [probe] = odd_probes(functional(solved, (4,)), batch)
    assert probe.cases == []


FINITE = {
    **LOOKING,
    "bounds of nan_to_num": lambda x: ops.nan_to_num(x, nan=1, posinf=3, neginf=-3),
    "isposinf": lambda x: number(ops.isposinf(x)),
    "isneginf": lambda x: number(ops.isneginf(x)),
    "where isfinite": lambda x: ops.where(ops.isfinite(x), x, 0.0),
    "where isinf": lambda x: ops.where(ops.isinf(x), ops.ones_like(x), x),
    "hard_shrink": ops.hard_shrink,
}


def test_onnx_and_litert_hold_what_looks_for_infinities(tmp_path, runtimes):
    x = keras.Input((4,), name="x")
    outputs = {name.replace(" ", "_"): make(x) for name, make in FINITE.items()}
    model = keras.Model(x, outputs)
    export(model, tmp_path / "o", ["onnx", "litert"], example_batch=rowwise(4, 4))
    odd = [[np.inf, -np.inf, np.nan, 0], [-3e38, 3e38, 1, 1e7], [np.inf, 1, -1, 0]]
    given = {"x": np.array(odd, "float32")}
    for form in ("onnx", "litert"):
        got = runtimes[form](tmp_path / "o", given)
        for name, want in model(given["x"]).items():
            np.testing.assert_allclose(
                got[name], want, rtol=1e-6, err_msg=f"{form} {name}"
            )


PUBLISHED = slow.but(
    ["nan_to_num", "a bound"],
    ["nan_to_num", "isinf", "where isnan", "a bound"],
    "exports",
)


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_a_published_file_gives_what_keras_does(kind, name, tmp_path, runtimes):
    model = functional(LOOKING[kind])
    odd = np.array([[np.inf, -np.inf, np.nan], [0, 1, np.inf]], "float32")
    want = model(odd)["y"].numpy()
    try:
        export(model, tmp_path / "o", [name], example_batch=rowwise(4, 3))
    except ParityError as error:
        assert "+inf, -inf, NaN or 0" in str(error)
        assert "leave out the format. Received: The output 'y'" in str(error)
        return
    got = runtimes[name](tmp_path / "o", {"x": odd})["y"]
    np.testing.assert_array_equal(got[~np.isnan(want)], want[~np.isnan(want)])


class FixedLength(layers.Layer):
    """Of a graph that was traced with the example's length alone."""

    def call(self, x):
        size = ops.shape(x)[1]
        return x[:, :5] if isinstance(size, int) else x[:, : 10**6]


def test_open_sizes_are_probed_longer_and_shorter():
    x, mask = keras.Input((None, 2), name="x"), keras.Input((None,), name="mask")
    y = layers.GlobalAveragePooling1D()(x * mask[..., None])
    batch = {"x": rowwise(3, 6, 2), "mask": np.ones((3, 6), "float32")}
    model = keras.Model([x, mask], {"y": y})
    longer, shorter = size_probes(model, batch)
    for probe, length in ((longer, 12), (shorter, 3)):
        [(inputs, outputs)] = probe.cases
        assert inputs["x"].shape == (1, length, 2)
        assert inputs["mask"].shape == (1, length)
        np.testing.assert_allclose(
            outputs["y"], inputs["x"].mean(axis=1), rtol=1e-5, atol=1e-6
        )


def test_a_size_that_keras_refuses_is_no_probe():
    x = keras.Input((None, 2), name="x")
    model = keras.Model(x, layers.Flatten()(layers.Conv1D(2, 6)(x)[:, :1]))
    batch = rowwise(2, 6, 2)
    [only] = size_probes(model, batch)
    assert only.cases[0][0]["x"].shape == (1, 12, 2)


def kernels_apart(x):
    for _ in range(2):
        x = layers.MaxPooling1D()(layers.Conv1D(2, 3)(x))
    return layers.GlobalMaxPooling1D()(x)


# Each with the longest size at which one of its convolutions has nothing to return:
# eager Keras returns what lies in memory there.
SHORTEST = {
    "Conv1D": (lambda x: layers.Conv1D(2, 5)(x), 4),
    "DepthwiseConv1D": (lambda x: layers.DepthwiseConv1D(5)(x), 4),
    "SeparableConv1D": (lambda x: layers.SeparableConv1D(2, 5)(x), 4),
    "a convolution of a transposed one": (
        lambda x: layers.Conv1D(2, 5)(layers.Conv1DTranspose(2, 3)(x)),
        2,
    ),
    "convolutions and pools": (kernels_apart, 7),
    "a model inside": (lambda x: functional(kernels_apart, (None, 2))(x)["y"], 7),
}


@pytest.mark.parametrize("kind", SHORTEST)
def test_a_size_that_is_shorter_than_a_kernel_is_no_probe(kind):
    call, shortest = SHORTEST[kind]
    model = functional(call, (None, 2))
    [only] = size_probes(model, rowwise(2, 2 * shortest, 2))
    assert only.cases[0][0]["x"].shape == (1, 4 * shortest, 2)
    batch = rowwise(2, shortest, 2)
    with pytest.raises(ValueError, match=rf"(?s)sizes=.*\({shortest}, 2\)"):
        reference(serve(model, batch), batch)


def test_an_artefact_of_one_size_is_refused(tmp_path, runtimes):
    """The layer computes something else while it is traced for an open size."""
    x = keras.Input((None, 2), name="x")
    model = keras.Model(x, {"y": layers.GlobalAveragePooling1D()(FixedLength()(x))})
    batch = rowwise(2, 4, 2)
    with pytest.raises(ParityError, match=r"(?s)another size.*8, 2.*fixed sizes"):
        export(model, tmp_path / "o", ["saved_model"], example_batch=batch)
    fixed = functional(lambda x: layers.GlobalMaxPooling1D()(x), (4, 2))
    export(fixed, tmp_path / "o", ["onnx"], example_batch=batch)
    got = runtimes["onnx"](tmp_path / "o", {"x": batch})["y"]
    np.testing.assert_array_equal(got, batch.max(axis=1))


class Centred(layers.Layer):
    """Without a graph of its own calls."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


SPECTROGRAM = {
    "fft_length": 64,
    "sequence_stride": 64,
    "sequence_length": 64,
    "num_mel_bins": 8,
    "sampling_rate": 800,
}
QUIET_AND_LOUD = rowwise(4, 128) * np.float32([[1e-6], [1], [1e-6], [1e-6]])
DEPENDING = {
    "MelSpectrogram": (lambda: layers.MelSpectrogram(**SPECTROGRAM), "mel_spectrogram"),
    "a mean": (lambda: Centred(name="centred"), "centred"),
    "a softmax over the batch": (lambda: layers.Softmax(axis=0, name="over"), "over"),
    "the row before": (lambda: layers.Lambda(lambda x: x - x[:1], name="row"), "row"),
}


def of_rows(kind):
    inner = DEPENDING[kind][0]()
    x = keras.Input((128,), name="x")
    hidden = layers.Flatten()(inner(layers.Activation("linear")(x)))
    return keras.Model(x, layers.Dense(2, name="y")(hidden), name="whole")


@pytest.mark.filterwarnings("ignore:.*softmax over axis 0")
@pytest.mark.parametrize("kind", DEPENDING)
def test_rows_that_depend_on_each_other_are_named(kind):
    model, named = of_rows(kind), DEPENDING[kind][1]
    for count in (4, 1):
        batch = QUIET_AND_LOUD[:count]
        found = dependence(serve(model, batch), {"x": batch}, None)
        assert found.layer.startswith(f"'{named}") and found.output == "y", count
        assert found.difference > 0 and found.repeats


def test_of_a_fixed_size_only_one_row_is_alone():
    model, batch = of_rows("a mean"), QUIET_AND_LOUD
    for size, depends in ((1, False), (2, True), (4, True)):
        served = serve(model, batch, batch_size=size)
        assert (dependence(served, {"x": batch}, None) is not None) == depends


@pytest.mark.parametrize("count", [1, 5])
def test_rows_of_their_own_are_not(count):
    x = keras.Input((6, 4), name="x")
    y = layers.MultiHeadAttention(2, 4)(layers.BatchNormalization()(x), x)
    y = layers.LSTM(4)(layers.Dropout(0.5)(layers.LayerNormalization()(y)))
    model = keras.Model(x, [layers.Softmax()(y), ops.argmax(y, axis=-1)])
    batch = rowwise(count, 6, 4)
    assert dependence(serve(model, batch), {"x": batch}, None) is None


def test_a_spectrogram_is_published_with_a_warning_and_verified(tmp_path):
    """More rows than are kept, so that those are run by themselves later."""
    model, batch = of_rows("MelSpectrogram"), np.tile(QUIET_AND_LOUD, (10, 1))
    batch[-3] *= 1e3  # the loudest isn't among those that are kept
    message = "(?s)rows of a batch change each other.*'mel_spectrogram.*batch_size=1"
    with pytest.warns(UserWarning, match=message):
        manifest = export(model, tmp_path / "o", ["saved_model"], example_batch=batch)
    assert manifest["rows_depend_on_each_other"]["part"] == "model"
    assert verify(tmp_path / "o")["ok"]
    preprocessing, core = split_preprocessing(model)
    with pytest.warns(UserWarning, match="`preprocessing` in"):
        manifest = export(
            core,
            tmp_path / "split",
            ["saved_model"],
            example_batch=batch,
            preprocessing=preprocessing,
        )
    assert manifest["rows_depend_on_each_other"]["part"] == "preprocessing"
    assert verify(tmp_path / "split")["ok"]
    one = {"example_batch": batch[:1], "batch_size": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(model, tmp_path / "1", ["saved_model"], **one)


def test_the_cause_is_in_the_error_of_a_random_model(tmp_path):
    noise = layers.Lambda(lambda t: t + keras.random.normal(ops.shape(t)))
    model = functional(noise)
    with pytest.raises(ParityError, match="(?s)must agree.*change from call to call"):
        export(model, tmp_path / "o", ["saved_model"], example_batch=rowwise(4, 3))


def test_probes_are_made_of_one_row():
    """However many rows the example batch has."""
    model = functional(LOOKING["nan_to_num"], (None, 3))
    batch = rowwise(50, 4, 3)
    expected = reference(serve(model, batch), batch)
    sizes = [[len(x["x"]) for x, _ in probe.cases] for probe in expected.probes]
    assert sizes == [[1], [1], [5], [1], [3]]


def test_a_row_by_itself_stands_between_values_that_the_model_takes():
    """Ids may be floats, beside others that are none, or come of them."""
    x = keras.Input((3,), name="x")
    ids = layers.Embedding(10, 2)(x[:, :1])
    apart = keras.Model(x, layers.Dense(2)(layers.Flatten()(ids)))
    buckets = layers.Embedding(10, 2)(ops.cast(ops.floor(10 * x), "int32"))
    within = keras.Model(x, layers.Dense(2)(layers.Flatten()(buckets)))
    row = np.array([[9.0, 0.25, 0.75]], "float32")
    for model, batch in ((apart, row), (within, row % 1)):
        assert dependence(serve(model, batch), {"x": batch}, None) is None
    scaled = keras.Model(x, x / ops.max(ops.abs(x)))
    found = dependence(serve(scaled, row), {"x": row}, None)
    assert found is not None and "rows of a batch change" in str(found)


def of_texts(call, mask_zero=False):
    """Of a batch of texts the longest sets the length of all."""
    words = layers.TextVectorization(vocabulary=list("abcdefg"), name="words")
    text = keras.Input((1,), dtype="string", name="x")
    embedded = layers.Embedding(9, 2, mask_zero=mask_zero)(words(text))
    return keras.Model(text, {"y": layers.Dense(2)(call(embedded))})


LONG, SHORT = "a b c d e f g a b c", "a b"
FAILING_ALONE = {
    "an empty text in an LSTM": (layers.LSTM(2), True, ""),
    "a text shorter than a kernel": (kernels_apart, False, SHORT),
}


@pytest.mark.parametrize("kind", FAILING_ALONE)
def test_a_row_that_keras_only_computes_beside_longer_ones_is_named(kind, tmp_path):
    call, mask_zero, short = FAILING_ALONE[kind]
    model = of_texts(call, mask_zero)
    for rows, row in (([LONG, short, LONG], 1), ([LONG] * 3 + [short] * 3, 3)):
        batch = np.array(rows, object)[:, None]
        found = dependence(serve(model, batch), {"x": batch}, None)
        assert found.layer is None and found.repeats
        assert f"fails for row {row} by itself: " in str(found)
        assert str(found).endswith("`TextVectorization(output_sequence_length=...)`")
        assert "\x1b" not in str(found)
    with pytest.warns(UserWarning, match="row 3 by itself"):
        export(model, tmp_path / "o", ["saved_model"], example_batch=batch)
    assert verify(tmp_path / "o")["ok"]
    first = np.array([short, LONG, LONG], object)[:, None]
    message = "must begin with an example.*row 0 by itself.*output_sequence_length"
    with pytest.raises(ValueError, match=message):
        reference(serve(model, first), first)
