"""The files hold the student's parameters, once, and nobody else's."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.lite.python import schema_py_generated as schema

from keras_distill.export import export


def in_saved_model(directory):
    path = str(directory / "saved_model" / "variables" / "variables")
    shapes = [shape for name, shape in tf.train.list_variables(path) if shape]
    return sum(int(np.prod(shape)) for shape in shapes)


def in_onnx(directory):
    graph = onnx.load(directory / "model.onnx").graph
    return sum(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


def in_litert(directory):
    data = (directory / "model.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    return sum(
        int(np.prod(tensor.shape))
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT32
        and model.buffers[tensor.buffer].data is not None
    )


COUNTERS = {"saved_model": in_saved_model, "onnx": in_onnx, "litert": in_litert}


class Pupil(keras.Model):
    """A trainer that holds a large teacher and a small student."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        self.teacher = teacher

    def call(self, inputs):
        return self.student(inputs) + keras.ops.stop_gradient(self.teacher(inputs))


@pytest.fixture(scope="module")
def student_export(tmp_path_factory):
    x = keras.Input((10,), name="x")
    small = layers.Dense(3)(layers.ReLU()(layers.Dense(20)(x)))
    large = layers.Dense(3)(layers.ReLU()(layers.Dense(2000)(x)))
    pupil = Pupil(keras.Model(x, small), keras.Model(x, large))
    pupil.teacher.trainable = False
    pupil.compile("adam", "mse", metrics=["mae"])
    pupil.fit(np.ones((8, 10)), np.ones((8, 3)), verbose=0)
    directory = tmp_path_factory.mktemp("student") / "out"
    export(pupil.student, directory, example_batch=np.ones((2, 10)))
    return directory, pupil.student.count_params()


@pytest.mark.parametrize("name", COUNTERS)
def test_student_alone(student_export, name):
    directory, parameters = student_export
    assert parameters == 10 * 20 + 20 + 20 * 3 + 3
    assert COUNTERS[name](directory) == parameters


def test_compiled_state_stays_out(exported, conv_model):
    # Convolutions swallow BatchNorm and gain a few constants, in these two formats.
    parameters = conv_model.count_params()
    assert in_saved_model(exported[0]) == parameters
    for count in (in_onnx(exported[0]), in_litert(exported[0])):
        assert 0.7 * parameters <= count <= 1.3 * parameters
