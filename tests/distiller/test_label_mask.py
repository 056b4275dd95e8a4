"""Batches of which some rows have a label and all have a teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests import slow
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    StepLogs,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
)

X, KIND = data()
RNG = np.random.default_rng(8)
LABELLED = RNG.random(24) < 0.6
WEIGHTS = RNG.random(24).astype("float32")
CLICK = (RNG.random((24, 1)) < 0.5).astype("float32")
BATCH = {"x": X, "labelled": LABELLED}
ALPHA = 0.7


def head(seed: int = 0, units: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    return keras.Model(inputs, layers.Dense(units, name="click")(inputs))


def bce(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **kwargs)


def compiled(
    student: keras.Model | None = None, teacher: Any = None, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(student or head(0), teacher or head(1))
    arguments = {
        "optimizer": keras.optimizers.SGD(0.5),
        "loss": bce(),
        "distillation_loss": kd.losses.BinarySoftTargets(),
        "alpha": ALPHA,
        "label_mask": "labelled",
        "run_eagerly": True,  # tracing would be all that most of these cost
        **kwargs,
    }
    distiller.compile(arguments.pop("optimizer"), arguments.pop("loss"), **arguments)
    return distiller


def step(distiller: kd.Distiller, x: Any = BATCH, y: Any = CLICK, **kw: Any) -> Any:
    return distiller.train_on_batch(x, y, return_dict=True, **kw)


def binary(targets: Any, logits: Any) -> np.ndarray:
    """Cross-entropy of each row."""
    logits = np.asarray(logits, "float64")
    return (np.logaddexp(0.0, logits) - targets * logits).mean(-1)


def sigmoid(logits: Any) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.asarray(logits, "float64")))


# What the loss is.


@pytest.mark.parametrize(
    "mask",
    [LABELLED, LABELLED[:, None], LABELLED.astype("int64"), 5.0 * LABELLED],
    ids=["boolean", "column", "integer", "float"],
)
def test_labels_count_where_there_are_any_and_the_teacher_everywhere(mask: Any) -> None:
    distiller = compiled()
    s, t = head(0)(X).numpy(), head(1)(X).numpy()
    logs = step(distiller, {"x": X, "labelled": mask})
    labels = binary(CLICK, s)[LABELLED].mean()
    soft = binary(sigmoid(t), s).mean()
    np.testing.assert_allclose(logs["student_loss"], labels, rtol=1e-5)
    np.testing.assert_allclose(logs["distillation_loss"], soft, rtol=1e-5)
    total = (1 - ALPHA) * labels + ALPHA * soft
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
    error = (1 - ALPHA) * ((sigmoid(s) - CLICK) * X)[LABELLED].mean(0)
    error += ALPHA * ((sigmoid(s) - sigmoid(t)) * X).mean(0)
    kernel = distiller.student.get_layer("click").kernel
    start = head(0).get_layer("click").kernel
    np.testing.assert_allclose((start - kernel)[:, 0], 0.5 * error, atol=1e-6)


@pytest.mark.parametrize("placeholder", [np.nan, -1.0, 1e30])
def test_what_stands_in_the_place_of_a_label_is_of_no_consequence(
    placeholder: float,
) -> None:
    filled, plain = compiled(), compiled()
    labels = np.where(LABELLED[:, None], CLICK, np.float32(placeholder))
    for _ in range(2):
        assert step(filled, y=labels) == step(plain)
    assert_same_weights(filled.student, plain.student)


def shares(seed: int = 0) -> keras.Model:
    model = head(seed, CLASSES)
    return keras.Model(model.input, layers.Softmax()(model.output))


def relative_error(y: Any, p: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y - p) / y, axis=-1)


@pytest.mark.parametrize("column", slow.but([True], [False, True], "fits"))
@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.F1Score,
        keras.metrics.PearsonCorrelation,
        keras.metrics.R2Score,
        keras.metrics.AUC,
        keras.metrics.CategoricalAccuracy,
        lambda: keras.metrics.MeanMetricWrapper(relative_error, name="relative"),
    ],
    ids=["F1", "Pearson", "R2", "AUC", "accuracy", "a function"],
)
def test_losses_and_metrics_that_some_labels_would_break(
    metric: Callable[[], keras.metrics.Metric], column: bool
) -> None:
    """They see no label but those of labelled rows, and weights of one shape."""
    y = RNG.dirichlet(np.ones(CLASSES), 24).astype("float32")
    if metric is not keras.metrics.F1Score:
        y[~LABELLED] = np.nan
    mask = LABELLED[:, None] if column else LABELLED
    seen = []
    for rows in (slice(None), LABELLED):
        distiller = compiled(
            shares(0),
            shares(1),
            loss=relative_error,
            distillation_loss="mse",
            weighted_metrics=[metric()],
        )
        batch = {"x": X[rows], "labelled": mask[rows]}
        logs = distiller.evaluate(batch, y[rows], return_dict=True, verbose=0)
        seen.append(np.hstack(list(logs.values())))
        assert np.isfinite(step(distiller, batch, y[rows])["loss"])
    np.testing.assert_allclose(*seen, rtol=1e-5)


@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "mean_with_sample_weight"]
)
def test_a_batch_without_any_label_is_taught_by_the_teacher_alone(
    reduction: str,
) -> None:
    distiller, taught = compiled(loss=bce(reduction=reduction)), compiled(alpha=1.0)
    taught.optimizer.learning_rate = 0.5 * ALPHA
    logs = step(
        distiller,
        {"x": X, "labelled": np.zeros(24, bool)},
        np.full((24, 1), np.nan, "float32"),
    )
    step(taught)
    assert logs["student_loss"] == 0.0
    np.testing.assert_allclose(logs["loss"], ALPHA * logs["distillation_loss"], 1e-6)
    assert_same_weights(distiller.student, taught.student, atol=1e-6)


def test_alpha_0_trains_on_the_labelled_rows_alone() -> None:
    distiller, plain = compiled(alpha=0.0, run_eagerly=False), head(0)
    plain.compile(keras.optimizers.SGD(0.5), bce(), run_eagerly=True)
    distiller.fit(BATCH, CLICK, batch_size=8, shuffle=False, verbose=0)
    for start in range(0, 24, 8):
        rows = start + np.flatnonzero(LABELLED[start : start + 8])
        plain.train_on_batch(X[rows], CLICK[rows])
    assert_same_weights(distiller.student, plain, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "reduction", ["sum", "sum_over_batch_size", "mean_with_sample_weight"]
)
def test_masks_act_with_weights_in_every_reduction(
    reduction: str, weighted: bool
) -> None:
    distiller = compiled(loss=bce(reduction=reduction))
    s, t = head(0)(X).numpy(), head(1)(X).numpy()
    logs = step(distiller, sample_weight=WEIGHTS if weighted else None)
    weights = WEIGHTS if weighted else np.ones(24)
    of_labels = (weights * LABELLED).sum()
    divisor = {
        "sum": 1.0,
        "sum_over_batch_size": LABELLED.sum(),
        "mean_with_sample_weight": of_labels,
    }[reduction]
    expected = (weights * binary(CLICK, s))[LABELLED].sum() / divisor
    np.testing.assert_allclose(logs["student_loss"], expected, rtol=1e-5)
    soft = (weights * binary(sigmoid(t), s)).mean()
    np.testing.assert_allclose(logs["distillation_loss"], soft, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_steps_mask_as_eager_ones_do(jit_compile: bool) -> None:
    traced = compiled(run_eagerly=False, jit_compile=jit_compile)
    eager = compiled()
    for distiller in (traced, eager):
        distiller.fit(BATCH, CLICK, batch_size=8, shuffle=False, verbose=0)
    assert_same_weights(traced.student, eager.student, atol=1e-6)


# Labels and outputs of other kinds.


def test_class_labels() -> None:
    labels = np.where(LABELLED, KIND, -1)
    student, teacher = head(0, CLASSES), head(1, CLASSES)
    s, t = student(X).numpy(), teacher(X).numpy()
    distiller = compiled(
        student,
        teacher,
        loss=crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
        weighted_metrics=["accuracy"],
    )
    logs = step(distiller, y=labels)
    np.testing.assert_allclose(
        logs["student_loss"], label_loss(KIND, s)[LABELLED].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s).mean(), rtol=1e-5
    )
    accuracy = (s.argmax(-1) == KIND)[LABELLED].mean()
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)


TOKENS = RNG.integers(1, 9, (24, 5))
TOKENS[::2, 3:] = 0


def tagger(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int64", name="tokens")
    embedded = layers.Embedding(9, 4, "orthogonal", mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(embedded))


def test_sequences_are_masked_by_row_besides_their_padding() -> None:
    student, teacher = tagger(0), tagger(1)
    s, t = (model(TOKENS).numpy() for model in (student, teacher))
    tags, valid = TOKENS % CLASSES, TOKENS != 0
    distiller = compiled(
        student,
        teacher,
        loss=crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
        weighted_metrics=["accuracy"],
    )
    placeholders = np.where(LABELLED[:, None], tags, -1)
    logs = step(distiller, {"tokens": TOKENS, "labelled": LABELLED}, placeholders)
    counted = valid & LABELLED[:, None]
    np.testing.assert_allclose(
        logs["student_loss"], label_loss(tags, s)[counted].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s)[valid].mean(), rtol=1e-5
    )
    accuracy = (s.argmax(-1) == tags)[counted].mean()
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)


NAMES = ("click", "buy")
CLICKED = RNG.random(24) < 0.5
BUY = np.where(CLICKED[:, None], CLICK[::-1], np.nan).astype("float32")


def two_headed(structure: Any, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    outputs = structure(layers.Dense(1, name=name)(inputs) for name in NAMES)
    return keras.Model(inputs, outputs)


def by_name(outputs: Any) -> dict[str, Any]:
    return dict(zip(NAMES, outputs, strict=True))


@pytest.mark.parametrize("structure", [by_name, list])
@pytest.mark.parametrize(
    "masks, click_rows",
    [
        ({"click": "labelled", "buy": "clicked"}, LABELLED),
        ({"click": None, "buy": "clicked"}, np.ones(24, bool)),
    ],
    ids=["a mask each", "one labelled throughout"],
)
@pytest.mark.parametrize("alphas", [None, {"click": 0.2, "buy": 0.9}], ids=str)
def test_each_output_has_a_mask_of_its_own(
    structure: Any, masks: dict[str, Any], click_rows: np.ndarray, alphas: Any
) -> None:
    student, teacher = two_headed(structure, 0), two_headed(structure, 1)
    (s_click, s_buy), (t_click, t_buy) = (
        [np.asarray(o) for o in (out.values() if isinstance(out, dict) else out)]
        for out in (student(X), teacher(X))
    )
    distiller = compiled(
        student,
        teacher,
        loss={"click": bce(), "buy": bce()},
        label_mask=masks,
        alpha=alphas or ALPHA,
        weighted_metrics={
            "click": [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
            "buy": [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
        },
    )
    logs = step(
        distiller,
        {**BATCH, "clicked": CLICKED},
        structure([CLICK, BUY]),
    )
    expected = {
        "click_loss": binary(CLICK, s_click)[click_rows].mean(),
        "buy_loss": binary(BUY, s_buy)[CLICKED].mean(),
        "click_accuracy": ((s_click > 0) == CLICK)[click_rows].mean(),
        "buy_accuracy": ((s_buy > 0) == BUY)[CLICKED].mean(),
    }
    soft = {
        "click": binary(sigmoid(t_click), s_click).mean(),
        "buy": binary(sigmoid(t_buy), s_buy).mean(),
    }
    expected["distillation_loss"] = sum(soft.values())
    expected["student_loss"] = expected["click_loss"] + expected["buy_loss"]
    alphas = alphas or dict.fromkeys(NAMES, ALPHA)
    expected["loss"] = sum(
        (1 - alphas[name]) * expected[f"{name}_loss"] + alphas[name] * soft[name]
        for name in NAMES
    )
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


def test_one_mask_for_all_outputs() -> None:
    distiller = compiled(
        two_headed(by_name, 0),
        two_headed(by_name, 1),
        loss={"click": bce(), "buy": bce()},
    )
    s = two_headed(by_name, 0)(X)
    logs = step(distiller, y={"click": CLICK, "buy": CLICK})
    for name in NAMES:
        np.testing.assert_allclose(
            logs[f"{name}_loss"], binary(CLICK, s[name])[LABELLED].mean(), rtol=1e-5
        )


# Metrics and evaluation.


def metrics() -> list[keras.metrics.Metric]:
    return [
        keras.metrics.BinaryAccuracy("accuracy", threshold=0.0),
        keras.metrics.AUC(name="auc", from_logits=True),
    ]


def measured(rows: np.ndarray) -> dict[str, float]:
    """The metrics of the untrained student on some rows."""
    logits = head(0)(X[rows]).numpy()
    auc = keras.metrics.AUC(from_logits=True)
    auc.update_state(CLICK[rows], logits)
    accuracy = ((logits > 0) == CLICK[rows]).mean()
    return {"accuracy": float(accuracy), "auc": float(auc.result())}


def test_metrics_see_the_labelled_rows_alone() -> None:
    labels = np.where(LABELLED[:, None], CLICK, np.nan)
    distiller = compiled(
        optimizer=keras.optimizers.SGD(0.0), weighted_metrics=metrics()
    )
    history = distiller.fit(
        BATCH, labels, batch_size=10, validation_data=(BATCH, labels), verbose=0
    ).history
    logs = distiller.evaluate(BATCH, labels, batch_size=24, verbose=0, return_dict=True)
    for name, value in measured(LABELLED).items():
        for found in (history[name][0], history[f"val_{name}"][0], logs[name]):
            np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=name)
    loss = binary(CLICK, head(0)(X))[LABELLED].mean()
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)


def test_metrics_are_weighted_too() -> None:
    distiller = compiled(weighted_metrics=metrics()[:1])
    right = (head(0)(X).numpy() > 0) == CLICK
    logs = step(distiller, sample_weight=WEIGHTS)
    weights = WEIGHTS * LABELLED
    expected = (weights * right[:, 0]).sum() / weights.sum()
    np.testing.assert_allclose(logs["accuracy"], expected, rtol=1e-5)


def test_without_the_mask_evaluation_takes_every_row_as_labelled() -> None:
    distiller = compiled(weighted_metrics=metrics())
    everywhere = {**BATCH, "labelled": np.ones(24)}
    found, expected = (
        distiller.evaluate(x, CLICK, verbose=0, return_dict=True)
        for x in ({"x": X}, everywhere)
    )
    assert found == expected
    for name, value in measured(np.ones(24, bool)).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_metrics_that_would_count_rows_without_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`weighted_metrics`.*metrics=\['accuracy'\]"):
        compiled(metrics=["accuracy"])


def test_compiled_again_with_a_mask_earlier_metrics_are_gone() -> None:
    distiller = compiled(label_mask=None, metrics=metrics())
    step(distiller, {"x": X})
    distiller.compile(
        "sgd",
        bce(),
        distillation_loss=kd.losses.BinarySoftTargets(),
        label_mask="labelled",
    )
    assert not {"accuracy", "auc"} & step(distiller).keys()


@pytest.mark.parametrize("batch", [{"x": X}, X], ids=["dict", "array"])
def test_training_needs_the_mask(batch: Any) -> None:
    received = r"\['x'\]" if isinstance(batch, dict) else "None"
    with pytest.raises(ValueError, match=rf"the label mask \['labelled'\].*{received}"):
        step(compiled(), batch)


# Who is shown the mask.


class MeanError(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))


@pytest.mark.parametrize("form", ["alone", "list", "dict"])
@pytest.mark.parametrize(
    "loss, shape",
    [
        (lambda y, p: keras.ops.mean(keras.ops.square(y - p)), r"\(\)"),
        (MeanError(), r"\(\)"),
        ("dice", r"\(\)"),
        (lambda y, p: keras.ops.square(y - p), r"\(24, 3\)"),
    ],
    ids=["function", "class", "name", "value by unit"],
)
def test_losses_without_a_value_for_each_row_are_refused(
    loss: Any, shape: str, form: str
) -> None:
    forms = {"alone": loss, "list": [loss], "dict": {"click": loss}}
    labels = np.eye(3)[KIND]
    masked = compiled(head(units=3), lambda x: x["x"][:, :3], loss=forms[form])
    with pytest.raises(ValueError, match=f"value for each row.*of shape {shape}"):
        masked.train_on_batch(BATCH, labels)


def test_each_of_several_losses_has_a_value_for_each_row() -> None:
    inputs = keras.Input((FEATURES,), name="x")
    heads = {name: layers.Dense(1, name=name)(inputs) for name in ("b", "a")}
    masked = compiled(
        keras.Model(inputs, heads),
        lambda x: {"a": x["x"][:, :1], "b": x["x"][:, :1]},
        loss={"b": "mse", "a": MeanError()},
        label_mask={"b": "labelled", "a": None},
    )
    labels = {"b": CLICK, "a": CLICK}
    masked.train_on_batch(BATCH, labels)
    masked.compile(
        "sgd",
        masked.loss,
        distillation_loss="mse",
        label_mask={"a": "labelled"},
        run_eagerly=True,
    )
    with pytest.raises(
        ValueError, match=r"output \['a'\] must have a value.*MeanError"
    ):
        masked.train_on_batch(BATCH, labels)


@pytest.mark.parametrize("trains", ["teacher", "peers"])
def test_losses_of_teachers_and_peers_have_values_for_each_row(trains: str) -> None:
    if trains == "teacher":
        model: keras.Model = compiled(teacher_loss=MeanError())
    else:
        model = kd.online.MutualLearning([head(0), head(1)])
        model.compile("sgd", MeanError(), label_mask="labelled", run_eagerly=True)
    with pytest.raises(ValueError, match="value for each row.*MeanError"):
        model.train_on_batch(BATCH, CLICK)


def test_a_column_of_values_is_a_value_for_each_row() -> None:
    """Keras brings mask and values together."""
    student = head()
    elementwise = compiled(
        student,
        optimizer=keras.optimizers.SGD(0.0),
        loss=lambda y, p: keras.ops.square(y - p),
    )
    logs = elementwise.train_on_batch(BATCH, CLICK, return_dict=True)
    errors = np.square(CLICK - student(X).numpy())[LABELLED]
    np.testing.assert_allclose(logs["student_loss"], errors.mean(), rtol=1e-6)


def test_a_student_must_not_declare_the_mask() -> None:
    with pytest.raises(ValueError, match=r"declares label masks as inputs: \['x'\]"):
        compiled(label_mask="x")


def test_models_that_declare_nothing_are_not_shown_the_mask() -> None:
    shown = []

    def teacher(x: Any) -> Any:
        shown.append(set(x))
        return tf.zeros((24, CLASSES))

    student = Subclassed()
    distiller = compiled(
        student,
        teacher,
        loss=crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
    )
    step(distiller, y=KIND)
    distiller.evaluate(BATCH, KIND, verbose=0)
    distiller.predict(BATCH, verbose=0)
    assert student.hidden.kernel.shape == (FEATURES, 5)
    assert shown == [{"x"}]


def test_a_teacher_may_declare_the_mask() -> None:
    inputs = {"x": keras.Input((FEATURES,), name="x")}
    inputs["labelled"] = keras.Input((1,), name="labelled")
    seen = layers.Concatenate()(list(inputs.values()))
    teacher = keras.Model(inputs, layers.Dense(1)(seen))
    t = teacher({"x": X, "labelled": LABELLED[:, None].astype("float32")})
    s = head(0)(X).numpy()
    logs = step(compiled(teacher=teacher), {"x": X, "labelled": LABELLED[:, None]})
    np.testing.assert_allclose(
        logs["distillation_loss"], binary(sigmoid(t), s).mean(), rtol=1e-5
    )


def test_masks_may_lie_in_nested_inputs() -> None:
    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((FEATURES,), name="x")
        return keras.Model({"of": {"x": inputs}}, layers.Dense(1)(inputs))

    nested = compiled(build(0), build(1))
    logs = step(nested, {"of": {"x": X, "labelled": LABELLED}})
    expected = binary(CLICK, build(0)({"of": {"x": X}}))[LABELLED].mean()
    np.testing.assert_allclose(logs["student_loss"], expected, rtol=1e-5)


# A teacher that trains.


def test_the_mask_acts_on_the_loss_of_a_teacher_that_trains() -> None:
    teacher = head(1)
    labels = np.where(LABELLED[:, None], CLICK, np.nan)
    t = teacher(X).numpy()
    distiller = compiled(
        teacher=teacher, teacher_loss=bce(), teacher_metrics=metrics()[:1]
    )
    logs = step(distiller, y=labels)
    np.testing.assert_allclose(
        logs["teacher_loss"], binary(CLICK, t)[LABELLED].mean(), rtol=1e-5
    )
    accuracy = ((t > 0) == CLICK)[LABELLED].mean()
    np.testing.assert_allclose(logs["teacher_accuracy"], accuracy, rtol=1e-6)
    gradient = ((sigmoid(t) - CLICK) * X)[LABELLED].mean(0)
    start, kernel = (m.get_layer("click").kernel for m in (head(1), teacher))
    np.testing.assert_allclose((start - kernel)[:, 0], 0.5 * gradient, atol=1e-6)


# Files.


@pytest.mark.parametrize("trains", [False, True])
def test_the_mask_is_kept_in_files(trains: bool, tmp_path: Path) -> None:
    masks = {"click": "labelled", "buy": None}
    distiller = compiled(
        two_headed(by_name, 0),
        two_headed(by_name, 1),
        loss={"click": bce(), "buy": bce()},
        label_mask=masks,
        teacher_loss={"click": bce(), "buy": bce()} if trains else None,
    )
    labels = {"click": CLICK, "buy": CLICK}
    step(distiller, y=labels)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(
        tmp_path / "d.keras", teacher=None if trains else distiller.teacher
    )
    assert loaded.get_compile_config()["label_mask"] == masks
    loaded.run_eagerly = True
    labels["click"] = np.where(LABELLED[:, None], CLICK, np.nan)
    assert step(loaded, y=labels) == step(distiller, y=labels)


# Arguments.


@pytest.mark.parametrize("mask", [5, ["labelled"], {"click": 1}], ids=str)
def test_a_mask_is_the_name_of_an_input(mask: Any) -> None:
    with pytest.raises(TypeError, match="`label_mask` must be the name of an input"):
        compiled(label_mask=mask)


@pytest.mark.parametrize("structure", [by_name, list])
def test_a_misspelt_output_is_not_let_through(structure: Any) -> None:
    distiller = compiled(
        two_headed(structure, 0),
        two_headed(structure, 1),
        loss={"click": bce(), "buy": bce()},
        label_mask={"clik": "labelled", "buy": None},
    )
    with pytest.raises(ValueError, match="`label_mask`.*clik"):
        step(distiller, y=structure([CLICK, CLICK]))


# Labels that a binary cross-entropy can't take.


@pytest.mark.parametrize("value", [2.0, -1.0, np.nan])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_labels_that_are_no_probabilities_stop_training_before_the_update(
    value: float, run_eagerly: bool
) -> None:
    labels = CLICK.copy()
    labels[3] = value
    # which "auto" compiles with XLA where there is a GPU
    distiller = compiled(label_mask=None, run_eagerly=run_eagerly, jit_compile=False)
    shown = "nan" if np.isnan(value) else f"{value:.0f}"
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=rf"(?s)must lie in \[0, 1\].*{shown}"
    ):
        step(distiller, {"x": X}, labels)
    assert_same_weights(distiller.student, head(0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must lie in"):
        distiller.evaluate({"x": X}, labels, verbose=0)


@pytest.mark.parametrize(
    "loss, structure",
    [
        ("binary_crossentropy", None),
        (keras.losses.binary_crossentropy, None),
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), None),
        ({"click": bce(), "buy": "mse"}, by_name),
        ({"click": bce(), "buy": "mse"}, list),
        ([bce(), "mse"], list),
        (bce(), list),
    ],
)
def test_they_are_found_however_the_loss_is_given(loss: Any, structure: Any) -> None:
    labels: Any = CLICK.copy()
    labels[3] = -1.0
    models: Any = None, None
    if structure is not None:
        labels = structure([labels, CLICK])
        models = two_headed(structure, 0), two_headed(structure, 1)
    distiller = compiled(*models, loss=loss, label_mask=None)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must lie in"):
        step(distiller, {"x": X}, labels)


def test_the_teachers_labels_are_looked_at_too() -> None:
    distiller = compiled(label_mask=None, loss="mse", teacher_loss=bce())
    with pytest.raises(tf.errors.InvalidArgumentError, match="must lie in"):
        step(distiller, {"x": X}, CLICK - 1.0)


def test_rows_that_weigh_nothing_may_have_any_label() -> None:
    distiller, masked = compiled(label_mask=None), compiled()
    labels = np.where(LABELLED[:, None], CLICK, -1.0)
    weights = LABELLED * 24 / LABELLED.sum()
    logs = step(distiller, {"x": X}, labels, sample_weight=weights)
    np.testing.assert_allclose(
        logs["student_loss"], step(masked, y=labels)["student_loss"], rtol=1e-5
    )


def test_nan_is_no_label_even_of_a_row_that_weighs_nothing() -> None:
    labels = np.where(LABELLED[:, None], CLICK, np.nan)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)must lie in.*nan"):
        step(compiled(label_mask=None), {"x": X}, labels, sample_weight=1.0 * LABELLED)


def test_labels_of_other_losses_may_lie_anywhere() -> None:
    distiller = compiled(label_mask=None, loss="mse")
    assert np.isfinite(step(distiller, {"x": X}, 5.0 * CLICK - 9.0)["loss"])


def test_probabilities_in_between_are_labels_too() -> None:
    distiller = compiled(label_mask=None)
    labels = RNG.random((24, 1))
    s = head(0)(X).numpy()
    np.testing.assert_allclose(
        step(distiller, {"x": X}, labels)["student_loss"],
        binary(labels, s).mean(),
        rtol=1e-5,
    )


# Outputs, masks and weights of other shapes and dtypes.


def flat_head() -> keras.Model:
    """One number a row, of shape `(batch,)`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,), name="x")
    return keras.Model(inputs, keras.ops.squeeze(layers.Dense(1)(inputs), -1))


@pytest.mark.parametrize("loss", [bce(), "mse"], ids=["bce", "mse"])
def test_outputs_without_a_last_axis_are_rows_too(loss: Any) -> None:
    model = flat_head()
    distiller = compiled(model, lambda x: keras.ops.zeros(24), loss=loss)
    labels, kept = CLICK.ravel(), LABELLED
    output = model(X).numpy()
    expected = (
        np.square(labels - output)[kept].mean()
        if loss == "mse"
        else binary(CLICK, output[:, None])[kept].mean()
    )
    evaluated = distiller.test_on_batch(BATCH, labels, return_dict=True)
    np.testing.assert_allclose(evaluated["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        step(distiller, y=labels)["student_loss"], expected, rtol=1e-5
    )


def test_a_mask_of_counts_weighs_no_more_than_one_of_truths() -> None:
    counts = np.where(CLICK.ravel() == 1, 5, 1) * LABELLED
    results = []
    for mask in (LABELLED, counts):
        metric = kd.metrics.PredictedOverObserved(from_logits=True)
        distiller = compiled(weighted_metrics=[metric])
        evaluated = distiller.test_on_batch(
            {"x": X, "labelled": mask}, CLICK, return_dict=True
        )
        results.append(evaluated["predicted_over_observed"])
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_sample_weights_of_any_dtype_meet_a_mask(dtype: str) -> None:
    weights = RNG.integers(1, 4, (24, 1))
    logs = [
        step(
            compiled(weighted_metrics=["mse"]),
            sample_weight=tf.constant(weights.astype(kind)),
        )
        for kind in (dtype, "float32")
    ]
    for name, value in logs[1].items():
        np.testing.assert_allclose(logs[0][name], value, rtol=1e-3, err_msg=name)


def test_a_mask_where_there_are_no_labels_at_all() -> None:
    distiller = compiled(loss=None, alpha=1.0)
    history = distiller.fit(BATCH, verbose=0).history
    assert np.isfinite(history["distillation_loss"]).all()


def test_a_mask_of_another_shape_is_named() -> None:
    mask = np.ones((24, 2), bool)
    with pytest.raises(ValueError, match=r"'labelled' must be .* shape \(24, 2\)"):
        step(compiled(), {"x": X, "labelled": mask})


def test_an_output_that_a_dict_of_masks_leaves_out_is_labelled() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,), name="x")
    heads = [layers.Dense(1, name=name)(inputs) for name in ("click", "buy")]
    losses = []
    for mask in ({"buy": "labelled"}, {"click": None, "buy": "labelled"}):
        model = keras.Model(inputs, heads)
        distiller = compiled(
            model,
            lambda x: [keras.ops.zeros((24, 1))] * 2,
            loss=[bce(), bce()],
            label_mask=mask,
        )
        logs = distiller.test_on_batch(BATCH, [CLICK, CLICK], return_dict=True)
        losses.append(logs["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("trains", "bad"),
    [
        (False, 2.0),
        (True, np.nan),
        *(
            pytest.param(trains, bad, marks=pytest.mark.slow("XLA"))
            for trains, bad in [
                (True, 2.0),
                (False, -1.0),
                (True, -1.0),
                (False, np.nan),
            ]
        ),
    ],
)
def test_xla_too_stops_at_labels_that_are_none(bad: float, trains: bool) -> None:
    labels = CLICK.copy()
    labels[9] = bad
    distiller = compiled(
        label_mask=None,
        run_eagerly=False,
        jit_compile=True,
        teacher_loss=bce() if trains else None,
    )
    counts = StepLogs(lambda: int(distiller.optimizer.iterations))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"lie in \[0, 1\]"):
        distiller.fit(
            {"x": X}, labels, batch_size=8, shuffle=False, verbose=0, callbacks=[counts]
        )
    assert counts.seen == [1]  # the second of three steps stopped it
    for model in (distiller.student, distiller.teacher):
        assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_labels_may_be_booleans() -> None:
    booleans, floats = (
        step(compiled(), y=labels)["student_loss"] for labels in (CLICK == 1, CLICK)
    )
    assert booleans == floats
