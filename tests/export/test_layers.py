"""Layer by layer: what each format holds, and what it refuses in words that help."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_distill.export import export
from tests import slow
from tests.export.files import litert_tensors, onnx_operators, onnx_weights

FORMATS = ("saved_model", "onnx", "litert")


def numbers(*shape):
    def draw(size):
        values = np.random.default_rng(size).standard_normal((size, *shape))
        return values.astype("float32")

    return draw


def tokens(length):
    """Rows of every number of tokens, the rest padded with the mask's zero."""

    def draw(size):
        rng = np.random.default_rng(size)
        ids = rng.integers(1, 20, (size, length)).astype("int32")
        for row, count in zip(ids, np.resize([length, 1, 3], size), strict=True):
            row[count:] = 0
        return ids

    return draw


def sequential(shape, *inner, dtype="float32"):
    last = layers.Dense(3, name="y")
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *inner, last])


def conv(*inner, shape=(9, 9, 3)):
    return sequential(shape, *inner, layers.ReLU(), layers.GlobalMaxPooling2D())


def masked(inner, length=5):
    embedding = layers.Embedding(20, 6, mask_zero=True)
    return sequential((length,), embedding, inner, dtype="int32")


def attention(**options):
    x, memory = keras.Input((5, 6), name="x"), keras.Input((4, 6), name="memory")
    y = layers.MultiHeadAttention(2, 3, **options)(x, memory)
    return keras.Model([x, memory], layers.Dense(3, name="y")(y))


def dicts():
    """Keys not in the order of the alphabet; one input with one axis."""
    z, a = keras.Input((3,), name="z"), keras.Input((), name="a")
    y = layers.Dense(4)(layers.Concatenate()([z, layers.Reshape((1,))(a)]))
    outputs = {"w": layers.Dense(2)(y), "b": layers.Softmax()(y), "c": y[:, 0]}
    return keras.Model({"z": z, "a": a}, outputs)


def pairs(first, second):
    return lambda size: [first(size), second(size)]


def named(**draws):
    return lambda size: {name: draw(size) for name, draw in draws.items()}


HELD = {
    "Dense": (lambda: sequential((4,), layers.Dense(5, "relu")), numbers(4)),
    # The exact one, of `Erfc`, which tf2onnx doesn't know by itself.
    "gelu": (lambda: sequential((4,), layers.Dense(5, "gelu")), numbers(4)),
    "Conv1D": (
        lambda: sequential(
            (9, 3),
            layers.Conv1D(4, 3, strides=2, padding="same"),
            layers.Conv1D(4, 2, dilation_rate=2, padding="causal"),
            layers.GlobalAveragePooling1D(),
        ),
        numbers(9, 3),
    ),
    "Conv2D": (lambda: conv(layers.Conv2D(4, 3, groups=1)), numbers(9, 9, 3)),
    "Conv2D strided": (
        lambda: conv(layers.Conv2D(4, (3, 2), strides=2, padding="same")),
        numbers(9, 9, 3),
    ),
    "Conv2D dilated": (
        lambda: conv(layers.Conv2D(4, 3, dilation_rate=2)),
        numbers(9, 9, 3),
    ),
    "DepthwiseConv2D": (
        lambda: conv(layers.DepthwiseConv2D(3, depth_multiplier=2)),
        numbers(9, 9, 3),
    ),
    "SeparableConv2D": (lambda: conv(layers.SeparableConv2D(4, 3)), numbers(9, 9, 3)),
    "Conv2DTranspose": (
        lambda: conv(layers.Conv2DTranspose(4, 3, strides=2, padding="same")),
        numbers(9, 9, 3),
    ),
    "BatchNormalization": (
        lambda: sequential((4,), layers.BatchNormalization()),
        numbers(4),
    ),
    "Conv2D, BatchNormalization": (
        lambda: conv(layers.Conv2D(4, 3), layers.BatchNormalization()),
        numbers(9, 9, 3),
    ),
    "LayerNormalization": (
        lambda: sequential((5, 4), layers.LayerNormalization(), layers.Flatten()),
        numbers(5, 4),
    ),
    "Embedding": (
        lambda: sequential(
            (5,), layers.Embedding(20, 6), layers.Flatten(), dtype="int32"
        ),
        tokens(5),
    ),
    "Embedding with mask": (lambda: masked(layers.GlobalAveragePooling1D()), tokens(5)),
    "MultiHeadAttention": (attention, pairs(numbers(5, 6), numbers(4, 6))),
    "Unrolled LSTM": (
        lambda: sequential((5, 3), layers.LSTM(4, unroll=True)),
        numbers(5, 3),
    ),
    "Unrolled GRU": (
        lambda: sequential((5, 3), layers.GRU(4, unroll=True)),
        numbers(5, 3),
    ),
    "Dicts": (dicts, named(z=numbers(3), a=numbers())),
}
# Layers with a loop over time.
LOOPS = {
    "LSTM": (lambda: sequential((5, 3), layers.LSTM(4)), numbers(5, 3)),
    "GRU": (
        lambda: sequential((5, 3), layers.GRU(4, return_sequences=True)),
        numbers(5, 3),
    ),
    "Bidirectional LSTM": (
        lambda: sequential((5, 3), layers.Bidirectional(layers.LSTM(4))),
        numbers(5, 3),
    ),
    "LSTM with mask": (lambda: masked(layers.LSTM(4)), tokens(5)),
    "GRU with mask": (lambda: masked(layers.GRU(4)), tokens(5)),
}


def build(case):
    """The model, with no weight left at 0 or 1, and what draws its batches."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    make, draw = {**HELD, **LOOPS}[case]
    model = make()
    for weight in model.weights:
        if "kernel" not in weight.path:
            weight.assign(weight.numpy() + 0.3 * rng.uniform(0.5, 1.5, weight.shape))
    return model, draw


def flat(structure, names):
    if isinstance(structure, dict):
        return structure
    return dict(zip(names, keras.tree.flatten(structure), strict=True))


def check(model, batch, directory, runtimes, formats):
    inputs = flat(batch, ["x", "memory"][: len(model.inputs)])
    expected = flat(model(batch, training=False), ["y"])
    for name in formats:
        outputs = runtimes[name](directory, inputs)
        assert set(outputs) == set(expected), name
        for key, want in expected.items():
            want = want.numpy()
            assert outputs[key].dtype == want.dtype
            assert np.abs(want).max() > 1e-3
            np.testing.assert_allclose(
                outputs[key], want, rtol=2e-5, atol=2e-5, err_msg=f"{name} {key}"
            )


# The others are exported with all layers of Keras by test_tables.py.
USUAL = [
    "Dense",
    "Conv1D",
    "Conv2D",
    "DepthwiseConv2D",
    "Conv2D, BatchNormalization",
    "Embedding with mask",
    "Unrolled LSTM",
    "MultiHeadAttention",
    "Dicts",
]


@pytest.mark.parametrize("case", slow.but(USUAL, HELD, "exports"))
def test_held_by_every_format(case, tmp_path, runtimes):
    model, draw = build(case)
    export(model, tmp_path / "out", example_batch=draw(4))
    for size in (1, 2, 7):
        check(model, draw(size), tmp_path / "out", runtimes, FORMATS)


@pytest.mark.parametrize("case", slow.but(["LSTM", "GRU with mask"], LOOPS, "exports"))
def test_loops_of_any_batch_size(case, tmp_path, runtimes):
    model, draw = build(case)
    export(model, tmp_path / "out", ["saved_model", "onnx"], example_batch=draw(4))
    for size in (1, 3, 7):
        check(model, draw(size), tmp_path / "out", runtimes, ["saved_model", "onnx"])


NO_LOOPS = slow.but(["LSTM"], ["LSTM", "GRU", "LSTM with mask"], "converts")


@pytest.mark.parametrize("case", NO_LOOPS)
def test_litert_has_no_loops_of_any_batch_size(case, tmp_path):
    model, draw = build(case)
    message = "(?s)'litert': converting it failed.*`unroll=True` or .* a `batch_size`"
    with pytest.raises(RuntimeError, match=message):
        export(model, tmp_path / "lite", ["litert"], example_batch=draw(4))
    assert not (tmp_path / "lite").exists()


LOOP = pytest.mark.slow("exports loops")


@pytest.mark.parametrize(
    ("case", "batch_size"),
    [
        ("LSTM", 1),
        pytest.param("GRU", 1, marks=LOOP),
        pytest.param("Bidirectional LSTM", 3, marks=LOOP),
        pytest.param("LSTM with mask", 1, marks=LOOP),
        ("GRU with mask", 1),
    ],
)
def test_loops_of_a_fixed_batch_size_are_held_by_every_format(
    case, batch_size, tmp_path, runtimes
):
    model, draw = build(case)
    described = export(
        model, tmp_path / "out", example_batch=draw(4), batch_size=batch_size
    )
    assert described["batch_size"] == batch_size
    [value] = described["signature"]["inputs"]
    assert value["shape"][0] == batch_size
    for _ in range(2):
        check(model, draw(batch_size), tmp_path / "out", runtimes, FORMATS)


def test_a_fixed_batch_size_is_in_the_files(floats, tmp_path, runtimes):
    model = sequential((4,), layers.Dense(5))
    export(model, tmp_path / "out", example_batch=floats(3, 4), batch_size=2)
    check(model, floats(2, 4), tmp_path / "out", runtimes, FORMATS)
    with pytest.raises(Exception, match="(?s)invalid dim.* Got: 3 Expected: 2"):
        runtimes["onnx"](tmp_path / "out", {"x": floats(3, 4)})
    saved = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    [spec] = saved.signatures["serving_default"].structured_input_signature[1].values()
    assert spec.shape == (2, 4)
    path = str(tmp_path / "out" / "model.tflite")
    runner = Interpreter(model_path=path).get_signature_runner()
    assert list(runner.get_input_details()["x"]["shape_signature"]) == [2, 4]


def test_fused_lstm_in_onnx(tmp_path):
    """One operator for the whole layer, which a fixed batch size takes apart."""
    model, draw = build("LSTM")
    for batch_size, operator in [(None, "LSTM"), (1, "Loop")]:
        directory = tmp_path / operator
        export(model, directory, ["onnx"], example_batch=draw(4), batch_size=batch_size)
        assert onnx_operators(directory / "model.onnx") & {"LSTM", "Loop"} == {operator}


# What the converters do with the weights of the layer itself: in int8 or float16, left
# in floats ("float"), or an error that tells (None).
def wide(inner, batch_size=None):
    return lambda: sequential((5, 16), inner(32)), numbers(5, 16), batch_size


def wide_masked(inner):
    def model():
        embedding = layers.Embedding(20, 16, mask_zero=True)
        return sequential((5,), embedding, inner(32), dtype="int32")

    return model, tokens(5), None


def wide_attention():
    x = keras.Input((6, 32), name="x")
    y = layers.MultiHeadAttention(4, 16)(x, x)
    return keras.Model(x, layers.Dense(3, name="y")(y))


def unrolled(cell):
    return lambda units: cell(units, unroll=True)


def both_ways(cell):
    return lambda units: layers.Bidirectional(cell(units))


QUANTIZED = {
    "LSTM": (
        wide(layers.LSTM),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "float"},
        None,
    ),
    "Bidirectional LSTM": (
        wide(both_ways(layers.LSTM)),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "float"},
        None,
    ),
    "GRU": (
        wide(layers.GRU),
        {"float16": "FLOAT16", "dynamic_int8": "float", "int8": "float"},
        None,
    ),
    "LSTM, batch size 1": (
        wide(layers.LSTM, 1),
        {"float16": "FLOAT16", "dynamic_int8": "float", "int8": "float"},
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": None},
    ),
    "GRU, batch size 1": (
        wide(layers.GRU, 1),
        {"float16": "FLOAT16", "dynamic_int8": "float", "int8": "float"},
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": None},
    ),
    "Unrolled LSTM": (
        wide(unrolled(layers.LSTM)),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
    ),
    # Its kernels are there twice: Keras computes the first step of a masked layer
    # before the loop too. ONNX Runtime shares what is int8 there with the loop.
    "LSTM with mask": (
        wide_masked(layers.LSTM),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
        None,
    ),
    "GRU with mask": (
        wide_masked(layers.GRU),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
        None,
    ),
    "MultiHeadAttention": (
        (wide_attention, numbers(6, 32), None),
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
        {"float16": "FLOAT16", "dynamic_int8": "INT8", "int8": "INT8"},
    ),
}
LEAST = 1024  # of the layers' own weights; the last layer has fewer
BOUNDS = {"float16": 2e-3, "dynamic_int8": 0.06, "int8": 0.2}


@pytest.mark.parametrize(
    "case", slow.but(["MultiHeadAttention"], QUANTIZED, "quantises")
)
def test_quantised(case, tmp_path, runtimes):
    (make, draw, batch_size), onnx, litert = QUANTIZED[case]
    keras.utils.set_random_seed(4)
    model = make()
    options = {
        "example_batch": draw(batch_size or 8),
        "calibration_data": draw(100),
        "batch_size": batch_size,
    }
    readers = {"onnx": onnx_weights, "litert": litert_tensors}
    suffixes = {"onnx": "onnx", "litert": "tflite"}
    for name, expected in [("onnx", onnx), ("litert", litert)]:
        if expected is None:
            continue  # not in LiteRT at all, as shown above
        written = [precision for precision, kind in expected.items() if kind]
        if None in expected.values():
            with pytest.raises(RuntimeError, match="_int8': .* calibrated.*loop"):
                export(model, tmp_path / name, [name], quantize="int8", **options)
            del options["calibration_data"]
        described = export(model, tmp_path / name, [name], quantize=written, **options)
        batch = draw(batch_size or 3)
        wanted = model(batch, training=False).numpy()
        for precision in written:
            outputs = runtimes[name](tmp_path / name, {"x": batch}, precision)
            distance = np.abs(outputs["y"] - wanted).max()
            assert distance <= BOUNDS[precision] * described["scales"]["y"], precision
            path = tmp_path / name / f"model.{precision}.{suffixes[name]}"
            kinds = {kind for kind, _ in readers[name](path, least=LEAST)}
            kind = expected[precision]
            assert kinds == {"FLOAT" if kind == "float" else kind}, (name, precision)
