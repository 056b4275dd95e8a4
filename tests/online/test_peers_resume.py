"""Peers are saved, loaded, and go on as if they hadn't been interrupted."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests import slow
from tests.backends import tensorflow_only
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
)
from tests.distiller.resumable import At

EPOCHS = 4
Decay = keras.optimizers.schedules.PolynomialDecay


def peer(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(4 + seed, "tanh", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.4, seed=seed),
            layers.Dense(CLASSES),
        ],
        name=f"peer{seed}",  # no other's is the beginning of it
    )


def build(**kwargs: Any) -> kd.online.MutualLearning:
    model = kd.online.MutualLearning([peer(0), peer(1)], **kwargs)
    model.compile(
        keras.optimizers.Adam(Decay(0.1, 12, 0.01)),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=Decay(4.0, 8, 1.0)),
        alpha=kd.schedules.LateStart(5, value=0.7),
        metrics=["accuracy"],
    )
    return model


def fit(model: kd.online.MutualLearning, **kwargs: Any) -> dict[str, Any]:
    batches = tf.data.Dataset.from_tensor_slices(data(24)).batch(8)
    return model.fit(batches, shuffle=False, verbose=0, **kwargs).history


Uninterrupted = tuple[dict[str, Any], kd.online.MutualLearning, dict[str, Any]]


# 4: refreshed in the midst of epochs.
@pytest.fixture(scope="module", params=slow.but([4], [0, 4], "trains twice"))
def uninterrupted(request: pytest.FixtureRequest) -> Uninterrupted:
    settings = {"staleness": request.param, "combine": "probabilities"}
    model = build(**settings)
    return settings, model, fit(model, epochs=EPOCHS)


def assert_same_end(
    model: kd.online.MutualLearning,
    history: dict[str, Any],
    uninterrupted: Uninterrupted,
) -> None:
    _, expected, whole = uninterrupted
    pairs = zip(model.peers, expected.peers, strict=True)
    for one, other in pairs:
        assert_same_weights(one, other)
        for name in whole:
            if name.startswith(f"{other.name}_"):
                log = name.replace(other.name, one.name, 1)
                assert history[log] == whole[name][2:], name
    assert history["loss"] == whole["loss"][2:]
    assert_same_weights(model, expected)


def test_saved_and_loaded(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    settings, _, _ = uninterrupted
    model = build(**settings)
    fit(model, epochs=2)
    model.save(tmp_path / "peers.keras")
    loaded = keras.saving.load_model(tmp_path / "peers.keras")
    assert loaded.staleness == settings["staleness"]
    assert loaded.combine == "probabilities"
    x, _ = data(8)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    history = fit(loaded, epochs=EPOCHS, initial_epoch=2)
    assert_same_end(loaded, history, uninterrupted)


def test_resumed_from_a_backup(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    settings, _, _ = uninterrupted

    def backup() -> keras.callbacks.Callback:
        if settings["staleness"]:
            return kd.online.Backup(tmp_path)
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    def fail() -> None:
        raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(build(**settings), epochs=EPOCHS, callbacks=[backup(), At(7, fail)])
    resumed = build(**settings)
    history = fit(resumed, epochs=EPOCHS, callbacks=[backup()])
    assert_same_end(resumed, history, uninterrupted)


@tensorflow_only("exports")
def test_a_peer_is_saved_and_exported_alone(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    _, model, _ = uninterrupted
    one = model.peers[1]
    x, _ = data(8)
    one.save(tmp_path / "peer.keras")
    alone = keras.saving.load_model(tmp_path / "peer.keras")
    np.testing.assert_array_equal(alone(x), one(x))
    one.export(tmp_path / "peer", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "peer"))
    np.testing.assert_allclose(served.serve(x), one(x), atol=1e-6)


def test_peers_that_share_a_frozen_layer_save_weights_alone(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    shared = layers.Dense(4, "tanh", trainable=False)
    peers = [
        keras.Sequential([keras.Input((FEATURES,)), shared, layers.Dense(CLASSES)])
        for _ in range(2)
    ]
    model = kd.online.MutualLearning(peers)
    model.compile("sgd", crossentropy())
    fit(model)
    with pytest.raises(ValueError, match="`save_weights`"):
        model.save(tmp_path / "peers.keras")
    model.save_weights(tmp_path / "peers.weights.h5")
    weights = model.get_weights()
    fit(model)
    model.load_weights(tmp_path / "peers.weights.h5")
    for weight, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
