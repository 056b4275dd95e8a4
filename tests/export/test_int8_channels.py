"""Channels of a LiteRT file in int8: their ranges are brought together, their means
stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import export
from keras_distill.export.litert_equalization import equalized
from keras_distill.export.litert_graphs import Graph
from keras_distill.export.litert_links import links
from tests.export.conftest import run_litert
from tests.export.files import litert_operators

pytestmark = pytest.mark.tensorflow_only("exports are made by TensorFlow")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 8, 8, 4)).astype("float32")
UNLIKE = 10.0 ** np.linspace(-1, 1, 8)


def norm(x, factors=UNLIKE):
    """A normalisation whose channels have factors of their own."""
    layer = layers.BatchNormalization()
    y = layer(x)
    count = x.shape[-1]
    scale = np.resize(factors, count)
    layer.set_weights(
        [scale, RNG.normal(size=count), RNG.normal(size=count) / 3, np.ones(count)]
    )
    return y


def conv(x, filters=8, size=3, **options):
    return layers.Conv2D(filters, size, **{"padding": "same"} | options)(x)


def relu(x):
    return layers.ReLU()(x)


def pooled(x):
    return layers.GlobalAveragePooling2D()(x)


def after(x):
    return conv(norm(conv(x, activation="relu")))


def before_too(x):
    return conv(relu(norm(conv(relu(norm(conv(x)))))))


def negative(x):
    return conv(norm(conv(x, activation="relu"), UNLIKE * np.resize([1, -1], 8)))


def zero(x):
    return conv(norm(conv(x, activation="relu"), UNLIKE * np.resize([1, 0], 8)))


def depthwise(x):
    x = norm(conv(x, activation="relu"))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x)
    return conv(norm(x), size=1)


def residual(x):
    x = conv(x)
    return layers.Add()([x, conv(relu(norm(x)))])


def several_readers(x):
    x = norm(conv(x, activation="relu"))
    return layers.Concatenate()([conv(x), conv(x, size=1)])


def pools(x):
    x = layers.MaxPooling2D()(norm(conv(x, activation="relu")))
    x = layers.AveragePooling2D(2)(norm(conv(x, activation="relu")))
    return layers.Dense(3)(pooled(x))


def padded(x):
    x = layers.ZeroPadding2D(1)(norm(conv(x, activation="relu")))
    return conv(x, padding="valid")


def dense(x):
    x = layers.Dense(8, "relu")(pooled(x))
    return layers.Dense(3)(norm(layers.Dense(8, "relu")(norm(x))))


def strided(x):
    return conv(norm(conv(x, strides=2, activation="relu")), strides=2)


LINKED = (
    after,
    before_too,
    negative,
    zero,
    depthwise,
    residual,
    several_readers,
    pools,
    padded,
    dense,
    strided,
)


def grouped(x):
    return conv(norm(conv(x, activation="relu")), groups=2)


def transposed(x):
    return layers.Conv2DTranspose(4, 3)(norm(conv(x, activation="relu")))


def flattened(x):
    return layers.Dense(3)(layers.Flatten()(norm(conv(x, activation="relu"))))


def clipped(x):
    return conv(layers.ReLU(6.0)(conv(x)))


def sigmoid(x):
    return conv(conv(x, activation="sigmoid"))


def mean_of_channels(x):
    return layers.Dense(3)(keras.ops.mean(conv(x, activation="relu"), axis=-1))


def padded_channels(x):
    x = keras.ops.pad(conv(x, activation="relu"), [[0, 0], [0, 0], [0, 0], [1, 1]])
    return conv(x)


NOT_LINKED = (
    grouped,
    transposed,
    flattened,
    clipped,
    sigmoid,
    mean_of_channels,
    padded_channels,
)


def called_twice(x):
    layer = layers.Conv2D(4, 3, padding="same", activation="relu")
    return conv(layer(layer(x)))


def output_in_between(x):
    x = norm(conv(x, activation="relu"))
    return {"hidden": x, "logits": conv(x)}


def model_of(make):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 4), name="x")
    model = keras.Model(x, make(x))
    for weight in model.trainable_weights:
        if weight.path.endswith("kernel"):
            weight.assign(2 * weight)
        if weight.path.endswith("bias"):
            weight.assign(RNG.normal(size=weight.shape) / 10)
    return model


def float_file(model, tmp_path):
    model.export(tmp_path / "saved_model", verbose=False)
    directory = str(tmp_path / "saved_model")
    return tf.lite.TFLiteConverter.from_saved_model(directory).convert()


def samples():
    for image in IMAGES:
        yield "serving_default", {"x": image[None]}


def run(file):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file)
    outputs = interpreter.get_signature_runner("serving_default")(x=IMAGES)
    return [outputs[name] for name in sorted(outputs)]


@pytest.mark.parametrize(
    "make",
    [*LINKED, *NOT_LINKED, called_twice, output_in_between],
    ids=lambda f: f.__name__,
)
def test_the_model_computes_what_it_did(make, tmp_path):
    file = float_file(model_of(make), tmp_path)
    for found, wanted in zip(run(equalized(file, samples)), run(file), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("make", LINKED, ids=lambda f: f.__name__)
def test_places_are_found(make, tmp_path):
    file = float_file(model_of(make), tmp_path)
    assert list(links(Graph(file)))


@pytest.mark.parametrize("make", NOT_LINKED, ids=lambda f: f.__name__)
def test_no_place(make, tmp_path):
    # A normalisation may be part of the layer after it.
    graph = Graph(float_file(model_of(make), tmp_path))
    for link in links(graph):
        assert {graph.kind(it) for it in link.consumers} <= {3, 4, 9}
        assert make in (grouped, transposed, flattened)


def exported(model, directory):
    export(
        model,
        directory,
        ["litert"],
        example_batch=IMAGES[:8],
        calibration_data=IMAGES,
        quantize="int8",
        tolerance={"int8": 1e3},
    )
    return directory / "model.int8.tflite"


def noise(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted)


def outputs_of(directory):
    return next(iter(run_litert(directory, {"x": IMAGES}, "int8").values()))


def unlike_channels(x):
    """Small channels, which a normalisation makes as large as the others."""
    x = conv(x, activation="relu", kernel_initializer=unlike_kernel)
    return conv(norm(x, 1 / UNLIKE))


def unlike_kernel(shape, dtype=None):
    return UNLIKE * keras.initializers.GlorotUniform(0)(shape, dtype)


def test_small_channels_keep_their_values(tmp_path, monkeypatch):
    model = model_of(unlike_channels)
    wanted = model.predict(IMAGES, verbose=0)
    file = exported(model, tmp_path / "alike")
    assert "MUL" not in litert_operators(file)
    monkeypatch.setattr(
        "keras_distill.export.litert_ranges.equalized", lambda file, samples: file
    )
    exported(model, tmp_path / "unlike")
    alike, before = (
        noise(outputs_of(tmp_path / name), wanted) for name in ("alike", "unlike")
    )
    assert alike < 0.02
    assert alike < before / 3


def deep(x):
    for _ in range(6):
        x = layers.Activation("hard_swish")(conv(x, 8))
    return layers.Dense(5)(pooled(x))


def test_means_stay(tmp_path, monkeypatch):
    model = model_of(deep)
    wanted = model.predict(IMAGES, verbose=0)
    exported(model, tmp_path / "corrected")
    monkeypatch.setattr(
        "keras_distill.export.litert.unbiased", lambda file, floats, samples: file
    )
    exported(model, tmp_path / "left")
    corrected, left = (
        np.abs(np.mean(outputs_of(tmp_path / name) - wanted, axis=0)).max()
        for name in ("corrected", "left")
    )
    assert corrected < left / 2
    assert corrected < 0.02 * np.std(wanted)


def test_ranges_leave_out_what_hard_swish_does(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = model_of(lambda x: layers.Activation("hard_swish")(20 * conv(x)))
    file = exported(model, tmp_path / "out")
    lows = []
    for tensor in Interpreter(model_path=str(file)).get_tensor_details():
        scale, zero = tensor["quantization"]
        if tensor["dtype"] == np.int8 and len(tensor["shape"]) == 4 and scale:
            lows.append((-128 - zero) * scale)
    assert any(abs(low + 3) < 0.5 for low in lows), lows
