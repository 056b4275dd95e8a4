"""Searches whose fits are real: all forms of data, callbacks, early ends."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.losses import ForwardKL
from keras_distill.tuning import Answer, Setting, search

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6)).astype("float32")
Y = X[:, :3].argmax(-1)
TRAIN, HELD_OUT = (X[:64], Y[:64]), (X[64:], Y[64:])


def student() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), layers.Dropout(0.1), layers.Dense(3)], name="small"
    )


def settings(rate: float = 0.05) -> dict[str, Any]:
    return {
        "optimizer": keras.optimizers.Adam(rate),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "weighted_metrics": ["accuracy"],
    }


def found(**given: Any) -> Answer:
    """Search with a teacher that is always right, two fits and two pairs of fits."""
    arguments = {
        "build_student": student,
        "teacher": lambda x: 9.0 * x[:, :3],
        "train": TRAIN,
        "held_out": HELD_OUT,
        "compile": settings,
        "temperatures": [2.0],
        "alphas": [0.9],
        "seeds": 2,
        "max_seeds": 2,
        "verbose": 0,
        **given,
    }
    return search(**arguments)


def test_a_pair_begins_alike_and_reads_the_same_batches() -> None:
    """With next to no distillation both fits come out alike, dropout and order too."""
    answer = found(alphas=[1e-7], objective="loss", direction="min")
    assert abs(answer.gain.mean) < 1e-4
    apart = found(alphas=[0.9], objective="loss", direction="min")
    assert abs(apart.gain.mean) > 1e-3


@pytest.mark.slow("six fits or more")
def test_what_it_returns_compiles_a_distiller() -> None:
    from keras_distill import Distiller

    answer = found()
    distiller = Distiller(student(), lambda x: 9.0 * x[:, :3])
    distiller.compile(**settings(), **answer.compile_arguments())
    distiller.fit(*TRAIN, verbose=0)


@pytest.mark.slow("six fits or more")
def test_data_sets_train_as_their_arrays_do() -> None:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(TRAIN).batch(16)
    with pytest.warns(UserWarning, match="Dataset is expected to already be"):
        of_set = found(train=data, epochs=5)
    of_arrays = found(train=TRAIN, batch_size=16, epochs=5)
    for setting, score in of_set.scores.items():  # the order of the batches differs
        assert abs(score - of_arrays.scores[setting]) < 0.15


@pytest.mark.slow("six fits or more")
@pytest.mark.parametrize("part", ["train", "held_out"])
def test_rows_of_weight_zero_do_not_count(part: str) -> None:
    """Their labels are wrong, and the result is that of the right rows."""
    x, y = TRAIN if part == "train" else HELD_OUT
    wrong = np.arange(len(y)) % 2 == 1
    labels = np.where(wrong, (y + 1) % 3, y)
    weighted = found(**{part: (x, labels, (~wrong).astype("float32"))}, epochs=10)
    trusting = found(**{part: (x, labels)}, epochs=10)
    assert weighted.scores[Setting(0.0)] > trusting.scores[Setting(0.0)] + 0.05


def test_callbacks_are_of_one_fit_and_see_the_rows_of_the_search() -> None:
    made: list[keras.callbacks.Callback] = []

    def callbacks() -> list[keras.callbacks.Callback]:
        made.append(keras.callbacks.EarlyStopping("val_loss", patience=0))
        return made[-1:]

    answer = found(callbacks=callbacks, epochs=50, compile=lambda: settings(1.0))
    assert len(made) == answer.fits == 6
    assert any(0 < it.stopped_epoch < 49 for it in made)


@pytest.mark.slow("six fits or more")
def test_ends_once_the_gain_is_known_well_enough() -> None:
    near = found(alphas=[1e-7], max_seeds=8, smallest_gain=0.5)
    assert (near.gain.seeds, near.verdict) == (2, "no gain shown")
    assert str(near.setting) == "alone (alpha 0)"
    assert found(alphas=[1e-7], max_seeds=4, smallest_gain=0.0).gain.seeds == 4


def test_a_fit_that_diverges_is_no_best_setting(
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = {"objective": "loss", "direction": "min"}
    losses = {f"bad {i}": Diverging() for i in range(4)} | {"good": ForwardKL}
    answer = found(losses=losses, **given)
    assert answer.best.loss == "good"
    assert sum(map(np.isnan, answer.scores.values())) == 4
    last = str(answer).splitlines()[3:7]
    assert all(line.startswith("  nan  bad ") for line in last)
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="had a finite score.*bad.*nan"):
        found(losses={"bad": Diverging()}, **given)


class Diverging(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.sum(y_pred, -1) * float("nan")
