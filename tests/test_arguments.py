"""Arguments under the names of other libraries: the error names their place here."""

import inspect
from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import arguments
from tests.distiller.models import crossentropy, mlp


@pytest.fixture(scope="module")
def distiller() -> kd.Distiller:
    return kd.Distiller(mlp(), mlp(1))


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"temperature": 3.0}, r"losses.ForwardKL\(temperature=3.0\)\)`"),
        ({"T": 3}, r"losses.ForwardKL\(temperature=3\)\)`"),
        ({"alpha": 0.1}, r"`distiller.compile\(alpha=0.1\)`"),
        ({"distillation_loss": "mse"}, r"distiller.compile\(distillation_loss='mse'\)"),
        ({"distillation_losses": []}, r"compile\(distillation_loss=...\)`. .*Hint"),
        (
            {"distillation_loss_weights": [1.0]},
            r"compile\(distillation_loss_weights=...\)`",
        ),
        ({"student_loss_weight": 0.3}, "alpha=1 - student_loss_weight"),
        ({"strategy": None}, "distillation_loss=.*For a `tf.distribute` strategy"),
        ({"feature_losses": []}, "`feature_losses` is `hints=...` here"),
        ({"optimizer": "sgd"}, r"distiller.compile\(optimizer='sgd'\)`"),
        ({"epochs": 3}, r"distiller.fit\(epochs=3\)`"),
        ({"privileged_feature": ["a"]}, "Did you mean `privileged_features`?"),
        ({"qwertyuiop": 1}, "The arguments are .*`hints`.*Received: qwertyuiop=1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_a_distiller(given: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=f"`Distiller` doesn't take .*{place}"):
        kd.Distiller(mlp(), mlp(1), **given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"temperature": 10}, r"`temperature` goes into .*ForwardKL\(temperature=10\)"),
        ({"tau": 4.0}, r"`tau` goes into .*ForwardKL\(temperature=4.0\)"),
        ({"student_loss_fn": crossentropy()}, "is `loss=...` here.*alpha=0.1 is 0.9"),
        ({"distillation_loss_fn": "kl_divergence"}, "is `distillation_loss='kl_div"),
        ({"kd_loss": "mse"}, "`kd_loss` is `distillation_loss='mse'` here"),
        ({"kd_weight": 0.7}, "`kd_weight` is `alpha=0.7` here"),
        ({"lr": 0.1}, r"`lr` is `optimizer=...` here. Pass an optimizer"),
        ({"hints": []}, r"`kd.Distiller\(student, teacher, hints=...\)`"),
        ({"teacher": None}, r"`teacher` goes into `kd.Distiller\(student, teacher\)`"),
        ({"from_logits": True}, r"losses.ForwardKL\(from_logits=True\)\)`"),
        ({"distilation_loss": "mse"}, "Did you mean `distillation_loss`?"),
        ({"batch_size": 8}, r"`distiller.fit\(batch_size=8\)`"),
        ({"strategy": "mse"}, "`strategy` is `distillation_loss=...` here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_compile(distiller: kd.Distiller, given: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=f"`compile` doesn't take .*{place}"):
        distiller.compile("sgd", crossentropy(), **given)


def test_all_of_a_call_are_named(distiller: kd.Distiller) -> None:
    """The call of the keras.io example."""
    with pytest.raises(
        TypeError, match="`loss=.* `distillation_loss=.* temperature=10"
    ):
        distiller.compile(
            optimizer="adam",
            metrics=["accuracy"],
            student_loss_fn=crossentropy(),
            distillation_loss_fn=keras.losses.KLDivergence(),
            alpha=0.1,
            temperature=10,
        )


@pytest.mark.parametrize(
    ("loss", "given", "place"),
    [
        (kd.losses.ForwardKL, {"T": 4.0}, "`T` is `temperature=4.0` here"),
        (kd.losses.DIST, {"tau": 4.0}, "`tau` is `temperature=4.0` here"),
        (kd.losses.BinarySoftTargets, {"temp": 1}, "`temp` is `temperature=1` here"),
        (kd.losses.LogitMSE, {"temperature": 2.0}, r"ForwardKL\(temperature=2.0\)"),
        (kd.losses.CalibratedListwise, {"T": 2.0}, r"ForwardKL\(temperature=2.0\)"),
        (kd.losses.ForwardKL, {"alpha": 0.5}, r"distiller.compile\(alpha=0.5\)"),
        (kd.losses.ForwardKL, {"beta": 0.5}, r"GeneralizedJSD\(beta=0.5\)"),
        (kd.losses.ForwardKL, {"temprature": 2}, "Did you mean `temperature`?"),
        (kd.losses.DecoupledKD, {"logits": True}, "`logits` is `from_logits=True`"),
        (kd.hints.losses.FeatureMSE, {"weigth": 2}, "The arguments are `reduction`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_a_loss(loss: Any, given: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=f"`{loss.__name__}` doesn't .*{place}"):
        loss(**given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"alpha": 0.5}, r"`alpha` goes into `distiller.compile\(alpha=0.5\)`"),
        ({"temperature": 3.0}, r"ForwardKL\(temperature=3.0\)"),
        ({"loss": "mse"}, r"`distiller.compile\(loss='mse'\)`"),
        ({"teacher": None}, r"`kd.Distiller\(student, teacher\)`"),
        ({"epoch": 3}, "Did you mean `epochs`?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_fit(distiller: kd.Distiller, given: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=f"`fit` doesn't take .*{place}"):
        distiller.fit(np.ones((2, 8)), np.ones(2), **given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"temperature": 3.0}, r"ForwardKL\(temperature=3.0\)"),
        ({"layers": "a"}, "The arguments are `guided`, `hint`, `loss`, `projector`"),
        ({"wieght": 3.0}, "Did you mean `weight`?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_a_hint(given: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=f"`Hint` doesn't take .*{place}"):
        kd.hints.Hint("guided", "hint", **given)


def test_what_has_to_be_given_by_name(distiller: kd.Distiller) -> None:
    """Losses after the teacher, and a third loss, are common guesses."""
    calls: dict[str, Any] = {
        "`Distiller` takes `student`, `teacher` by position, and by name `privileged_f"
        "eatures`, .*distillation_loss=.*Received: 3 by position, the last of them"
        r" \['mse'\]": lambda: kd.Distiller(mlp(), mlp(1), ["mse"]),  # type: ignore
        "`compile` takes `optimizer`, `loss` by position, and by name `distillation_l"
        "oss`": lambda: distiller.compile("sgd", "mse", "mse"),  # type: ignore
        "`Hint` takes `guided`, `hint` by position, and by name `loss`, `projector`.*"
        "the last of them 'mse'": lambda: kd.hints.Hint("a", "b", "mse"),  # type: ignore
        "`ForwardKL` takes `temperature` by position, and by name": lambda: (
            kd.losses.ForwardKL(4.0, True)  # type: ignore
        ),
        "`LateStart` takes `steps`, `value` by position": lambda: (
            kd.schedules.LateStart(1, 1.0, "late")  # type: ignore
        ),
    }
    for words, call in calls.items():
        with pytest.raises(TypeError, match=words):
            call()


def test_a_loss_of_a_users_own_is_explained_too() -> None:
    class Shifted(kd.losses.ForwardKL):
        def __init__(self, temperature: float = 1.0, *, shift: float = 0.0) -> None:
            super().__init__(temperature)
            self.shift = shift

    class Open(kd.losses.ForwardKL):
        def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
            super().__init__(temperature, **kwargs)

    with pytest.raises(TypeError, match="by position, and by name all others"):
        Open(2.0, -1)  # type: ignore
    with pytest.raises(TypeError, match="`Shifted` doesn't take `T`. `T` is `temp"):
        Shifted(T=2.0)
    assert Shifted(2.0, shift=1.0).temperature == 2.0
    assert list(inspect.signature(Shifted).parameters) == ["temperature", "shift"]


def test_the_losses_of_keras_distillation(distiller: kd.Distiller) -> None:
    theirs = keras.distillation
    with pytest.raises(TypeError, match=r"Pass `kd.losses.ForwardKL\(temperature=3.0"):
        distiller.compile(distillation_loss=theirs.LogitsDistillation(temperature=3.0))
    with pytest.raises(TypeError, match="hints=.*Received: .*FeatureDistillation"):
        distiller.compile(distillation_loss=theirs.FeatureDistillation())


def test_the_places_are_those_of_the_calls() -> None:
    """The names that an error sends a user to are real."""
    functions = {
        "Distiller": kd.Distiller.__init__,
        "compile": (kd.Distiller.compile, keras.Model.compile),
        "fit": keras.Model.fit,
        "loss": (kd.losses.ForwardKL.__init__, kd.losses.DecoupledKD.__init__),
    }
    for call, (names, _) in arguments._CALLS.items():
        found = functions[call]
        real = {
            name
            for function in (found if isinstance(found, tuple) else (found,))
            for name in arguments.parameters(function)
        }
        assert set(names) - {"log_teacher"} <= real, call
