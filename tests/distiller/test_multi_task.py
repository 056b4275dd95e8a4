"""Several tasks: a weight of the teacher for each output, and rankings of a list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    StepLogs,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
)

X, KIND = data()
RNG = np.random.default_rng(9)
SIZE = RNG.normal(size=(24, 2)).astype("float32")
NAMES = ("kind", "size")
LABELS = {"kind": KIND, "size": SIZE}
LOSS_WEIGHTS = {"kind": 0.3, "size": 2.0}
ALPHAS = {"kind": 0.25, "size": 0.6}
# weights of rows, 0 where a task doesn't apply
TASKS = {name: RNG.integers(0, 3, 24).astype("float32") for name in NAMES}


def as_dict(outputs: Any) -> Any:
    return dict(zip(NAMES, outputs, strict=True))


STRUCTURES: list[Any] = [as_dict, list]


def heads(structure: Any = as_dict, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    units = {"kind": CLASSES, "size": 2}
    outputs = [layers.Dense(units[name], name=name)(inputs) for name in NAMES]
    return keras.Model(inputs, structure(outputs))


def compiled(structure: Any = as_dict, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(heads(structure, 0), heads(structure, 1))
    arguments = {
        "optimizer": keras.optimizers.SGD(0.2),
        "loss": {"kind": crossentropy(), "size": "mse"},
        "distillation_loss": {"kind": kd.losses.ForwardKL(), "size": "mse"},
        "alpha": ALPHAS,
        "run_eagerly": True,  # tracing would be all that most of these cost
        **kwargs,
    }
    distiller.compile(arguments.pop("optimizer"), arguments.pop("loss"), **arguments)
    return distiller


def step(distiller: kd.Distiller, y: Any = None, **kwargs: Any) -> dict[str, Any]:
    y = LABELS if y is None else y
    logs: dict[str, Any] = distiller.train_on_batch(X, y, return_dict=True, **kwargs)
    return logs


def square(t: Any, s: Any) -> np.ndarray:
    return np.square(np.asarray(t) - np.asarray(s)).mean(-1)


def per_row() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Label and distillation losses of the untrained student, by output."""
    s, t = heads(seed=0)(X), heads(seed=1)(X)
    labels = {"kind": label_loss(KIND, s["kind"]), "size": square(SIZE, s["size"])}
    soft = {
        "kind": forward_kl(t["kind"], s["kind"]),
        "size": square(t["size"], s["size"]),
    }
    return labels, soft


def total(
    alphas: dict[str, float],
    loss_weights: dict[str, float] | None = None,
    rows: dict[str, np.ndarray] | None = None,
) -> float:
    """`sum(w * (1 - alpha) * label_loss + alpha * distillation_loss)`."""
    labels, soft = per_row()
    loss = 0.0
    for name in NAMES:
        weight = 1.0 if loss_weights is None else loss_weights[name]
        of_rows = np.ones(24) if rows is None else rows[name]
        alpha = alphas.get(name, 0.0)
        loss += weight * (1 - alpha) * (of_rows * labels[name]).mean()
        if name in alphas:
            loss += alpha * (of_rows * soft[name]).mean()
    return loss


# What the loss is.


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "loss_weights", [None, LOSS_WEIGHTS], ids=["plain", "weighted"]
)
def test_each_output_has_an_alpha_and_loss_weights_act_on_labels(
    structure: Any, loss_weights: Any
) -> None:
    logs = step(compiled(structure, loss_weights=loss_weights))
    np.testing.assert_allclose(logs["loss"], total(ALPHAS, loss_weights), rtol=1e-5)
    labels, soft = per_row()
    weights = loss_weights or dict.fromkeys(NAMES, 1.0)
    expected = {
        "kind_loss": labels["kind"].mean(),
        "size_loss": labels["size"].mean(),
        "student_loss": sum(weights[name] * labels[name].mean() for name in NAMES),
        "distillation_loss": sum(soft[name].mean() for name in NAMES),
        "kind_alpha": 0.25,
        "size_alpha": 0.6,
    }
    assert logs.keys() == {"loss", *expected}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


def test_a_step_follows_the_gradient_of_the_weighted_sum() -> None:
    distiller = compiled(loss_weights=LOSS_WEIGHTS, run_eagerly=False)
    student, t = heads(seed=0), heads(seed=1)(X)
    with tf.GradientTape() as tape:
        s = student(X)
        loss = 0.3 * 0.75 * crossentropy()(KIND, s["kind"])
        loss += 0.25 * kd.losses.ForwardKL()(t["kind"], s["kind"])
        mse = keras.losses.MeanSquaredError()
        loss += 2.0 * 0.4 * mse(SIZE, s["size"]) + 0.6 * mse(t["size"], s["size"])
    weights = [weight.value for weight in student.trainable_weights]
    gradients = tape.gradient(loss, weights)
    step(distiller)
    for weight, start, gradient in zip(
        distiller.student.trainable_weights, weights, gradients, strict=True
    ):
        np.testing.assert_allclose(weight, start - 0.2 * gradient, atol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_loss_weight_for_each_output_may_be_listed(structure: Any) -> None:
    for alpha in (0.4, {"size": 0.4, "kind": 0.4}):
        distiller = compiled(structure, loss_weights=[0.3, 2.0], alpha=alpha)
        expected = total(dict.fromkeys(NAMES, 0.4), LOSS_WEIGHTS)
        np.testing.assert_allclose(step(distiller)["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_labels_may_be_listed_or_named(structure: Any) -> None:
    for labels in (LABELS, list(LABELS.values())):
        logs = step(compiled(structure, loss_weights=LOSS_WEIGHTS), labels)
        np.testing.assert_allclose(logs["loss"], total(ALPHAS, LOSS_WEIGHTS), 1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tasks_that_dont_apply_to_a_row_weigh_nothing_in_both_losses(
    structure: Any,
) -> None:
    distiller = compiled(structure, loss_weights=LOSS_WEIGHTS)
    weights = structure(TASKS.values())
    logs = step(distiller, structure(LABELS.values()), sample_weight=weights)
    np.testing.assert_allclose(
        logs["loss"], total(ALPHAS, LOSS_WEIGHTS, TASKS), rtol=1e-5
    )
    _, soft = per_row()
    of_teacher = sum((TASKS[name] * soft[name]).mean() for name in NAMES)
    np.testing.assert_allclose(logs["distillation_loss"], of_teacher, rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_outputs_that_arent_distilled_have_no_alpha(structure: Any) -> None:
    distiller = compiled(
        structure,
        distillation_loss={"kind": kd.losses.ForwardKL(), "size": None},
        alpha={"kind": 0.25},
        loss_weights=LOSS_WEIGHTS,
    )
    logs = step(distiller)
    np.testing.assert_allclose(
        logs["loss"], total({"kind": 0.25}, LOSS_WEIGHTS), rtol=1e-5
    )
    assert "size_alpha" not in logs


def test_an_output_may_be_taught_by_the_teacher_alone() -> None:
    distiller = compiled(loss={"kind": crossentropy(), "size": None})
    logs = step(distiller)
    labels, soft = per_row()
    expected = 0.75 * labels["kind"].mean()
    expected += 0.25 * soft["kind"].mean() + 0.6 * soft["size"].mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def squared(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("name", ["binary_crossentropy", "mse", squared])
def test_labels_without_a_last_axis_are_matched_as_keras_matches_them(
    name: Any,
) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    outputs = {n: layers.Dense(1, "sigmoid")(inputs) for n in NAMES}
    student = keras.Model(inputs, outputs)
    teacher = keras.models.clone_model(student)
    labels = {n: RNG.integers(0, 2, 24).astype("float32") for n in NAMES}
    logs = []
    for alpha in (0.5, {"kind": 0.5, "size": 0.5}):
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.0),
            {"kind": name, "size": name},
            distillation_loss="mse",
            alpha=alpha,
            run_eagerly=True,
        )
        logs.append(step(distiller, labels))
    np.testing.assert_allclose(logs[1]["loss"], logs[0]["loss"], rtol=1e-6)


def test_the_same_alpha_for_all_is_one_alpha() -> None:
    one, each = compiled(alpha=0.4), compiled(alpha=dict.fromkeys(NAMES, 0.4))
    for distiller in (one, each):
        distiller.fit(X, LABELS, batch_size=8, shuffle=False, verbose=0)
    assert_same_weights(each.student, one.student, atol=1e-6)


def test_alphas_of_0_are_plain_training_to_the_last_bit() -> None:
    plain, distiller = (
        heads(),
        compiled(alpha=dict.fromkeys(NAMES, 0.0), run_eagerly=False),
    )
    plain.compile(keras.optimizers.SGD(0.2), {"kind": crossentropy(), "size": "mse"})
    histories = [
        model.fit(X, LABELS, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        for model in (plain, distiller)
    ]
    assert_same_weights(distiller.student, plain)
    for name, values in histories[0].items():
        assert histories[1][name] == values, name


def test_a_single_output_may_have_its_alpha_by_name() -> None:
    logs = []
    for alpha in (0.3, {"kind": 0.3}):
        models = []
        for seed in (0, 1):
            keras.utils.set_random_seed(seed)
            inputs = keras.Input((FEATURES,))
            models.append(keras.Model(inputs, layers.Dense(3, name="kind")(inputs)))
        distiller = kd.Distiller(*models)
        distiller.compile("sgd", crossentropy(), alpha=alpha, run_eagerly=True)
        logs.append(step(distiller, KIND))
    assert logs[0]["loss"] == logs[1]["loss"]
    assert logs[0]["alpha"] == logs[1]["kind_alpha"]


def test_without_labels_every_alpha_is_1() -> None:
    distiller = compiled(loss=None, alpha=dict.fromkeys(NAMES, 1.0))
    _, soft = per_row()
    logs = distiller.train_on_batch(X, return_dict=True)
    expected = sum(soft[name].mean() for name in NAMES)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="`alpha` must be 1.*'size': 0.5"):
        compiled(loss=None, alpha={"kind": 1.0, "size": 0.5})


# Alphas that change.


def test_schedules_and_floats_may_stand_side_by_side() -> None:
    alphas = {"kind": kd.schedules.LateStart(2, value=0.5), "size": 0.6}
    distiller = compiled(alpha=alphas, optimizer=keras.optimizers.SGD(0.0))
    log = StepLogs(distiller.get_metrics_result)
    distiller.fit(
        X, LABELS, batch_size=24, epochs=3, shuffle=False, verbose=0, callbacks=[log]
    )
    for logs, kind in zip(log.seen, (0.0, 0.0, 0.5), strict=True):
        expected = total({"kind": kind, "size": 0.6})
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(logs["kind_alpha"], kind)
        np.testing.assert_allclose(logs["size_alpha"], 0.6)


class Assign(keras.callbacks.Callback):
    """Assigns alphas at the second epoch."""

    def __init__(self, alphas: dict[str, Any]) -> None:
        super().__init__()
        self.alphas = alphas

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.alpha = self.alphas


def test_a_callback_may_assign_the_dict_in_a_compiled_step() -> None:
    distiller = compiled(optimizer=keras.optimizers.SGD(0.0), run_eagerly=False)
    alphas = {"kind": 1.0, "size": 0.0}
    history = distiller.fit(
        X, LABELS, batch_size=24, epochs=2, verbose=0, callbacks=[Assign(alphas)]
    ).history
    expected = [total(ALPHAS), total(alphas)]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(history["kind_alpha"], [0.25, 1.0])
    np.testing.assert_allclose(history["size_alpha"], [0.6, 0.0], rtol=1e-6)
    assert distiller.alpha == alphas


def test_a_schedule_in_the_dict_may_only_stay_in_its_place() -> None:
    schedule = kd.schedules.LateStart(2, value=0.5)
    distiller = compiled(alpha={"kind": schedule, "size": 0.6})
    distiller.alpha = {**distiller.alpha, "size": 0.1}
    assert distiller.alpha == {"kind": schedule, "size": 0.1}
    with pytest.raises(TypeError, match="`kind_alpha` can be assigned only"):
        distiller.alpha = {"kind": 0.5, "size": 0.1}


@pytest.mark.parametrize("alpha", [0.5, {"kind": 0.5}, {**ALPHAS, "sise": 0.1}])
def test_a_dict_is_assigned_whole(alpha: Any) -> None:
    distiller = compiled()
    with pytest.raises(ValueError, match=r"same outputs.*\['kind', 'size'\].*Received"):
        distiller.alpha = alpha
    assert distiller.alpha == ALPHAS


# Files and errors.


def test_alphas_are_kept_in_files(tmp_path: Path) -> None:
    alphas = {"kind": kd.schedules.LinearWarmup(5, value=0.5), "size": 0.6}
    distiller = compiled(alpha=alphas, loss_weights=LOSS_WEIGHTS)
    step(distiller)
    distiller.alpha = {**distiller.alpha, "size": 0.125}
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", distiller.teacher)
    assert loaded.get_compile_config() == distiller.get_compile_config()
    assert loaded.alpha["size"] == 0.125
    loaded.run_eagerly = True
    assert step(loaded) == step(distiller)


@pytest.mark.parametrize(
    "structure, alpha, message",
    [
        (as_dict, {**ALPHAS, "sise": 0.1}, r"each output that is distilled.*sise"),
        (list, {**ALPHAS, "sise": 0.1}, r"names of the student's outputs.*sise"),
        (as_dict, {"kind": 0.5}, "each output that is distilled.*'kind': 0.5"),
        (list, {"kind": 0.5}, "each output that is distilled.*'kind': 0.5"),
    ],
)
def test_alphas_match_the_outputs(structure: Any, alpha: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(compiled(structure, alpha=alpha))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_output_that_isnt_distilled_cant_have_an_alpha(structure: Any) -> None:
    losses = {"kind": kd.losses.ForwardKL(), "size": None}
    with pytest.raises(ValueError, match=r"no other.*'size': 0.6.*\['kind'\]|\[0\]"):
        step(compiled(structure, distillation_loss=losses))


@pytest.mark.parametrize(
    "alpha, error, message",
    [
        ([0.5, 0.5], TypeError, r"`alpha` must be a float.*\[0.5, 0.5\]"),
        ({"kind": 0.5, "size": None}, TypeError, "`size_alpha` must be a float.*None"),
        ({"kind": 0.5, "size": 1.5}, ValueError, r"`size_alpha`.*in \[0, 1\].*1.5"),
    ],
)
def test_each_alpha_is_a_weight(alpha: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        compiled(alpha=alpha)


# Rankings: losses that read lists from the batch.


def ranker(seed: int, items: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    return keras.Model(inputs, layers.Dense(items)(inputs))


def ranked(loss: Any, items: int = 1, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(ranker(0, items), ranker(1, items))
    distiller.compile(
        keras.optimizers.SGD(0.2),
        keras.losses.BinaryCrossentropy(from_logits=True),
        distillation_loss=loss,
        **kwargs,
    )
    return distiller


SESSION = RNG.integers(0, 6, 24)
IS_ITEM = RNG.random((24, 5)) < 0.7
IS_ITEM[0] = False
BOUGHT = (RNG.random((24, 5)) < 0.3).astype("float32")


def pairwise(t: np.ndarray, s: np.ndarray) -> float:
    """By the definition: the mean over sessions of the mean over their pairs."""
    means = []
    for session in np.unique(SESSION):
        rows = np.flatnonzero(SESSION == session)
        values = [
            np.logaddexp(0.0, s[i] - s[j]) - (s[i] - s[j]) / (1 + np.exp(t[j] - t[i]))
            for i in rows
            for j in rows
            if t[i] > t[j]
        ]
        if values:
            means.append(np.mean(values))
    return float(np.mean(means))


def listwise(t: np.ndarray, s: np.ndarray) -> float:
    """By the definition, over the lists of two items or more."""
    values = []
    for t_row, s_row, valid in zip(t, s, IS_ITEM, strict=True):
        if valid.sum() >= 2:
            p, q = (
                np.exp(row[valid]) / np.exp(row[valid]).sum() for row in (t_row, s_row)
            )
            values.append(-(p * np.log(q)).sum())
    return float(np.mean(values))


RANKINGS: dict[str, tuple[Any, int, str, np.ndarray, Callable[..., float]]] = {
    "groups": (
        kd.losses.PairwiseSoftTargets(group="session"),
        1,
        "session",
        SESSION,
        pairwise,
    ),
    "lists": (
        kd.losses.ListwiseSoftTargets(mask="is_item"),
        5,
        "is_item",
        IS_ITEM,
        listwise,
    ),
}


@pytest.mark.parametrize("case", RANKINGS)
@pytest.mark.parametrize("trains", [False, True])
def test_ranking_losses_read_their_lists_from_the_batch(
    case: str, trains: bool
) -> None:
    loss, items, key, lists, by_hand = RANKINGS[case]
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    distiller = ranked(loss, items, alpha=0.4, teacher_loss=bce if trains else None)
    s, t = (np.asarray(ranker(seed, items)(X), "float64") for seed in (0, 1))
    y = BOUGHT[:, :items]
    logs = distiller.train_on_batch({"x": X, key: lists}, y, return_dict=True)
    expected = by_hand(*(x[:, 0] if items == 1 else x for x in (t, s)))
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-5)
    labels = (np.logaddexp(0.0, s) - y * s).mean()
    np.testing.assert_allclose(logs["loss"], 0.6 * labels + 0.4 * expected, rtol=1e-5)


def test_a_ranking_and_a_click_loss_may_teach_two_outputs() -> None:
    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((FEATURES,), name="x")
        heads = {name: layers.Dense(1, name=name)(inputs) for name in ("click", "rank")}
        return keras.Model(inputs, heads)

    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    distiller = kd.Distiller(build(0), build(1))
    distiller.compile(
        "sgd",
        {"click": bce, "rank": None},
        distillation_loss={
            "click": kd.losses.BinarySoftTargets(),
            "rank": kd.losses.PairwiseSoftTargets(group="session"),
        },
        alpha={"click": 0.3, "rank": 0.5},
    )
    s, t = build(0)(X), build(1)(X)
    y = BOUGHT[:, :1]
    logs = distiller.train_on_batch(
        {"x": X, "session": SESSION}, {"click": y, "rank": y}, return_dict=True
    )
    soft = float(kd.losses.BinarySoftTargets()(t["click"], s["click"]))
    rank = pairwise(*(np.asarray(o["rank"], "float64")[:, 0] for o in (t, s)))
    np.testing.assert_allclose(logs["distillation_loss"], soft + rank, rtol=1e-5)
    expected = 0.7 * float(bce(y, s["click"])) + 0.3 * soft + 0.5 * rank
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [{"x": X}, X], ids=["dict", "array"])
def test_a_batch_without_its_lists_is_refused(batch: Any) -> None:
    distiller = ranked(kd.losses.PairwiseSoftTargets(group="session"), run_eagerly=True)
    with pytest.raises(ValueError, match="group='session', but the batch holds no"):
        distiller.train_on_batch(batch, BOUGHT[:, :1])


def test_ranking_losses_are_kept_in_files(tmp_path: Path) -> None:
    distiller = ranked(kd.losses.PairwiseSoftTargets(2.0, group="session"))
    batch = {"x": X, "session": SESSION}
    distiller.train_on_batch(batch, BOUGHT[:, :1])
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", distiller.teacher)
    logs = [d.train_on_batch(batch, BOUGHT[:, :1]) for d in (loaded, distiller)]
    assert logs[0] == logs[1]
