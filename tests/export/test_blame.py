"""Errors of converters and runtimes: the layers at fault, and advice that fits."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from tf2onnx.onnx_opset import controlflow

from keras_distill.export import (
    ParityError,
    arguments,
    export,
    onnx,
    onnx_operators,
    split_preprocessing,
    state,
    trials,
)
from keras_distill.export.portability import unportable_layers
from keras_distill.export.recording import recording
from keras_distill.export.serving import serve, traced
from tests import slow


class Inverted(layers.Layer):
    """What neither ONNX nor LiteRT has."""

    def call(self, x):
        return ops.erfinv(ops.tanh(x))

    def compute_output_shape(self, shape):
        return shape


@keras.utils.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer of layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4, name="inner")
        self.inverted = Inverted(name="inverted")

    def call(self, x):
        return self.inverted(self.dense(x))


class Tower(keras.Model):
    """No symbolic graph."""

    def __init__(self, at_fault, **options):
        super().__init__(**options)
        self.first, self.at_fault = layers.Dense(4, name="first"), at_fault

    def call(self, x):
        return {"y": self.at_fault(self.first(x))}


class Bare(keras.Model):
    """Computes by itself what no format has."""

    def call(self, x):
        return {"y": ops.erfinv(ops.tanh(x))}


def graph(*calls, shape=(4,)):
    x = y = keras.Input(shape, name="x")
    for call in calls:
        y = call(y)
    return keras.Model(x, {"y": y}, name="whole")


def nested(call):
    inner = keras.Input((4,))
    return keras.Model(inner, call(layers.Dense(4)(inner)), name="nested")


def subclassed(at_fault):
    model = Tower(at_fault)
    model(np.ones((2, 4), "float32"))
    return model


def shared():
    layer, x = Inverted(name="shared"), keras.Input((4,), name="x")
    y = layer(layers.Dense(4)(layer(x)))
    return keras.Model(x, {"y": y})


def bare():
    model = Bare(name="bare")
    model(np.ones((2, 4), "float32"))
    return model


# What is at fault, and how it has to be called.
PLACES = {
    "a layer": (lambda: graph(Inverted(name="odd")), "'odd' (Inverted)"),
    "an operation": (lambda: graph(ops.erfinv, ops.tanh), "'erfinv"),
    "a lambda": (
        lambda: graph(layers.Lambda(ops.erfinv, name="odd"), ops.tanh),
        "'odd' (Lambda)",
    ),
    "an activation": (
        lambda: graph(layers.Dense(4, activation=lambda x: ops.erfinv(ops.tanh(x)))),
        "(Dense)",
    ),
    "in a nested model": (
        lambda: graph(nested(Inverted(name="odd"))),
        "'nested/odd' (Inverted)",
    ),
    "an operation of a nested model": (
        lambda: graph(nested(lambda x: ops.erfinv(ops.tanh(x)))),
        "'nested/erfinv",
    ),
    "in a layer of layers": (
        lambda: graph(Block(name="block")),
        "'block/inverted' (Inverted)",
    ),
    "in a subclassed model": (
        lambda: subclassed(Inverted(name="odd")),
        "'odd' (Inverted)",
    ),
    "in a block of a subclassed model": (
        lambda: subclassed(Block(name="block")),
        "'block/inverted' (Inverted)",
    ),
    "a subclassed model itself": (bare, "'bare' (Bare)"),
    "a shared layer": (shared, "'shared' (Inverted)"),
    "a wrapped layer": (
        lambda: graph(
            layers.Reshape((2, 2)),
            layers.TimeDistributed(Inverted(), name="steps"),
        ),
        "'steps' (TimeDistributed of Inverted)",
    ),
}


# Its converter takes longer.
LITERT_TOO = {
    "an operation of a nested model",
    "in a block of a subclassed model",
    "a wrapped layer",
}
# In every run.
USUAL = ["a layer", "in a layer of layers", "in a block of a subclassed model"]


@pytest.mark.parametrize("place", slow.but(USUAL, PLACES, "exports"))
def test_where_the_converter_names_a_node(place, floats, tmp_path):
    make, name = PLACES[place]
    keras.utils.clear_session()
    model = make()
    for target in ("onnx", "litert") if place in LITERT_TOO else ("onnx",):
        match = f"converting it failed in .*. Received: .*Leave '{target}' out of"
        with pytest.raises(RuntimeError, match=match) as caught:
            export(model, tmp_path / "out", [target], example_batch=floats(3, 4) / 9)
        where = str(caught.value).split(". Received")[0]
        assert name in where
        assert where.count("(") == 1, "names one layer"
    assert list(tmp_path.iterdir()) == []


def test_all_layers_that_a_format_lacks(floats, tmp_path):
    model = graph(Inverted(name="a"), layers.Dense(4), Inverted(name="b"))
    for target in ("onnx", "litert"):
        match = r"in 'a' \(Inverted\), 'b' \(Inverted\)\. Received"
        with pytest.raises(RuntimeError, match=match):
            export(model, tmp_path / "out", [target], example_batch=floats(3, 4))


def replaced(monkeypatch, own, **methods):
    changed = dataclasses.replace(own, **methods)
    formats = tuple(changed if f is own else f for f in arguments._FORMATS)
    monkeypatch.setattr(arguments, "_FORMATS", formats)


def failing_for(kind, own):
    """A writer that fails without a word about where."""

    def write(conversion, path):
        parts = tf.train.TrackableView(conversion.served.model).descendants()
        if any(isinstance(part, kind) for part in parts):
            raise KeyError("no such thing")
        own.write(conversion, path)

    return write


class Odd(layers.Layer):
    def call(self, x):
        return x + 1


class TestWhereNothingIsNamed:
    """The layers are tried by themselves."""

    @pytest.fixture(autouse=True)
    def fails(self, monkeypatch):
        write = failing_for(Odd, onnx.FORMAT)
        replaced(monkeypatch, onnx.FORMAT, write=write)

    def refuse(self, model, match, directory, **options):
        batch = np.ones((3, 4), "float32")
        with pytest.raises(RuntimeError, match=match):
            export(model, directory, ["onnx"], example_batch=batch, **options)

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: graph(*[layers.Dense(4)] * 3, Odd(name="o")), r"'o' \(Odd\)"),
            (lambda: graph(nested(Odd(name="o"))), r"'nested/o' \(Odd\)"),
            (lambda: subclassed(Odd(name="o")), r"'o' \(Odd\)"),
        ],
    )
    def test_the_layer_that_fails_alone(self, make, name, tmp_path):
        match = rf"failed in {name}\. Received: KeyError.*Leave 'onnx' out"
        self.refuse(make(), match, tmp_path / "out")

    def test_with_a_fixed_batch_size(self, tmp_path):
        model = graph(layers.Dense(4), Odd(name="o"))
        self.refuse(model, r"failed in 'o' \(Odd\)", tmp_path / "out", batch_size=1)

    def test_states_stay_as_they_were(self, monkeypatch):
        """Also where nothing refuses the model before its layers are tried."""
        monkeypatch.setattr(state, "refuse_stateful", lambda model: None)
        monkeypatch.setattr(state, "refuse_updates", lambda *_: None)
        memory = layers.LSTM(4, stateful=True, unroll=True)
        x = keras.Input(batch_shape=(3, 2, 4), name="x")
        model = keras.Model(x, {"y": Odd(name="o")(memory(x))})
        batch = np.ones((3, 2, 4), "float32")
        served = serve(model, batch, batch_size=3)
        model(batch)
        before = [value.numpy() for value in memory.states]
        [target] = arguments.targets(["onnx"], None)
        verdict = trials.find(served, target, {"x": batch})
        assert [call.label for call in verdict.at_fault] == ["'o' (Odd)"]
        assert np.abs(before).max() > 0
        np.testing.assert_array_equal(before, [s.numpy() for s in memory.states])

    def test_out_of_time(self, monkeypatch, tmp_path):
        monkeypatch.setattr(trials, "_SECONDS", -1.0)
        model = graph(layers.Dense(4), Odd(name="o"))
        self.refuse(
            model, r"failed\. .*Which layer is at fault isn't known\.", tmp_path / "out"
        )


def test_no_layer_is_named_that_is_right_by_itself(floats, monkeypatch, tmp_path):
    def write(conversion, path):
        if conversion.served.model.name == "whole":
            raise KeyError("no such thing")
        onnx.write(conversion, path)

    replaced(monkeypatch, onnx.FORMAT, write=write)
    match = r"failed\. Received: KeyError.* by itself is right, so the cause lies in"
    model = graph(layers.Dense(4), layers.Dense(4))
    with pytest.raises(RuntimeError, match=match):
        export(model, tmp_path / "out", ["onnx"], example_batch=floats(3, 4))


class Scaled(layers.Layer):
    def call(self, x):
        return 2 * x


class TestValues:
    def test_the_first_layer_that_is_off(self, floats, monkeypatch, tmp_path):
        """tf2onnx by itself has `sinc(0)` as NaN, for which Keras has 1."""

        def select(graph, node, name, arguments):
            controlflow.Select.version_9(graph, node)

        monkeypatch.setattr(onnx_operators, "_select", select)
        x = keras.Input((4,), name="x")
        y = layers.Dense(4, name="before")(x)
        y = ops.sinc(layers.Dense(4, name="after", use_bias=False)(ops.relu(y) * 0))
        model = keras.Model(x, {"y": layers.Dense(2)(y)})
        match = r"first layer that is off by itself: 'sinc\w*' \(Sinc\)\. Leave 'onnx'"
        with pytest.raises(ParityError, match=match) as caught:
            export(model, tmp_path / "out", ["onnx"], example_batch=floats(3, 4))
        assert "16 bits" not in str(caught.value)
        assert "evaluation" not in str(caught.value)

    def test_integers_of_which_keras_returns_two_things(self, tmp_path):
        """It rounds the pixels of resized images eagerly, and not in a graph."""
        x = keras.Input((4, 4, 1), dtype="uint8", name="x")
        images = np.arange(32, dtype="uint8").reshape(2, 4, 4, 1) * 8
        resize, scale = layers.Resizing(3, 3, name="resize"), layers.Rescaling(1 / 255)
        match = (
            r"(?s)'resize' \(Resizing\)\. Keras itself gives other values when it is "
            r"traced.*`layers\.Rescaling` before it"
        )
        with pytest.raises(ParityError, match=match):
            directory, model = tmp_path / "no", keras.Model(x, scale(resize(x)))
            export(model, directory, ["saved_model"], example_batch=images)
        model = keras.Model(x, resize(scale(x)))
        export(model, tmp_path / "out", ["saved_model"], example_batch=images)

    @pytest.mark.parametrize("wrong", ["a", "b"])
    def test_only_what_the_output_depends_on(
        self, wrong, floats, monkeypatch, tmp_path
    ):
        """Both outputs have a layer that is off, and one of them counts."""
        x = keras.Input((4,), name="x")
        shared = layers.Dense(4, name="shared")(x)
        outputs = {
            name: layers.Dense(2)(Scaled(name=f"scaled_{name}")(shared))
            for name in ("a", "b")
        }
        model = keras.Model(x, outputs)

        def write(conversion, path):
            """Which gets `Scaled` wrong by itself, and one output of the model."""
            served = conversion.served
            parts = vars(served.model)

            def is_off(name):
                part = parts.get(f"part_{name[1:].split('_')[0]}")
                return name == wrong or isinstance(part, Scaled)

            def call(tensors):
                values = served.call(tensors)
                return {
                    name: value + float(is_off(name)) for name, value in values.items()
                }

            function, _ = traced(call, served.inputs)
            changed = dataclasses.replace(served, call=call, function=function)
            onnx.write(dataclasses.replace(conversion, served=changed), path)

        replaced(monkeypatch, onnx.FORMAT, write=write)
        match = rf"output '{wrong}' of .*itself: 'scaled_{wrong}' \(Scaled\)"
        with pytest.raises(ParityError, match=match):
            export(model, tmp_path / "out", ["onnx"], example_batch=floats(3, 4))

    def test_of_a_layer_that_keras_traces_wrong(self, floats, tmp_path):
        x = keras.Input((None, 3), name="x")
        inner = layers.TimeDistributed(layers.Dense(2), name="steps")
        model = keras.Model(x, {"y": layers.Dense(2)(inner(x))})
        match = r"shape \(4, 6, 2\).*itself: 'steps' \(TimeDistributed of Dense\)"
        with pytest.raises(ParityError, match=match):
            export(model, tmp_path / "out", ["onnx"], example_batch=floats(4, 6, 3))

    def test_no_layer_is_named_that_agrees_by_itself(
        self, floats, monkeypatch, tmp_path
    ):
        model, batch = graph(layers.Dense(4), layers.Dense(4)), floats(5, 4)
        weights = model.get_weights()

        def write(conversion, path):
            if conversion.served.model is model:
                model.set_weights([weight + 1 for weight in weights])
            onnx.write(conversion, path)
            model.set_weights(weights)

        replaced(monkeypatch, onnx.FORMAT, write=write)
        with pytest.raises(ParityError, match="by itself is right, so the") as caught:
            export(model, tmp_path / "out", ["onnx"], example_batch=batch)
        assert "off by itself" not in str(caught.value)


def test_what_tensorflow_cannot_trace(tmp_path):
    x = keras.Input((4,), dtype="int32", name="x")
    model = keras.Model(x, {"y": ops.gcd(x, x + 1)})
    match = r"Received: 'gcd\w*' \(Gcd\), which fails: ValueError: Exception"
    with pytest.raises(RuntimeError, match=match):
        export(model, tmp_path / "out", example_batch=np.ones((3, 4), "int32"))


class Counting(layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + self.calls


def test_state_beside_captured_tensors_is_named(monkeypatch, tmp_path):
    """Refused before anything is converted, and else by the converter's error."""
    normal = layers.Normalization(mean=1.0, variance=2.0)
    model = graph(normal, Counting(name="counts"), shape=(6, 6, 3))
    batch = np.random.default_rng(0).random((3, 6, 6, 3), "float32")
    with pytest.raises(ValueError, match=r"layer 'counts' \(Counting\), which"):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    monkeypatch.setattr(state, "refuse_updates", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"failed in 'counts' \(Counting\)"):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)


def quantize(model, mode):
    """As `model.quantize` does, without its warning about inputs."""
    if "lora" in mode:
        model.get_layer("big").enable_lora(2)
    for layer in model.layers[1:]:
        layer.quantize(mode.split()[-1])
    return model


def two_layers():
    return graph(layers.Dense(16, name="big"), layers.Dense(3, name="small"))


class TestAdvice:
    def advice(self, model, target, batch, directory, **options):
        with pytest.raises(RuntimeError) as caught:
            export(model, directory / "out", [target], example_batch=batch, **options)
        message = str(caught.value)
        return message[message.index("Leave ") :]

    @pytest.mark.parametrize(
        "mode", slow.but(["int8"], ["int8", "float8", "lora and int8"], "converts")
    )
    def test_of_models_that_keras_quantised(self, mode, floats, tmp_path):
        model = quantize(two_layers(), mode)
        advice = self.advice(model, "litert", floats(3, 4), tmp_path)
        assert "export the float model with `quantize=...`" in advice
        assert "'big' (Dense), 'small' (Dense) quantised by Keras" in advice
        for word in ("float32", "unroll", "preprocessing"):
            assert word not in advice

    @pytest.mark.parametrize(
        "mode", slow.but(["int8"], ["int8", "lora and int8", "int4"], "exports")
    )
    def test_quantised_models_that_onnx_holds(self, mode, floats, tmp_path, runtimes):
        model, batch = quantize(two_layers(), mode), floats(5, 4)
        targets = ["onnx", "litert"] if mode == "int4" else ["onnx"]
        export(model, tmp_path / "out", targets, example_batch=batch)
        for target in targets:
            outputs = runtimes[target](tmp_path / "out", {"x": batch})
            np.testing.assert_allclose(outputs["y"], model(batch)["y"], atol=1e-4)

    FLOATS = slow.but(
        ["float64"], ["mixed_float16", "mixed_bfloat16", "float64"], "converts"
    )

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_of_other_floats(self, dtype, floats, tmp_path):
        x = keras.Input((4,), name="x", dtype="float32")
        model = keras.Model(x, {"y": layers.Dense(3, dtype=dtype, name="low")(x)})
        advice = self.advice(
            model, "litert", floats(3, 4), tmp_path, tolerance={"full": 1e-2}
        )
        assert f"compute in float32 rather than {dtype.split('_')[-1]}." in advice
        assert "unroll" not in advice and "preprocessing" not in advice

    @pytest.mark.parametrize("target", ["onnx", "litert"])
    def test_of_operations_that_no_type_helps(self, target, floats, tmp_path):
        x = keras.Input((4,), name="x", dtype="float32")
        odd = Inverted(dtype="mixed_float16", name="odd")
        model = keras.Model(x, {"y": odd(x)})
        advice = self.advice(model, target, floats(3, 4), tmp_path)
        assert "build the model without what is named here" in advice
        assert "float32" not in advice

    @pytest.mark.parametrize("kind", ["subclassed", "trained before it"])
    def test_of_preprocessing_that_cannot_be_split_off(self, kind, floats, tmp_path):
        """`split_preprocessing` would refuse the model."""
        hashing = layers.Hashing(8, name="hashed")
        if kind == "subclassed":
            model = subclassed(lambda x: hashing(ops.cast(x, "int32")))
        else:
            model = graph(layers.Dense(4), lambda x: ops.cast(x, "int32"), hashing)
        with pytest.raises(ValueError):
            split_preprocessing(model, ["litert"])
        nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
        advice = self.advice(model, "litert", floats(3, 4), tmp_path)
        assert "split off by hand" in advice and "split_" not in advice
        assert nodes == [len(it._inbound_nodes) for it in model._flatten_layers()]

    def test_of_preprocessing(self, tmp_path):
        encoding = layers.CategoryEncoding(8, output_mode="multi_hot", name="hot")
        x = keras.Input((3,), dtype="int32", name="x")
        model = keras.Model(x, {"y": layers.Dense(2)(encoding(x))})
        batch = np.array([[1, 2, 3], [4, 4, 7]], "int32")
        advice = self.advice(model, "litert", batch, tmp_path)
        assert "split off the preprocessing" in advice
        assert unportable_layers(model) == []
        assert unportable_layers(model, ["onnx", "litert"]) == [encoding]
        preprocessing, core = split_preprocessing(model, ["litert"])
        assert [layer.name for layer in preprocessing.layers] == ["x", "hot"]
        export(
            core,
            tmp_path / "out",
            ["litert"],
            example_batch=batch,
            preprocessing=preprocessing,
        )
        with pytest.raises(ValueError, match="layers that ONNX lacks.*nothing to sp"):
            split_preprocessing(model, ["saved_model", "onnx"])
        with pytest.raises(ValueError, match="`formats` must be.*Received: .*'onnx'"):
            split_preprocessing(model, "onnx")

    def test_of_loops(self, floats, tmp_path):
        model = graph(layers.LSTM(3, name="memory"), shape=(5, 4))
        advice = self.advice(model, "litert", floats(3, 5, 4), tmp_path)
        assert "`unroll=True` or the export a `batch_size`" in advice

    def test_of_what_no_format_has(self, floats, tmp_path):
        advice = self.advice(graph(Inverted()), "litert", floats(3, 4), tmp_path)
        assert advice == (
            "Leave 'litert' out of `formats`, or build the model without what is named "
            "here; docs/export.md lists what each format holds."
        )


def test_models_stay_as_they_were(floats, tmp_path):
    original = keras.Operation.__call__
    model = graph(Block(name="block"))
    layer = model.get_layer("block")
    before = (dict(vars(layer)), len(layer._inbound_nodes), len(model._layers))
    with pytest.raises(RuntimeError):
        export(model, tmp_path / "out", ["onnx"], example_batch=floats(3, 4))
    assert keras.Operation.__call__ is original
    assert (dict(vars(layer)), len(layer._inbound_nodes), len(model._layers)) == before
    with pytest.raises(KeyError), recording():
        assert keras.Operation.__call__ is not original
        raise KeyError("ends it")
    assert keras.Operation.__call__ is original
