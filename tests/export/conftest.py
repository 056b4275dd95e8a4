"""Models, and runtimes that know nothing of the code under test."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.export import export


def run_saved_model(directory, arrays):
    import tensorflow as tf

    saved = tf.saved_model.load(str(directory / "saved_model"))
    outputs = saved.signatures["serving_default"](
        **{name: tf.constant(array) for name, array in arrays.items()}
    )
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def run_onnx(directory, arrays, precision=None):
    import onnxruntime

    path = directory / file_name("model.onnx", precision)
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, arrays), strict=True))


def run_litert(directory, arrays, precision=None):
    from ai_edge_litert.interpreter import Interpreter

    path = directory / file_name("model.tflite", precision)
    return Interpreter(model_path=str(path)).get_signature_runner()(**arrays)


def file_name(full, precision):
    """`model.int8.onnx` of `model.onnx`."""
    return full if precision is None else full.replace(".", f".{precision}.")


@pytest.fixture(scope="session")
def runtimes():
    """Format name to a function that runs the artefact in a directory."""
    return {"saved_model": run_saved_model, "onnx": run_onnx, "litert": run_litert}


class Floats:
    """Random float32 arrays of a shape."""

    def __init__(self):
        self.begin_again()

    def begin_again(self):
        self.rng = np.random.default_rng(7)

    def __call__(self, *shape):
        return self.rng.standard_normal(shape).astype("float32")


@pytest.fixture(scope="session")
def floats():
    return Floats()


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before(floats):
    floats.begin_again()
    keras.utils.set_random_seed(0)


@pytest.fixture
def dense_model():
    """The smallest model with names: 4 features to 2 scores."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="features")
    return keras.Model(x, keras.layers.Dense(2, name="scores")(x), name="dense_model")


@pytest.fixture(scope="session")
def conv_model(floats):
    """Two inputs, two outputs, BatchNorm with statistics that aren't the initial."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1), name="image")
    extra = keras.Input((3,), name="extra")
    x = keras.layers.Conv2D(4, 3)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    x = keras.layers.Concatenate()([x, keras.layers.Dropout(0.5)(extra)])
    outputs = {
        "digit": keras.layers.Dense(5)(x),
        "tilt": keras.layers.Dense(1, activation="tanh")(x),
    }
    model = keras.Model({"image": image, "extra": extra}, outputs, name="conv_model")
    model({"image": 3 + 2 * floats(16, 8, 8, 1), "extra": floats(16, 3)}, training=True)
    return model


@pytest.fixture(scope="session")
def conv_batch(floats):
    return {"image": floats(6, 8, 8, 1), "extra": floats(6, 3)}


@pytest.fixture(scope="session")
def exported(tmp_path_factory, conv_model, conv_batch) -> tuple[Path, dict]:
    """The conv model in all formats: its directory and the returned manifest."""
    directory = tmp_path_factory.mktemp("exports") / "conv"
    return directory, export(conv_model, directory, example_batch=conv_batch)
