"""Hints in `Distiller.fit`: values, gradients, one pass a step, what is logged."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_distill as kd
from keras_distill.hints import Hint
from tests.distiller.models import CLASSES, crossentropy
from tests.hints.models import conv, conv_net, hinted, images

X, Y = images()
WEIGHT = 0.3


def pair() -> tuple[keras.Model, keras.Model]:
    return conv_net(2, seed=1, name="student"), conv_net(3, seed=2, name="teacher")


def two_hints(**kwargs: Any) -> list[Hint]:
    return [
        Hint("backbone/conv", "backbone/norm", weight=WEIGHT, name="conv", **kwargs),
        Hint("pool", "pool", loss=keras.losses.LogCosh(), name="pool"),
    ]


def by_hand(sample_weight: Any = None) -> tuple[list[Any], dict[str, float]]:
    """One step of SGD, the models called through functional models of their layers."""
    student, teacher = pair()
    projectors = [
        p for p in kd.Distiller(student, teacher, hints=two_hints()).projectors.values()
    ]
    inner, of_teacher = student.get_layer("backbone"), teacher.get_layer("backbone")
    weights = np.ones(len(X)) if sample_weight is None else sample_weight
    with tf.GradientTape() as tape:
        features = conv(student)(X)
        pooled = student.get_layer("pool")(
            inner.get_layer("norm")(features, training=True)
        )
        logits = student.get_layer("head")(pooled)
        hinted_features = of_teacher(X, training=False)
        hinted_pool = teacher.get_layer("pool")(hinted_features)
        difference = ops.square(projectors[0](features) - hinted_features)
        of_conv = ops.mean(ops.mean(difference, -1) * weights[:, None, None])
        of_pool = keras.losses.LogCosh()(hinted_pool, projectors[1](pooled), weights)
        label = crossentropy()(Y, logits, weights)
        distilled = kd.losses.ForwardKL()(
            teacher.get_layer("head")(hinted_pool), logits, weights
        )
        loss = 0.5 * label + 0.5 * distilled + WEIGHT * of_conv + of_pool
    variables = [
        *student.trainable_weights,
        *projectors[0].trainable_weights,
        *projectors[1].trainable_weights,
    ]
    gradients = tape.gradient(loss, [v.value for v in variables])
    updated = [
        v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, gradients, strict=True)
    ]
    return updated, {
        "loss": float(loss),
        "conv_loss": float(of_conv),
        "pool_loss": float(of_pool),
    }


@pytest.mark.parametrize(
    "how",
    [{}, {"run_eagerly": True}, {"jit_compile": True}],
    ids=["graph", "eager", "xla"],
)
def test_a_step_is_what_it_is_by_hand(how: Any) -> None:
    student, teacher = pair()
    distiller = hinted(student, teacher, *two_hints(), **how)
    logs = distiller.fit(X, Y, batch_size=len(X), shuffle=False, verbose=0).history
    expected, losses = by_hand()
    assert len(distiller.trainable_weights) == len(expected)
    for weight, value in zip(distiller.trainable_weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6, err_msg=weight.path)
    for name, value in losses.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


def test_sample_weights_act_on_hints() -> None:
    sample_weight = np.linspace(0.0, 2.0, len(X)).astype("float32")
    student, teacher = pair()
    distiller = hinted(student, teacher, *two_hints())
    logs = distiller.fit(
        X, Y, sample_weight=sample_weight, batch_size=len(X), shuffle=False, verbose=0
    ).history
    expected, losses = by_hand(sample_weight)
    for weight, value in zip(distiller.trainable_weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6)
    for name, value in losses.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_each_model_runs_once_a_step_and_not_at_all_in_evaluate(jit: bool) -> None:
    student, teacher = pair()
    distiller = hinted(student, teacher, *two_hints(), jit_compile=jit)
    counts = [model.get_layer("counts") for model in (student, teacher)]
    for layer in counts:
        layer.calls.assign(0.0)
    distiller.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    assert [layer.count for layer in counts] == [6, 6]
    distiller.evaluate(X, Y, batch_size=4, verbose=0)
    assert [layer.count for layer in counts] == [9, 6]


def test_the_teacher_is_neither_changed_nor_saved() -> None:
    student, teacher = pair()
    teacher.get_layer("counts").calls.assign(0.0)
    before = teacher.get_weights()
    distiller = hinted(student, teacher, *two_hints())
    distiller.fit(X, Y, batch_size=4, verbose=0)
    teacher.get_layer("counts").calls.assign(0.0)
    for weight, value in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    held = {id(weight) for weight in distiller.weights}
    assert not held & {id(weight) for weight in teacher.weights}
    assert "call" not in vars(conv(teacher)) and "call" not in vars(conv(student))


def test_projectors_are_no_part_of_the_student() -> None:
    student, teacher = pair()
    count = len(student.weights)
    distiller = hinted(student, teacher, *two_hints())
    assert list(distiller.projectors) == ["conv", "pool"]
    assert isinstance(distiller.projectors["conv"], layers.Conv2D)
    assert distiller.projectors["conv"].kernel.shape == (1, 1, 2, 3)
    assert isinstance(distiller.projectors["pool"], layers.Dense)
    before = [p.get_weights()[0] for p in distiller.projectors.values()]
    distiller.fit(X, Y, verbose=0)
    for projector, value in zip(distiller.projectors.values(), before, strict=True):
        assert np.abs(projector.get_weights()[0] - value).max() > 0.0
    assert len(student.weights) == count == len(distiller.weights) - 4


def test_no_projector_where_none_is_needed() -> None:
    student, teacher = conv_net(3), conv_net(3, seed=1)
    distiller = kd.Distiller(student, teacher, hints=[Hint("pool", "pool")])
    assert distiller.projectors == {}
    wide = kd.Distiller(
        conv_net(2),
        teacher,
        hints=[Hint("pool", "pool", loss=kd.hints.losses.SimilarityPreserving())],
    )
    assert wide.projectors == {}


def test_a_weight_of_0_leaves_training_as_it_is() -> None:
    trained = []
    for hints in ([], [Hint("pool", "pool", weight=0.0)]):
        student, teacher = pair()
        distiller = hinted(student, teacher, *hints)
        distiller.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        trained.append(student.get_weights())
    for weight, value in zip(*trained, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-7)


def test_weights_may_be_scheduled_or_assigned() -> None:
    student, teacher = pair()
    hints = [
        Hint("pool", "pool", weight=kd.schedules.LateStart(3, 0.5), name="late"),
        Hint("head", "head", name="set"),
    ]
    distiller = hinted(student, teacher, *hints)
    first = distiller.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history
    assert first["late_weight"] == [0.0] and "set_weight" not in first
    hints[1].weight = 0.0
    logs = distiller.fit(X, Y, batch_size=len(X), shuffle=False, verbose=0).history
    assert logs["late_weight"] == [0.5]
    expected = 0.5 * (logs["student_loss"][0] + logs["distillation_loss"][0])
    expected += 0.5 * logs["late_loss"][0]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_a_teacher_that_trains_gets_no_gradient_from_hints() -> None:
    weights = []
    for hints in ([], two_hints()):
        student, teacher = pair()
        distiller = hinted(student, teacher, *hints, teacher_loss=crossentropy())
        distiller.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        weights.append(teacher.get_weights())
    for weight, value in zip(*weights, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-7)


def test_without_labels() -> None:
    student, teacher = pair()
    distiller = kd.Distiller(student, teacher, hints=two_hints())
    distiller.compile("sgd", alpha=1.0)
    history = distiller.fit(X, verbose=0).history
    expected = history["distillation_loss"][0] + history["pool_loss"][0]
    expected += WEIGHT * history["conv_loss"][0]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)


def test_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student, teacher = pair()
        distiller = hinted(student, teacher, *two_hints())
    finally:
        keras.config.set_dtype_policy("float32")
    history = distiller.fit(X, Y, batch_size=4, epochs=3, verbose=0).history
    _, expected = by_hand()
    assert all(np.isfinite(values).all() for values in history.values())
    np.testing.assert_allclose(history["conv_loss"][0], expected["conv_loss"], rtol=0.2)


def test_a_teacher_with_the_weights_of_the_student() -> None:
    distiller = hinted(conv_net(3), conv_net(3), Hint("backbone/conv", "backbone/conv"))
    logs = distiller.fit(X, Y, verbose=0).history
    assert logs["backbone_conv_hint_loss"] == [0.0]


def test_a_distillation_loss_reads_its_schedules_as_a_hint() -> None:
    student, teacher = conv_net(3), conv_net(3, seed=1)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 100.0])
    logs = {}
    for name, temperature in (("fixed", 1.0), ("scheduled", schedule)):
        loss = kd.losses.ForwardKL(temperature)
        distiller = hinted(
            student,
            teacher,
            Hint("head", "head", loss=loss, name="h"),
            optimizer=keras.optimizers.SGD(0.0),
        )
        history = distiller.fit(X, Y, batch_size=6, shuffle=False, verbose=0).history
        logs[name] = history["h_loss"][0]
    assert CLASSES == 3 and logs["scheduled"] != pytest.approx(logs["fixed"], rel=1e-3)


def test_save_load_and_resume(tmp_path: Any) -> None:
    student, teacher = pair()
    adam = keras.optimizers.Adam(0.01)
    distiller = hinted(student, teacher, *two_hints(), optimizer=adam)
    distiller.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", teacher=teacher)
    assert list(loaded.projectors) == ["conv", "pool"]
    for weight, value in zip(loaded.weights, distiller.weights, strict=True):
        np.testing.assert_array_equal(weight, value)
    logs = [
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history
        for model in (distiller, loaded)
    ]
    assert logs[0] == logs[1]
    for weight, value in zip(loaded.weights, distiller.weights, strict=True):
        np.testing.assert_array_equal(weight, value)
    again = hinted(*pair(), *two_hints(), optimizer=keras.optimizers.Adam(0.01))
    again.optimizer.build(again.trainable_weights)
    distiller.save_weights(tmp_path / "d.weights.h5")
    again.load_weights(tmp_path / "d.weights.h5")
    for weight, value in zip(again.weights, distiller.weights, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_projectors_in_files_keep_their_order(tmp_path: Any) -> None:
    student, teacher = pair()
    hints = [
        Hint("pool", "pool", name="made"),
        Hint("head", "head", projector=layers.Dense(CLASSES), name="given"),
        Hint("backbone/conv", "backbone/conv", name="made_too"),
    ]
    distiller = hinted(student, teacher, *hints)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", teacher=teacher)
    assert list(loaded.projectors) == ["made", "given", "made_too"]
    for weight, value in zip(loaded.weights, distiller.weights, strict=True):
        np.testing.assert_array_equal(weight, value)
    loaded.fit(X, Y, verbose=0)


def test_the_student_exports_alone(tmp_path: Any) -> None:
    student, teacher = pair()
    distiller = hinted(student, teacher, *two_hints())
    distiller.fit(X, Y, verbose=0)
    distiller.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(X), student(X), atol=1e-6)


def test_a_layer_of_an_ensembles_member_and_of_a_moving_average() -> None:
    student, first = pair()
    second = conv_net(5, seed=3, name="second")
    ensemble = kd.teachers.Ensemble([first, second])
    hint = Hint("pool", "second/pool", name="pool")
    distiller = hinted(student, ensemble, hint)
    assert distiller.projectors["pool"].kernel.shape == (2, 5)
    counts = second.get_layer("counts").count
    distiller.fit(X, Y, batch_size=4, verbose=0)
    assert second.get_layer("counts").count == counts + 3

    average = kd.teachers.EMA(student)
    path = f"{average.model.name}/backbone/conv"
    distiller = hinted(student, average, Hint("backbone/conv", path, name="own"))
    logs = distiller.fit(X, Y, batch_size=4, epochs=2, verbose=0).history
    assert 0.0 < logs["own_loss"][1] < 1e-3
