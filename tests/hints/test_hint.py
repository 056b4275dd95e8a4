"""What a hint is made of, and what is said where it can't be one."""

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.hints import Hint
from tests.distiller.models import FEATURES, Subclassed, crossentropy, data, mlp
from tests.hints.models import Nested, conv_net, hinted, images


def test_arguments_are_attributes() -> None:
    hint = Hint("a", "b/c", loss="mae", projector=None, weight=2.0)
    assert (hint.guided, hint.hint, hint.loss, hint.projector) == (
        "a",
        "b/c",
        "mae",
        None,
    )
    assert hint.weight == 2.0 and hint.name == "a_hint"


@pytest.mark.parametrize(
    "guided, name",
    [
        ("backbone/conv", "backbone_conv_hint"),
        (lambda model: model.layers[0], "layer_hint"),
        (conv_net, "conv_net_hint"),
    ],
    ids=["path", "lambda", "function"],
)
def test_it_is_named_after_the_guided_layer(guided: Any, name: str) -> None:
    assert Hint(guided, "b").name == name


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("a", 3), TypeError, "`hint` must be the name of a layer, or a function"),
        ((layers.Dense(2), "b"), TypeError, "`guided` must be the name of a layer"),
        (("a", "b", {"projector": "dense"}), TypeError, '"auto", None or a Keras'),
        (("a", "b", {"weight": -1.0}), ValueError, "finite and not negative"),
        (("a", "b", {"weight": "much"}), TypeError, "must be a float or a"),
        (("a", "b", {"loss": None}), TypeError, "`loss` must be a loss"),
    ],
    ids=["hint", "a layer", "projector", "weight", "text", "no loss"],
)
def test_bad_arguments(arguments: Any, error: Any, message: str) -> None:
    *positional, options = arguments if len(arguments) == 3 else (*arguments, {})
    with pytest.raises(error, match=message):
        Hint(*positional, **options)


def test_round_trip() -> None:
    hint = Hint(
        "a",
        "b",
        loss=keras.losses.LogCosh(),
        projector=layers.Dense(3, name="to_b"),
        weight=kd.schedules.LinearWarmup(5),
        name="first",
    )
    again = Hint.from_config(hint.get_config())
    assert again.get_config() == hint.get_config()
    assert again.projector.units == 3 and again.weight.steps == 5


def test_what_is_no_hint() -> None:
    with pytest.raises(TypeError, match="must hold `keras_distill.hints.Hint`s"):
        kd.Distiller(mlp(), mlp(), hints=["dense"])


def test_names_are_taken_once() -> None:
    hints = [Hint("head", "head"), Hint("head", "pool")]
    with pytest.raises(ValueError, match=r"Hint\(..., name=...\).*'head_hint' is tak"):
        kd.Distiller(conv_net(2), conv_net(2), hints=hints)
    with pytest.raises(ValueError, match="'student' is taken"):
        kd.Distiller(
            conv_net(2), conv_net(2), hints=[Hint("head", "head", name="student")]
        )


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError) as error:
        kd.Distiller(conv_net(2), conv_net(3), hints=[Hint("backbone/cnv", "pool")])
    text = str(error.value)
    assert "must hold one layer 'backbone/cnv'" in text
    assert "Layers of the student: backbone/conv (None, 4, 4, 2)" in text  # the nearest
    assert "pool (None, 2)" in text
    with pytest.raises(ValueError, match="The teacher .* one layer 'conv'"):
        kd.Distiller(conv_net(2), conv_net(3), hints=[Hint("pool", "conv")])


def test_shapes_that_do_not_fit_are_told_with_all_layers() -> None:
    with pytest.raises(ValueError) as error:
        kd.Distiller(
            conv_net(2, name="s"),
            conv_net(3, name="t"),
            hints=[Hint("backbone/conv", "pool")],
        )
    text = str(error.value)
    assert "guided='backbone/conv' of shape (None, 4, 4, 2)" in text
    assert "hint='pool' of shape (None, 3)" in text
    assert "Layers of the student: " in text and "Layers of the teacher: " in text
    with pytest.raises(ValueError, match=r"projected to \(None, 4\)"):
        kd.Distiller(
            conv_net(2),
            conv_net(3),
            hints=[Hint("pool", "pool", projector=layers.Dense(4))],
        )
    with pytest.raises(ValueError, match="The features of both layers must have the"):
        kd.Distiller(
            conv_net(2), conv_net(3), hints=[Hint("pool", "pool", projector=None)]
        )


def test_a_function_that_returns_no_layer_of_the_model() -> None:
    with pytest.raises(TypeError, match="must return a `keras.Layer`. Received: None"):
        kd.Distiller(mlp(), mlp(), hints=[Hint(lambda model: None, "dense")])
    stranger = layers.Dense(2, name="stranger")
    with pytest.raises(ValueError, match="layer 'stranger', which isn't"):
        kd.Distiller(mlp(), mlp(), hints=[Hint(lambda model: stranger, "dense")])


@pytest.mark.parametrize("teacher", [lambda x: x, kd.teachers.Recorded("said")])
def test_a_teacher_without_layers(teacher: Any) -> None:
    with pytest.raises(TypeError, match="Hints need a teacher with layers"):
        kd.Distiller(conv_net(2), teacher, hints=[Hint("pool", "pool")])


def test_a_student_that_has_not_been_called() -> None:
    with pytest.raises(ValueError, match="Call the model on a batch before"):
        kd.Distiller(
            Subclassed(), mlp(), hints=[Hint(lambda model: model.hidden, "dense")]
        )


def test_a_layer_with_several_outputs() -> None:
    inputs = keras.Input((3, 2))
    out, *_ = layers.LSTM(2, return_state=True, name="memory")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(out))
    with pytest.raises(ValueError, match="a layer with one output. Received: the stu"):
        copy = keras.models.clone_model(model)
        kd.Distiller(model, copy, hints=[Hint("memory", "memory")])


def test_layers_that_run_twice_or_in_a_loop_are_refused() -> None:
    twice = layers.Dense(FEATURES, name="twice")
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, layers.Dense(3)(twice(twice(inputs))))
    copy = keras.models.clone_model(model)
    distiller = hinted(model, copy, Hint("twice", "twice", name="h"))
    with pytest.raises(ValueError, match="runs once .* which ran 2 times"):
        distiller.fit(*data(), verbose=0)

    cell = layers.SimpleRNNCell(4, name="cell")
    recurrent = keras.Sequential(
        [keras.Input((5, 2)), layers.RNN(cell), layers.Dense(3, name="head")]
    )
    with pytest.raises(ValueError, match="'cell' puts out isn't known.*layer around"):
        copy = keras.models.clone_model(recurrent)
        kd.Distiller(recurrent, copy, hints=[Hint(lambda model: cell, "head")])
    timed = keras.Sequential(
        [
            keras.Input((5, 2)),
            layers.TimeDistributed(layers.Dense(4, name="inner")),
            layers.RNN(layers.SimpleRNNCell(3)),
        ]
    )
    inner = Hint(lambda m: m.layers[0].layer, lambda m: m.layers[0].layer)
    distiller = hinted(timed, keras.models.clone_model(timed), inner)
    x = np.zeros((6, 5, 2), "float32")
    with pytest.raises(ValueError, match="runs inside a loop|runs once"):
        distiller.fit(x, np.zeros(6), verbose=0)


def test_nested_subclassed_layers_by_functions() -> None:
    x, y = data()
    student, teacher = Nested(2), Nested(5)
    student(x), teacher(x)
    distiller = hinted(
        student,
        teacher,
        Hint(lambda m: m.block.dense, lambda m: m.block.dense, name="inner"),
        Hint(lambda m: m.block, lambda m: m.block, name="outer"),
    )
    history = distiller.fit(x, y, verbose=0).history
    assert {"inner_loss", "outer_loss"} <= set(history)
    assert {p.kernel.shape for p in distiller.projectors.values()} == {(2, 5)}


def test_the_teacher_may_come_later() -> None:
    distiller = kd.Distiller(conv_net(2), hints=[Hint("pool", "pool")])
    assert distiller.projectors == {}
    distiller.teacher = conv_net(3)
    assert list(distiller.projectors) == ["pool_hint"]
    distiller.compile("sgd", crossentropy())
    distiller.fit(*images(), verbose=0)
    distiller.teacher = conv_net(3, seed=4)  # its projector goes on
    with pytest.raises(ValueError, match=re.escape("projected to (None, 3)")):
        distiller.teacher = conv_net(4)
