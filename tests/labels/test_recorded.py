"""The label losses that Keras computes, recorded."""

import threading
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.labels.recorded import RecordedLosses

RNG = np.random.default_rng(4)
X = RNG.normal(size=(8, 3)).astype("float32")
Y = {name: RNG.normal(size=(8, 1)).astype("float32") for name in "ab"}
WEIGHT = RNG.random(8).astype("float32")


def model(*names: str) -> keras.Model:
    inputs = keras.Input((3,))
    heads = [
        keras.layers.Dense(1, name=n, kernel_regularizer="l2")(inputs) for n in names
    ]
    return keras.Model(inputs, heads if len(heads) > 1 else heads[0])


def compiled(*names: str, **kwargs: Any) -> keras.Model:
    made = model(*names)
    made.compile("sgd", **{"loss": "mse", "run_eagerly": True, **kwargs})
    return made


def computed(of: keras.Model, y: Any, weight: Any = None) -> Any:
    return of.compute_loss(X, y, of(X), weight)


def mse(of: keras.Model, *, name: str, number: int | None = None) -> float:
    output = of(X) if number is None else of(X)[number]
    return float(ops.mean((Y[name] - output) ** 2))


def test_a_single_output() -> None:
    of = compiled("a")
    recorded = RecordedLosses(of._compile_loss)
    loss = computed(of, Y["a"])
    total, by_path = recorded.taken(of(X), of.output_names)
    np.testing.assert_allclose(total, mse(of, name="a"), rtol=1e-6)
    assert by_path.keys() == {()}
    assert float(by_path[()]) == float(total) < float(loss)


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (["mse", "mse"], [0.5, 2.0]),
        (["mse", "mse"], None),
        ({"b": "mse", "a": "mse"}, {"a": 0.5, "b": 2.0}),
        ("mse", None),
    ],
)
def test_several_outputs_add_up_to_the_total(losses: Any, weights: Any) -> None:
    of = compiled("a", "b", loss=losses, loss_weights=weights)
    recorded = RecordedLosses(of._compile_loss)
    computed(of, [Y["a"], Y["b"]])
    total, by_path = recorded.taken(of(X), of.output_names)
    factors = [0.5, 2.0] if weights else [1.0, 1.0]
    for number, name in enumerate("ab"):
        value = factors[number] * mse(of, name=name, number=number)
        np.testing.assert_allclose(by_path[(number,)], value, rtol=1e-6)
    assert float(sum(by_path.values())) == float(total)


def test_several_losses_of_an_output_among_others_are_summed() -> None:
    of = compiled("a", "b", loss=[["mse", "mse"], "mse"])
    recorded = RecordedLosses(of._compile_loss)
    computed(of, [Y["a"], Y["b"]])
    total, by_path = recorded.taken(of(X), of.output_names)
    np.testing.assert_allclose(by_path[(0,)], 2 * mse(of, name="a", number=0), 1e-6)
    np.testing.assert_allclose(float(sum(by_path.values())), float(total), rtol=1e-6)


def test_of_several_losses_of_a_single_output_keras_takes_the_first() -> None:
    of = compiled("a", loss=["mse", "mae"])
    recorded = RecordedLosses(of._compile_loss)
    computed(of, Y["a"])
    total, by_path = recorded.taken(of(X), of.output_names)
    assert float(by_path[()]) == float(total)
    np.testing.assert_allclose(total, mse(of, name="a"), rtol=1e-6)


def test_what_was_taken_is_forgotten() -> None:
    of = compiled("a")
    recorded = RecordedLosses(of._compile_loss)
    assert recorded.taken(of(X), None) == (None, {})
    computed(of, Y["a"])
    recorded.taken(of(X), None)
    assert recorded.taken(of(X), None) == (None, {})


def test_without_a_label_loss_nothing_is_recorded() -> None:
    assert RecordedLosses(None).taken(X, None) == (None, {})


@pytest.mark.parametrize("again", [False, True])
def test_a_loss_that_is_already_built_is_recorded_once(again: bool) -> None:
    given = {"loss": ["mse", "mse"], "loss_weights": [0.5, 2.0]}
    of = compiled("a", "b", **given)
    computed(of, [Y["a"], Y["b"]])
    recorded = RecordedLosses(of._compile_loss)
    if again:
        recorded = RecordedLosses(of._compile_loss)
    loss = computed(of, [Y["a"], Y["b"]])
    total, by_path = recorded.taken(of(X), of.output_names)
    assert float(sum(by_path.values())) == float(total)
    plain = compiled("a", "b", **given)
    plain.set_weights(of.get_weights())
    assert float(computed(plain, [Y["a"], Y["b"]])) == float(loss)


def test_a_loss_that_is_built_anew() -> None:
    of = compiled("a", "b")
    recorded = RecordedLosses(of._compile_loss)
    computed(of, [Y["a"], Y["b"]])
    recorded.taken(of(X), of.output_names)
    of._compile_loss.built = False
    del of._compile_loss.metrics[:]
    computed(of, [Y["a"], Y["b"]])
    total, by_path = recorded.taken(of(X), of.output_names)
    assert float(sum(by_path.values())) == float(total)


def test_an_error_leaves_nothing_of_an_earlier_step() -> None:
    of = compiled("a")
    recorded = RecordedLosses(of._compile_loss)
    computed(of, Y["a"])
    with pytest.raises((TypeError, ValueError)):
        computed(of, "no label")
    assert recorded.taken(of(X), None) == (None, {})


def test_symbolic_calls() -> None:
    of = compiled("a", "b")
    recorded = RecordedLosses(of._compile_loss)
    of._symbolic_build(data_batch=(X, [Y["a"], Y["b"]]))
    assert of._compile_loss.built
    computed(of, [Y["a"], Y["b"]])
    total, by_path = recorded.taken(of(X), of.output_names)
    assert float(sum(by_path.values())) == float(total)


def test_each_thread_has_a_record_of_its_own() -> None:
    of = compiled("a")
    recorded = RecordedLosses(of._compile_loss)
    computed(of, Y["a"])
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(recorded.taken(of(X), None)))
    thread.start()
    thread.join()
    assert seen == [(None, {})]
    assert recorded.taken(of(X), None)[0] is not None


class Recording(keras.Model):
    """A model that logs what it records of its own loss, while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(1, kernel_regularizer="l2")
        self.label_loss = keras.metrics.Mean("label_loss")

    def call(self, inputs: Any) -> Any:
        return self.head(inputs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        total, _ = self.recorded.taken(y_pred, None)
        self.label_loss.update_state(total)
        return loss


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_that_are_traced(jit_compile: bool) -> None:
    of = Recording()
    of(X)
    of.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    of.recorded = RecordedLosses(of._compile_loss)
    for rows in (8, 5):  # another shape is traced anew
        fitted = of.fit(X[:rows], Y["a"][:rows], sample_weight=WEIGHT[:rows], verbose=0)
        logs = fitted.history
        square = (WEIGHT[:, None] * (Y["a"] - np.asarray(of(X))) ** 2)[:rows]
        np.testing.assert_allclose(logs["label_loss"], square.mean(), rtol=1e-5)
        assert logs["loss"] > logs["label_loss"]
