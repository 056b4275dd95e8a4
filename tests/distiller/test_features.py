"""Which model reads what: privileged features, names, dtypes."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.inputs import select
from tests import slow
from tests.distiller.models import (
    CLASSES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    mlp,
)

X, Y = data()
CLICKS = np.random.default_rng(2).integers(0, 2, (24, 6)).astype("int32")
BATCH = {"query": X, "clicks": CLICKS}


def student() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,), name="query"), layers.Dense(CLASSES)], name="small"
    )


def teacher() -> keras.Model:
    """Reads what the student does and what only training data hold, as int32."""
    keras.utils.set_random_seed(1)
    query = keras.Input((4,), name="query")
    clicks = keras.Input((6,), dtype="int32", name="clicks")
    seen = layers.Concatenate()([query, layers.Rescaling(2.0)(clicks)])
    return keras.Model([query, clicks], layers.Dense(CLASSES)(seen))


def compiled(distiller: kd.Distiller) -> kd.Distiller:
    distiller.compile(
        keras.optimizers.SGD(0.2),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
    )
    return distiller


def test_each_model_reads_the_inputs_that_it_declares() -> None:
    distiller = compiled(
        kd.Distiller(student(), teacher(), privileged_features=["clicks"])
    )
    s = distiller.student(X).numpy()
    t = distiller.teacher([X, CLICKS]).numpy()
    logs = distiller.train_on_batch(BATCH, Y, return_dict=True)
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s).mean(), rtol=1e-5
    )
    expected = distiller.student.predict(X, verbose=0)
    for x in (BATCH, {"query": X}, X):
        np.testing.assert_array_equal(distiller.predict(x, verbose=0), expected)
    assert distiller.evaluate(X, Y, verbose=0) == distiller.evaluate(
        BATCH, Y, verbose=0
    )


def test_privileged_features_leave_no_trace_in_what_is_saved(tmp_path: Any) -> None:
    distiller = compiled(
        kd.Distiller(student(), teacher(), privileged_features=["clicks"])
    )
    distiller.fit(BATCH, Y, batch_size=8, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", distiller.teacher)
    assert loaded.privileged_features == ("clicks",)
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), distiller.predict(X, verbose=0)
    )
    for model in (loaded, distiller):
        model.fit(BATCH, Y, batch_size=8, shuffle=False, verbose=0)
    assert_same_weights(loaded.student, distiller.student)
    distiller.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(
        served.serve(X), distiller.predict(X, verbose=0), atol=1e-6
    )


def test_a_student_without_declared_inputs_is_shown_no_privileged_feature() -> None:
    batch = {"a": X[:, :2], "b": X[:, 2:], "secret": X}
    model = Subclassed()
    secretive = mlp(seed=1)
    distiller = compiled(
        kd.Distiller(
            model, lambda x: secretive(x["secret"]), privileged_features=["secret"]
        )
    )
    distiller.fit(batch, Y, verbose=0)
    assert model.hidden.kernel.shape[0] == 4
    assert distiller.predict(batch, verbose=0).shape == (24, CLASSES)


@pytest.mark.parametrize("container", [list, dict])
def test_inputs_are_matched_by_name_whatever_their_order(container: type) -> None:
    named = {name: keras.Input((2,), name=name) for name in ("b", "a")}
    inputs = named if container is dict else list(named.values())
    joined = layers.Concatenate()([named["a"], named["b"]])
    model = keras.Model(inputs, layers.Dense(CLASSES)(joined))
    batch = {"a": X[:, :2], "b": X[:, 2:], "c": X}
    seen = select(model, batch)
    assert seen.keys() == {"a", "b"}
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(
        kd.Distiller(model, mlp())(batch), X @ kernel + bias, atol=1e-6
    )


def test_a_batch_that_is_no_dict_goes_to_both_models_as_it_is() -> None:
    pair = (X[:, :2], X[:, 2:])
    left, right = keras.Input((2,)), keras.Input((2,))
    model = keras.Model(
        [left, right], layers.Dense(CLASSES)(layers.Concatenate()([left, right]))
    )
    distiller = compiled(kd.Distiller(model, keras.models.clone_model(model)))
    assert np.isfinite(distiller.train_on_batch(pair, Y)).all()
    assert select(model, pair) is pair


def test_the_teacher_sees_the_dtype_of_the_data() -> None:
    seen = []

    def look(x: Any) -> Any:
        seen.append(x.dtype)
        return tf.one_hot(tf.cast(x[:, 0], "int32"), CLASSES)

    images = (np.abs(X) * 50).astype("uint8")
    distiller = compiled(kd.Distiller(mlp(), look))
    distiller.train_on_batch(images, Y)
    assert set(seen) == {tf.uint8}


def test_an_unbuilt_student_is_built_by_its_first_batch() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Dense(5), layers.Dense(CLASSES)])
    distiller = compiled(kd.Distiller(model, mlp()))
    assert not distiller.built
    distiller.fit(X, Y, verbose=0)
    assert distiller.built
    assert len(model.trainable_weights) == 4


def test_a_distiller_of_a_built_student_is_built() -> None:
    assert kd.Distiller(mlp(), mlp()).built


def test_a_student_must_not_declare_a_privileged_feature() -> None:
    with pytest.raises(
        ValueError, match=r"'small' declares privileged features.*\['query'\]"
    ):
        kd.Distiller(student(), teacher(), privileged_features=["query"])


def test_a_batch_must_hold_what_the_models_declare() -> None:
    distiller = compiled(kd.Distiller(student(), teacher()))
    with pytest.raises(ValueError, match=r"doesn't hold: \['clicks'\].*\['query'\]"):
        distiller.fit({"query": X}, Y, verbose=0)
    with pytest.raises(ValueError, match=r"'small' declares.*\['query'\].*clicks"):
        distiller.predict({"clicks": CLICKS}, verbose=0)


@pytest.mark.parametrize(
    "batch, keys",
    [({"query": X, "click": CLICKS}, r"\['click', 'query'\]"), (X, "None")],
)
def test_a_misspelt_privileged_feature_is_not_let_through(
    batch: Any, keys: str
) -> None:
    secretive = mlp(seed=1)
    distiller = compiled(
        kd.Distiller(
            Subclassed(), lambda x: secretive(X), privileged_features=["clicks"]
        )
    )
    with pytest.raises(ValueError, match=rf"\['clicks'\].*Received: keys {keys}"):
        distiller.fit(batch, Y, verbose=0)


def test_a_dict_of_inputs_is_read_by_its_keys_not_by_the_names_of_inputs() -> None:
    def build() -> keras.Model:
        unnamed = keras.Input((4,), name="unlike_the_key")
        return keras.Model({"key": unnamed}, keras.layers.Dense(3)(unnamed))

    with pytest.warns(UserWarning, match="must match the names"):
        student, teacher = build(), build()
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", "mse")
    x = {"key": np.ones((8, 4), "float32")}
    assert distiller.fit(x, np.ones((8, 3)), verbose=0).history["loss"]
    with pytest.raises(ValueError, match="declares privileged features"):
        kd.Distiller(student, teacher, privileged_features=["key"])


# Dicts in dicts.

NESTED = {"query": X, "user": {"age": X[:, :1], "history": {"clicks": CLICKS}}}


def nested(teacher_too: bool, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    query = keras.Input((4,), name="query")
    age = keras.Input((1,), name="age")
    inputs: dict[str, Any] = {"query": query, "user": {"age": age}}
    seen = [query, age]
    if teacher_too:
        clicks = keras.Input((6,), dtype="int32", name="clicks")
        inputs["user"]["history"] = {"clicks": clicks}
        seen.append(layers.Rescaling(2.0)(clicks))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Concatenate()(seen)))


def test_nested_dicts_are_read_by_their_keys() -> None:
    student, teacher = nested(False, 0), nested(True, 1)
    own = {"query": X, "user": {"age": X[:, :1]}}
    s, t = student(own).numpy(), teacher(NESTED).numpy()
    distiller = compiled(kd.Distiller(student, teacher, privileged_features=["clicks"]))
    for batch in (NESTED, own):
        np.testing.assert_array_equal(distiller.predict(batch, verbose=0), s)
    logs = distiller.fit(NESTED, Y, batch_size=24, verbose=0).history
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s).mean(), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"hold privileged features \['clicks'\]"):
        distiller.fit(own, Y, verbose=0)


@pytest.mark.parametrize("key", ["clicks", "history"])
def test_a_privileged_feature_in_a_nested_dict_mustnt_be_declared(key: str) -> None:
    with pytest.raises(ValueError, match=rf"declares privileged features.*\['{key}'\]"):
        kd.Distiller(nested(True, 0), nested(True, 1), privileged_features=[key])


@keras.saving.register_keras_serializable(package="tests")
class Looking(keras.Model):
    """Notes the keys that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(CLASSES)
        self.seen: set[str] = set()

    def call(self, inputs: Any) -> Any:
        self.seen |= set(inputs) | set(inputs["user"])
        return self.head(inputs["query"])


@pytest.mark.parametrize("key", ["clicks", "history"])
def test_a_privileged_feature_in_a_nested_dict_is_withheld(key: str) -> None:
    student = Looking()
    distiller = compiled(
        kd.Distiller(student, nested(True, 1), privileged_features=[key])
    )
    batch = {**NESTED, "user": {"age": X[:, :1], "history": {"clicks": CLICKS}}}
    distiller.fit(batch, Y, batch_size=24, verbose=0)
    distiller.predict(batch, verbose=0)
    held = {"query", "user", "age"} | ({"history"} if key == "clicks" else set())
    assert student.seen == held


# Dtypes.


def of_dtype(dtype: str) -> keras.Model:
    inputs = keras.Input((4,), dtype=dtype, name="query")
    as_floats = inputs
    if dtype == "string":
        as_floats = layers.StringLookup(vocabulary=["a"])(inputs)
    return keras.Model({"query": inputs}, layers.Dense(CLASSES)(as_floats))


STRINGS = tf.fill((24, 4), "a")  # NumPy's aren't taken by `fit`


@pytest.mark.parametrize(
    "declared, value, given",
    [
        ("string", X, "float32"),
        ("string", CLICKS[:, :4], "int32"),
        ("float32", STRINGS, "string"),
        ("int32", X, "float32"),
        ("int64", X.astype("float64"), "float32|float64"),
    ],
)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_dtype_that_cant_become_the_declared_one(
    declared: str, value: Any, given: str, whose: str
) -> None:
    models = [of_dtype(declared), lambda x: tf.zeros((24, CLASSES))]
    if whose == "teacher":
        models = [keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3)])]
        models.append(of_dtype(declared))
    distiller = compiled(kd.Distiller(models[0], models[1]))
    with pytest.raises(
        TypeError,
        match=rf"(?s)'query'.*declared as {declared}, which ({given}) can't.*Received",
    ):
        distiller.train_on_batch({"query": value, "x": X}, Y)


@pytest.mark.parametrize(
    "declared, value",
    [
        ("float32", CLICKS[:, :4]),
        ("float32", X > 0),
        ("float32", X.astype("float16")),
        ("int32", X > 0),
        ("int64", CLICKS[:, :4]),
        ("string", STRINGS),
    ],
)
def test_a_dtype_that_can_become_the_declared_one(declared: str, value: Any) -> None:
    distiller = compiled(kd.Distiller(of_dtype(declared), of_dtype(declared)))
    distiller.run_eagerly = True
    assert np.isfinite(distiller.train_on_batch({"query": value}, Y)).all()


# Kinds of features that recommenders have, for both models and for the teacher alone.

RNG = np.random.default_rng(5)
COUNTS = RNG.integers(1, 5, 24)
LISTS = tf.RaggedTensor.from_row_lengths(RNG.integers(1, 9, COUNTS.sum()), COUNTS)
PADDED = LISTS.to_tensor(0).numpy()
MULTI_HOT = np.array([np.bincount(row, minlength=9) for row in LISTS.to_list()])
WORDS = np.array(["", "red", "green", "blue"])[RNG.integers(0, 4, (24, 1))]


def of_sparse() -> tuple[Any, Any]:
    inputs = keras.Input((9,), sparse=True, name="history")
    return inputs, layers.Dense(4)(inputs)


def of_ragged() -> tuple[Any, Any]:
    inputs = keras.Input((None,), dtype="int64", ragged=True, name="history")
    return inputs, layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(inputs))


def of_padded() -> tuple[Any, Any]:
    inputs = keras.Input((None,), dtype="int64", name="history")
    embedded = layers.Embedding(9, 4, mask_zero=True)(inputs)
    return inputs, layers.GlobalAveragePooling1D()(embedded)


def of_strings() -> tuple[Any, Any]:
    inputs = keras.Input((1,), dtype="string", name="history")
    ids = layers.StringLookup(vocabulary=["red", "green"])(inputs)
    return inputs, layers.Flatten()(layers.Embedding(3, 4)(ids))


KINDS: dict[str, tuple[Any, Any]] = {
    "sparse": (of_sparse, tf.sparse.from_dense(MULTI_HOT.astype("float32"))),
    "ragged": (of_ragged, LISTS),
    "padded": (of_padded, PADDED),
    "strings": (of_strings, WORDS),
}


def reader(make: Any, seed: int) -> keras.Model:
    """Reads the query, and a feature of some kind."""
    keras.utils.set_random_seed(seed)
    query = keras.Input((4,), name="query")
    if make is None:
        return keras.Model(query, layers.Dense(CLASSES)(query))
    inputs, encoded = make()
    seen = layers.Concatenate()([query, encoded])
    return keras.Model({"query": query, "history": inputs}, layers.Dense(3)(seen))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("privileged", slow.but([True], [True, False], "fits"))
def test_features_of_any_kind_train(kind: str, privileged: bool) -> None:
    make, history = KINDS[kind]
    student, teacher = reader(None if privileged else make, 0), reader(make, 1)
    whole = {"query": tf.constant(X), "history": history}
    if not isinstance(history, tf.RaggedTensor | tf.SparseTensor):
        whole["history"] = tf.constant(history)
    s = student(whole["query"] if privileged else whole).numpy()
    t = teacher(whole).numpy()
    assert np.ptp(t, axis=0).min() > 0.1
    distiller = kd.Distiller(
        student, teacher, privileged_features=["history"] if privileged else []
    )
    distiller.compile(
        keras.optimizers.SGD(0.2),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
        teacher_loss=None if privileged else crossentropy(),
        jit_compile=False,
    )
    rows = tf.data.Dataset.from_tensor_slices(({"query": X, "history": history}, Y))
    np.testing.assert_allclose(
        distiller.predict(rows.batch(8), verbose=0), s, atol=1e-6
    )
    before = teacher.get_weights()
    history_of_fit = distiller.fit(
        rows.batch(24), epochs=2, shuffle=False, verbose=0
    ).history
    np.testing.assert_allclose(
        history_of_fit["distillation_loss"][0], forward_kl(t, s).mean(), rtol=1e-5
    )
    assert history_of_fit["loss"][1] < history_of_fit["loss"][0]
    if privileged:
        for weight, expected in zip(teacher.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, expected)
    assert np.isfinite(distiller.evaluate(rows.batch(8), verbose=0))


def test_ragged_and_padded_lists_are_pooled_alike() -> None:
    ragged, padded = reader(of_ragged, 0), reader(of_padded, 0)
    assert_same_weights(ragged, padded)
    query = tf.constant(X)
    np.testing.assert_allclose(
        ragged({"query": query, "history": LISTS}),
        padded({"query": query, "history": tf.constant(PADDED)}),
        atol=1e-6,
    )


# A teacher that knows nothing of what the student sees.


def blind() -> keras.Model:
    clicks = keras.Input((6,), dtype="int32", name="clicks")
    scaled = layers.Rescaling(2.0)(clicks)
    return keras.Model({"clicks": clicks}, layers.Dense(CLASSES)(scaled))


@pytest.mark.parametrize(
    "alpha, shown",
    [
        (0.9, "0.9"),
        (kd.schedules.LateStart(10, value=0.75), "0.75"),
        ({"scores": 0.8}, "0.8"),
    ],
)
def test_a_teacher_of_privileged_features_alone_warns(alpha: Any, shown: str) -> None:
    keras.utils.set_random_seed(0)
    query = keras.Input((4,), name="query")
    student = keras.Model(query, layers.Dense(CLASSES, name="scores")(query))
    distiller = kd.Distiller(student, blind(), privileged_features=["clicks"])
    message = rf"alone, \['clicks'\], .*alpha.* {shown}:"
    with pytest.warns(UserWarning, match=message) as warned:
        distiller.compile("sgd", crossentropy(), alpha=alpha)
    assert warned[0].filename == __file__


def test_it_doesnt_where_the_labels_weigh_more_or_the_teacher_sees_more() -> None:
    distiller = kd.Distiller(student(), blind(), privileged_features=["clicks"])
    distiller.compile("sgd", crossentropy(), alpha=0.5)
    distiller.compile("sgd", crossentropy(), alpha=kd.schedules.TeacherAnnealing(10))
    distiller = kd.Distiller(student(), teacher(), privileged_features=["clicks"])
    distiller.compile("sgd", crossentropy(), alpha=0.9)
