import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import export, signature
from keras_distill.export.portability import unportable_layers
from keras_distill.export.preprocessing import split_preprocessing
from tests import slow

COLORS = ["red", "blue"]

TEXT = np.array([["red"], ["mauve"], ["blue"], [""]], dtype=object)
PHRASES = np.array([["a b"], ["c a c b"], ["zz"], ["b"]], dtype=object)
IDS = np.array([[1], [5], [77], [0]], dtype="int64")
NUMBERS = np.array([[-1, 2], [0.3, 7], [12, 0.5], [3, 4]], dtype="float32")
IMAGES = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
AUDIO = np.random.default_rng(1).standard_normal((2, 600)).astype("float32")


def input_like(array, name):
    dtype = "string" if array.dtype == object else array.dtype.name
    return keras.Input(array.shape[1:], dtype=dtype, name=name)


def inputs_like(arrays):
    return [input_like(array, name) for name, array in arrays.items()]


def lookup(name="color", **kwargs):
    return layers.StringLookup(vocabulary=COLORS, name=name, **kwargs)


def vectorizer(**kwargs):
    return layers.TextVectorization(vocabulary=["a", "b"], name="words", **kwargs)


def discretizer(name="bin", **kwargs):
    return layers.Discretization(bin_boundaries=[0.0, 1.0, 5.0], name=name, **kwargs)


def of_text(function):
    return layers.Lambda(function, output_shape=(1,), name="text")


def resizer(height, width, **kwargs):
    return layers.Resizing(height, width, name="resizing", **kwargs)


def model_of(layer, *arrays):
    """The layer alone, called on inputs like the arrays."""
    names = ["x", "y"][: len(arrays)]
    inputs = inputs_like(dict(zip(names, arrays, strict=True)))
    return keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))


# What tf2onnx 1.17 at opset 18 and ONNX Runtime 1.31 make of the preprocessing layers
# of Keras 3.15, each alone in a model.

PORTABLE = {
    **{
        f"CategoryEncoding {mode}": (
            lambda mode=mode: layers.CategoryEncoding(80, output_mode=mode),
            IDS,
        )
        for mode in ("one_hot", "multi_hot", "count")
    },
    "Normalization": (lambda: layers.Normalization(mean=1.0, variance=2.0), NUMBERS),
    "Rescaling": (lambda: layers.Rescaling(0.1, offset=0.2), NUMBERS),
    "Resizing bilinear": (lambda: resizer(5, 6), IMAGES),
    "Resizing nearest": (lambda: resizer(5, 6, interpolation="nearest"), IMAGES),
    "Resizing nearest antialias": (
        lambda: resizer(5, 6, interpolation="nearest", antialias=True),
        IMAGES,
    ),
    "Resizing crop": (lambda: resizer(5, 6, crop_to_aspect_ratio=True), IMAGES),
    "Resizing pad": (lambda: resizer(5, 6, pad_to_aspect_ratio=True), IMAGES),
    "CenterCrop": (lambda: layers.CenterCrop(4, 5), IMAGES),
    "CenterCrop beyond": (lambda: layers.CenterCrop(12, 12), IMAGES),
    "RandomRotation": (lambda: layers.RandomRotation(0.1), IMAGES),
    "AutoContrast": (lambda: layers.AutoContrast(value_range=(0, 1)), IMAGES),
    "STFTSpectrogram": (
        lambda: layers.STFTSpectrogram(
            mode="log", frame_length=64, frame_step=32, fft_length=64
        ),
        AUDIO[..., None],
    ),
}

UNPORTABLE = {
    # lookup tables
    "StringLookup": (lookup, TEXT),
    "StringLookup one_hot": (lambda: lookup(output_mode="one_hot"), TEXT),
    "StringLookup invert": (lambda: lookup(invert=True), IDS),
    "IntegerLookup": (lambda: layers.IntegerLookup(vocabulary=[1, 5]), IDS),
    "TextVectorization": (lambda: vectorizer(output_sequence_length=3), PHRASES),
    "TextVectorization multi_hot": (
        lambda: vectorizer(output_mode="multi_hot"),
        PHRASES,
    ),
    # StringToHashBucketFast, of integers too
    "Hashing text": (lambda: layers.Hashing(7), TEXT),
    "Hashing integers": (lambda: layers.Hashing(7), IDS),
    # SparseCross
    "HashedCrossing": (lambda: layers.HashedCrossing(7), TEXT, TEXT),
    "HashedCrossing integers": (lambda: layers.HashedCrossing(7), IDS, IDS),
    # Bucketize
    "Discretization": (discretizer, NUMBERS),
    "Discretization one_hot": (lambda: discretizer(output_mode="one_hot"), NUMBERS),
    # ScaleAndTranslate
    "Resizing lanczos3": (lambda: resizer(5, 6, interpolation="lanczos3"), IMAGES),
    "Resizing antialias": (lambda: resizer(5, 6, antialias=True), IMAGES),
    # Converted; ONNX Runtime refuses to load it, or gives other numbers.
    "Resizing bicubic": (lambda: resizer(5, 6, interpolation="bicubic"), IMAGES),
    "Resizing area": (lambda: resizer(5, 6, interpolation="area"), IMAGES),
    # Real, Imag
    "MelSpectrogram": (
        lambda: layers.MelSpectrogram(fft_length=256, num_mel_bins=8),
        AUDIO,
    ),
    # StringNormalizer without its locale; StringLength; a comparison of numbers
    "Lambda lower": (lambda: of_text(tf.strings.lower), TEXT),
    "Lambda length": (lambda: of_text(tf.strings.length), TEXT),
    "Lambda equal": (lambda: of_text(lambda x: tf.equal(x, "red")), TEXT),
}


@pytest.mark.parametrize("name", PORTABLE)
def test_portable(name, tmp_path):
    make, array = PORTABLE[name]
    model = model_of(make(), array)
    assert unportable_layers(model) == []
    export(model, tmp_path / "out", ["onnx"], example_batch=array)


@pytest.mark.parametrize("name", UNPORTABLE)
def test_unportable(name, tmp_path):
    make, *arrays = UNPORTABLE[name]
    layer = make()
    model = model_of(layer, *arrays)
    assert unportable_layers(model) == [layer]
    with pytest.raises(RuntimeError):
        export(model, tmp_path / "out", ["onnx"], example_batch=arrays)


@pytest.mark.parametrize(
    "case",
    [
        (lambda: of_text(tf.strings.to_number), np.array([["1.5"]], dtype=object)),
        # Bicubic is off by 5e-4 for most other sizes, area by everything.
        (lambda: resizer(16, 16, interpolation="bicubic"), IMAGES),
        (lambda: resizer(16, 16, interpolation="area"), IMAGES),
    ],
    ids=["numbers in text", "twice by bicubic", "twice by area"],
)
def test_taken_for_unportable_though_it_converts(case):
    make, array = case
    layer = make()
    assert unportable_layers(model_of(layer, array)) == [layer]


class Tower(keras.Model):
    """Subclassed: a lookup and what is trained on it, inside one `call`."""

    def __init__(self, name="tower"):
        super().__init__(name=name)
        self.lookup = lookup()
        self.embedding = layers.Embedding(3, 2)

    def call(self, inputs):
        return self.embedding(self.lookup(inputs))


class Doubled(keras.Model):
    """Built functionally, with a `call` that its graph doesn't show."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs)


@keras.saving.register_keras_serializable("test_preprocessing")
def lower(text):
    return tf.strings.lower(text)


@keras.saving.register_keras_serializable("test_preprocessing")
def length(text):
    return tf.strings.length(text)


@keras.saving.register_keras_serializable("test_preprocessing")
class TextLayer(layers.Layer):
    """Text and weights in one `call`, with no layer inside to tell."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, text):
        return self.scale * tf.cast(tf.strings.length(text), "float32")

    def compute_output_spec(self, text):
        return keras.KerasTensor(text.shape, "float32")


def paint_model():
    """One lookup, one numeric input."""
    paint, size = inputs_like({"paint": TEXT, "size": NUMBERS})
    x = layers.Flatten()(layers.Embedding(3, 4)(lookup()(paint)))
    x = layers.Concatenate()([x, layers.Normalization(mean=1.0, variance=2.0)(size)])
    x = layers.BatchNormalization()(layers.Dropout(0.5)(x))
    model = keras.Model([paint, size], layers.Dense(2, name="scores")(x), name="paints")
    return model, {"paint": TEXT, "size": NUMBERS}


def sequential():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            vectorizer(output_sequence_length=6),
            layers.Embedding(4, 3, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, name="scores"),
        ]
    )
    return model, {"input": PHRASES}


def dicts():
    """Dict inputs and outputs out of order; ids and an input among the outputs."""
    raw = {"z": TEXT, "a": NUMBERS, "t": PHRASES, "i": IDS}
    z, a, t, i = inputs_like(raw)
    color = lookup("co.lor", num_oov_indices=3)(z)
    words = layers.Embedding(4, 4, mask_zero=True)(vectorizer()(t))
    x = layers.Concatenate()(
        [
            layers.LSTM(3)(words),
            layers.Flatten()(layers.Embedding(5, 3)(color)),
            lookup("hot", output_mode="one_hot")(z),
            layers.HashedCrossing(8, output_mode="one_hot", name="cross")((z, t)),
            layers.Flatten()(layers.Embedding(100, 2)(i)),
            a,
        ]
    )
    known = layers.IntegerLookup(vocabulary=[1, 5], name="known")(i)
    outputs = {"words": layers.Dense(2)(x), "color": color, "known": known, "raw": i}
    return keras.Model({"z": z, "a": a, "t": t, "i": i}, outputs), raw


def list_with_ids():
    """A list of outputs, of which two are what the core takes."""
    (text, number) = inputs_like({"text": TEXT, "number": NUMBERS})
    color = lookup()(text)
    outputs = [layers.Embedding(3, 2, name="taste")(color), color, number]
    return keras.Model([text, number], outputs), {"text": TEXT, "number": NUMBERS}


def unnamed_inputs():
    text, number = keras.Input((1,), dtype="string"), keras.Input((2,))
    outputs = [layers.Embedding(3, 2, name="taste")(lookup()(text)), number]
    return keras.Model([text, number], outputs), {"input_0": TEXT, "input_1": NUMBERS}


def shared_layers():
    """A lookup, an embedding and a rescaling, called twice each."""
    raw = {"mine": TEXT, "yours": TEXT[::-1], "size": NUMBERS}
    mine, yours, size = inputs_like(raw)
    color, embedding = lookup(), layers.Embedding(3, 2)
    tastes = [embedding(color(mine)), embedding(color(yours))]
    double = layers.Rescaling(2.0, name="double")
    large = double(size)  # in the preprocessing, and once more in the core
    bins = layers.Embedding(5, 2)(discretizer()(large))
    dense = layers.Dense(2)
    outputs = [layers.Add()(tastes), dense(double(bins)), dense(large), size]
    return keras.Model([mine, yours, size], outputs), raw


def one_input_many_readers():
    """Two lookups and a network read one input, two layers read one lookup."""
    (ids,) = inputs_like({"ids": IDS})
    known = layers.IntegerLookup(vocabulary=[1, 5], num_oov_indices=2, name="known")(
        ids
    )
    hashed = layers.Hashing(6, name="hashed")(ids)
    x = [
        layers.Embedding(4, 2)(known),
        layers.Embedding(4, 2)(known),
        layers.Embedding(6, 2)(hashed),
        layers.Embedding(100, 2)(ids),
    ]
    return keras.Model(ids, layers.Add(name="sum")(x)), {"ids": IDS}


def chains():
    """Lookups of lookups, a Lambda before a hash, and what is read half way."""
    (text,) = inputs_like({"text": PHRASES})
    words = vectorizer(output_sequence_length=3)(text)
    again = layers.IntegerLookup(vocabulary=[2, 3], name="again")(words)
    hashed = layers.Hashing(5, name="hashed")(
        layers.Lambda(lower, output_shape=(1,), name="lower")(text[:, :1])
    )
    size = layers.Lambda(length, output_shape=(1,), name="length")(text)
    x = [
        layers.Flatten()(layers.Embedding(9, 2)(ids))
        for ids in (words + 1, again, hashed, size)
    ]
    return keras.Model(text, layers.Concatenate()(x)), {"text": PHRASES}


def encoded(**kwargs):
    """A lookup that gives vectors, of two words a row."""

    def build():
        (text,) = inputs_like({"text": np.concatenate([TEXT, TEXT[::-1]], 1)})
        x = layers.Dense(2, name="scores")(lookup(**kwargs)(text))
        return keras.Model(text, x), {"text": np.concatenate([TEXT, TEXT[::-1]], 1)}

    return build


def tower(name):
    """A nested model with a lookup inside; two of them have the same layer names."""
    text, number = inputs_like({"text": TEXT, "number": NUMBERS})
    x = layers.Embedding(3, 4, name="embedding")(lookup()(text))
    x = layers.Concatenate(name="both")([layers.Flatten(name="flat")(x), number])
    return keras.Model([text, number], layers.Dense(3, name="dense")(x), name=name)


def two_towers():
    """Trained layers feed the nested models too; one is called twice."""
    raw = {"user": TEXT, "item": TEXT[::-1], "size": NUMBERS}
    user, item, size = inputs_like(raw)
    users, items = tower("users"), tower("items")
    mine = users([user, layers.Dense(2)(size)])
    # Keras reads a dict by the names of the model's inputs.
    yours = items({"text": item, "number": size}, training=False)
    both = layers.Dot(1, name="match")([mine, yours])
    return keras.Model([user, item, size], [both, users(inputs=[item, size])]), raw


def nested_twice():
    raw = {"text": TEXT, "number": NUMBERS}
    text, number = inputs_like(raw)
    inner = {"n": input_like(NUMBERS, "n"), "t": input_like(TEXT, "t")}
    deep = tower("deep")([inner["t"], inner["n"]])
    middle = keras.Model(
        inner, {"a": deep, "b": layers.Dense(1)(inner["n"])}, name="middle"
    )
    given = middle({"t": text, "n": number})
    return keras.Model([text, number], [given["b"], given["a"]]), raw


def nested_pieces():
    """A nested model that is all preprocessing, a nested one that is all core."""
    (text,) = inputs_like({"text": TEXT})
    inner = input_like(TEXT, "inner")
    prepare = keras.Model(inner, lookup(output_mode="one_hot")(inner), name="prepare")
    # Its input is declared as float32, to which Keras casts the ids.
    head = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="head")
    return keras.Model(text, head(prepare(text))), {"text": TEXT}


def layer_of_layers():
    (size,) = inputs_like({"size": NUMBERS})
    bins = layers.Pipeline([layers.Rescaling(2.0), discretizer()], name="bins")(size)
    return keras.Model(size, layers.Embedding(4, 2)(bins)), {"size": NUMBERS}


def unused_input():
    text, number = inputs_like({"text": TEXT, "number": NUMBERS})
    model = keras.Model([text, number], layers.Embedding(3, 2)(lookup()(text)))
    return model, {"text": TEXT, "number": NUMBERS}


def shapes_of_one_layer():
    """`summary` shows the shape of a layer's last call."""
    wide = np.repeat(TEXT, 3, axis=1)
    x, y = inputs_like({"x": TEXT, "y": wide})
    color, embedding, flat = lookup(), layers.Embedding(3, 2), layers.Flatten()
    first = flat(embedding(color(y)))
    last = layers.Dense(2)(layers.Dense(2)(flat(embedding(color(x)))))
    return keras.Model([x, y], layers.Concatenate()([first, last])), {
        "x": TEXT,
        "y": wide,
    }


def feature_space():
    space = keras.utils.FeatureSpace(
        {
            "text": keras.utils.FeatureSpace.string_categorical(num_oov_indices=1),
            "size": keras.utils.FeatureSpace.float_normalized(),
            "ids": keras.utils.FeatureSpace.integer_hashed(num_bins=5),
        },
        crosses=[keras.utils.FeatureSpace.cross(("text", "ids"), crossing_dim=8)],
        output_mode="concat",
    )
    raw = {"text": PHRASES, "size": NUMBERS[:, :1], "ids": IDS.astype("int32")}
    columns = {name: array[:, 0] for name, array in raw.items()}
    space.adapt(tf.data.Dataset.from_tensor_slices(columns).batch(2))
    scores = layers.Dense(2, name="scores")(space.get_encoded_features())
    return keras.Model(dict(space.get_inputs()), scores), raw


BUILDERS = [
    paint_model,
    sequential,
    dicts,
    list_with_ids,
    unnamed_inputs,
    shared_layers,
    one_input_many_readers,
    chains,
    encoded(output_mode="multi_hot"),
    encoded(output_mode="count"),
    encoded(output_mode="tf_idf", idf_weights=[0.5, 1.5]),
    two_towers,
    nested_twice,
    nested_pieces,
    layer_of_layers,
    unused_input,
    shapes_of_one_layer,
    feature_space,
]


def tensors(raw):
    return {name: tf.constant(array) for name, array in raw.items()}


def call(model, raw):
    """The model on inputs by name, as `export` would call it."""
    return model(signature.packing(model, None)(tensors(raw)), training=False)


def assert_same(got, expected):
    keras.tree.assert_same_structure(got, expected)
    flat = zip(keras.tree.flatten(got), keras.tree.flatten(expected), strict=True)
    for value, want in flat:
        assert value.dtype == want.dtype
        np.testing.assert_array_equal(value.numpy(), want.numpy())


def seen(model):
    """What a user sees of a model."""
    lines = []
    model.summary(print_fn=lines.append, expand_nested=True, show_trainable=True)
    return {
        "summary": "\n".join(lines),
        "config": json.dumps(keras.saving.serialize_keras_object(model), default=str),
        "weights": [(w.path, w.trainable, w.numpy().tolist()) for w in model.variables],
        "outputs": [repr(layer.output) for layer in model.layers],
    }


def named(model, outputs):
    taken = signature.input_specs(model, None)
    return signature.name_outputs(model, outputs, taken)


def reloaded(model, directory):
    model.save(directory / "half.keras")
    return keras.saving.load_model(directory / "half.keras", safe_mode=True)


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__qualname__.split(".")[0])
def case(request):
    keras.utils.set_random_seed(0)
    return request.param()


class TestSplit:
    def test_halves_make_the_whole(self, case, tmp_path):
        model, raw = case
        expected = call(model, raw)
        before = seen(model)
        preprocessing, core = split_preprocessing(model)
        handed = preprocessing(tensors(raw))
        assert_same(core(handed), expected)

        assert unportable_layers(core) == []
        assert list(preprocessing.input) == list(raw)
        assert list(core.input) == list(handed)
        for name, tensor in core.input.items():
            assert signature._PORTABLE.fullmatch(name)
            assert tensor.dtype == handed[name].dtype.name != "string"
        for name in set(raw) & set(handed):
            np.testing.assert_array_equal(handed[name].numpy(), raw[name])
        assert list(named(core, expected)) == list(named(model, expected))

        assert [id(w) for w in core.trainable_weights] == [
            id(w) for w in model.trainable_weights
        ]
        assert seen(model) == before
        assert_same(call(model, raw), expected)
        halves = [reloaded(half, tmp_path) for half in (preprocessing, core)]
        assert_same(halves[1](halves[0](tensors(raw))), expected)

    def test_a_model_from_a_file(self, tmp_path):
        model, raw = two_towers()
        preprocessing, core = split_preprocessing(reloaded(model, tmp_path))
        assert_same(core(preprocessing(tensors(raw))), call(model, raw))

    def test_again(self):
        model, raw = paint_model()
        first, second = split_preprocessing(model), split_preprocessing(model)
        assert list(first[1].input) == list(second[1].input) == ["size", "color"]
        assert_same(second[1](first[0](tensors(raw))), call(model, raw))


class TestExport:
    @pytest.mark.parametrize(
        "build",
        slow.but(
            [paint_model, two_towers],
            [
                paint_model,
                sequential,
                list_with_ids,
                one_input_many_readers,
                encoded(output_mode="multi_hot"),
                two_towers,
            ],
            "exports",
        ),
    )
    def test_core_in_every_format(self, build, tmp_path, runtimes):
        self.check(build, tmp_path / "out", runtimes)

    def test_core_that_counts(self, tmp_path, runtimes):
        """LiteRT lacks DenseBincount, of `CategoryEncoding` with multi_hot or count."""
        some = {name: runtimes[name] for name in ("saved_model", "onnx")}
        self.check(feature_space, tmp_path / "out", some)

    def check(self, build, directory, runtimes):
        keras.utils.set_random_seed(0)
        model, raw = build()
        preprocessing, core = split_preprocessing(model)
        handed = {k: v.numpy() for k, v in preprocessing(tensors(raw)).items()}
        export(core, directory, list(runtimes), example_batch=handed)
        expected = named(model, call(model, raw))
        for name, run in runtimes.items():
            outputs = run(directory, handed)
            assert sorted(outputs) == sorted(expected), name
            for key, want in expected.items():
                np.testing.assert_allclose(
                    outputs[key], want, rtol=1e-5, atol=1e-5, err_msg=name
                )


class TestNames:
    def test_of_what_crosses(self):
        crossing = {
            paint_model: ["size", "color"],
            dicts: ["a", "i", "co_lor", "hot", "known_1", "cross", "words_1"],
            list_with_ids: ["number", "color_1"],
            unnamed_inputs: ["input_1", "color"],
            shared_layers: ["size", "color", "bin", "color_1", "double_1"],
            one_input_many_readers: ["ids", "known", "hashed"],
            two_towers: ["size", "users_color", "items_color", "users_color_1"],
            nested_twice: ["number", "middle_deep_color"],
            nested_pieces: ["prepare"],
        }
        for build, names in crossing.items():
            _, core = split_preprocessing(build()[0])
            assert sorted(core.input) == sorted(names), build

    @pytest.mark.parametrize(
        ("name", "portable"), [("a.b-c", "a_b_c"), ("1st", "input_1st")]
    )
    def test_are_portable(self, name, portable):
        text = keras.Input((1,), dtype="string", name="text")
        model = keras.Model(text, layers.Embedding(3, 2)(lookup(name)(text)))
        _, core = split_preprocessing(model)
        assert list(core.input) == [portable]

    def test_of_the_halves(self):
        preprocessing, core = split_preprocessing(paint_model()[0])
        assert (preprocessing.name, core.name) == ("paints_preprocessing", "paints")

    def test_of_inputs_have_to_be_portable(self):
        text = keras.Input((1,), dtype="string", name="my-text")
        model = keras.Model(text, layers.Embedding(3, 2)(lookup()(text)))
        with pytest.raises(ValueError, match="Received: 'my-text'"):
            split_preprocessing(model)


class TestUnportableLayers:
    def names(self, model):
        return [layer.name for layer in unportable_layers(model)]

    def test_of_nested_models_each_once(self):
        model, _ = two_towers()
        assert self.names(model) == ["color", "color"]
        assert len({id(layer) for layer in unportable_layers(model)}) == 2

    def test_a_layer_that_is_called_twice(self):
        assert sorted(self.names(shared_layers()[0])) == ["bin", "color"]

    def test_a_lookup_inside_another_layer(self):
        assert self.names(layer_of_layers()[0]) == ["bin"]
        # Its own StringLookup is no layer of the user's.
        assert self.names(sequential()[0]) == ["words"]

    def test_of_subclassed_models(self):
        model = Tower()
        assert self.names(model) == ["color"]
        model(tf.constant(TEXT))
        assert self.names(model) == ["color"]

    def test_layers_that_take_text(self):
        assert self.names(chains()[0]) == [
            "words",
            "lower",
            "again",
            "hashed",
            "length",
        ]

    def test_beside_the_graph(self, dense_model):
        dense_model.labels = lookup(invert=True)
        assert unportable_layers(dense_model) == []

    def test_none(self, dense_model):
        assert unportable_layers(dense_model) == []


class TestRefusals:
    def refuse(self, model, match):
        with pytest.raises(ValueError, match=match):
            split_preprocessing(model)

    def test_subclassed_models(self):
        model = Tower()
        model(tf.constant(TEXT))
        self.refuse(model, r"Functional or Sequential.*Received: a Tower\. Build it")

    def test_a_call_that_the_graph_does_not_show(self):
        text = keras.Input((1,), dtype="string")
        model = Doubled(text, layers.Embedding(3, 2)(lookup()(text)))
        self.refuse(model, r"Received: a Doubled\. Build it with `keras.Model")

    def test_sequential_without_inputs(self):
        self.refuse(keras.Sequential([lookup()]), "Received: a Sequential")

    def test_nothing_to_split(self, dense_model):
        self.refuse(dense_model, "nothing to split off.*'scores' \\(Dense\\)")

    def test_nothing_left(self):
        self.refuse(model_of(lookup(), TEXT), "nothing is left to export.*'color'")

    @pytest.mark.parametrize("trainable", [True, False])
    def test_trained_upstream(self, trainable):
        ids = keras.Input((1,), dtype="int64")
        vectors = layers.Embedding(9, 3, name="taste")(ids)
        model = keras.Model(ids, layers.Dense(2)(discretizer()(vectors)))
        model.trainable = trainable
        self.refuse(
            model, r"'bin' \(Discretization\)\. Received: 'taste' \(Embedding\)"
        )

    def test_labels_of_what_is_predicted(self):
        number = keras.Input((2,))
        best = keras.ops.argmax(layers.Dense(3, name="scores")(number), axis=-1)
        model = keras.Model(number, lookup(invert=True)(best))
        self.refuse(model, r"'color' \(StringLookup\)\. Received: 'scores' \(Dense\)")

    def test_trained_and_unportable_in_one_piece(self):
        text = keras.Input((1,), dtype="string")
        model = keras.Model(text, Tower()(text))
        self.refuse(model, r"'color' \(StringLookup\)\. Received: 'tower' \(Tower\)")

    def test_trained_and_text_in_one_layer(self):
        text = keras.Input((1,), dtype="string")
        model = keras.Model(text, layers.Dense(2)(TextLayer(name="texts")(text)))
        self.refuse(model, r": 'texts' \(TextLayer\)\. Received: 'texts' \(TextLayer\)")

    def test_trained_upstream_inside_a_nested_model(self):
        inner = keras.Input((2,), name="inner")
        bins = discretizer()(layers.Dense(2, name="hidden")(inner))
        nested = keras.Model(inner, layers.Embedding(5, 2)(bins))
        number = keras.Input((2,))
        self.refuse(keras.Model(number, nested(number)), "Received: 'hidden'")

    def test_ragged(self):
        text = keras.Input((1,), dtype="string")
        words = layers.Embedding(4, 2)(vectorizer(ragged=True)(text))
        self.refuse(
            keras.Model(text, words), "'words', which is ragged.*`ragged=False`"
        )

    @pytest.mark.parametrize("mode", ["one_hot", "multi_hot"])
    def test_sparse(self, mode):
        text = keras.Input((1,), dtype="string")
        x = layers.Dense(2)(lookup(output_mode=mode, sparse=True)(text))
        self.refuse(keras.Model(text, x), "'color', which is sparse.*`sparse=False`")

    def test_text_among_the_outputs(self):
        text = keras.Input((1,), dtype="string", name="text")
        outputs = [layers.Embedding(3, 2)(lookup()(text)), text]
        self.refuse(keras.Model(text, outputs), "'text', which is text. Take the text")

    def test_masks_that_would_be_lost(self):
        series = keras.Input((3, 2))
        masked = layers.Masking(name="masked")(series)
        with pytest.warns(UserWarning, match="does not support masking"):
            bins = discretizer()(masked)
        outputs = [layers.LSTM(2)(masked), layers.Embedding(5, 2)(bins)]
        model = keras.Model(series, outputs)
        with pytest.warns(UserWarning, match="does not support masking"):
            self.refuse(model, "'masked', which is masked. Mask behind")
