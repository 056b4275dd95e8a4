"""Triton's `config.pbtxt`, read by Triton's own protobuf."""

import sys

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from keras_distill.export import export, repositories
from keras_distill.export.repositories import triton as _function
from keras_distill.export.repositories.source import onnx_files

triton = sys.modules[_function.__module__]

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 28, None]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 10]}],
}


def read(repository, name="conv_model"):
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config(signature=SIGNATURE, format="onnx", **arguments):
    return triton.model_config("student", format, signature, **arguments)


def with_output(dtype="float32", shape=(None, 10)):
    output = {"name": "y", "dtype": dtype, "shape": shape and list(shape)}
    return SIGNATURE | {"outputs": [output]}


def of_onnx(values):
    """Name to Triton's type and shape, from the ONNX file itself."""
    import onnx

    return {
        value.name: (
            np_to_triton_dtype(
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            ),
            [
                dim.dim_value if dim.HasField("dim_value") else -1
                for dim in value.type.tensor_type.shape.dim
            ],
        )
        for value in values
    }


def of_config(tensors, batched):
    names = model_config_pb2.DataType.Name
    return {
        tensor.name: (
            names(tensor.data_type).removeprefix("TYPE_"),
            [-1] * batched + list(tensor.dims),
        )
        for tensor in tensors
    }


def test_it_agrees_with_the_onnx_file(exported, tmp_path):
    import onnx

    directory = repositories.triton(exported[0], tmp_path)
    read_back = read(tmp_path)
    graph = onnx.load(directory / "model.onnx").graph
    assert read_back.name == "conv_model"
    assert read_back.platform == "onnxruntime_onnx"
    assert read_back.max_batch_size == 64
    assert of_config(read_back.input, True) == of_onnx(graph.input)
    assert of_config(read_back.output, True) == of_onnx(graph.output)
    assert len(read_back.input) == len(read_back.output) == 2


def test_a_fixed_batch_is_among_the_dims(dense_model, tmp_path):
    import onnx

    batch = np.ones((3, 4), "float32")
    export(dense_model, tmp_path / "x", ["onnx"], example_batch=batch, batch_size=3)
    directory = repositories.triton(tmp_path / "x", tmp_path / "models")
    read_back = read(tmp_path / "models", "dense_model")
    graph = onnx.load(directory / "model.onnx").graph
    assert read_back.max_batch_size == 0
    assert not read_back.HasField("dynamic_batching")
    assert of_config(read_back.input, False) == of_onnx(graph.input)
    assert of_config(read_back.output, False) == of_onnx(graph.output)
    assert list(read_back.output[0].dims) == [3, 2]


def test_saved_model(exported, conv_model, conv_batch, tmp_path):
    import tensorflow as tf

    directory = repositories.triton(exported[0], tmp_path, artefact="saved_model")
    assert read(tmp_path).platform == "tensorflow_savedmodel"
    served = tf.saved_model.load(str(directory / "model.savedmodel"))
    outputs = served.signatures["serving_default"](
        **{name: tf.constant(value) for name, value in conv_batch.items()}
    )
    for name, expected in conv_model(conv_batch, training=False).items():
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


def test_several_files_are_a_directory_that_is_called_like_one(tmp_path):
    files = [tmp_path / "m.onnx", tmp_path / "m.onnx.data"]
    assert set(triton._layout("onnx", files)) == {
        "model.onnx/model.onnx",
        "model.onnx/m.onnx.data",
    }
    assert set(triton._layout("onnx", files[:1])) == {"model.onnx"}
    with pytest.raises(ValueError, match=r"one file that ends in .onnx.*\['m.onnx.d"):
        onnx_files(files[1:])


@pytest.mark.parametrize("dtype", [it for it in triton._DATA_TYPES if it != "string"])
def test_dtypes_are_those_of_tritons_client(dtype):
    output = config(with_output(dtype)).output[0]
    name = model_config_pb2.DataType.Name(output.data_type)
    assert name == f"TYPE_{np_to_triton_dtype(np.dtype(dtype))}"


def test_strings():
    output = config(with_output("string")).output[0]
    # What clients call BYTES.
    assert output.data_type == model_config_pb2.TYPE_STRING


def test_batching():
    made = config(
        max_batch_size=32, preferred_batch_sizes=[8, 32], max_queue_delay_microseconds=9
    )
    assert made.max_batch_size == 32
    assert list(made.input[0].dims) == [28, -1]
    assert list(made.dynamic_batching.preferred_batch_size) == [8, 32]
    assert made.dynamic_batching.max_queue_delay_microseconds == 9
    assert config().HasField("dynamic_batching")
    assert not config(max_batch_size=1).HasField("dynamic_batching")
    unbatched = config(max_batch_size=0)
    assert not unbatched.HasField("dynamic_batching")
    assert list(unbatched.input[0].dims) == [-1, 28, -1]


def test_a_value_for_each_example_has_a_dim_for_clients():
    output = config(with_output(shape=[None])).output[0]
    assert list(output.dims) == [1]
    assert output.HasField("reshape") and list(output.reshape.shape) == []


@pytest.mark.parametrize(("shape", "dims"), [([5, 2], [5, 2]), ([], [1])])
def test_outputs_without_the_batch(shape, dims):
    made = config(with_output(shape=shape))
    assert made.max_batch_size == 0
    assert list(made.output[0].dims) == dims
    assert list(made.input[0].dims) == [-1, 28, -1]
    with pytest.raises(ValueError, match=r"max_batch_size=8, and \['y'\] without"):
        config(with_output(shape=shape), max_batch_size=8)


def test_cpu_and_gpu():
    (group,) = config(instances=2).instance_group
    assert (group.count, group.kind) == (2, group.KIND_CPU)
    made = config(
        device="gpu",
        accelerators={
            "tensorrt": {"precision_mode": "FP16", "trt_engine_cache_enable": "1"},
            "cuda": {"use_tf32": "0"},
        },
    )
    assert made.instance_group[0].kind == group.KIND_GPU
    first, second = made.optimization.execution_accelerators.gpu_execution_accelerator
    assert (first.name, second.name) == ("tensorrt", "cuda")
    assert dict(first.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_size": -1}, "`max_batch_size` must be 0, which.*=-1"),
        ({"preferred_batch_sizes": [65]}, r"`preferred_batch_sizes`.*\[65\].*size=64"),
        ({"preferred_batch_sizes": [0]}, r"from 1 to `max_batch_size`.*\[0\]"),
        ({"max_queue_delay_microseconds": -1}, "0 or more.*microseconds=-1"),
        (
            {"max_queue_delay_microseconds": 5, "max_batch_size": 0},
            "0 where nothing is batched.*=5, max_batch_size=0",
        ),
        ({"instances": 0}, "`instances` must be at least 1.*instances=0"),
        ({"device": "tpu"}, r"\['cpu', 'gpu'\].*device='tpu'"),
        ({"accelerators": {"cuda": {}}}, "unless an ONNX artefact.*device='cpu'"),
        ({"accelerators": {"xla": {}}, "device": "gpu"}, r"tensorrt.*\['xla'\]"),
        (
            {"accelerators": {"cuda": {}}, "device": "gpu", "format": "saved_model"},
            "unless an ONNX artefact.*'saved_model'",
        ),
        ({"signature": with_output("bfloat16")}, "Received: 'y' of bfloat16"),
        ({"signature": with_output(shape=None)}, "known rank.*'y' of any"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(**arguments)


def test_the_next_version_replaces_the_configuration(exported, tmp_path):
    repositories.triton(exported[0], tmp_path)
    repositories.triton(exported[0], tmp_path, max_batch_size=8)
    assert read(tmp_path).max_batch_size == 8


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"max_batch_size": 0}, "input"), ({"artefact": "saved_model"}, "platform")],
)
def test_what_earlier_versions_need_stays(exported, tmp_path, arguments, field):
    repositories.triton(exported[0], tmp_path)
    before = (tmp_path / "conv_model/config.pbtxt").read_bytes()
    with pytest.raises(ValueError, match=f"name='conv_model', whose {field} would"):
        repositories.triton(exported[0], tmp_path, **arguments)
    assert (tmp_path / "conv_model/config.pbtxt").read_bytes() == before
    assert not (tmp_path / "conv_model/2").exists()


def test_a_configuration_of_somebody_else(exported, tmp_path):
    (tmp_path / "conv_model").mkdir()
    (tmp_path / "conv_model/config.pbtxt").write_text('name: "conv_model"')
    with pytest.raises(FileExistsError, match="config.pbtxt must be one that this"):
        repositories.triton(exported[0], tmp_path)
    text = (tmp_path / "conv_model/config.pbtxt").read_text()
    assert text == 'name: "conv_model"'


def test_without_tritonclient(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ImportError, match=r"pip install keras-distill\[triton\]"):
        repositories.triton(exported[0], tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
