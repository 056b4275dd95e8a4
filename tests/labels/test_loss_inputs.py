"""Label masks as sample weights: the values are those that Keras computes of a mask."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

from keras_distill.labels import LabelMask

RNG = np.random.default_rng(3)
ROWS, STEPS, CLASSES = 12, 5, 3
LABELLED = RNG.random(ROWS) < 0.6
BY_STEP = RNG.random((ROWS, STEPS)) < 0.6
BY_UNIT = RNG.random((ROWS, CLASSES)) < 0.6
WEIGHTS = RNG.random(ROWS).astype("float32")
REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", None)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def masked(output: Any, mask: Any) -> Any:
    """The output with a mask of Keras' own."""
    output = ops.copy(ops.convert_to_tensor(output))
    set_keras_mask(output, ops.convert_to_tensor(mask))
    return output


def inputs(
    loss: Any,
    label: Any,
    output: Any,
    mask: Any = LABELLED,
    weight: Any = None,
    *,
    keys: Any = "labelled",
    names: Any = None,
) -> Any:
    """The arguments of losses for a batch whose inputs hold a mask."""
    label_mask = LabelMask(keys, output_names=names)
    x = mask if isinstance(mask, dict) else {"labelled": mask}
    label = label_mask.mask_labels(x, label)
    return label_mask.loss_inputs(x, label, output, weight, losses=loss, names=names)


def value(loss: Any, *args: Any) -> np.ndarray:
    """The loss with the mask as weights, as Keras calls it."""
    given = inputs(loss, *args)
    compiled = keras.Sequential()
    compiled.compile(loss=loss)
    return ops.convert_to_numpy(ops.cast(compiled._compile_loss(*given), "float32"))


def expected(loss: Any, label: Any, output: Any, mask: Any, weight: Any) -> np.ndarray:
    """The loss with Keras' own mask."""
    mask = np.broadcast_to(
        mask.reshape(mask.shape + (1,) * (output.ndim - 1 - mask.ndim)),
        output.shape[:-1],
    )
    compiled = keras.Sequential()
    compiled.compile(loss=loss)
    found = compiled._compile_loss(
        ops.convert_to_tensor(label), masked(output, mask), weight
    )
    return ops.convert_to_numpy(ops.cast(found, "float32"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHTS, WEIGHTS[:, None]], ids=np.shape)
def test_every_reduction(reduction: Any, weight: Any) -> None:
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    label, output = normal(2, ROWS, CLASSES)
    np.testing.assert_allclose(
        value(loss, label, output, LABELLED, weight),
        expected(loss, label, output, LABELLED, weight),
        rtol=1e-6,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", [LABELLED, BY_STEP], ids=["rows", "steps"])
@pytest.mark.parametrize("weight", [None, normal(ROWS, STEPS) ** 2], ids=np.shape)
def test_time_steps(reduction: Any, mask: Any, weight: Any) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
    label, output = RNG.integers(0, 3, (ROWS, STEPS)), normal(ROWS, STEPS, CLASSES)
    np.testing.assert_allclose(
        value(loss, label, output, mask, weight),
        expected(loss, label, output, mask, weight),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "MeanSquaredError",
        keras.losses.mean_squared_error,
        functools.partial(keras.losses.huber, delta=0.3),
        lambda y, p: ops.mean(ops.abs(y - p), axis=-1),
        keras.losses.MeanSquaredError(dtype="bfloat16"),
        ["mse"],
    ],
    ids=lambda loss: getattr(loss, "name", type(loss).__name__),
)
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=np.shape)
def test_losses_in_every_form(loss: Any, weight: Any) -> None:
    label, output = normal(2, ROWS, CLASSES)
    found = value(loss, label, output, LABELLED, weight)
    np.testing.assert_allclose(
        found, expected(loss, label, output, LABELLED, weight), rtol=1e-6
    )


def test_no_row_has_a_label() -> None:
    label, output = np.full((ROWS, 1), np.nan, "float32"), normal(ROWS, 1)
    for reduction in REDUCTIONS[:-1]:
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        assert value(loss, label, output, np.zeros(ROWS, bool)) == 0.0


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=np.shape)
def test_outputs_of_one_number_a_row(weight: Any) -> None:
    label, output = normal(2, ROWS)
    square = (1.0 if weight is None else weight) * (label - output) ** 2
    found = value("mse", label, output, LABELLED, weight)
    np.testing.assert_allclose(found, square[LABELLED].mean(), rtol=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHTS, WEIGHTS[:, None]], ids=np.shape)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_masks_by_unit(weight: Any, reduction: str) -> None:
    label, output = (normal(ROWS, CLASSES) > 0).astype("float32"), normal(ROWS, CLASSES)
    loss = keras.losses.BinaryCrossentropy(from_logits=True, reduction=reduction)
    values = np.logaddexp(0.0, output) - label * output
    values = values * (1.0 if weight is None else WEIGHTS[:, None])
    total = values[BY_UNIT].sum()
    of_mean = total / BY_UNIT.sum()
    np.testing.assert_allclose(
        value(loss, label, output, BY_UNIT, weight),
        of_mean if reduction == "sum_over_batch_size" else total,
        rtol=1e-6,
    )


def test_masks_by_unit_need_a_value_for_each_unit() -> None:
    label, output = normal(2, ROWS, CLASSES)
    with pytest.raises(ValueError, match="mean over units.*categorical_crossentropy"):
        inputs(keras.losses.CategoricalCrossentropy(), label, output, BY_UNIT)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_mask_of_keras_own_is_combined(reduction: Any) -> None:
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    label, output = normal(2, ROWS, STEPS, CLASSES)
    padded = masked(output, BY_STEP)
    counted = BY_STEP & LABELLED[:, None]
    given = inputs(loss, label, padded)
    assert get_keras_mask(given.predictions) is None
    assert get_keras_mask(padded) is not None
    np.testing.assert_allclose(
        value(loss, label, padded),
        expected(loss, label, output, counted, None),
        rtol=1e-6,
    )


def test_a_mask_of_keras_own_meets_one_by_unit() -> None:
    label, output = normal(2, ROWS, STEPS, CLASSES)
    mask = RNG.random((ROWS, STEPS, CLASSES)) < 0.5
    counted = mask & BY_STEP[..., None]
    found = value("mse", label, masked(output, BY_STEP), mask)
    np.testing.assert_allclose(found, ((label - output) ** 2)[counted].mean(), 1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=np.shape)
@pytest.mark.parametrize("kind", ["ignored class", "circle"])
def test_losses_that_mask_their_own_values(
    reduction: Any, weight: Any, kind: str
) -> None:
    label, output = RNG.integers(0, 3, ROWS), normal(ROWS, CLASSES)
    loss: Any = keras.losses.Circle(reduction=reduction, gamma=1.0)
    if kind == "ignored class":
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=1, reduction=reduction
        )
    # Keras' own mask meets labels that are filled too.
    filled = np.where(LABELLED, label, label[LABELLED][0])
    np.testing.assert_allclose(
        value(loss, label, output, LABELLED, weight),
        expected(loss, filled, output, LABELLED, weight),
        rtol=1e-5,
    )


class OfTheWholeCall(keras.losses.Loss):
    """A loss that reduces by itself."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return ops.sum(sample_weight * ops.mean((y_true - y_pred) ** 2, axis=-1))


def test_losses_that_override_the_call_get_the_weights() -> None:
    label, output = normal(2, ROWS, CLASSES)
    loss = OfTheWholeCall(reduction="sum")
    found = value(loss, label, output, LABELLED, WEIGHTS)
    values = WEIGHTS * ((label - output) ** 2).mean(-1)
    np.testing.assert_allclose(found, values[LABELLED].sum(), rtol=1e-6)


# Several outputs.

OUTPUTS = {"a": normal(ROWS, CLASSES), "b": normal(ROWS, 1)}
LABELS = {"a": normal(ROWS, CLASSES), "b": normal(ROWS, 1)}
SUM = keras.losses.MeanSquaredError(reduction="sum")
PLAIN, MEAN = LABELLED.astype("float32"), LABELLED / LABELLED.mean()


def as_list(items: dict[str, Any]) -> list[Any]:
    return list(items.values())


def as_nested(items: dict[str, Any]) -> Any:
    return {"z": items["a"], "y": [items["b"]]}


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=np.shape)
@pytest.mark.parametrize(
    ("structure", "losses"),
    [
        (dict, {"a": SUM, "b": "mse"}),
        (as_list, [SUM, "mse"]),
        (as_list, {"a": SUM, "b": "mse"}),
        (dict, [SUM, "mse"]),
        (as_nested, {"z": SUM, "y": ["mse"]}),
    ],
)
def test_each_output_has_weights_of_its_own(
    structure: Any, losses: Any, weight: Any
) -> None:
    given = inputs(
        losses, structure(LABELS), structure(OUTPUTS), weight=weight, names=["a", "b"]
    )
    factor = 1.0 if weight is None else weight
    expected = structure({"a": PLAIN * factor, "b": MEAN * factor})
    keras.tree.assert_same_structure(expected, given.sample_weight)
    for found, of_output in zip(
        keras.tree.flatten(given.sample_weight),
        keras.tree.flatten(expected),
        strict=True,
    ):
        np.testing.assert_allclose(found, of_output, rtol=1e-6)


def test_a_flat_list_of_losses_for_nested_outputs() -> None:
    """Keras takes it in the order of the flat outputs: here b comes first."""
    given = inputs(["mse", SUM], as_nested(LABELS), as_nested(OUTPUTS))
    np.testing.assert_allclose(given.sample_weight["y"][0], MEAN, rtol=1e-6)
    np.testing.assert_allclose(given.sample_weight["z"], PLAIN, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, {"a": WEIGHTS, "b": None}], ids=["", "one"])
def test_outputs_in_which_all_rows_have_a_label(weight: Any) -> None:
    given = inputs(
        {"a": SUM, "b": "mse"},
        LABELS,
        OUTPUTS,
        weight=weight,
        keys={"a": None, "b": "labelled"},
        names=["a", "b"],
    )
    assert given.predictions["a"] is OUTPUTS["a"]
    assert given.sample_weight["a"] is (None if weight is None else WEIGHTS)
    np.testing.assert_allclose(given.sample_weight["b"], MEAN, rtol=1e-6)


def test_a_batch_without_the_mask_is_left_as_it_is() -> None:
    given = inputs("mse", LABELS, OUTPUTS, mask={"x": 1}, weight=WEIGHTS)
    assert given == (LABELS, OUTPUTS, WEIGHTS)


def test_an_output_without_a_loss_may_lack_weights() -> None:
    losses, outputs = ["mse", None], as_list(OUTPUTS)
    given = inputs(losses, [LABELS["a"], None], outputs, weight=[WEIGHTS])
    np.testing.assert_allclose(given.sample_weight[0], MEAN * WEIGHTS, rtol=1e-6)


def test_weights_of_an_output_with_a_loss_are_missed() -> None:
    with pytest.raises(ValueError, match="`sample_weight`"):
        inputs("mse", as_list(LABELS), as_list(OUTPUTS), weight=[WEIGHTS])


def test_losses_of_one_output_with_different_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output \[0\].*one `reduction`"):
        inputs([["mse", SUM], "mse"], as_list(LABELS), as_list(OUTPUTS))
    given = inputs([["mse", "mae"], "mse"], as_list(LABELS), as_list(OUTPUTS))
    np.testing.assert_allclose(given.sample_weight[0], MEAN, rtol=1e-6)


# Losses without a value for each row.


class MeanError(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.mean(ops.abs(y_true - y_pred))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (MeanError(), r"\(\)"),
        ("dice", r"\(\)"),
        (lambda y, p: ops.mean(ops.square(y - p)), r"\(\)"),
        (lambda y, p: ops.square(y - p), r"\(12, 3\)"),
    ],
    ids=["class", "name", "function", "value by unit"],
)
def test_losses_without_a_value_for_each_row_are_refused(loss: Any, shape: str) -> None:
    label, output = normal(2, ROWS, CLASSES)
    with pytest.raises(ValueError, match=f"value for each row.*of shape {shape}"):
        inputs(loss, label, output)


class Seeded(keras.losses.Loss):
    """A loss that keeps a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        noise = keras.random.normal(ops.shape(y_pred), seed=self.seed)
        return ops.mean(ops.square(y_true - y_pred + noise), axis=-1)


def test_the_check_changes_no_state_of_a_loss() -> None:
    label, output = normal(2, ROWS, CLASSES)
    loss = Seeded()
    before = ops.convert_to_numpy(loss.seed.state)
    inputs(loss, label, output)
    np.testing.assert_array_equal(ops.convert_to_numpy(loss.seed.state), before)
