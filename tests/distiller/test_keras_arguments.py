"""What `keras.Model.compile` and `fit` take, a distiller takes in the same way.

With `alpha=0` it has to give plain Keras' history, metrics and weights, to the bit.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import CLASSES, FEATURES, assert_same_weights, crossentropy

RNG = np.random.default_rng(1)
X = RNG.normal(size=(12, FEATURES)).astype("float32")
KIND = np.arange(12) % CLASSES
SIZE = RNG.normal(size=(12, 2)).astype("float32")
WEIGHTS = RNG.random(12).astype("float32")
OTHER = RNG.random(12).astype("float32")


def single(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])


def of_outputs(form: str, kind: Any, size: Any) -> Any:
    """A pair as a list, tuple or dict, or one of them around another."""
    forms = {
        "list": [kind, size],
        "tuple": (kind, size),
        "dict": {"kind": kind, "size": size},
        "nested": {"heads": [kind, size]},
    }
    return forms[form]


def two(form: str, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    kind = layers.Dense(CLASSES, name="kind")(inputs)
    size = layers.Dense(2, name="size")(inputs)
    return keras.Model(inputs, of_outputs(form, kind, size))


def compare(
    build: Callable[..., keras.Model],
    fit: Callable[[keras.Model], Any],
    **compiled: Any,
) -> None:
    """Train one model plainly, its twin under a teacher of no weight."""
    plain, student = build(0), build(0)
    distiller = kd.Distiller(student, build(1))
    compiled = {"run_eagerly": True, **compiled}
    mine = {"distillation_loss": "mse", "alpha": 0.0}
    seen = []
    for model, own in ((plain, {}), (distiller, mine)):
        fresh = compiled.pop("metrics_of", dict)
        model.compile(keras.optimizers.SGD(0.1), **compiled, **fresh(), **own)
        compiled["metrics_of"] = fresh
        keras.utils.set_random_seed(3)  # the shuffling
        seen.append(fit(model).history)
    for name, values in seen[0].items():
        assert seen[1][name] == values, name
    assert all(value > 0.0 for value in seen[1]["distillation_loss"])
    assert_same_weights(student, plain)


# What stands for each output, in each structure of the outputs.


def losses(form: str, *items: Any) -> dict[str, Any]:
    return {"loss": of_outputs(form, *items)}


BOTH = (crossentropy(), "mse")
# name: what compile takes, labels, sample weights; pairs stand for both outputs
PER_OUTPUT: dict[str, tuple[dict[str, Any], tuple[Any, Any], Any]] = {
    "weights for one output": ({"loss": BOTH}, (KIND, SIZE), (WEIGHTS, None)),
    "weights for both": ({"loss": BOTH}, (KIND, SIZE), (WEIGHTS, OTHER)),
    "one weight for all": ({"loss": BOTH}, (KIND, SIZE), WEIGHTS),
    "no labels for one": ({"loss": (crossentropy(), None)}, (KIND, None), None),
    "no labels for the first": ({"loss": (None, "mse")}, (None, SIZE), WEIGHTS),
    "no loss for one": ({"loss": (None, "mse")}, (KIND, SIZE), (None, OTHER)),
    "no weight for one": (
        {"loss": BOTH, "loss_weights": (0.5, None)},
        (KIND, SIZE),
        None,
    ),
    "no metrics for one": (
        {
            "loss": BOTH,
            "metrics": (["accuracy"], None),
            "weighted_metrics": (None, ["mae", "mse"]),
        },
        (KIND, SIZE),
        (WEIGHTS, None),
    ),
    "metrics of names": (
        {"loss": BOTH, "metrics": ("accuracy", "mae")},
        (KIND, SIZE),
        (None, WEIGHTS),
    ),
}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "case, form",
    [
        *((case, form) for case in PER_OUTPUT for form in ("list", "dict")),
        ("weights for one output", "tuple"),
        ("weights for one output", "nested"),
    ],
)
def test_what_is_given_by_output(case: str, form: str) -> None:
    compiled, labels, weights = PER_OUTPUT[case]
    if isinstance(weights, tuple):
        weights = of_outputs(form, *weights)
    compare(
        lambda seed: two(form, seed),
        lambda model: model.fit(
            X, of_outputs(form, *labels), sample_weight=weights, batch_size=8, verbose=0
        ),
        **{name: of_outputs(form, *pair) for name, pair in compiled.items()},
    )


@pytest.mark.parametrize("labels", ["list", "dict"])
def test_structures_that_differ_from_the_outputs(labels: str) -> None:
    """Names and orders that Keras matches; where it fails, what they mean."""
    for form in ("list", "dict"):
        compare(
            lambda seed, form=form: two(form, seed),
            lambda model: model.fit(
                X, of_outputs(labels, KIND, SIZE), batch_size=8, verbose=0
            ),
            loss=of_outputs("dict" if labels == "dict" else form, *BOTH),
        )
    losses_seen = []
    for form in ("list", "dict"):
        distiller = kd.Distiller(two(form), two(form, 1))
        distiller.compile("sgd", of_outputs(form, *BOTH), distillation_loss="mse")
        logs = distiller.train_on_batch(
            X,
            of_outputs(labels, KIND, SIZE),
            sample_weight=of_outputs(labels, WEIGHTS, OTHER),
            return_dict=True,
        )
        losses_seen.append((logs["student_loss"], logs["distillation_loss"]))
    np.testing.assert_allclose(losses_seen[0], losses_seen[1], rtol=1e-6)


def unordered(form: str, seed: int = 0) -> keras.Model:
    """Two outputs whose order isn't alphabetical, as the one that Keras sorts by."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    heads = {name: layers.Dense(2, name=name)(inputs) for name in ("size", "hue")}
    return keras.Model(inputs, heads if form == "dict" else list(heads.values()))


def by_output(form: str, size: Any, hue: Any) -> Any:
    return {"size": size, "hue": hue} if form == "dict" else [size, hue]


@pytest.mark.parametrize("outputs", ["list", "dict"])
@pytest.mark.parametrize("losses", ["list", "dict"])
@pytest.mark.parametrize("weights", ["list", "dict"])
def test_lists_beside_dicts(outputs: str, losses: str, weights: str) -> None:
    """Whichever Keras matches, an alpha by output weighs the same losses."""
    compiled = {
        "loss": by_output(losses, "mse", "mae"),
        "loss_weights": by_output(weights, 3.0, 0.5),
        "metrics": by_output(losses, "mae", "mse"),
    }
    alphas: tuple[Any, ...] = (None, 0.5, {"hue": 0.5, "size": 0.5})
    seen = []
    for alpha in alphas:
        model = unordered(outputs)
        own = {"distillation_loss": "mse", "alpha": alpha}
        if alpha is not None:
            model = kd.Distiller(model, unordered(outputs, 1))
        model.compile(
            "sgd", run_eagerly=True, **compiled, **own if alpha is not None else {}
        )
        seen.append(
            model.train_on_batch(
                X,
                by_output(weights, SIZE, SIZE[::-1]),
                sample_weight=by_output(outputs, WEIGHTS, OTHER),
                return_dict=True,
            )
        )
    plain, for_all, for_each = seen
    measured = set(plain) - {"loss"}
    assert {n: for_all[n] for n in measured} == {n: plain[n] for n in measured}
    np.testing.assert_allclose(for_all["loss"], for_each["loss"], rtol=1e-6)
    total = 0.5 * plain["loss"] + 0.5 * for_all["distillation_loss"]
    np.testing.assert_allclose(for_all["loss"], total, rtol=1e-6)


def test_peers_take_a_dict_of_weights_beside_a_list_of_losses() -> None:
    seen = []
    for alpha in (0.5, {"hue": 0.5, "size": 0.5}):
        mutual = kd.online.MutualLearning([unordered("list"), unordered("list", 1)])
        mutual.compile(
            "sgd",
            ["mse", "mae"],
            loss_weights={"size": 3.0, "hue": 0.5},
            distillation_loss="mse",
            alpha=alpha,
            run_eagerly=True,
        )
        seen.append(mutual.train_on_batch(X, [SIZE, SIZE[::-1]], return_dict=True))
    np.testing.assert_allclose(seen[0]["loss"], seen[1]["loss"], rtol=1e-6)


# What compile takes for a single output.


def mean_error(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


ONE_HOT = np.eye(CLASSES, dtype="float32")[KIND]
COMPILED: dict[str, tuple[dict[str, Any], Any]] = {
    "loss in a list": ({"loss": ["mse"]}, ONE_HOT),
    "a class of loss": ({"loss": keras.losses.Huber}, ONE_HOT),
    "a function": ({"loss": mean_error}, ONE_HOT),
    "a lambda": ({"loss": lambda y, p: mean_error(y, p)}, ONE_HOT),
    "a listed loss weight": ({"loss": "mse", "loss_weights": [0.5]}, ONE_HOT),
    "metrics by name": ({"loss": "mse", "metrics": ["mae", "mse"]}, ONE_HOT),
    "metrics by function": ({"loss": "mse", "metrics": [mean_error]}, ONE_HOT),
    "nested metrics": ({"loss": "mse", "metrics": [["mae"]]}, ONE_HOT),
    "metrics as objects": (
        {
            "loss": crossentropy(),
            "metrics_of": lambda: {
                "metrics": [keras.metrics.SparseCategoricalAccuracy()],
                "weighted_metrics": [keras.metrics.SparseCategoricalCrossentropy()],
            },
        },
        KIND,
    ),
    "traced": ({"loss": crossentropy(), "run_eagerly": False}, KIND),
    "auto_scale_loss": ({"loss": "mse", "auto_scale_loss": False}, ONE_HOT),
    "steps_per_execution": (
        {"loss": crossentropy(), "run_eagerly": False, "steps_per_execution": 3},
        KIND,
    ),
}


@pytest.mark.parametrize("case", COMPILED)
def test_what_compile_takes(case: str) -> None:
    compiled, labels = COMPILED[case]
    compare(
        single,
        lambda model: model.fit(X, labels, batch_size=5, epochs=2, verbose=0),
        **compiled,
    )


# What fit takes.


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], KIND[rows], WEIGHTS[rows]


def generated() -> Iterator[Any]:
    batches = Batches()
    for index in range(6):
        yield batches[index % 3]


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, KIND)).batch(5)


FITTED: dict[str, Callable[[], dict[str, Any]]] = {
    "batch_size": lambda: {"x": X, "y": KIND, "batch_size": 12},
    "tensors": lambda: {"x": tf.constant(X), "y": tf.constant(KIND)},
    "dataset": lambda: {"x": dataset(), "shuffle": False},
    "PyDataset": lambda: {"x": Batches(), "shuffle": False},
    "generator": lambda: {
        "x": generated(),
        "steps_per_epoch": 3,
        "shuffle": False,
    },
    "column of labels": lambda: {"x": X, "y": KIND[:, None]},
    "integers": lambda: {"x": (10 * X).astype("int64"), "y": KIND.astype("uint8")},
    "float64": lambda: {"x": X.astype("float64"), "y": KIND.astype("float64")},
    "class_weight": lambda: {"x": X, "y": KIND, "class_weight": {0: 1, 1: 0.5, 2: 3}},
    "NumPy class_weight": lambda: {
        "x": X,
        "y": KIND,
        "class_weight": {np.int64(0): np.float32(2), 1: np.array(0.5), 2: 1},
    },
    "whole weights": lambda: {"x": X, "y": KIND, "sample_weight": np.arange(12)},
    "column of weights": lambda: {"x": X, "y": KIND, "sample_weight": OTHER[:, None]},
    "boolean weights": lambda: {"x": X, "y": KIND, "sample_weight": OTHER > 0.5},
    "validation_split": lambda: {
        "x": X,
        "y": KIND,
        "sample_weight": WEIGHTS,
        "validation_split": 0.25,
    },
    "validation_data": lambda: {
        "x": X,
        "y": KIND,
        "validation_data": (X[:5], KIND[:5], WEIGHTS[:5]),
        "validation_batch_size": 2,
        "validation_steps": 2,
        "validation_freq": [2],
    },
    "validation dataset": lambda: {
        "x": dataset(),
        "validation_data": dataset(),
        "shuffle": False,
    },
    "no shuffle": lambda: {"x": X, "y": KIND, "shuffle": False},
    "initial_epoch": lambda: {"x": X, "y": KIND, "initial_epoch": 1},
    "callbacks": lambda: {
        "x": X,
        "y": KIND,
        "callbacks": [
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
            keras.callbacks.EarlyStopping("loss", baseline=0.0, patience=0),
        ],
    },
}


@pytest.mark.parametrize("case", FITTED)
def test_what_fit_takes(case: str) -> None:
    compare(
        single,
        lambda model: model.fit(
            **{"epochs": 2, "verbose": 0, "batch_size": None, **FITTED[case]()}
        ),
        loss=crossentropy(),
        weighted_metrics=["accuracy"],
    )


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame, labels = pandas.DataFrame(X), pandas.Series(KIND)
    compare(
        single,
        lambda model: model.fit(frame, labels, batch_size=6, verbose=0),
        loss=crossentropy(),
    )


# Numbers of any type.


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, float])
def test_weights_are_numbers_of_any_type(number: Any) -> None:
    def step(number: Any) -> tuple[float, float]:
        hint = kd.hints.Hint(
            lambda model: model.layers[0],
            lambda model: model.layers[0],
            weight=number(2.0),
        )
        distiller = kd.Distiller(single(), single(1), hints=[hint])
        distiller.compile(
            "sgd",
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(number(2.0)),
            alpha=number(0.25),
            loss_weights=number(3.0),
            run_eagerly=True,
        )
        logs = distiller.train_on_batch(X, KIND, return_dict=True)
        student, distilled = logs["student_loss"], logs["distillation_loss"]
        total = 0.75 * student + 0.25 * distilled + 2.0 * logs["layer_hint_loss"]
        np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
        return float(logs["loss"]), float(student)

    assert step(number) == step(float)


@pytest.mark.parametrize(
    "given", [[1, 2], np.array([1.0, 2.0]), [np.float32(1), None], [True, 2]], ids=str
)
def test_loss_weights_are_numbers_of_any_type(given: Any) -> None:
    student = two("list")
    size = keras.losses.MeanSquaredError()(SIZE, student(X)[1])
    kind = crossentropy()(KIND, student(X)[0])
    distiller = kd.Distiller(student, two("list", 1))
    distiller.compile(
        "sgd", list(BOTH), distillation_loss="mse", loss_weights=given, run_eagerly=True
    )
    logs = distiller.train_on_batch(X, [KIND, SIZE], return_dict=True)
    factor = 1.0 if given[1] is None else 2.0
    np.testing.assert_allclose(logs["student_loss"], kind + factor * size, rtol=1e-5)


def test_loss_weights_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"`loss_weights` must be.*\['much'\]"):
        kd.Distiller(single(), single()).compile("sgd", "mse", loss_weights=["much"])


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_alpha_is_none_where_an_output_is_not_distilled(form: str) -> None:
    distiller = kd.Distiller(two(form), two(form, 1))
    distiller.compile(
        "sgd",
        of_outputs(form, *BOTH),
        distillation_loss=of_outputs(form, None, "mse"),
        alpha=of_outputs(form, None, 0.25),
        run_eagerly=True,
    )
    assert distiller.alpha == {"size": 0.25}
    logs = distiller.train_on_batch(X, of_outputs(form, KIND, SIZE), return_dict=True)
    expected = logs["kind_loss"] + 0.75 * logs["size_loss"]
    expected += 0.25 * logs["distillation_loss"]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_a_loss_without_labels_is_named() -> None:
    distiller = kd.Distiller(two("list"), two("list", 1))
    distiller.compile("sgd", list(BOTH), distillation_loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match=r"Output \[1\] has a loss, but no labels"):
        distiller.fit(X, [KIND, None], verbose=0)


def test_losses_that_are_all_none_are_no_loss() -> None:
    distiller = kd.Distiller(two("list"), two("list", 1))
    with pytest.raises(ValueError, match="`alpha` must be 1.*loss=None"):
        distiller.compile("sgd", [None, None], distillation_loss="mse")
