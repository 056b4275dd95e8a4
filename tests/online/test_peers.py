"""What a step of mutual learning computes."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill import backend
from keras_distill.online import MutualLearning
from tests import slow
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    CountsCalls,
    StepLogs,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    log_softmax,
    mlp,
    twins,
)

RATE = 0.5


def linear(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES)], name=f"linear{seed}"
    )


def mutual(peers: list[keras.Model], **kwargs: Any) -> MutualLearning:
    own = {
        name: kwargs.pop(name) for name in ("combine", "staleness") if name in kwargs
    }
    model = MutualLearning(peers, **own)
    defaults = {"optimizer": keras.optimizers.SGD(RATE), "loss": crossentropy()}
    model.compile(**{**defaults, **kwargs})
    return model


def fit(model: keras.Model, *args: Any, **kwargs: Any) -> dict[str, list[float]]:
    defaults = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(*args, **{**defaults, **kwargs}).history


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def mean_of_others(logits: list[np.ndarray], i: int, combine: str) -> np.ndarray:
    others = [one for j, one in enumerate(logits) if j != i]
    if combine == "probabilities":
        return np.log(np.mean([softmax(one) for one in others], axis=0))
    return np.mean(others, axis=0)


def numpy_step(
    weights: list[list[np.ndarray]],
    copies: list[list[np.ndarray]],
    x: np.ndarray,
    y: np.ndarray,
    *,
    alpha: float,
    combine: str = "logits",
    rows: np.ndarray | None = None,
) -> tuple[list[list[np.ndarray]], list[tuple[float, float]]]:
    """The weights after one step of SGD by linear peers, and both losses before it."""
    rows = np.ones(len(x)) if rows is None else rows
    own = [x @ kernel + bias for kernel, bias in weights]
    said = [x @ kernel + bias for kernel, bias in copies]
    after, losses = [], []
    for i, (kernel, bias) in enumerate(weights):
        target = mean_of_others(said, i, combine)
        of_labels = softmax(own[i]) - np.eye(CLASSES)[y]
        of_others = softmax(own[i]) - softmax(target)
        slope = ((1 - alpha) * of_labels + alpha * of_others) * rows[:, None] / len(x)
        after.append([kernel - RATE * x.T @ slope, bias - RATE * slope.sum(0)])
        of_rows = label_loss(y, own[i]), forward_kl(target, own[i])
        losses.append(tuple(float((one * rows).mean()) for one in of_rows))
    return after, losses


@pytest.mark.parametrize(
    ("count", "combine"), [(2, "logits"), (3, "logits"), (3, "probabilities")]
)
def test_a_step_is_what_numpy_says(count: int, combine: str) -> None:
    x, y = data(8)
    rows = np.linspace(0.0, 2.0, 8)
    peers = [linear(seed) for seed in range(count)]
    weights = [peer.get_weights() for peer in peers]
    model = mutual(peers, alpha=0.3, combine=combine)
    history = fit(model, x, y, sample_weight=rows)
    after, losses = numpy_step(
        weights, weights, x, y, alpha=0.3, combine=combine, rows=rows
    )
    for peer, expected in zip(peers, after, strict=True):
        for weight, value in zip(peer.get_weights(), expected, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-6)
    for peer, (of_labels, of_others) in zip(peers, losses, strict=True):
        assert history[f"{peer.name}_loss"] == [pytest.approx(of_labels, rel=1e-5)]
        logged = history[f"{peer.name}_distillation_loss"]
        assert logged == [pytest.approx(of_others, rel=1e-5)]
    total = sum(0.7 * of_labels + 0.3 * of_others for of_labels, of_others in losses)
    np.testing.assert_allclose(history["loss"][0], total, rtol=1e-5)


@pytest.mark.parametrize(("staleness", "at_once"), [(1, 1), (3, 1), (3, 2)])
def test_stale_copies_teach(staleness: int, at_once: int) -> None:
    x, y = data(8 * 4)
    peers = [linear(seed) for seed in range(3)]
    weights = [peer.get_weights() for peer in peers]
    model = mutual(peers, alpha=0.8, staleness=staleness, steps_per_execution=at_once)
    fit(model, x, y, epochs=2)
    copies = weights
    for step in range(8):
        if step % staleness == 0:
            copies = weights
        batch = slice(8 * (step % 4), 8 * (step % 4 + 1))
        weights, _ = numpy_step(weights, copies, x[batch], y[batch], alpha=0.8)
    for peer, copy, expected, stale in zip(
        peers, model.copies, weights, copies, strict=True
    ):
        for got, value in zip(
            [*peer.get_weights(), *copy.get_weights()],
            [*expected, *stale],
            strict=True,
        ):
            np.testing.assert_allclose(got, value, atol=1e-5)


def eventful(seed: int, name: str | None = None) -> keras.Model:
    """Dropout, batch statistics, a regulariser."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(5 + seed, "tanh", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.4, seed=seed),
            layers.Dense(CLASSES),
        ],
        name=name,
    )


@pytest.mark.parametrize(
    ("optimizer", "jit_compile"),
    [
        ("sgd", False),
        pytest.param("adam", False, marks=pytest.mark.slow("traces four steps")),
        pytest.param("sgd", True, marks=pytest.mark.slow("XLA")),
    ],
)
def test_without_the_others_each_is_trained_alone(
    optimizer: str, jit_compile: bool
) -> None:
    x, y = data(32)
    peers = [eventful(seed) for seed in range(2)]
    model = mutual(peers, optimizer=optimizer, alpha=0.0, jit_compile=jit_compile)
    fit(model, x, y, epochs=2)
    for seed, peer in enumerate(peers):
        alone = eventful(seed)
        alone.compile(optimizer, crossentropy(), jit_compile=jit_compile)
        fit(alone, x, y, epochs=2)
        assert_same_weights(peer, alone, atol=1e-6)


WAYS_TO_WEIGH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sample weights": ({}, {"sample_weight": np.linspace(0.0, 2.0, 8)}),
    "class weights": ({}, {"class_weight": {0: 0.5, 1: 2.0, 2: 1.0}}),
    "temperature": ({"distillation_loss": kd.losses.ForwardKL(3.0), "alpha": 1.0}, {}),
    "reads labels": ({"distillation_loss": kd.losses.DecoupledKD()}, {}),
    "Keras' own": ({"distillation_loss": "mse"}, {}),
    "loss weights": ({"loss_weights": 3.0}, {}),
    "schedule": ({"alpha": kd.schedules.LinearWarmup(2, 0.5)}, {"epochs": 3}),
}


USUAL = ["sample weights", "reads labels", "loss weights", "schedule"]


@pytest.mark.parametrize("way", slow.but(USUAL, WAYS_TO_WEIGH, "fits"))
def test_a_peer_learns_as_a_student_under_the_other(way: str) -> None:
    x, y = data(8)
    compiled, given = WAYS_TO_WEIGH[way]
    given = {**given, "epochs": 1}
    compiled = {"distillation_loss": kd.losses.ForwardKL(), **compiled}
    (peer, student), (other, teacher) = (twins(lambda s=s: mlp(s)) for s in (1, 2))
    history = fit(mutual([peer, other], **compiled), x, y, **given)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(RATE), crossentropy(), **compiled)
    expected = fit(distiller, x, y, **given)
    assert_same_weights(peer, student, atol=1e-7)
    assert history[f"{peer.name}_distillation_loss"] == pytest.approx(
        expected["distillation_loss"]
    )
    assert history[f"{peer.name}_loss"] == pytest.approx(expected["student_loss"])


def test_rows_without_a_label_are_taught_by_the_others() -> None:
    x, y = data(8)
    labelled = np.array([1, 1, 0, 1, 0, 0, 1, 1])

    def reader(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inputs = {"x": keras.Input((FEATURES,), name="x")}
        return keras.Model(inputs, layers.Dense(CLASSES)(inputs["x"]))

    (peer, student), (other, teacher) = (twins(lambda s=s: reader(s)) for s in (1, 2))
    inputs = {"x": x, "labelled": labelled}
    model = mutual([peer, other], label_mask="labelled", weighted_metrics=["accuracy"])
    wrong = np.where(labelled, y, 10**6)
    history = fit(model, inputs, wrong)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(RATE),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(),
        label_mask="labelled",
        weighted_metrics=["accuracy"],
    )
    expected = fit(distiller, inputs, wrong)
    assert_same_weights(peer, student, atol=1e-7)
    assert history[f"{peer.name}_accuracy"] == expected["accuracy"]


def test_several_outputs_and_inputs_by_name() -> None:
    keras.utils.set_random_seed(0)

    def peer(*names: str) -> keras.Model:
        inputs = {name: keras.Input((2,), name=name) for name in names}
        joined = layers.Concatenate()([*inputs.values(), *inputs.values()])
        return keras.Model(
            inputs,
            {"kind": layers.Dense(3)(joined), "price": layers.Dense(1)(joined)},
            name="_".join(names),
        )

    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(16, 2)).astype("float32") for name in "ab"}
    y = {"kind": rng.integers(0, 3, 16), "price": rng.normal(size=(16, 1))}
    peers = [peer("a"), peer("a", "b")]
    model = mutual(
        peers,
        loss={"kind": crossentropy(), "price": "mse"},
        distillation_loss={"kind": kd.losses.ForwardKL(), "price": None},
        alpha={"kind": 0.5},
        metrics={"kind": ["accuracy"], "price": ["mae"]},
    )
    history = fit(model, x, y)
    for name in ("a", "a_b"):
        for log in ("kind_loss", "price_loss", "kind_accuracy", "price_mae", "loss"):
            assert np.isfinite(history[f"{name}_{log}"]).all()
    assert set(model.predict(x, verbose=0)) == {"kind", "price"}


@pytest.mark.parametrize("staleness", [0, 2])
def test_each_peer_runs_once_a_step(staleness: int) -> None:
    x, y = data(24)
    counters = [CountsCalls(), CountsCalls()]
    peers = [
        keras.Sequential([keras.Input((FEATURES,)), counter, layers.Dense(CLASSES)])
        for counter in counters
    ]
    model = mutual(peers, staleness=staleness)
    fit(model, x, y)
    # copies count in their own layers
    assert [counter.count for counter in counters] == [3, 3]
    model.evaluate(x, y, batch_size=8, verbose=0)
    assert [counter.count for counter in counters] == [6, 6]


def test_logs_and_evaluation() -> None:
    x, y = data(24)
    peers = [eventful(0, "one"), eventful(1, "other")]
    model = mutual(
        peers,
        alpha=kd.schedules.LateStart(3, 0.5),
        metrics=["accuracy", keras.metrics.SparseCategoricalAccuracy("again")],
    )
    seen = StepLogs(lambda: int(model.optimizer.iterations))
    history = fit(model, x, y, epochs=2, validation_data=(x, y), callbacks=[seen])
    of_each = {
        f"{peer}_{log}"
        for peer in ("one", "other")
        for log in ("loss", "accuracy", "again")
    }
    taught = {f"{peer}_distillation_loss" for peer in ("one", "other")}
    assert set(history) == {"loss", "alpha"} | of_each | taught | {
        f"val_{name}" for name in ("loss", *of_each)
    }
    assert seen.seen == list(range(1, 7))
    assert history["alpha"] == [0.0, 0.5]
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    for peer in peers:
        peer.compile(loss=crossentropy(), metrics=["accuracy"])
        for name, value in peer.evaluate(x, y, verbose=0, return_dict=True).items():
            assert logs[f"{peer.name}_{name}"] == pytest.approx(value, rel=1e-6)
        assert history[f"{peer.name}_accuracy"] == history[f"{peer.name}_again"]
    total = logs["one_loss"] + logs["other_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-6)
    assert model.get_metrics_result()  # a step that follows is not disturbed


def test_calling_gives_the_mean() -> None:
    x, _ = data(8)
    peers = [mlp(0), mlp(1)]
    expected = (peers[0](x) + peers[1](x)) / 2
    np.testing.assert_allclose(MutualLearning(peers)(x), expected, atol=1e-6)


def test_alpha_can_be_assigned() -> None:
    x, y = data(8)
    (peer, alone), (other, _) = (twins(lambda s=s: mlp(s)) for s in (1, 2))
    model = mutual([peer, other], alpha=0.9)
    fit(model, x, y)
    alone.set_weights(peer.get_weights())
    model.alpha = 0.0
    assert model.alpha == 0.0
    fit(model, x, y)
    alone.compile(keras.optimizers.SGD(RATE), crossentropy())
    fit(alone, x, y)
    assert_same_weights(peer, alone, atol=1e-7)


def test_alpha_can_be_assigned_during_fit() -> None:
    x, y = data(16)
    peers, others = [mlp(0), mlp(1)], [mlp(0), mlp(1)]
    model, expected = mutual(peers), mutual(others)

    def begin(epoch: int, logs: Any) -> None:
        model.alpha = (0.5, 0.0)[epoch]

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
    history = fit(model, x, y, epochs=2, callbacks=[callback])
    assert history["alpha"] == [0.5, 0.0]
    for alpha in (0.5, 0.0):
        expected.alpha = alpha
        fit(expected, x, y)
    assert_same_weights(model, expected, atol=1e-7)


def test_every_batch_of_a_generator_trains() -> None:
    x, y = data(32)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]
    model, expected = (mutual([linear(0), linear(1)]) for _ in range(2))
    fit(expected, x, y)
    # A second `fit` of one generator isn't tried: TensorFlow reads ahead.
    generator = (batch for batch in batches)
    fit(model, generator, batch_size=None, steps_per_epoch=4)
    assert_same_weights(model, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "staleness"), [("mixed_bfloat16", 0), ("mixed_float16", 2)]
)
def test_mixed_precision(policy: str, staleness: int) -> None:
    x, y = data(32)
    full = mutual([linear(0), linear(1)], staleness=staleness)
    expected = fit(full, x, y, epochs=3)
    keras.config.set_dtype_policy(policy)
    try:
        model = mutual([linear(0), linear(1)], staleness=staleness)
        history = fit(model, x, y, epochs=3)
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    for name, values in history.items():
        assert values == pytest.approx(expected[name], rel=0.02, abs=0.002), name


def test_xla() -> None:
    x, y = data(32)
    models = [
        mutual([linear(0), linear(1)], staleness=2, jit_compile=jit)
        for jit in (False, True)
    ]
    plain, compiled = (fit(model, x, y, epochs=2) for model in models)
    assert set(compiled) == set(plain)
    for name, values in plain.items():
        assert compiled[name] == pytest.approx(values, rel=1e-5), name
    for one, other in zip(models[0].peers, models[1].peers, strict=True):
        assert_same_weights(one, other, atol=1e-6)


def test_an_unbuilt_peer_is_built_by_its_first_step() -> None:
    x, y = data(16)
    peers = [
        keras.Sequential([layers.Dense(units), layers.Dense(CLASSES)])
        for units in (4, 6)
    ]
    model = mutual(peers)
    fit(model, x, y)
    assert all(peer.built for peer in peers)
    assert model(x).shape == (16, CLASSES)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_peer_gone_wrong_stops_the_others_from_learning_it(jit_compile: bool) -> None:
    x, y = data(8)
    peers = [mlp(0), mlp(1)]
    before = peers[1].get_weights()
    peers[0].layers[-1].bias.assign([np.nan, 0.0, 0.0])
    model = mutual(peers, jit_compile=jit_compile, alpha=1.0)
    error = type(backend.invalid_values(""))
    with pytest.raises(error, match="peer's output is NaN"):
        fit(model, x, y)
    after = peers[1].get_weights()
    assert np.isfinite(np.concatenate([w.ravel() for w in after])).all()
    if not backend.compiles(model):
        for weight, expected in zip(after, before, strict=True):
            np.testing.assert_array_equal(weight, expected)
    unchecked = mutual([peers[1], mlp(2)], jit_compile=jit_compile, check_peers=False)
    fit(unchecked, x, y)


class TestWhatIsRefused:
    def test_one_peer(self) -> None:
        with pytest.raises(ValueError, match="two models or more"):
            MutualLearning([mlp()])

    def test_no_models(self) -> None:
        with pytest.raises(TypeError, match="list of Keras models"):
            MutualLearning([mlp(), lambda x: x])

    def test_the_same_peer_twice(self) -> None:
        peer = mlp()
        with pytest.raises(ValueError, match="share weights"):
            MutualLearning([peer, peer])

    def test_shared_layers(self) -> None:
        shared = layers.Dense(4)
        peers = [
            keras.Sequential([keras.Input((FEATURES,)), shared, layers.Dense(CLASSES)])
            for _ in range(2)
        ]
        with pytest.raises(ValueError, match="share weights"):
            MutualLearning(peers)
        shared.trainable = False
        fit(mutual(peers), *data(8))

    def test_layers_that_turn_out_to_be_shared(self) -> None:
        shared = layers.Dense(4)
        peers = [keras.Sequential([shared, layers.Dense(CLASSES)]) for _ in range(2)]
        with pytest.raises(ValueError, match="share weights"):
            fit(mutual(peers), *data(8))

    @pytest.mark.parametrize("staleness", [-1, 0.5, True])
    def test_staleness(self, staleness: Any) -> None:
        with pytest.raises(ValueError, match="`staleness` must be"):
            MutualLearning([mlp(0), mlp(1)], staleness=staleness)

    def test_copies_of_unbuilt_peers(self) -> None:
        unbuilt = keras.Sequential([layers.Dense(CLASSES)])
        with pytest.raises(ValueError, match="must be built"):
            MutualLearning([mlp(), unbuilt], staleness=1)

    def test_two_policies(self) -> None:
        other = keras.Sequential(
            [keras.Input((FEATURES,)), layers.Dense(CLASSES)], name="other"
        )
        half = keras.models.clone_model(other)
        half.dtype_policy = keras.DTypePolicy("mixed_float16")
        with pytest.raises(ValueError, match="one dtype policy"):
            MutualLearning([other, half])

    def test_no_loss(self) -> None:
        with pytest.raises(ValueError, match="need a label `loss`"):
            mutual([mlp(0), mlp(1)], loss=None)

    def test_no_labels(self) -> None:
        model = mutual([mlp(0), mlp(1)])
        x, _ = data(8)
        with pytest.raises(ValueError, match="Pass `y`"):
            fit(model, x)
        with pytest.raises(ValueError, match="Pass `y`"):
            model.evaluate(x, verbose=0)

    def test_other_outputs(self) -> None:
        other = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES + 1)])
        third = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
        with pytest.raises(ValueError, match="outputs"):
            fit(mutual([mlp(), other, third]), *data(8))

    def test_not_compiled(self) -> None:
        model = MutualLearning([mlp(0), mlp(1)])
        with pytest.raises(ValueError, match="call `compile"):
            _ = model.alpha
