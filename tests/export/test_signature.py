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


@pytest.mark.parametrize("name", ["self", "in", "None"])
def test_names_that_are_no_arguments(name, tmp_path):
    """Signatures are called as Python functions; ONNX tells inputs by their names."""
    x = keras.Input((1,), name=name)
    model, batch = keras.Model({name: x}, -x), {name: np.ones((2, 1), "float32")}
    for format in ("saved_model", "litert"):
        with pytest.raises(RuntimeError, match=f"rename the input '{name}'"):
            export(model, tmp_path / "out", [format], example_batch=batch)
    onnx = export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    assert [spec["name"] for spec in onnx["signature"]["inputs"]] == [name]


def test_an_input_that_is_called_as_what_holds_all(tmp_path):
    x, y = (keras.Input((1,), name=name) for name in ("tensors", "inputs"))
    model = keras.Model([x, y], x - y)
    batch = [np.ones((2, 1), "float32"), np.zeros((2, 1), "float32")]
    onnx = export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    names = [spec["name"] for spec in onnx["signature"]["inputs"]]
    assert names == ["tensors", "inputs"]


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


class Positional(keras.Model):
    """Takes its inputs as arguments, which Keras' own `fit` can't give it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def call(self, a, b):
        return self.dense(a) + self.dense(b)


class Keyword(Positional):
    def call(self, a, *, b):
        return super().call(a, b)


class Defaulted(Positional):
    def call(self, a, b=None, training=False):
        return super().call(a, a if b is None else b)


@pytest.mark.parametrize("kind", [Positional, Keyword, Defaulted])
@pytest.mark.parametrize("structure", [list, dict])
def test_several_arguments_of_call(kind, structure, tmp_path, floats, runtimes):
    a, b = floats(3, 4), floats(3, 4)
    model = kind(name="mine")
    arguments = ((a,), {"b": b}) if kind is Keyword else ((a, b), {})
    wanted = model(*arguments[0], **arguments[1])
    given = [a, b] if structure is list else {"a": a, "b": b}
    refused = ValueError if kind in (Positional, Keyword) else RuntimeError
    with pytest.raises(refused, match=r"`keras.Model\(\[a, b\], model\(a, b\)\)`"):
        export(model, tmp_path / "out", ["saved_model"], example_batch=given)
    # What the error advises.
    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    keywords = {"b": second} if kind is Keyword else {}
    output = model(first, **keywords) if keywords else model(first, second)
    one = keras.Model([first, second], output)
    export(one, tmp_path / "out", ["saved_model"], example_batch=[a, b])
    (got,) = runtimes["saved_model"](tmp_path / "out", {"a": a, "b": b}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_one_argument_beside_options_is_exported(tmp_path, floats):
    model = Defaulted()
    model(floats(2, 4))
    export(model, tmp_path / "out", ["saved_model"], example_batch=floats(2, 4))


class Plus(layers.Layer):
    def call(self, a, b=None):
        return a if b is None else a + b

    def compute_output_spec(self, a, b=None):
        return keras.KerasTensor(a.shape, a.dtype)


@pytest.mark.parametrize("left_out", ["list", "short list", "dict", "short dict"])
def test_optional_inputs_have_to_be_given(left_out, tmp_path, floats):
    a = keras.Input((4,), name="a")
    b = keras.Input((4,), name="b", optional=True)
    given = floats(2, 4)
    structure, batch, whole = {
        "list": ([a, b], [given, None], [given, given]),
        "short list": ([a, b], [given], [given, given]),
        "dict": ({"a": a, "b": b}, {"a": given, "b": None}, {"a": given, "b": given}),
        "short dict": ({"a": a, "b": b}, {"a": given}, {"a": given, "b": given}),
    }[left_out]
    model = keras.Model(structure, Plus()(a, b))
    with pytest.raises(ValueError, match="no optional ones. Received: None.*'b'.*copy"):
        export(model, tmp_path / "out", ["saved_model"], example_batch=batch)
    manifest = export(model, tmp_path / "out", ["saved_model"], example_batch=whole)
    assert [it["name"] for it in manifest["signature"]["inputs"]] == ["a", "b"]
