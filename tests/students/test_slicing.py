"""Widths that are sliced: students equal their teachers where nothing was lost."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill.students import slice_widths
from tests.backends import tensorflow_only
from tests.students.teachers import ALL, PLAIN, batch, encoder, perceptron
from tests.students.zeroing import (
    FirstHalf,
    assert_same,
    outputs,
    randomize,
    repeat_first_half,
    zero_removed,
)


@pytest.mark.parametrize("kind", ALL)
def test_a_whole_width_is_the_teacher(kind):
    teacher = randomize(ALL[kind]())
    before = teacher.get_weights()
    student = slice_widths(teacher, 1.0)
    assert_same(student, teacher, batch(teacher), 1e-6)
    assert type(student) is type(teacher)
    held = {id(weight) for weight in teacher.weights}
    assert not any(id(weight) in held for weight in student.weights)
    for old, now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.mark.parametrize("kind", PLAIN)
def test_units_that_compute_zeros_can_go(kind):
    teacher = randomize(PLAIN[kind]())
    assert zero_removed(teacher, 0.5) > 0
    student = slice_widths(teacher, 0.5)
    assert student.count_params() < 0.7 * teacher.count_params()
    assert_same(student, teacher, batch(teacher))


@pytest.mark.parametrize("kind", sorted(set(ALL) - set(PLAIN) | {"residual"}))
def test_units_that_repeat_others_can_go(kind):
    teacher = randomize(ALL[kind]())
    repeat_first_half(teacher)
    student = slice_widths(teacher, 0.5, importance=FirstHalf())
    assert student.count_params() < 0.5 * teacher.count_params()
    assert_same(student, teacher, batch(teacher))


def test_what_of_an_encoder_is_cut():
    student = slice_widths(encoder(), 0.5)
    assert student.get_layer("attention_0").num_heads == 2
    assert student.get_layer("wide_1").units == 8
    assert student.get_layer("narrow_1").units == 4


def test_students_train_and_are_plain():
    teacher = encoder()
    teacher.trainable = False
    student = slice_widths(teacher, 0.5)
    assert not student.compiled and len(student.trainable_weights) > 0
    x = batch(teacher, rows=16)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    before = student.get_weights()
    distiller.fit(x, np.zeros(16, "int32"), verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, student.get_weights(), strict=True)]
    assert np.mean(moved) > 0.8


def test_students_are_saved(tmp_path):
    teacher = ALL["grouped"]()
    student = slice_widths(teacher, 0.5)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert_same(loaded, student, batch(teacher), 1e-6)


class TestImportance:
    def test_the_norm_is_of_all_that_are_added(self):
        teacher = randomize(PLAIN["residual"]())
        stem, last = teacher.get_layer("stem"), teacher.layers[-4].input[1]
        kernels = [stem.kernel, last._keras_history.operation.kernel]
        large = np.ones(8, "float32")
        large[[1, 6, 7]] = 9.0
        for kernel in kernels:
            kernel.assign(np.broadcast_to(large, kernel.shape))
        student = slice_widths(teacher, {"stem": 0.375})
        kept = ops.convert_to_numpy(student.get_layer("stem").bias)
        bias = ops.convert_to_numpy(stem.bias)
        np.testing.assert_array_equal(kept, bias[[1, 6, 7]])

    def test_activations_are_those_on_the_batch(self):
        teacher = perceptron()
        first = teacher.layers[0]
        first.kernel.assign(np.ones((5, 16), "float32"))
        # Large weights of units that the ReLU never lets through.
        bias = np.where(np.arange(16) % 2, 0.0, -1000.0)
        first.bias.assign(bias)
        x = 1.0 + np.arange(20, dtype="float32").reshape(4, 5)
        importance = kd.students.MeanActivation(x)
        student = slice_widths(teacher, {"dense*": 0.5}, importance=importance)
        np.testing.assert_array_equal(student.layers[0].bias, np.zeros(8))

    @pytest.mark.parametrize("kind", ["nested", "two outputs", "encoder"])
    def test_activations_of_any_graph(self, kind):
        teacher = ALL[kind]()
        importance = kd.students.MeanActivation(batch(teacher))
        student = slice_widths(teacher, 0.5, importance=importance)
        assert student.count_params() < teacher.count_params()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (np.full((4, 5), np.nan), "must be finite. Received: nan"),
            (np.full((4, 5), 2.0), r"different examples.*4 equal rows.*2\.0"),
            (np.ones((4, 5, 1)), r"shapes \[\(None, 5\)\].*\(4, 5, 1\)"),
            ({"c": np.ones((4, 5))}, r"lacks the inputs.*\['c'\]"),
        ],
        ids=["NaN", "constant", "rank", "keys"],
    )
    def test_data_that_tells_nothing(self, data, message):
        with pytest.raises(ValueError, match=message):
            slice_widths(perceptron(), 0.5, importance=kd.students.MeanActivation(data))


@pytest.fixture(scope="module")
def sizable():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    for _ in range(2):
        y = layers.Conv2D(64, 1, activation="relu")(x)
        x = layers.Add()(
            [x, layers.Conv2D(32, 1)(layers.DepthwiseConv2D(3, padding="same")(y))]
        )
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


class TestSizes:
    @pytest.mark.parametrize("share", [0.7, 0.25])
    @pytest.mark.parametrize("size", ["parameters", "flops"])
    def test_a_size_is_met(self, sizable, size, share):
        student = slice_widths(sizable, **{size: share})
        # Multiplications, counted apart from the package.
        counts = [
            model.count_params() if size == "parameters" else multiplications(model)
            for model in (student, sizable)
        ]
        assert counts[0] == pytest.approx(share * counts[1], rel=0.05)

    def test_a_size_out_of_reach(self, sizable):
        message = r"nearest share is 0\.\d+. Received: parameters=0.001"
        with pytest.raises(ValueError, match=message):
            slice_widths(sizable, parameters=0.001)

    def test_multiplications_of_unknown_sizes(self):
        inputs = keras.Input((None, None, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(inputs))
        with pytest.raises(ValueError, match="inputs have known sizes"):
            slice_widths(keras.Model(inputs, layers.Dense(2)(x)), flops=0.5)


def multiplications(model):
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            shape = layer.output.shape
            total += int(np.prod(shape[1:-1])) * int(np.prod(layer.kernel.shape))
    return total


class TestByLayer:
    def test_other_layers_stay_whole(self):
        student = slice_widths(PLAIN["residual"](), {"conv2d*": 0.5})
        shapes = {layer.name: layer.output.shape[-1] for layer in student.layers}
        # What is added to the stem is cut with it.
        assert shapes["stem"] == 4 and shapes["logits"] == 3

    def test_of_a_sub_model(self):
        student = slice_widths(PLAIN["nested"](), {"branch": 0.5})
        assert student.get_layer("stem").filters == 4
        branch = student.get_layer("inner").get_layer("branch")
        assert [layer.filters for layer in branch.layers] == [3, 4]

    def test_one_name_of_several(self):
        student = slice_widths(encoder(), {"wide_0": 0.5, "attention_1": 0.25})
        sizes = [student.get_layer(f"wide_{i}").units for i in (0, 1)]
        heads = [student.get_layer(f"attention_{i}").num_heads for i in (0, 1)]
        assert (sizes, heads) == ([8, 16], [4, 1])

    def test_names_that_are_not_there(self):
        with pytest.raises(ValueError, match=r"names 'wide_7'.*'wide_0', 'wide_1'"):
            slice_widths(encoder(), {"wide_7": 0.5})

    def test_widths_that_differ_where_units_are_added(self):
        with pytest.raises(ValueError, match="0.5 and 0.25 for layers that are added"):
            slice_widths(encoder(), {"narrow_0": 0.5, "narrow_1": 0.25})


class Own(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight((shape[-1],))

    def call(self, x):
        return x * self.scale


class OwnDense(layers.Dense):
    pass


def around(*hidden):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, name="first"), *hidden, layers.Dense(2)]
    )


class TestRefused:
    @pytest.mark.parametrize(
        ("hidden", "why"),
        [
            (lambda: Own(name="own"), "'own' can't follow a cut: the class Own"),
            (lambda: OwnDense(4, name="own"), "'own' .*the class OwnDense"),
            (lambda: layers.Lambda(lambda x: x, name="own"), "'own' .* Lambda"),
            (lambda: layers.Softmax(name="own"), "'own' .*several units at once"),
            (
                lambda: layers.Dense(4, "softmax", name="own"),
                "'own' .*activation 'softmax'",
            ),
            (lambda: layers.Reshape((2, 4), name="own"), "'own' .*lie along several"),
        ],
        ids=["layer", "subclass", "lambda", "softmax", "activation", "reshape"],
    )
    def test_by_name(self, hidden, why):
        teacher = around(hidden(), layers.Flatten())
        with pytest.raises(ValueError, match=why):
            slice_widths(teacher, 0.5)
        with pytest.raises(ValueError, match=why):
            slice_widths(teacher, parameters=0.5)
        # It can stay whole.
        whole = around(layers.Dense(8, name="second"), hidden(), layers.Flatten())
        student = slice_widths(randomize(whole), {"first": 0.5})
        assert student.get_layer("first").units == 4
        assert np.isfinite(outputs(student, batch(whole))[0]).all()
        with pytest.raises(ValueError, match="can't be cut, as the layer 'own'"):
            slice_widths(teacher, {"own" if "activation" in why else "first": 0.5})

    def test_in_a_dict(self):
        with pytest.raises(ValueError, match="'own' can't be cut: the class OwnDense"):
            slice_widths(around(OwnDense(4, name="own")), {"own": 0.5})

    def test_units_that_groups_tie(self):
        tied = layers.Reshape((1, 8)), layers.Conv1D(2, 1, groups=2, name="tied")
        teacher = around(*tied, layers.GroupNormalization(1), layers.Flatten())
        with pytest.raises(ValueError, match="'first' without a unit: it has 2"):
            slice_widths(teacher, {"tied": 0.2})

    def test_shared_layers(self):
        inputs = keras.Input((8,))
        shared = layers.Dense(8, name="shared")
        x = layers.Dense(8, name="first")(inputs)
        teacher = keras.Model(inputs, layers.Dense(2)(shared(shared(x))))
        with pytest.raises(ValueError, match="'shared' .*calls it 2 times"):
            slice_widths(teacher, 0.5)

    def test_shared_weights(self):
        teacher = around(layers.Dense(8, name="second"), layers.Dense(8, name="third"))
        third = teacher.get_layer("third")
        third._tracker.unlock()
        third._kernel = teacher.get_layer("second").kernel
        with pytest.raises(ValueError, match="'second' and 'third' share the weight"):
            slice_widths(teacher, 0.5)

    def test_quantised_layers(self):
        teacher = around(layers.Dense(8, name="second"))
        teacher.get_layer("second").quantize("int8")
        with pytest.raises(ValueError, match="'second' .*quantised to int8"):
            slice_widths(teacher, 0.5)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({}, TypeError, "one of `width`.*none of them"),
            ({"width": 0.5, "parameters": 0.5}, TypeError, "'parameters': 0.5"),
            ({"width": 0.0}, ValueError, r"in \(0, 1\]. Received: width=0.0"),
            ({"width": 2}, ValueError, "Received: width=2"),
            ({"width": float("nan")}, ValueError, "Received: width=nan"),
            ({"width": {"first": "half"}}, ValueError, "'half'"),
            ({"flops": -1.0}, ValueError, "Received: flops=-1.0"),
            ({"width": 0.01}, ValueError, "'first' without a unit: it has 8.*0.01"),
        ],
    )
    def test_sizes(self, call, error, message):
        with pytest.raises(error, match=message):
            slice_widths(around(), **call)

    def test_models_without_a_graph(self):
        class Subclassed(keras.Model):
            def call(self, x):
                return x

        with pytest.raises(ValueError, match="'mine' of the class Subclassed"):
            slice_widths(Subclassed(name="mine"), 0.5)
        with pytest.raises(ValueError, match="keras.Input.*isn't built"):
            slice_widths(keras.Sequential([layers.Dense(2)]), 0.5)
        with pytest.raises(TypeError, match="teacher=<function"):
            slice_widths(outputs, 0.5)


@tensorflow_only("strings are of TensorFlow")
def test_vocabularies_and_statistics_are_copied():
    words, number = keras.Input((2,), dtype="string"), keras.Input((3,))
    lookup = layers.StringLookup(max_tokens=10)
    lookup.adapt(np.array(["a", "b", "c"]))
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 3)))
    x = layers.Flatten()(layers.Embedding(10, 4)(lookup(words)))
    x = layers.Dense(8, "relu")(layers.Concatenate()([x, normalization(number)]))
    teacher = randomize(keras.Model([words, number], layers.Dense(2)(x)))
    normalization.finalize_state()
    text = ops.convert_to_tensor([["a", "z"], ["c", "b"]])
    numbers = ops.convert_to_tensor([[1.0, 2.0, 3.0], [5.0, 4.0, 3.0]])
    batch = [text, numbers]
    assert_same(slice_widths(teacher, 1.0), teacher, batch)
    zero_removed(teacher, 0.5)
    assert_same(slice_widths(teacher, 0.5), teacher, batch)
