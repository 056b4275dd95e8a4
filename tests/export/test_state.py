"""An export leaves the caller's model as it was, also where it fails."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.backend.common import global_state

from keras_distill.export import (
    arguments,
    export,
    onnx,
    seeds,
    split_preprocessing,
)
from keras_distill.export.latency import measure

SHAPE = (5, 3)
BATCH = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")


class Counting(layers.Layer):
    """Assigns in every call, to a weight that Keras takes for a trained one."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + self.calls


class Branching(layers.Layer):
    """Assigns in a branch of a condition, to a variable of TensorFlow."""

    def build(self, shape):
        self.seen = tf.Variable(0.0, trainable=False, name="seen")

    def call(self, x):
        def update():
            self.seen.assign_add(1.0)
            return x + self.seen

        return tf.cond(tf.reduce_sum(x) > 1e9, update, lambda: x)


class Noise(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


class Holder(tf.Module):
    """Holds what it is given."""

    def __init__(self, held):
        super().__init__()
        self.held = held


# How a layer may keep a variable.
KEPT_IN = {
    "a list": lambda variable: [variable],
    "a dict": lambda variable: {"a": [(variable,)]},
    "a module": Holder,
    "a closure": lambda variable: lambda: variable,
}


class Keeping(layers.Layer):
    """Counts in a variable that is no attribute of its own."""

    def __init__(self, kept_in, **kwargs):
        super().__init__(**kwargs)
        variable = tf.Variable(0.0, trainable=False, name="seen")
        self.kept = KEPT_IN[kept_in](variable)
        self.change, self.hidden = variable.assign_add, variable.numpy

    def call(self, x):
        return x + 0 * self.change(1.0)


class Measuring(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean(name="seen")

    def call(self, x):
        self.mean.update_state(x)
        return x


class Drawing(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generators = [tf.random.Generator.from_seed(1)]
        self.hidden = lambda: self.generators[0].state.numpy().sum()

    def call(self, x):
        return x + self.generators[0].normal(tf.shape(x))


class Storing(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        table = tf.lookup.experimental.MutableHashTable
        self.tables = [table(tf.int64, tf.float32, 0.0)]
        self.hidden = lambda: self.tables[0].export()[1].numpy().sum()

    def call(self, x):
        self.tables[0].insert(tf.constant([1], "int64"), x[0, 0, :1])
        return x


class AlwaysTraining(layers.Layer):
    """Normalizes by the batch that it serves, and moves its statistics."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.BatchNormalization(name="moving")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x, training=True)


class Loss(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return x


def recurrent(layer, *before):
    return keras.Sequential([keras.Input(batch_shape=(4, *SHAPE)), *before, layer])


def custom(layer):
    return keras.Sequential([keras.Input(SHAPE), layer, layers.Dense(2)])


# What makes the model; what its error has to name.
MOVING = {
    "LSTM": (lambda: recurrent(layers.LSTM(2, stateful=True)), r"'lstm.*\(LSTM\)"),
    "GRU": (lambda: recurrent(layers.GRU(2, stateful=True)), r"'gru.*\(GRU\)"),
    "RNN of a cell": (
        lambda: recurrent(layers.RNN(layers.SimpleRNNCell(2), stateful=True)),
        r"\(RNN\).*`stateful=False`",
    ),
    "Bidirectional": (
        lambda: recurrent(layers.Bidirectional(layers.LSTM(2, stateful=True))),
        r"\((Bidirectional|LSTM)\), which changes its state",
    ),
    "nested": (
        lambda: recurrent(layers.Flatten(), recurrent(layers.GRU(2, stateful=True))),
        r"\(GRU\).*`initial_state=`",
    ),
    "a weight": (lambda: custom(Counting(name="counting")), "'counting'.*/calls"),
    "a tf.Variable in a branch": (lambda: custom(Branching()), "'branching.*seen"),
    "a seed": (lambda: custom(Noise(name="noisy")), "'noisy'.*outputs are random"),
    "a metric": (lambda: custom(Measuring(name="mine")), "'mine'.*seen/total"),
    "a generator": (lambda: custom(Drawing(name="drawn")), "'drawn'.*are random"),
    "a table": (lambda: custom(Storing(name="stored")), "'stored'.*changes a table"),
    **{
        f"a variable in {where}": (
            lambda where=where: custom(Keeping(where, name="keeping")),
            r"'keeping' \(Keeping\), which changes seen",
        )
        for where in KEPT_IN
    },
    "moving averages": (lambda: custom(AlwaysTraining()), "'moving'.*moving_mean"),
}


class InALoop(Noise):
    """Draws its noise in a function of its own."""

    def call(self, x):
        return tf.map_fn(super().call, x)


MOVING["a seed in a loop"] = (
    lambda: custom(InALoop(name="noisy")),
    "'noisy'.*outputs are random",
)


def plain():
    x = keras.Input(SHAPE, name="x")
    y = layers.Dense(4, activity_regularizer="l2")(layers.GaussianNoise(0.1)(x))
    y = Loss()(layers.BatchNormalization()(layers.Dropout(0.5)(y)))
    y = layers.SpectralNormalization(layers.Dense(3))(layers.LayerNormalization()(y))
    normal = layers.Normalization(mean=1.0, variance=2.0)
    return keras.Model(x, layers.Dense(2, name="y")(layers.Flatten()(normal(y))))


def adapted():
    normal = layers.Normalization()
    normal.adapt(BATCH)
    frozen = layers.Dense(2, trainable=False)
    return keras.Sequential([keras.Input(SHAPE), normal, layers.Dense(2), frozen])


@keras.saving.register_keras_serializable(package="tests.export")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop = layers.Dense(2), layers.Dropout(0.5)

    def call(self, x, training=False):
        return self.dense(self.drop(x, training=training))


KEPT = {
    "functional": (plain, ["saved_model", "onnx", "litert"]),
    "sequential": (adapted, ["saved_model"]),
    "subclassed": (Subclassed, ["saved_model"]),
}


def trained(model):
    """Compiled and trained for a step, so that everything has a state."""
    options = {"metrics": ["mae"], "weighted_metrics": ["mse"], "run_eagerly": True}
    model.compile("adam", "mse", **options)
    labels = np.ones(model(BATCH[:1]).shape[1:])
    model.fit(BATCH, np.broadcast_to(labels, (4, *labels.shape)), verbose=0)
    return model


def everything(model):
    """All that a caller could see of a model, by values and identity."""
    found = model._flatten_layers()
    variables = [*model.variables, *model.metrics_variables]
    if model.compiled:
        variables += model.optimizer.variables
    return {
        "values": [np.copy(variable.numpy()) for variable in variables],
        "variables": [(id(variable), variable.path) for variable in variables],
        "layers": [(id(it), it.name, it.trainable, it.built) for it in found],
        "hidden": [layer.hidden() for layer in found if hasattr(layer, "hidden")],
        "weights trained": [weight.path for weight in model.trainable_weights],
        "policies": [it.dtype_policy.name for it in found],
        "nodes": [(len(it._inbound_nodes), len(it._outbound_nodes)) for it in found],
        "losses": [np.asarray(loss) for loss in model.losses],
        "functions": [
            *(model.train_function, model.test_function, model.predict_function),
            model.call,
        ],
        "compiled": model.compiled and (id(model.optimizer), id(model.loss)),
        "config": keras.saving.serialize_keras_object(model),
        "process": (
            keras.config.floatx(),
            keras.config.dtype_policy().name,
            keras.config.image_data_format(),
            keras.config.is_traceback_filtering_enabled(),
            keras.config.is_interactive_logging_enabled(),
            tf.executing_eagerly(),
            tf.config.functions_run_eagerly(),
        ),
    }


def check_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name in ("values", "losses"):
            for old, new in zip(value, after[name], strict=True):
                np.testing.assert_array_equal(old, new, err_msg=name)
        else:
            assert value == after[name], name


@pytest.mark.parametrize("kind", KEPT)
def test_a_model_is_left_as_it_was(kind, tmp_path, monkeypatch):
    make, formats = KEPT[kind]
    model = trained(make())
    answer = np.asarray(model(BATCH))
    before = everything(model)
    export(model, tmp_path / "out", formats, example_batch=BATCH[:2])
    check_same(before, everything(model))
    measure(tmp_path / "out", model=model, batch_sizes=[1], calls=1)
    check_same(before, everything(model))

    def broken(conversion, path):
        conversion.served.function.get_concrete_function()
        raise KeyError("no such op")

    failing = onnx.Format(**{**vars(onnx.FORMAT), "write": broken})
    monkeypatch.setattr(arguments, "_FORMATS", (failing,))
    with pytest.raises(RuntimeError, match="no such op"):
        export(model, tmp_path / "out", ["onnx"], example_batch=BATCH[:2])
    check_same(before, everything(model))
    np.testing.assert_array_equal(model(BATCH), answer)


@pytest.mark.parametrize("kind", MOVING)
def test_state_that_calls_change_is_refused_and_stays(kind, tmp_path):
    make, named = MOVING[kind]
    model = make()
    model(BATCH)  # some state that isn't the first
    before = everything(model)
    with pytest.raises(ValueError, match=f"(?s)must not carry state.*{named}"):
        export(model, tmp_path / "out", example_batch=BATCH, batch_size=4)
    check_same(before, everything(model))
    assert list(tmp_path.iterdir()) == []


def test_splitting_leaves_the_losses_of_the_last_call():
    x = keras.Input((1,), dtype="string")
    y = layers.StringLookup(vocabulary=["red"])(x)
    y = layers.Embedding(2, 3, activity_regularizer="l2")(y)
    model = keras.Model(x, Loss()(y))
    model(tf.constant([["red"]]))
    before = everything(model)
    _, core = split_preprocessing(model)
    after = everything(model)
    assert len(before["losses"]) == 2
    # Both halves share the layers, and add nodes to them.
    check_same({**before, "nodes": None}, {**after, "nodes": None})


class DrawsForNothing(Noise):
    """As layers of augmentation do in inference."""

    def call(self, x, training=False):
        noisy = super().call(x)
        return noisy if training else x


def test_seeds_that_reach_no_output_are_left_as_they_were(tmp_path):
    layer = DrawsForNothing()
    model = keras.Sequential([keras.Input(SHAPE), layer, layers.Dense(2)])
    model(BATCH)
    before, draw = layer.seeds.state.numpy(), keras.random.SeedGenerator.next
    export(model, tmp_path / "out", ["saved_model"], example_batch=BATCH)
    np.testing.assert_array_equal(layer.seeds.state.numpy(), before)
    assert keras.random.SeedGenerator.next is draw
    saved = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    variables = saved.signatures["serving_default"].variables
    assert sorted(tuple(it.shape) for it in variables) == [(2,), (3, 2)]


def test_other_threads_draw_while_a_model_is_traced():
    generator, found = keras.random.SeedGenerator(1), []
    with seeds.frozen(drawn := seeds.Drawn()):
        thread = threading.Thread(target=lambda: found.append(generator.next()))
        thread.start()
        thread.join()
        frozen = generator.next()
    np.testing.assert_array_equal(found[0], [1, 0])
    np.testing.assert_array_equal(frozen, [0, 0])
    np.testing.assert_array_equal(generator.state.numpy(), [1, 1])
    assert [it for it, _ in drawn] == [generator]


@pytest.mark.parametrize("made", [False, True])
def test_the_seed_of_keras_is_left_as_it_was(made, tmp_path):
    """And a converter that lacks random numbers is told of by that word."""
    name, before = "global_seed_generator", keras.random.SeedGenerator(3)
    own = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, before if made else None)
    try:
        noise = layers.Lambda(lambda t: t + keras.random.normal(keras.ops.shape(t)))
        x = keras.Input((3,), name="x")
        model, batch = keras.Model(x, noise(x)), np.ones((2, 3), "float32")
        global_state.set_global_attribute(name, before if made else None)
        state = before.state.numpy()
        with pytest.raises(RuntimeError, match="draw the random numbers.*outside"):
            export(model, tmp_path / "o", ["onnx"], example_batch=batch)
        after = global_state.get_global_attribute(name)
        assert after is (before if made else None)
        np.testing.assert_array_equal(before.state.numpy(), state)
    finally:
        global_state.set_global_attribute(name, own)
