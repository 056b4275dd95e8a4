"""Quantised files: really quantised, smaller, and near to Keras in their runtimes."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from keras_distill.export import ParityError, export
from tests import slow
from tests.export.conftest import run_litert
from tests.export.files import (
    litert_operators,
    litert_tensors,
    onnx_nodes,
    onnx_operators,
    onnx_weights,
)

PRECISIONS = {
    "onnx": ("float16", "dynamic_int8", "int8"),
    "litert": ("float16", "dynamic_int8", "int8", "integer_only"),
}
ALL = ("float16", "dynamic_int8", "int8", "integer_only")
ARTEFACTS = [(name, p) for name, precisions in PRECISIONS.items() for p in precisions]
# Of the scale of the output.
BOUNDS = {"float16": 2e-3} | dict.fromkeys(ALL[1:], 0.08)
# Weights smaller than this the LiteRT converter leaves as they are.
LEAST = 1024


def dense_net():
    return keras.Sequential(
        [
            keras.Input((32,), name="x"),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(4, name="y"),
        ]
    )


def conv_net():
    return keras.Sequential(
        [
            keras.Input((12, 12, 4), name="x"),
            layers.Conv2D(32, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(48, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(24, activation="relu"),
            layers.Dense(4, name="y"),
        ]
    )


class Quantized:
    """A model in every precision of ONNX and LiteRT, and inputs it never saw."""

    def __init__(self, model, directory):
        rng = np.random.default_rng(5)
        shape = model.input_shape[1:]
        self.model = model
        self.convolves = len(shape) == 3
        self.directory = directory
        self.example, self.calibration, self.fresh = (
            rng.standard_normal((size, *shape)).astype("float32")
            for size in (8, 100, 7)
        )
        self.manifest = export(
            model,
            directory,
            ["onnx", "litert"],
            example_batch=self.example,
            quantize=ALL,
            calibration_data=self.calibration,
        )

    def file(self, name, precision=None):
        full = {"onnx": "model.onnx", "litert": "model.tflite"}[name]
        middle = "" if precision is None else f".{precision}"
        return self.directory / full.replace(".", f"{middle}.")


@pytest.fixture(scope="module", params=[dense_net, conv_net])
def quantized(request, tmp_path_factory):
    keras.utils.set_random_seed(2)
    return Quantized(request.param(), tmp_path_factory.mktemp("quantized") / "out")


def dequantized(outputs, integers):
    return {
        name: (array.astype("float64") - integers[name]["zero_point"])
        * integers[name]["scale"]
        for name, array in outputs.items()
    }


def run(quantized, runtimes, name, precision, batch):
    """Run an artefact on floats; `integer_only` by the scales of the manifest."""
    arrays = {"x": batch}
    if precision != "integer_only":
        return runtimes[name](quantized.directory, arrays, precision)["y"]
    artefact = quantized.manifest["artefacts"]["litert_integer_only"]
    integers = artefact["integers"]
    steps = np.round(batch / integers["x"]["scale"]) + integers["x"]["zero_point"]
    arrays = {"x": np.clip(steps, -128, 127).astype("int8")}
    outputs = runtimes[name](quantized.directory, arrays, precision)
    assert outputs["y"].dtype == np.int8
    return dequantized(outputs, integers)["y"]


@pytest.mark.parametrize(("name", "precision"), ARTEFACTS)
def test_values_of_unseen_inputs_in_any_batch_size(
    quantized, runtimes, name, precision
):
    for size in (7, 3, 1):
        batch = quantized.fresh[:size]
        wanted = quantized.model(batch, training=False).numpy()
        given = run(quantized, runtimes, name, precision, batch)
        assert given.shape == wanted.shape
        distance = np.abs(given - wanted).max()
        # Not zero either: that would be a file in full precision.
        assert 1e-6 < distance <= BOUNDS[precision] * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "precision"), ARTEFACTS)
def test_the_manifest_has_the_difference_on_the_example_batch(
    quantized, runtimes, name, precision
):
    wanted = quantized.model(quantized.example, training=False).numpy()
    given = run(quantized, runtimes, name, precision, quantized.example)
    artefact = quantized.manifest["artefacts"][f"{name}_{precision}"]
    assert artefact["precision"] == precision
    # The batch of another size is the first row again.
    assert artefact["max_abs_difference"] == pytest.approx(
        np.abs(given - wanted).max(), rel=1e-3
    )
    assert artefact["max_relative_difference"] == pytest.approx(
        np.abs(given - wanted).max() / np.abs(wanted).max(), rel=1e-3
    )


@pytest.mark.parametrize(("name", "precision"), ARTEFACTS)
def test_files_are_smaller(quantized, name, precision):
    full = quantized.file(name).stat().st_size
    artefact = quantized.manifest["artefacts"][f"{name}_{precision}"]
    size = quantized.file(name, precision).stat().st_size
    assert artefact["bytes"] == size
    if quantized.convolves and (name, precision) == ("onnx", "dynamic_int8"):
        assert size < full  # of the last layers alone
    else:
        assert size < (0.62 if precision == "float16" else 0.52) * full


def test_onnx_float16_keeps_floats_outside(quantized):
    path = quantized.file("onnx", "float16")
    assert {kind for kind, _ in onnx_weights(path, least=4)} == {"FLOAT16"}
    graph = onnx.load(path).graph
    for value in [*graph.input, *graph.output]:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_onnx_dynamic_int8_leaves_convolutions_alone(quantized):
    path = quantized.file("onnx", "dynamic_int8")
    operators = onnx_operators(path)
    assert "MatMulInteger" in operators
    assert not operators & {"ConvInteger", "QLinearConv", "MatMul", "Gemm"}
    kinds = dict(onnx_weights(path, least=24 * 48))
    assert ("Conv" in operators) == quantized.convolves
    assert set(kinds) == ({"FLOAT", "INT8"} if quantized.convolves else {"INT8"})


def test_onnx_int8_quantises_every_operand(quantized):
    path = quantized.file("onnx", "int8")
    nodes = onnx_nodes(path)
    makers = {output: node for node in nodes for output in node.output}
    heavy = [n for n in nodes if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert len(heavy) == (4 if quantized.convolves else 3)
    for node in heavy:
        for operand in node.input[:2]:
            assert makers[operand].op_type == "DequantizeLinear", node.name
    kinds = {kind for kind, _ in onnx_weights(path, least=65)}
    assert kinds == {"INT8"}


def test_litert_weights(quantized):
    for precision in ALL:
        weights = litert_tensors(quantized.file("litert", precision), least=LEAST)
        kind = "FLOAT16" if precision == "float16" else "INT8"
        assert {found for found, _ in weights} == {kind}, precision


def test_litert_int8_computes_in_integers(quantized):
    inside = litert_tensors(quantized.file("litert", "int8"))
    floats = [kind for kind, _ in inside if kind.startswith("FLOAT")]
    # The input and the output alone.
    assert len(floats) == 2
    assert {"QUANTIZE", "DEQUANTIZE"} <= litert_operators(
        quantized.file("litert", "int8")
    )


def test_litert_integer_only_holds_no_float(quantized):
    path = quantized.file("litert", "integer_only")
    assert {kind for kind, _ in litert_tensors(path)} <= {"INT8", "INT32"}
    assert not litert_operators(path) & {"QUANTIZE", "DEQUANTIZE"}


def test_scales_are_in_the_manifest_where_integers_are_taken_and_given(quantized):
    from ai_edge_litert.interpreter import Interpreter

    artefacts = quantized.manifest["artefacts"]
    with_scales = {name for name, value in artefacts.items() if "integers" in value}
    assert with_scales == {"litert_integer_only"}
    integers = artefacts["litert_integer_only"]["integers"]
    path = str(quantized.file("litert", "integer_only"))
    runner = Interpreter(model_path=path).get_signature_runner()
    details = {**runner.get_input_details(), **runner.get_output_details()}
    assert set(integers) == set(details) == {"x", "y"}
    for name, detail in details.items():
        assert detail["dtype"] is np.int8
        scale, zero_point = detail["quantization"]
        described = {"dtype": "int8", "scale": scale, "zero_point": zero_point}
        assert integers[name] == pytest.approx(described)
    # The steps are so wide that the calibration data fits into 256 of them.
    span = np.ptp(quantized.calibration)
    assert span <= 255.5 * integers["x"]["scale"] <= 1.05 * span


def test_signature_and_calibration_in_the_manifest(quantized):
    described = quantized.manifest
    assert described["calibration"] == {"batches": 100, "batch_size": 1}
    assert [value["name"] for value in described["signature"]["inputs"]] == ["x"]
    for precision in PRECISIONS["onnx"]:
        graph = onnx.load(quantized.file("onnx", precision)).graph
        for value in [*graph.input, *graph.output]:
            first, *_ = value.type.tensor_type.shape.dim
            assert first.dim_param == "batch", precision


def filters(*shape):
    """Convolutions and nothing else."""
    return keras.Sequential(
        [
            keras.Input(shape, name="x"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(48, 3),
            layers.GlobalAveragePooling2D(name="y"),
        ]
    )


def test_dynamic_int8_of_convolutions_alone_is_refused_by_onnx(
    floats, tmp_path, runtimes
):
    model, batch = filters(8, 8, 2), floats(4, 8, 8, 2)
    options = {"example_batch": batch, "quantize": "dynamic_int8"}
    message = "'onnx_dynamic_int8': .*leaves convolutions.*Leave 'dynamic_int8' out of"
    with pytest.raises(RuntimeError, match=message):
        export(model, tmp_path / "out", ["onnx"], **options)
    assert list(tmp_path.iterdir()) == []
    # LiteRT has kernels for them.
    export(model, tmp_path / "out", ["litert"], **options)
    weights = litert_tensors(tmp_path / "out" / "model.dynamic_int8.tflite", LEAST)
    assert weights == [("INT8", 3 * 3 * 32 * 48)]
    given = runtimes["litert"](tmp_path / "out", {"x": batch}, "dynamic_int8")["y"]
    wanted = model(batch).numpy()
    assert 0 < np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()


def two_inputs():
    """A dict of two inputs, not in the order of the alphabet, and two outputs."""
    wide, deep = keras.Input((20,), name="wide"), keras.Input((6,), name="deep")
    x = layers.Dense(40, activation="relu")(wide)
    up, down = layers.Dense(3, name="up")(x), layers.Dense(2, name="down")(deep)
    outputs = {"up": up, "down": down}
    return keras.Model({"wide": wide, "deep": deep}, outputs)


@pytest.mark.parametrize(
    "given", slow.but([dict], [dict, list], "exports"), ids=["dict", "list"]
)
def test_several_inputs_are_calibrated_each_by_its_own_data(
    floats, tmp_path, runtimes, given
):
    model = two_inputs()
    if given is list:
        model = keras.Model(list(model.input.values()), list(model.output.values()))
    scale = {"wide": 50.0, "deep": 0.02}
    size = {"wide": 20, "deep": 6}
    drawn = {name: scale[name] * floats(70, size[name]) for name in scale}
    data = drawn if given is dict else list(drawn.values())
    described = export(
        model,
        tmp_path / "out",
        ["onnx", "litert"],
        example_batch=data,
        quantize=["int8", "integer_only"],
        calibration_data=data,
    )
    integers = described["artefacts"]["litert_integer_only"]["integers"]
    for name, array in drawn.items():
        assert integers[name]["scale"] == pytest.approx(np.ptp(array) / 255, rel=0.05)
    wanted = model(data)
    if given is list:
        wanted = dict(zip(["up", "down"], wanted, strict=True))
    for name in ("onnx", "litert"):
        outputs = runtimes[name](tmp_path / "out", drawn, "int8")
        assert set(outputs) == set(wanted)
        for key, values in wanted.items():
            distance = np.abs(outputs[key] - values.numpy()).max()
            assert distance < 0.05 * np.abs(values).max(), (name, key)


# What computes in place and makes one channel a hundred times larger. TensorFlow's
# calibration takes the range of its output for that of its input.
GROWTH = np.array([100.0, 1.0, 1.0, 1.0], "float32")
GROWING = {
    "rescaling": layers.Rescaling(GROWTH),
    "multiplication": lambda x: x * GROWTH,
    "two_operators": lambda x: (x + 0.5) * GROWTH,
    "square": lambda x: keras.ops.square(10.0 * x),
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Return what the int8 file of all of these and Keras compute."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 1), name="x")
    outputs = {}
    for name in ("batch_normalization", *GROWING):
        hidden = layers.Conv2D(4, 3, activation="relu")(x)
        normalise = layers.BatchNormalization()
        hidden = GROWING.get(name, normalise)(hidden)
        if normalise.built:
            normalise.gamma.assign(GROWTH)
        outputs[name] = layers.Conv2D(2, 3)(hidden)
    model = keras.Model(x, outputs)
    batch = np.random.default_rng(0).random((40, 8, 8, 1)).astype("float32")
    directory = tmp_path_factory.mktemp("grown") / "out"
    export(
        model,
        directory,
        ["litert"],
        example_batch=batch[:4],
        quantize="int8",
        calibration_data=batch,
        tolerance={"int8": 10.0},
    )
    return run_litert(directory, {"x": batch}, "int8"), model(batch)


@pytest.mark.parametrize("name", ["batch_normalization", *GROWING])
def test_a_tensor_has_its_own_range_and_not_that_of_the_operator_after_it(grown, name):
    given, wanted = (outputs[name] for outputs in grown)
    assert np.abs(given - wanted).max() < 0.04 * np.abs(wanted).max()


LABELS = [keras.ops.argmax, keras.ops.argmin]


@pytest.mark.parametrize("best", slow.but(LABELS[:1], LABELS, "exports"))
def test_the_head_may_give_labels(best, tmp_path, runtimes):
    """Of scores far apart, many of which int8 rounds to zero."""
    x = keras.Input((4,), name="x")
    scores = layers.Dense(4, kernel_initializer="identity")(x)
    model = keras.Model(x, {"y": best(scores, axis=-1)})
    rng = np.random.default_rng(0)
    rows = rng.permuted(np.tile([-9.0, -1e-3, 1e-3, 9.0], (32, 1)), axis=1)
    data, directory = rows.astype("float32"), tmp_path / "out"
    # Which compares every label with Keras'.
    export(
        model,
        directory,
        ["onnx", "litert"],
        example_batch=data[:16],
        calibration_data=data,
        quantize=("int8", "integer_only"),
    )
    for name in ("onnx", "litert"):
        got = runtimes[name](directory, {"x": data[16:]}, "int8")["y"]
        np.testing.assert_array_equal(got, model(data[16:])["y"])


@pytest.mark.parametrize(
    "masked", [pytest.param(False, marks=pytest.mark.slow("exports")), True]
)
def test_tokens(tmp_path, runtimes, masked):
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32", name="tokens"),
            layers.Embedding(200, 16, mask_zero=masked),
            layers.GlobalAveragePooling1D(),
            layers.Dense(80, activation="relu"),
            layers.Dense(3, name="y"),
        ]
    )
    tokens = np.random.default_rng(0).integers(1, 200, (60, 6)).astype("int32")
    tokens[::2, 4:] = 0
    described = export(
        model,
        tmp_path / "out",
        ["onnx", "litert"],
        example_batch=tokens[:8],
        quantize=ALL,
        calibration_data=tokens,
    )
    wanted = model(tokens).numpy()
    integers = described["artefacts"]["litert_integer_only"]["integers"]
    # Tokens are no floats: nothing to scale.
    assert set(integers) == {"y"}
    for name, precision in ARTEFACTS:
        outputs = runtimes[name](tmp_path / "out", {"tokens": tokens}, precision)
        if precision == "integer_only":
            outputs = dequantized(outputs, integers)
        distance = np.abs(outputs["y"] - wanted).max()
        assert 0 < distance <= BOUNDS[precision] * np.abs(wanted).max(), (
            name,
            precision,
        )
    table = 200 * 16
    kinds = {"float16": "FLOAT16", "dynamic_int8": "UINT8", "int8": "INT8"}
    for precision, kind in kinds.items():
        path = tmp_path / "out" / f"model.{precision}.onnx"
        assert onnx_weights(path, least=table) == [(kind, table)], precision


def test_calibration_data_sets_the_ranges(floats, tmp_path, runtimes):
    model, batch = dense_net(), floats(8, 32)

    def attempt(formats, data, directory):
        return export(
            model,
            directory,
            formats,
            example_batch=batch,
            quantize="int8",
            calibration_data=data,
        )

    for name in ("onnx", "litert"):
        # Ranges of a hundredth clip whatever comes.
        with pytest.raises(ParityError, match=f"the {name}_int8 artefact must agree"):
            attempt([name], 0.01 * floats(50, 32), tmp_path / "narrow")
        assert not (tmp_path / "narrow").exists()
        # Of eight times, they leave few steps to what comes; its own clip nothing.
        wide, own = (
            attempt([name], data, tmp_path / name)["artefacts"][f"{name}_int8"][
                "max_relative_difference"
            ]
            for data in (8.0 * floats(50, 32), np.concatenate([batch, floats(50, 32)]))
        )
        assert wide > 2 * own


def test_calibration_in_batches_of_a_fixed_size(floats, tmp_path, runtimes):
    model, data = dense_net(), floats(50, 32)
    described = export(
        model,
        tmp_path / "out",
        ["onnx", "litert"],
        example_batch=data,
        quantize="int8",
        calibration_data=data,
        batch_size=8,
    )
    # The last batch is filled up.
    assert described["calibration"] == {"batches": 7, "batch_size": 8}
    wanted = model(data[:8]).numpy()
    for name in ("onnx", "litert"):
        given = runtimes[name](tmp_path / "out", {"x": data[:8]}, "int8")["y"]
        assert np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()


def test_calibration_of_an_open_length(floats, tmp_path, runtimes):
    x = keras.Input((None, 8), name="x")
    model = keras.Model(x, {"y": layers.Conv1D(16, 3)(x)})
    calibration = floats(40, 12, 8)
    export(
        model,
        tmp_path / "out",
        ["onnx", "litert"],
        example_batch=floats(4, 10, 8),
        quantize="int8",
        calibration_data=calibration,
    )
    # Longer, and within the ranges that were seen.
    batch = np.concatenate([calibration[:3]] * 2, axis=1)
    wanted = model(batch)["y"].numpy()
    for name in ("onnx", "litert"):
        given = runtimes[name](tmp_path / "out", {"x": batch}, "int8")["y"]
        assert np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()


def test_float16_bounds_what_it_can_hold(floats, tmp_path):
    """Beyond 65504 there is nothing in float16: refused, not clipped in silence."""
    model, batch = dense_net(), floats(4, 32)
    model.layers[-1].bias.assign([0.0, 0.0, 0.0, 1e6])
    for name in ("onnx", "litert"):
        with pytest.raises(ParityError, match=f"{name}_float16 artefact must agree"):
            export(
                model, tmp_path / "o", [name], example_batch=batch, quantize="float16"
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        (["onnx"], {"quantize": "int4"}, r"of \['dynamic_int8', .*Received: .*'int4'"),
        (["onnx"], {"quantize": "integer_only"}, r"\['onnx'\]. .*integer_only"),
        (["saved_model"], {"quantize": "float16"}, r"of \[\] for .*'saved_model'"),
        (["onnx"], {"quantize": ["full"]}, r"Received: quantize=\['full'\]"),
        (["onnx"], {"quantize": "int8"}, r"typical inputs for \['onnx_int8'\]"),
        (
            ["litert"],
            {"quantize": "integer_only"},
            r"typical inputs for \['litert_integer_only'\].*=None.*'dynamic_int8'",
        ),
        (
            ["onnx", "litert"],
            {"quantize": "float16", "calibration_data": np.ones((2, 32))},
            r"calibration_data for .*'onnx_float16', 'litert', 'litert_float16'",
        ),
        (
            ["onnx"],
            {"quantize": "int8", "calibration_data": np.ones((2, 31))},
            r"`calibration_data` must have shape \(None, 32\).*\(2, 31\)",
        ),
        (
            ["onnx"],
            {"quantize": "int8", "calibration_data": np.ones((0, 32))},
            "`calibration_data` must hold at least one example",
        ),
    ],
)
def test_arguments(tmp_path, formats, options, message):
    batch = np.ones((2, 32), "float32")
    with pytest.raises(ValueError, match=message):
        export(dense_net(), tmp_path / "o", formats, example_batch=batch, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_goes_to_the_formats_that_know_it(floats, tmp_path):
    described = export(
        dense_net(),
        tmp_path / "out",
        example_batch=floats(4, 32),
        quantize=["integer_only", "float16"],
        calibration_data=floats(200, 32),
    )
    assert list(described["artefacts"]) == [
        "saved_model",
        "onnx",
        "onnx_float16",
        "litert",
        "litert_float16",
        "litert_integer_only",
    ]


def test_tolerances_by_precision(floats, tmp_path):
    model, batch = dense_net(), floats(4, 32)
    options = {"example_batch": batch, "quantize": ["float16", "dynamic_int8"]}
    for precision in ("float16", "dynamic_int8"):
        tight = {precision: 1e-6}
        with pytest.raises(ParityError, match=f"onnx_{precision} .*`tolerance` 1e-06"):
            export(model, tmp_path / "o", ["onnx"], tolerance=tight, **options)
    tolerances = {"float16": 0.02, "dynamic_int8": 0.5}
    artefacts = export(
        model, tmp_path / "o", ["onnx"], tolerance=tolerances, **options
    )["artefacts"]
    assert [artefact["tolerance"] for artefact in artefacts.values()] == [
        1e-5,
        0.02,
        0.5,
    ]
    # A number is that of full precision, and the least of the others.
    artefacts = export(model, tmp_path / "o", ["onnx"], tolerance=0.1, **options)[
        "artefacts"
    ]
    assert [artefact["tolerance"] for artefact in artefacts.values()] == [0.1, 0.1, 0.2]


@pytest.mark.parametrize("name", ["onnx", "litert"])
@pytest.mark.parametrize("precision", ["float16", "dynamic_int8"])
def test_a_model_without_weights_has_none_to_quantise(name, precision, tmp_path):
    x = keras.Input((3,), name="x")
    model, batch = keras.Model(x, keras.ops.tanh(x)), np.ones((2, 3), "float32")
    with pytest.raises(RuntimeError, match="as the file has no constant matrices"):
        export(model, tmp_path / "o", [name], example_batch=batch, quantize=precision)
