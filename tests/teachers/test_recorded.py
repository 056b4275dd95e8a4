"""What a teacher said before, read from the batch."""

from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.batch import Batch
from keras_distill.teachers import Ensemble, Recorded
from keras_distill.teachers.base import ask
from tests.distiller.models import (
    CLASSES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)
from tests.losses import reference

X, Y = data()
SAID = np.asarray(mlp(seed=1)(X))


def test_one_output_stands_under_one_key() -> None:
    assert Recorded("said")({"x": X, "said": SAID}) is SAID


@pytest.mark.parametrize(
    "keys, expected",
    [
        (["b", "a"], [2, 1]),
        (("a", "b"), [1, 2]),
        ({"click": "b", "buy": "a"}, {"click": 2, "buy": 1}),
    ],
    ids=str,
)
def test_several_outputs_are_packed_as_the_keys_are(keys: Any, expected: Any) -> None:
    assert Recorded(keys)({"a": 1, "b": 2, "x": X}) == expected


@pytest.mark.parametrize("keys", ["said", ["x", "said"], {"click": "said"}], ids=str)
def test_the_batch_must_hold_the_keys(keys: Any) -> None:
    with pytest.raises(ValueError, match=r"teacher output 'said'.*Received: keys \['x"):
        Recorded(keys)({"x": X, "y": Y})
    with pytest.raises(ValueError, match="Pass a dict.*Received: keys None"):
        Recorded("said")(X)


def fitted(student: keras.Model, teacher: Any, x: Any) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher, privileged_features=["said"])
    distiller.compile(
        keras.optimizers.SGD(0.3),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=2.0),
    )
    order = np.random.default_rng(3).permutation(24)
    rows = {name: values[order] for name, values in x.items()}
    distiller.fit(rows, Y[order], batch_size=8, epochs=2, shuffle=False, verbose=0)
    return distiller


def test_it_is_a_teacher() -> None:
    batch = Batch(inputs={"x": X, "said": SAID}, withheld=["said"])
    np.testing.assert_array_equal(ask(Recorded("said"), batch).targets, SAID)
    assert Recorded({"a": "b", "c": "d"}).reads == ["b", "d"]


def student() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(inputs))


def test_what_was_recorded_teaches_as_the_teacher_would() -> None:
    live = mlp(seed=1)
    batch = {"x": X, "said": SAID}
    recorded = fitted(student(), Recorded("said"), batch)
    expected = fitted(student(), lambda x: live(x["x"]), batch)
    assert_same_weights(recorded.student, expected.student, atol=1e-6)
    assert recorded.predict(X, verbose=0).shape == (24, CLASSES)


def test_the_student_isnt_shown_what_the_teacher_said() -> None:
    distiller = fitted(Subclassed(), Recorded("said"), {"x": X, "said": SAID})
    assert distiller.student.hidden.kernel.shape[0] == 4


def test_a_batch_without_it_stops_training() -> None:
    distiller = kd.Distiller(student(), Recorded("said"))
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="recorded teacher output 'said'"):
        distiller.fit({"x": X}, Y, verbose=0)


def test_the_student_is_never_shown_it_even_where_nobody_says_so() -> None:
    distiller = kd.Distiller(Subclassed(), Recorded("said"))
    distiller.compile("sgd", crossentropy())
    distiller.fit({"x": X, "said": SAID}, Y, verbose=0)
    assert distiller.student.hidden.kernel.shape[0] == 4


def test_a_student_that_would_read_its_own_target_is_refused() -> None:
    inputs = {"x": keras.Input((4,), name="x"), "said": keras.Input((3,), name="said")}
    seen = keras.layers.Concatenate()(list(inputs.values()))
    reader = keras.Model(inputs, keras.layers.Dense(CLASSES)(seen))
    with pytest.raises(ValueError, match=r"recorded teacher outputs .*\['said'\]"):
        kd.Distiller(reader, Recorded("said"))


def packed(logits: np.ndarray, k: int) -> np.ndarray:
    return np.maximum(reference.packed_top_k(logits.astype("float64"), k), -65504.0)


def trained(
    student: keras.Model, teacher: Any, x: Any, distillation_loss: Any, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(0.3),
        crossentropy(),
        distillation_loss=distillation_loss,
        **kwargs,
    )
    distiller.fit(x, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return distiller


def test_a_top_k_of_all_classes_teaches_as_logits_do() -> None:
    whole, parts = (
        trained(student(), Recorded("said"), {"x": X, "said": said}, loss(3.0)).student
        for said, loss in [
            (SAID, kd.losses.ForwardKL),
            (packed(SAID, CLASSES), kd.losses.TopKForwardKL),
        ]
    )
    assert_same_weights(parts, whole, atol=1e-6)


def test_each_output_is_recorded_in_its_own_form() -> None:
    """Logits, a top k, samples and values, of which each has its loss."""
    inputs = keras.Input((4,), name="x")
    heads = {
        name: keras.layers.Dense(units, name=name)(inputs)
        for name, units in {"whole": 3, "top": 5, "drawn": 5, "value": 1}.items()
    }
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    five = rng.normal(size=(len(X), 5))
    drawn = np.concatenate([five.argsort(-1)[:, :2], np.full((len(X), 2), 0.5)], -1)
    x = {"x": X, "w": SAID, "t": packed(five, 2), "d": drawn, "v": five[:, :1]}
    distiller = kd.Distiller(
        keras.Model(inputs, heads),
        Recorded({"whole": "w", "top": "t", "drawn": "d", "value": "v"}),
    )
    losses = {
        "whole": kd.losses.ForwardKL(2.0),
        "top": kd.losses.TopKForwardKL(2.0),
        "drawn": kd.losses.SampledSoftTargets(),
        "value": "mse",
    }
    distiller.compile("sgd", distillation_loss=losses, alpha=1.0)
    distiller(x)
    outputs = distiller.student(X)
    expected = sum(
        float(keras.losses.get(loss)(x[key], outputs[name]))
        if loss != "mse"
        else np.square(np.asarray(outputs[name]) - five[:, :1]).mean()
        for (name, loss), key in zip(losses.items(), "wtdv", strict=True)
    )
    logs = distiller.fit(x, batch_size=len(X), verbose=0).history
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-5)
    measured = distiller.evaluate(x, batch_size=len(X), verbose=0, return_dict=True)
    assert measured["distillation_loss"] < expected


def test_several_recorded_members_are_an_ensemble() -> None:
    other = np.asarray(mlp(seed=2)(X))
    both = Ensemble([Recorded("said"), Recorded("other")])
    x = {"x": X, "said": SAID, "other": other}
    ensemble = trained(student(), both, x, kd.losses.ForwardKL())
    mean = {"x": X, "said": (SAID + other) / 2}
    expected = trained(student(), Recorded("said"), mean, kd.losses.ForwardKL())
    assert_same_weights(ensemble.student, expected.student, atol=1e-6)


def test_parts_of_several_members_have_no_mean() -> None:
    both = Ensemble([Recorded("said"), Recorded("other")])
    x = {"x": X, "said": packed(SAID, 2), "other": packed(SAID[::-1], 2)}
    with pytest.raises(Exception, match="means or parts of packed ones"):
        trained(student(), both, x, kd.losses.TopKForwardKL(), run_eagerly=True)


def test_the_label_loss_of_a_part_isnt_logged() -> None:
    distiller = kd.Distiller(student(), Recorded("said"))
    loss = kd.losses.TopKForwardKL(name="top")
    with pytest.raises(ValueError, match=r"`log_teacher=True` needs.*\['top'\]"):
        distiller.compile(
            "sgd", crossentropy(), distillation_loss=loss, log_teacher=True
        )


def test_a_part_for_a_loss_of_whole_outputs() -> None:
    x = {"x": X, "said": packed(SAID, 1)}
    with pytest.raises(ValueError, match="use `TopKForwardKL`; of samples"):
        trained(student(), Recorded("said"), x, kd.losses.ReverseKL())
