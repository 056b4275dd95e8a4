"""Each peer counts what its own layers add to the loss, once, on every backend."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill import backend
from tests import slow
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
from tests.online.test_peers import fit, linear, mutual

RATE = 0.5


class Penalty(layers.Layer):
    """Adds the mean square of its input to the loss, and passes the input on."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(ops.mean(ops.square(inputs)))
        return inputs


def penalised(seed: int, name: str, *shared: layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            *shared,
            layers.Dense(4 + seed, "tanh", kernel_regularizer="l2"),
            Penalty(),
            layers.Dense(CLASSES, activity_regularizer="l1"),
        ],
        name=name,
    )


def frozen() -> layers.Layer:
    keras.utils.set_random_seed(9)
    layer = layers.Dense(FEATURES, "tanh", activity_regularizer="l2", trainable=False)
    layer.build((None, FEATURES))
    return layer


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("eager", slow.but([False], [False, True], "eager fits"))
def test_added_losses_count_once(shares: bool, eager: bool) -> None:
    x, y = data(24)
    names = "one", "other"
    layer = [frozen()] if shares else []
    peers = [penalised(seed, name, *layer) for seed, name in enumerate(names)]
    model = mutual(peers, alpha=0.0, run_eagerly=eager)
    history = fit(model, x, y, epochs=2, validation_data=(x, y))
    total, of_validation = np.zeros(2), np.zeros(2)
    # On JAX, Keras' own eager `fit` with validation leaves out an activity regulariser
    # in some epochs.
    eager = eager and keras.backend.backend() == "tensorflow"
    for seed, (name, peer) in enumerate(zip(names, peers, strict=True)):
        alone = penalised(seed, name, *([frozen()] if shares else []))
        alone.compile(keras.optimizers.SGD(RATE), crossentropy(), run_eagerly=eager)
        expected = fit(alone, x, y, epochs=2, validation_data=(x, y))
        assert_same_weights(peer, alone, atol=1e-6)
        assert history[f"{name}_loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert history[f"val_{name}_loss"] == pytest.approx(
            expected["val_loss"], rel=1e-5
        )
        total += expected["loss"]
        of_validation += expected["val_loss"]
    assert history["loss"] == pytest.approx(list(total), rel=1e-5)
    assert history["val_loss"] == pytest.approx(list(of_validation), rel=1e-5)


class OwnLoss(keras.Model):
    """Doubles the loss of Keras, which includes what layers add."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super().compute_loss(*args, **kwargs)


def test_a_loss_of_the_models_own_reads_what_layers_add() -> None:
    x, y = data(24)

    def own(seed: int) -> keras.Model:
        inner = penalised(seed, f"inner{seed}")
        return OwnLoss(inner.inputs, inner.outputs[0], name=f"own{seed}")

    peers = [own(seed) for seed in range(2)]
    history = fit(mutual(peers, alpha=0.0), x, y)
    for seed, peer in enumerate(peers):
        alone = own(seed)
        alone.compile(keras.optimizers.SGD(RATE), crossentropy())
        expected = fit(alone, x, y)
        assert_same_weights(peer, alone, atol=1e-6)
        assert history[f"{peer.name}_loss"] == pytest.approx(expected["loss"])


def test_the_loss_can_be_computed_outside_of_a_step() -> None:
    x, y = data(8)
    peers = [linear(0), linear(1)]
    model = mutual(peers, alpha=0.25)
    logits = [peer.predict(x, verbose=0) for peer in peers]
    of_labels = [label_loss(y, one).mean() for one in logits]
    of_others = forward_kl(*logits).mean() + forward_kl(*logits[::-1]).mean()
    inputs, labels = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    evaluated = model.compute_loss(inputs, labels, training=False)
    assert float(evaluated) == pytest.approx(sum(of_labels), rel=1e-5)
    trained = model.compute_loss(inputs, labels)
    expected = 0.75 * sum(of_labels) + 0.25 * of_others
    assert float(trained) == pytest.approx(expected, rel=1e-5)


def test_a_batch_at_a_time() -> None:
    x, y = data(16)
    one, other = (mutual([linear(0), linear(1)], staleness=2) for _ in range(2))
    fit(one, x, y)
    for begin in (0, 8):
        batch = slice(begin, begin + 8)
        logs = other.train_on_batch(x[batch], y[batch], return_dict=True)
    assert {"loss", "alpha", "linear0_loss", "linear1_distillation_loss"} <= set(logs)
    assert_same_weights(one, other, atol=1e-6)


def test_copies_have_moving_statistics_from_before_the_step() -> None:
    x, y = data(8)

    def normalised(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input((FEATURES,)),
                layers.BatchNormalization(),
                layers.Dense(CLASSES),
            ]
        )

    model = mutual([normalised(0), normalised(1)], staleness=1)
    before = [peer.get_weights() for peer in model.peers]
    fit(model, x, y)
    for copy, peer, weights in zip(model.copies, model.peers, before, strict=True):
        for weight, expected in zip(copy.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
        moved, mean = peer.layers[0].moving_mean, copy.layers[0].moving_mean
        assert np.abs(ops.convert_to_numpy(moved - mean)).min() > 0.0


def test_no_peer_is_updated_once_one_has_gone_wrong() -> None:
    x, y = data(8)
    peers = [mlp(seed) for seed in range(3)]
    before = [peer.get_weights() for peer in peers]
    peers[1].layers[-1].bias.assign([np.nan, 0.0, 0.0])
    model = mutual(peers)
    with pytest.raises(type(backend.invalid_values("")), match="peer's output is NaN"):
        fit(model, x, y)
    for number in (0, 2):
        for weight, expected in zip(
            peers[number].get_weights(), before[number], strict=True
        ):
            assert np.isfinite(weight).all()
            if not backend.compiles(model):
                np.testing.assert_array_equal(weight, expected)


def test_bad_labels_stop_training() -> None:
    x, _ = data(8)
    keras.utils.set_random_seed(0)
    peers = [
        keras.Sequential([keras.Input((FEATURES,)), layers.Dense(1)], name=name)
        for name in ("one", "other")
    ]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = mutual(peers, loss=loss, distillation_loss="mse")
    with pytest.raises(type(backend.invalid_values("")), match="must lie in"):
        fit(model, x, np.full((8, 1), 7.0, "float32"))
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    assert np.isfinite(weights).all()
