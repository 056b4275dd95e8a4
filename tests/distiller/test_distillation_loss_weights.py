"""`compile(distillation_loss_weights=...)`: a weight for each output's loss."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data()
SIZES = np.random.default_rng(5).normal(size=(24, 2)).astype("float32")


def heads(seed: int, structure: type = dict) -> keras.Model:
    """A class head and a regression head."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    kind = layers.Dense(CLASSES, name="kind")(inputs)
    size = layers.Dense(2, name="size")(inputs)
    return keras.Model(inputs, per_head(structure, kind, size))


def per_head(structure: type, kind: Any, size: Any) -> Any:
    if structure is dict:
        return {"kind": kind, "size": size}
    return structure((kind, size))


def compiled(structure: type = dict, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(heads(0, structure), heads(1, structure))
    given: dict[str, Any] = {
        "loss": per_head(structure, crossentropy(), "mse"),
        "distillation_loss": per_head(structure, kd.losses.ForwardKL(), "mse"),
        "alpha": 0.25,
    }
    distiller.compile(keras.optimizers.SGD(0.1), **{**given, **kwargs})
    return distiller


def losses_by_hand(distiller: kd.Distiller) -> tuple[np.ndarray, np.ndarray]:
    """The label losses and the distillation losses of both heads, unweighted."""
    (s_kind, s_size), (t_kind, t_size) = (
        [ops.convert_to_numpy(output) for output in keras.tree.flatten(model(X))]
        for model in (distiller.student, distiller.teacher)
    )
    labels = label_loss(Y, s_kind).mean(), ((SIZES - s_size) ** 2).mean()
    soft = forward_kl(t_kind, s_kind).mean(), ((t_size - s_size) ** 2).mean()
    return np.array(labels), np.array(soft)


def step(distiller: kd.Distiller, structure: type = dict) -> dict[str, Any]:
    labels = per_head(structure, Y, SIZES)
    logs: dict[str, Any] = distiller.train_on_batch(X, labels, return_dict=True)
    return logs


@pytest.mark.parametrize(
    "structure, weights, effective",
    [
        (list, [3.0, 0.5], [3.0, 0.5]),
        pytest.param(list, (3.0, 0.5), [3.0, 0.5], marks=pytest.mark.slow("fits")),
        (tuple, [3.0, 0.5], [3.0, 0.5]),
        (list, {"size": 0.5, "kind": 3.0}, [3.0, 0.5]),
        (dict, {"size": 0.5, "kind": 3.0}, [3.0, 0.5]),
        (dict, {"size": 0, "kind": 3}, [3.0, 0.0]),
        (dict, {"size": np.float32(0.5)}, [1.0, 0.5]),
        (list, {"size": 0.5}, [1.0, 0.5]),
        (dict, 2.0, [2.0, 2.0]),
        (dict, None, [1.0, 1.0]),
    ],
    ids=repr,
)
def test_values_by_hand(structure: type, weights: Any, effective: list[float]) -> None:
    distiller = compiled(structure, distillation_loss_weights=weights)
    labels, soft = losses_by_hand(distiller)
    logs = step(distiller, structure)
    soft = (effective * soft).sum()
    np.testing.assert_allclose(logs["student_loss"], labels.sum(), rtol=1e-5)
    np.testing.assert_allclose(logs["distillation_loss"], soft, rtol=1e-5)
    expected = 0.75 * labels.sum() + 0.25 * soft
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_of_one_output_it_is_a_number() -> None:
    logs = []
    for weight in (None, 3.0):
        distiller = kd.Distiller(mlp(0), mlp(1))
        distiller.compile("sgd", crossentropy(), distillation_loss_weights=weight)
        logs.append(distiller.train_on_batch(X, Y, return_dict=True))
    plain, weighted = logs
    np.testing.assert_allclose(
        weighted["distillation_loss"], 3.0 * plain["distillation_loss"], rtol=1e-6
    )
    np.testing.assert_allclose(
        weighted["loss"] - plain["loss"], plain["distillation_loss"], rtol=1e-4
    )


def test_they_train_as_losses_that_are_multiplied() -> None:
    weighted = compiled(distillation_loss_weights={"kind": 3.0, "size": 0.5})
    divergence = kd.losses.ForwardKL()
    multiplied = compiled(
        distillation_loss={
            "kind": lambda t, s: 3.0 * divergence(t, s),
            "size": lambda t, s: 0.5 * ops.mean(ops.square(t - s)),
        }
    )
    for _ in range(3):
        step(weighted)
        step(multiplied)
    assert_same_weights(weighted.student, multiplied.student, atol=1e-6)


def test_loss_weights_act_on_the_labels_only() -> None:
    distiller = compiled(
        loss_weights={"kind": 10.0, "size": 2.0},
        distillation_loss_weights={"kind": 3.0, "size": 0.5},
    )
    labels, soft = losses_by_hand(distiller)
    logs = step(distiller)
    np.testing.assert_allclose(
        logs["student_loss"], ([10.0, 2.0] * labels).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["distillation_loss"], ([3.0, 0.5] * soft).sum(), rtol=1e-5
    )


def test_with_alpha_by_output() -> None:
    distiller = compiled(
        alpha={"kind": 0.25, "size": 0.75},
        distillation_loss_weights={"kind": 3.0, "size": 0.5},
    )
    labels, soft = losses_by_hand(distiller)
    soft = [3.0, 0.5] * soft
    logs = step(distiller)
    np.testing.assert_allclose(logs["distillation_loss"], soft.sum(), rtol=1e-5)
    expected = ([0.75, 0.25] * labels + [0.25, 0.75] * soft).sum()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_outputs_that_are_not_distilled_need_none() -> None:
    for weights in ({"kind": 3.0}, {"kind": 3.0, "size": None}):
        distiller = compiled(
            distillation_loss={"kind": kd.losses.ForwardKL(), "size": None},
            distillation_loss_weights=weights,
        )
        _, soft = losses_by_hand(distiller)
        logs = step(distiller)
        np.testing.assert_allclose(logs["distillation_loss"], 3.0 * soft[0], rtol=1e-5)


@pytest.mark.parametrize(
    "structure, weights",
    [
        (dict, {"kind": 1.0, "weight": 2.0}),
        (list, {"kind": 1.0, "weight": 2.0}),
        (list, [1.0, 2.0, 3.0]),
        (dict, {"kind": "much"}),
    ],
    ids=repr,
)
def test_what_fits_no_output_is_refused(structure: type, weights: Any) -> None:
    with pytest.raises(
        (ValueError, TypeError), match=r"`distillation_loss_weights`.*Received: "
    ):
        step(compiled(structure, distillation_loss_weights=weights), structure)


def test_files_hold_them(tmp_path: Path) -> None:
    weights = {"kind": 3.0, "size": 0.5}
    distiller = compiled(
        distillation_loss_weights=weights,
        distillation_loss={"kind": kd.losses.ForwardKL(), "size": "mse"},
    )
    assert distiller.get_compile_config()["distillation_loss_weights"] == weights
    step(distiller)
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    loaded = kd.Distiller.load(path, teacher=distiller.teacher)
    assert loaded.get_compile_config()["distillation_loss_weights"] == weights
    expected = step(distiller)
    for name, value in step(loaded).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    assert_same_weights(loaded.student, distiller.student)


def test_without_them_the_config_says_so() -> None:
    assert compiled().get_compile_config()["distillation_loss_weights"] is None
