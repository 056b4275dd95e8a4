"""Conversions to ONNX hold few copies of the weights."""

import gc
import os

import keras
import pytest
from keras import layers

from keras_distill.export import export, onnx_memory


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.ZeroPadding2D()(layers.Conv2D(4, 3, name="conv")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="y")(layers.Flatten()(x)))


def test_constants_are_written_once(model, floats, tmp_path, monkeypatch):
    from tf2onnx.graph import Node

    written = []
    update = Node.update_proto

    def counted(node, *given):
        if node.is_const():
            written.append(node.name)
        update(node, *given)

    monkeypatch.setattr(Node, "update_proto", counted)
    export(model, tmp_path / "out", ["onnx"], example_batch=floats(2, 8, 8, 3))
    assert not written
    assert Node.update_proto is counted


def test_a_pass_that_fails_is_left_out(model, floats, tmp_path, monkeypatch):
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    calls = []

    def broken(self, graph):
        calls.append(os.environ.get("TF2ONNX_CATCH_ERRORS"))
        raise ValueError("a fault of the pass")

    monkeypatch.setattr(TransposeOptimizer, "_optimize", broken)
    monkeypatch.delenv("TF2ONNX_CATCH_ERRORS", raising=False)
    export(model, tmp_path / "out", ["onnx"], example_batch=floats(2, 8, 8, 3))
    assert calls[0] == "FALSE" and calls[-1] is None


@pytest.mark.parametrize(("weights", "collects"), [(999_999, False), (1_000_000, True)])
def test_memory_is_collected_for_large_models(weights, collects, monkeypatch):
    calls = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(1))
    onnx_memory.convert(lambda: None, weights)
    assert bool(calls) == collects


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("TF2ONNX_CATCH_ERRORS", "TRUE")
    seen = onnx_memory.convert(lambda: os.environ["TF2ONNX_CATCH_ERRORS"], weights=1)
    assert seen == "FALSE" and os.environ["TF2ONNX_CATCH_ERRORS"] == "TRUE"
