"""Which model reads what: privileged features, names, dtypes."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import features
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
    seen = features.select(model, batch)
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
    assert features.select(model, pair) is pair


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
