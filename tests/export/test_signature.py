import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import export
from keras_distill.export.serving import serve


def names(model, batch=None):
    served = serve(model, batch)
    return list(served.inputs), sorted(served.outputs)


def test_unnamed_inputs_are_called_the_same_before_and_after_a_reload(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(1, name="y")(x))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert names(model) == names(reloaded) == (["input"], ["y"])


def test_several_unnamed_inputs_are_counted():
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Add(name="sum")([a, b]))
    assert names(model) == (["input_0", "input_1"], ["sum"])


def test_a_layer_used_twice_gives_two_names():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    shared = layers.Dense(2, name="shared")
    model = keras.Model([a, b], [shared(a), shared(b)])
    assert names(model) == (["a", "b"], ["shared", "shared_1"])


def test_an_output_never_has_the_name_of_an_input():
    x = keras.Input((3,), name="x")
    model = keras.Model({"x": x}, {"x": layers.Dense(3)(x), "y": layers.ReLU()(x)})
    assert names(model) == (["x"], ["x_1", "y"])


def test_an_input_that_is_an_output_too():
    x = keras.Input((3,))
    assert names(keras.Model(x, [x, layers.ReLU(name="r")(x)])) == (
        ["input"],
        ["output_0", "r"],
    )


def test_subclassed_names_and_shapes_come_from_the_batch():
    class Pair(keras.Model):
        def call(self, inputs):
            return inputs[0] + keras.ops.cast(inputs[1], "float32")

    model = Pair()
    batch = (np.ones((2, 3)), np.ones((2, 3), "int64"))
    model(batch)
    served = serve(model, batch)
    # float64 is NumPy's default; Keras takes it as float32.
    described = [(n, s.dtype.name, list(s.shape)) for n, s in served.inputs.items()]
    assert described == [
        ("input_0", "float32", [None, 3]),
        ("input_1", "int64", [None, 3]),
    ]
    assert list(served.outputs) == ["output"]


def test_batch_size_is_open_even_where_the_model_fixes_it():
    x = keras.Input(batch_shape=(8, 3), name="x")
    served = serve(keras.Model(x, layers.Dense(2)(x)), None)
    assert list(served.inputs["x"].shape) == [None, 3]


@pytest.mark.parametrize("name", ["user-id", "_x", "a/b", "1st"])
def test_names_that_formats_would_change_are_refused(name):
    class First(keras.Model):
        def call(self, inputs):
            return next(iter(inputs.values()))

    model = First()
    model({name: np.ones((2, 3))})
    with pytest.raises(ValueError, match=f"Input names must .* Received: '{name}'"):
        serve(model, {name: np.ones((2, 3))})


@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_names_that_differ_only_in_case(format, tmp_path):
    """TensorFlow's signatures take them for one; ONNX tells them apart."""
    inputs = [keras.Input((1,), name=name) for name in ("Age", "age")]
    model = keras.Model(inputs, keras.layers.Subtract(name="y")(inputs))
    batch = [np.ones((2, 1), "float32"), np.zeros((2, 1), "float32")]
    message = "'Age' and 'age' differ only in case.* rename the input 'age'"
    with pytest.raises(RuntimeError, match=message):
        export(model, tmp_path / "out", [format], example_batch=batch)
    onnx = export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    assert [spec["name"] for spec in onnx["signature"]["inputs"]] == ["Age", "age"]


def test_nested_outputs_are_refused():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, {"a": [layers.ReLU()(x)]})
    with pytest.raises(ValueError, match="outputs of `model` must .*list for 'a'"):
        serve(model, None)


def test_scalars_are_no_batch():
    class Same(keras.Model):
        def call(self, inputs):
            return inputs

    model = Same()
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match="whose first axis is the batch. Received: 3"):
        serve(model, 3.0)


def test_the_function_runs_in_inference_mode(floats):
    x = keras.Input((6,), name="x")
    y = layers.BatchNormalization(name="y")(layers.Dropout(0.9)(x))
    model = keras.Model(x, y)
    served = serve(model, None)
    before = model.get_weights()
    batch = floats(32, 6)
    outputs = served.function({"x": batch})
    np.testing.assert_allclose(outputs["y"], model(batch, training=False), rtol=1e-5)
    for weight, array in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, array)
