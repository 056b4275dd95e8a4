"""A teacher of probabilities and a student of logits, and the other way round."""

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses.binary import SigmoidLoss

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (3.0 * RNG.standard_normal((6, 4)) for _ in range(2))
LABELS = np.array([0, 1, 2, 3, 0, 1])


def decoupled(**kwargs: Any) -> Any:
    return losses.DecoupledKD(2.0, **kwargs).with_labels(LABELS)


def standardized(**kwargs: Any) -> Any:
    return losses.Standardized(losses.ForwardKL(2.0, **kwargs))


MAKERS: dict[str, Callable[..., Any]] = {
    "SoftTargets": losses.SoftTargets,
    "ForwardKL": losses.ForwardKL,
    "ReverseKL": losses.ReverseKL,
    "GeneralizedJSD": losses.GeneralizedJSD,
    "Jeffreys": losses.Jeffreys,
    "TotalVariation": losses.TotalVariation,
    "DIST": losses.DIST,
    "DecoupledKD": decoupled,
    "Standardized": standardized,
    "BinarySoftTargets": losses.BinarySoftTargets,
    "ListwiseSoftTargets": losses.ListwiseSoftTargets,
    "PairwiseSoftTargets": losses.PairwiseSoftTargets,
    "CalibratedListwise": losses.CalibratedListwise,
}


def test_every_loss_of_logits_is_tried() -> None:
    tempered = {
        name
        for name, found in vars(losses).items()
        if isinstance(found, type) and issubclass(found, losses.TemperedLoss)
    }
    # What these read of a teacher is a record, never logits.
    packed = {name for name in tempered if vars(losses)[name].reads_packed}
    abstract = {"TemperedLoss", "SoftmaxDivergence"}
    untried = sorted(tempered - abstract - packed - set(MAKERS))
    assert not untried, f"add them to MAKERS: {untried}"


@pytest.mark.parametrize("name", MAKERS)
def test_probabilities_of_one_model_alone(name: str) -> None:
    make = MAKERS[name]
    # scores in a list are known up to a shift, and standardised ones up to a factor
    of_units = isinstance(make(), SigmoidLoss)
    activation = ops.sigmoid if of_units else ops.softmax
    expected = float(make()(TEACHER, STUDENT))
    mixed = make(teacher_from_logits=False)(activation(TEACHER), STUDENT)
    np.testing.assert_allclose(mixed, expected, rtol=2e-5)
    other = make(from_logits=False, teacher_from_logits=True)
    np.testing.assert_allclose(other(TEACHER, activation(STUDENT)), expected, rtol=2e-5)
    if name != "Standardized":
        config = json.loads(json.dumps(other.get_config()))
        assert (config["from_logits"], config["teacher_from_logits"]) == (False, True)
        copy = type(other).from_config(config)
        assert copy.takes_logits("teacher") and not copy.takes_logits("student")


def test_in_a_distiller_and_its_file(tmp_path: Any) -> None:
    def model(activation: str | None) -> keras.Model:
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, activation=activation)]
        )

    x, found = STUDENT.astype("float32"), []
    for activation in (None, "softmax"):
        loss = losses.ForwardKL(2.0, teacher_from_logits=activation is None)
        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        student.set_weights([weight[:] * 0.5 for weight in model(None).get_weights()])
        distiller = kd.Distiller(student, model(activation))
        distiller.compile("sgd", distillation_loss=loss, alpha=1.0)
        found.append(distiller.train_on_batch(x, return_dict=True)["loss"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert found[0] > 1e-3
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.Distiller.load(tmp_path / "distiller.keras", model("softmax"))
    again = loaded.train_on_batch(x, return_dict=True)["loss"]
    assert again == distiller.train_on_batch(x, return_dict=True)["loss"]


def test_probabilities_of_the_teacher_alone_are_checked() -> None:
    loss = losses.BinarySoftTargets(teacher_from_logits=False)
    with pytest.raises(ValueError, match="told `teacher_from_logits=False`.* to 2.0"):
        loss([[2.0]], [[0.5]])


def test_the_warning_names_the_argument() -> None:
    with pytest.warns(match="teacher's .* `teacher_from_logits=False`, or for both"):
        losses.ForwardKL()(ops.softmax(TEACHER), STUDENT)
