"""Students that train through their quantiser, and the files that they become."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.fake_quantization import FakeQuantizer, QuantizedWeights

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 8, 8, 3)).astype("float32")


def settle(model, data):
    """Give every BatchNormalization statistics and weights that aren't the initial."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return model


def folded():
    x = keras.Input((8, 8, 3), name="x")
    h = layers.Conv2D(8, 3, use_bias=False)(x)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.BatchNormalization()(layers.DepthwiseConv2D(3, depth_multiplier=2)(h))
    h = layers.Flatten()(layers.Activation("hard_swish")(h))
    h = layers.ReLU(6)(layers.BatchNormalization()(layers.Dense(8)(h)))
    return keras.Model(x, layers.Dense(3, name="y")(h))


def unfolded():
    x = keras.Input((8, 8, 3), name="x")
    h = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    first = layers.BatchNormalization()(h)
    h = layers.Conv2D(8, 1, activation="gelu")(first)
    h = layers.ReLU()(layers.BatchNormalization()(layers.Add()([first, h])))
    h = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(h))
    return keras.Model(x, layers.Dense(3, activation="softmax", name="y")(h))


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.ReLU()], name="inner"
    )
    x = keras.Input((8, 8, 3), name="x")
    h = layers.Flatten()(inner(x))
    return keras.Model({"x": x}, {"y": layers.Dense(3, name="y")(h * 2.0)})


MAKERS = [folded, unfolded, nested]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def student(request):
    keras.utils.set_random_seed(0)
    return settle(request.param(), IMAGES)


def value(output):
    return np.asarray(output["y"] if isinstance(output, dict) else output)


def given(student):
    return {"x": IMAGES} if isinstance(student.input, dict) else IMAGES


def quantized(student, weights="int8"):
    return kd.students.quantization_aware(
        student, weights, calibration_data=given(student)
    )


def test_outputs_are_those_of_the_student_up_to_rounding(student):
    before = [np.array(weight) for weight in student.weights]
    wanted = value(student(given(student), training=False))
    copy = quantized(student)
    distance = np.abs(value(copy(given(student))) - wanted).max()
    assert 1e-6 < distance < 0.05 * np.abs(wanted).max()
    assert copy.output_names == student.output_names
    for old, new in zip(before, student.weights, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
    held = {id(weight) for weight in student.weights}
    assert not any(id(weight) in held for weight in copy.weights)


def test_weights_alone(student):
    """8 bits without ranges: outputs are floats, nearer to the student's."""
    copy = kd.students.quantization_aware(student, activations=None)
    wanted = value(student(given(student), training=False))
    distance = np.abs(value(copy(given(student))) - wanted).max()
    assert 0 < distance < 0.02 * np.abs(wanted).max()
    assert not any(isinstance(layer, FakeQuantizer) for layer in copy.layers)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (layers.Conv2D(6, 3), (0, 1, 2)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (0, 1)),
        (layers.Dense(6), (0, 1)),
    ],
    ids=["conv", "depthwise", "dense"],
)
def test_weights_are_integers_times_the_scale_of_their_channel(layer, axes, bits):
    layer = type(layer).from_config(layer.get_config())
    wrapper = QuantizedWeights(layer, bits)
    wrapper(IMAGES)
    kernel = np.array(layer.kernel)
    rounded = np.array(wrapper.rounded()[0])
    most = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(axis=axes, keepdims=True) / most
    np.testing.assert_allclose(
        rounded, np.round(kernel / scale) * scale, atol=1e-3 * scale.max()
    )


def test_files_of_keras_hold_it(student, tmp_path):
    copy = quantized(student, "int4")
    copy.save(tmp_path / "copy.keras")
    again = keras.saving.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(
        value(again(given(student))), value(copy(given(student)))
    )


def test_a_distiller_trains_it_through_the_quantiser():
    keras.utils.set_random_seed(0)
    student = settle(unfolded(), IMAGES)
    copy = kd.students.quantization_aware(student, "int4", calibration_data=IMAGES)
    distiller = kd.Distiller(copy, student)
    distiller.compile(
        keras.optimizers.Adam(1e-2),
        distillation_loss=keras.losses.MeanSquaredError(),
        alpha=1.0,
    )
    losses = distiller.fit(IMAGES, epochs=12, verbose=0).history["distillation_loss"]
    assert losses[-1] < 0.7 * losses[0]
    # All of the weights are trained: those of constants too.
    fresh = kd.students.quantization_aware(student, "int4", calibration_data=IMAGES)
    for new, old in zip(copy.weights, fresh.weights, strict=True):
        assert np.any(np.array(new) != np.array(old)), new.path


def exported(make, weights, path, to):
    """Return a quantized student, its outputs, and the weights of its file by type."""
    keras.utils.set_random_seed(0)
    student = settle(make(), IMAGES)
    copy = quantized(student, weights)
    batch = given(student)
    made = kd.export.export(copy, path, [to], example_batch=batch, quantize="int8")
    return copy, value(copy(batch)), made["artefacts"][f"{to}_int8"]["weights"]


@pytest.mark.tensorflow_only("exports are made by TensorFlow")
@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (folded, "int4"),
        pytest.param(unfolded, "int4", marks=pytest.mark.slow("exports")),
        (unfolded, "int8"),
        pytest.param(nested, "int8", marks=pytest.mark.slow("exports")),
    ],
)
def test_litert_files_compute_what_it_computes(make, weights, tmp_path):
    from tests.export.conftest import run_litert
    from tests.export.files import litert_tensors

    _, wanted, types = exported(make, weights, tmp_path / "out", "litert")
    assert types[weights] > 0.9 * sum(types.values())
    kinds = {kind for kind, _ in litert_tensors(tmp_path / "out/model.int8.tflite", 24)}
    assert kinds <= {weights.upper(), "INT8", "INT32"}
    outputs = run_litert(tmp_path / "out", {"x": IMAGES}, "int8")["y"]
    assert np.abs(outputs - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.mean(outputs.argmax(-1) == wanted.argmax(-1)) >= 0.95


@pytest.mark.tensorflow_only("exports are made by TensorFlow")
@pytest.mark.parametrize(
    ("make", "weights"),
    [(folded, "int4"), (unfolded, "int8"), (nested, "int4")],
)
def test_onnx_files_compute_what_it_computes(make, weights, tmp_path):
    import onnx

    from tests.export.conftest import run_onnx

    copy, wanted, types = exported(make, weights, tmp_path / "out", "onnx")
    assert types["int8"] > 0.85 * sum(types.values())  # the others are constants
    # Rounded once more, one row in sixty would have another class.
    outputs = run_onnx(tmp_path / "out", {"x": IMAGES}, "int8")["y"]
    assert np.abs(outputs - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.mean(outputs.argmax(-1) == wanted.argmax(-1)) >= 0.98
    # The integers are those that Keras computes with.
    model = onnx.load(tmp_path / "out/model.int8.onnx")
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
    }
    sizes = {"int8": 127, "int4": 7}
    stored = [
        (tensors[name], tensors[name.replace("_integers", "_scale")])
        for name in tensors
        if name.endswith("_integers")
    ]
    rounded = [
        value(layer.rounded()[0])
        for layer in copy._flatten_layers()
        if isinstance(layer, QuantizedWeights)
    ]
    assert len(stored) == len(rounded)
    for integers, scale in stored:
        assert np.abs(integers).max() == sizes[weights]
        shape = (-1,) + (1,) * (integers.ndim - 1) if scale.ndim else ()
        floats = np.sort(np.ravel(integers * scale.reshape(shape)))
        same = [np.sort(np.ravel(other)) for other in rounded]
        assert any(
            len(floats) == len(other) and np.allclose(floats, other, atol=1e-6)
            for other in same
        )


@pytest.mark.tensorflow_only("exports are made by TensorFlow")
def test_onnx_files_of_rounded_weights_alone(tmp_path):
    from tests.export.conftest import run_onnx

    keras.utils.set_random_seed(0)
    student = settle(folded(), IMAGES)
    copy = kd.students.quantization_aware(student, activations=None)
    # ONNX Runtime would round the activations too where the weights are integers.
    kd.export.export(copy, tmp_path / "out", ["onnx"], example_batch=IMAGES)
    outputs = run_onnx(tmp_path / "out", {"x": IMAGES})["y"]
    np.testing.assert_allclose(outputs, value(copy(IMAGES)), rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow_only("exports are made by TensorFlow")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "float16"}, r"'int8', 'integer_only'.*\['litert_float16'\]"),
        ({"quantize": "dynamic_int8"}, r"Received: \['litert_dynamic_int8'\]"),
        (
            {"formats": ["onnx", "litert"], "quantize": ["float16", "int8"]},
            r"Received: \['onnx_float16', 'litert_float16'\]. Export the float model",
        ),
        (
            {"quantize": "int8", "calibration_data": IMAGES},
            "`calibration_data` must be None, as `model` was calibrated",
        ),
    ],
)
def test_exports_that_its_ranges_are_not_for(options, message, tmp_path):
    x = keras.Input((4,), name="x")
    student = keras.Model(x, layers.Dense(3)(x))
    data = IMAGES.reshape(-1, 4)
    copy = kd.students.quantization_aware(student, calibration_data=data)
    options = {"formats": ["litert"], **options}
    with pytest.raises(ValueError, match=message):
        kd.export.export(copy, tmp_path / "out", example_batch=data[:4], **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorflow_only("exports are made by TensorFlow")
def test_integers_alone_are_refused_where_layers_compute_in_floats(tmp_path):
    x = keras.Input((4,), name="x")
    student = keras.Model(x, layers.LayerNormalization()(layers.Dense(4)(x)))
    data = IMAGES.reshape(-1, 4)
    copy = kd.students.quantization_aware(student, calibration_data=data)
    with pytest.raises(RuntimeError, match="without ranges inside, .* take 'int8'"):
        kd.export.export(
            copy,
            tmp_path / "out",
            ["litert"],
            example_batch=data[:4],
            quantize="integer_only",
        )


class Subclassed(keras.Model):
    def call(self, x):
        return x


def small(*more):
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense"), *more])


def shared():
    x, dense = keras.Input((4,)), layers.Dense(4, name="twice")
    return keras.Model(x, dense(dense(x)))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: layers.Dense(3), {}, "`student` must be a Keras model. Received: <D"),
        (Subclassed, {}, "Functional or Sequential model.*Subclassed"),
        (lambda: keras.Sequential([layers.Dense(3)]), {}, "must be built: begin"),
        (shared, {}, r"call each layer once.*\['twice'\]"),
        (
            lambda: small(layers.Reshape((2, 2)), layers.LSTM(3, name="memory")),
            {},
            r"weights in the layers .*'memory' \(LSTM\).*quantize='int8'",
        ),
        (small, {"weights": "int2"}, r"\['int8', 'int4'\].*weights='int2'"),
        (small, {"activations": "int16"}, "activations='int16'"),
        (
            small,
            {"weights": "int4", "activations": None, "calibration_data": None},
            "no runtime has them",
        ),
        (small, {"calibration_data": None}, "calibration_data=a NoneType"),
        (small, {"activations": None}, "activations=None, calibration_data=a ndarray"),
        (small, {"calibration_data": np.full((8, 4), np.nan)}, "32 values as nan"),
        (small, {"calibration_data": np.full((8, 4), 0.5)}, "the value 0.5 alone"),
        (small, {"calibration_data": np.ones((0, 4))}, r"of shape \(0, 4\)"),
    ],
)
def test_arguments(make, options, message):
    options = {"calibration_data": IMAGES.reshape(-1, 4), **options}
    with pytest.raises((TypeError, ValueError), match=message):
        kd.students.quantization_aware(make(), **options)
