"""Hints whose teacher side was recorded: the training of the online hint."""

from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.hints import Hint, Recorded
from tests.distiller.models import Subclassed, assert_same_weights
from tests.hints.models import conv_net, hinted, images

X, Y = images()


def hints(*, recorded: bool) -> list[Hint]:
    norm, pool = ("backbone/norm", "pool")
    if recorded:
        norm, pool = Recorded("norm", (4, 4, 3)), Recorded("pooled", (3,))
    return [
        Hint("backbone/conv", norm, weight=0.3, name="conv"),
        Hint("pool", pool, loss=keras.losses.LogCosh(), name="pool"),
    ]


def teacher() -> keras.Model:
    return conv_net(3, seed=2, name="teacher")


def recording(student: keras.Model) -> dict[str, np.ndarray]:
    """The batch with the teacher's outputs and features, which it returns alone."""
    model = teacher()
    features = model.get_layer("backbone")(X, training=False)
    pooled = model.get_layer("pool")(features)
    return {
        student.inputs[0].name: X,
        "said": np.asarray(model.get_layer("head")(pooled)),
        "norm": np.asarray(features),
        "pooled": np.asarray(pooled),
    }


def fitted(*, recorded: bool) -> kd.Distiller:
    student = conv_net(2, seed=1, name="student")
    x = recording(student) if recorded else X
    teaches = kd.teachers.Recorded("said") if recorded else teacher()
    keras.utils.set_random_seed(5)  # for the projectors
    distiller = hinted(student, teaches, *hints(recorded=recorded))
    distiller.fit(x, Y, batch_size=4, shuffle=False, verbose=0)
    return distiller


def test_it_trains_as_the_online_hint_does() -> None:
    online, recorded = (fitted(recorded=recorded) for recorded in (False, True))
    assert list(recorded.projectors) == list(online.projectors) == ["conv", "pool"]
    assert_same_weights(recorded, online, atol=1e-6)
    logs = online.get_metrics_result()
    for name, value in recorded.get_metrics_result().items():
        np.testing.assert_allclose(value, logs[name], rtol=1e-5, err_msg=name)


def test_beside_the_layers_of_a_teacher() -> None:
    """One hint is read from the batch, the other from the teacher that runs."""
    student, live = conv_net(2, seed=1, name="student"), teacher()
    of_both = [
        Hint("pool", Recorded("pooled", (3,)), name="recorded"),
        Hint("pool", "pool", name="live"),
    ]
    x = {**recording(student), live.inputs[0].name: X}
    distiller = hinted(student, live, *of_both)
    for name in ("recorded", "live"):  # The same start for both.
        distiller.projectors[name].set_weights([np.ones((2, 3)), np.zeros(3)])
    logs = distiller.fit(x, Y, batch_size=12, verbose=0).history
    np.testing.assert_allclose(logs["recorded_loss"], logs["live_loss"], rtol=1e-5)


def test_no_model_is_given_a_recorded_hint() -> None:
    """Neither the student nor a teacher that reads whatever there is."""
    seen = []

    def reads_all(x: Any) -> Any:
        seen.extend(x)
        return x["x"][:, :3]

    student = Subclassed()
    student(np.zeros((1, 4)))
    hint = Hint(lambda m: m.hidden, Recorded("said", (5,)), name="hidden")
    distiller = hinted(student, reads_all, hint)
    x = np.zeros((6, 4), "float32")
    distiller.fit({"x": x, "said": np.zeros((6, 5))}, np.zeros(6), verbose=0)
    assert set(seen) == {"x"} and student.hidden.kernel.shape[0] == 4


def test_a_student_that_would_read_it_is_refused() -> None:
    student = conv_net(2)
    key = student.inputs[0].name
    hint = Hint("pool", Recorded(key, (3,)))
    with pytest.raises(ValueError, match="declares recorded hints as inputs"):
        kd.Distiller(student, kd.teachers.Recorded("said"), hints=[hint])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({}, r"doesn't hold the recorded hint 'pooled'.*keys \["),
        ({"pooled": np.zeros((12, 4))}, r"another shape.*\(\w+, 4\), shape=\(3,\)"),
        ({"pooled": np.zeros((12, 1, 3))}, r"another shape.*1, 3\), shape=\(3,\)"),
    ],
    ids=["missing", "width", "rank"],
)
def test_batches_without_it(changed: dict[str, Any], message: str) -> None:
    student = conv_net(2)
    x = recording(student)
    del x["pooled"]
    distiller = hinted(
        student, kd.teachers.Recorded("said"), Hint("pool", Recorded("pooled", (3,)))
    )
    with pytest.raises(ValueError, match=message):
        distiller.fit({**x, **changed}, Y, verbose=0)


def test_shapes_that_no_projector_brings_together() -> None:
    hint = Hint("pool", Recorded("norm", (4, 4, 3)))
    with pytest.raises(ValueError, match=r"hint=Recorded\('norm', shape=\(4, 4, 3\)\)"):
        kd.Distiller(conv_net(2), kd.teachers.Recorded("said"), hints=[hint])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, (3,)), "`key` must be the name of a key.*key=3"),
        (("a", 3), "`shape` must be the shape of one row.*shape=3"),
        (("a", ("b",)), "`shape` must be the shape of one row"),
    ],
    ids=["key", "number", "text"],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Recorded(*arguments)


def test_the_guided_side_is_never_recorded() -> None:
    with pytest.raises(TypeError, match="`guided` must be the name of a layer"):
        Hint(Recorded("a", (3,)), "b", name="h")


def test_files_hold_it(tmp_path: Any) -> None:
    distiller = fitted(recorded=True)
    distiller.save(tmp_path / "distiller.keras")
    again = kd.Distiller.load(
        tmp_path / "distiller.keras", teacher=kd.teachers.Recorded("said")
    )
    student = again.student
    again.fit(recording(student), Y, batch_size=4, verbose=0)
    assert {"conv_loss", "pool_loss"} <= set(again.get_metrics_result())
    compiled = Hint("a", Recorded("b", [None, 3])).get_config()
    assert Hint.from_config(compiled).hint.batch_shape == (None, None, 3)
