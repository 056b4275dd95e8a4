"""Blocks that are dropped."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.students import drop_layers
from keras_distill.students.blocks import blocks_of
from tests.students.teachers import ALL, batch, encoder
from tests.students.zeroing import assert_same, randomize


def residual_net(activation_first=False):
    """Stages of 8 and 16 filters, three blocks each, with the activation at the end."""
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    for stage, filters in enumerate((8, 16)):
        for block in range(3):
            name = f"stage{stage}_block{block}"
            y = layers.ReLU()(x) if activation_first else x
            y = layers.Conv2D(filters, 3, padding="same", name=f"{name}_1")(y)
            y = layers.Conv2D(filters, 3, padding="same", name=f"{name}_2")(y)
            if x.shape[-1] != filters:
                x = layers.Conv2D(filters, 1, name=f"{name}_skip")(x)
            x = layers.Add(name=f"{name}_add")([x, y])
            if not activation_first:
                x = layers.ReLU(name=f"{name}_out")(x)
    if activation_first:
        x = layers.ReLU()(layers.BatchNormalization(name="last")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def block(name):
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(9, "relu"), layers.Dense(6)], name=name
    )


def submodels():
    blocks = [block(f"block_{i}") for i in range(4)]
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(6), *blocks, layers.Dense(3)]
    )


def masked_encoder():
    """An encoder after its norms, which reads a mask in each block."""
    words, mask = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="bool")
    wide = layers.Reshape((1, 6))(mask)
    x = layers.Embedding(30, 8)(words)
    for i in range(3):
        attention = layers.MultiHeadAttention(2, 4, name=f"attention_{i}")
        x = layers.LayerNormalization(name=f"a{i}")(
            x + attention(x, x, attention_mask=wide)
        )
        y = layers.Dense(8, name=f"narrow_{i}")(layers.Dense(16, "relu")(x))
        x = layers.LayerNormalization(name=f"b{i}")(x + y)
    return keras.Model([words, mask], layers.Dense(3)(x))


@pytest.mark.parametrize("kind", ALL)
def test_all_kept_is_the_teacher(kind):
    teacher = randomize(ALL[kind]())
    blocks = blocks_of(teacher)
    if not blocks:
        with pytest.raises(ValueError, match="has no block that can be dropped"):
            drop_layers(teacher, every=2)
        return
    student = drop_layers(teacher, keep=[block.name for block in blocks])
    assert_same(student, teacher, batch(teacher), 1e-6)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: encoder(4), [f"attention_{i}" for i in range(4)]),
        (masked_encoder, [f"attention_{i}" for i in range(3)]),
        (submodels, [f"block_{i}" for i in range(4)]),
        (
            residual_net,
            [f"stage0_block{i}_1" for i in range(3)]
            + [f"stage1_block{i}_1" for i in (1, 2)],
        ),
        (
            lambda: residual_net(activation_first=True),
            [f"stage0_block{i}_1" for i in range(3)]
            + [f"stage1_block{i}_1" for i in (1, 2)],
        ),
    ],
    ids=["encoder", "masked encoder", "sub-models", "residual", "activation first"],
)
def test_blocks_are_found_and_dropped(build, names):
    teacher = randomize(build())
    blocks = blocks_of(teacher)
    assert [block.name for block in blocks] == names
    student = drop_layers(teacher, every=2)
    kept = {block.name for block in blocks if block.place % 2 == 0}
    there = {layer.name for layer in student.layers}
    assert there & set(names) == kept
    # Whatever isn't in a block stays: norms and activations at the end, for example.
    inside = {node.operation.name for block in blocks for node in block.nodes}
    assert {layer.name for layer in teacher.layers} - inside <= there
    x = batch(teacher)
    assert np.isfinite(student.predict(x, verbose=0)).all()
    for layer in student.layers:
        old = teacher.get_layer(layer.name)
        for a, b in zip(layer.get_weights(), old.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("build", [residual_net, submodels, lambda: encoder(3)])
def test_branches_of_zeros_can_go(build):
    teacher = randomize(build())
    blocks = blocks_of(teacher)[1::2]
    if build is submodels:  # without a residual connection: the identity
        for i in (1, 3):
            first, last = teacher.get_layer(f"block_{i}").layers
            first.set_weights([np.eye(6, 9), np.full(9, 100.0)])
            last.set_weights([np.eye(9, 6), np.full(6, -100.0)])
    else:
        for node in (node for block in blocks for node in block.nodes):
            layer = node.operation
            if layer.name.startswith(("stage", "attention", "narrow")):
                layer.set_weights([0.0 * w for w in layer.get_weights()])
    keep = [
        b.name for b in blocks_of(teacher) if b.name not in {b.name for b in blocks}
    ]
    student = drop_layers(teacher, keep=keep)
    assert student.count_params() < teacher.count_params()
    assert_same(student, teacher, batch(teacher), 1e-4)


def test_blocks_within_a_sub_model():
    inputs = keras.Input((8, 8, 3))
    trunk = residual_net()
    trunk = keras.Model(trunk.inputs, trunk.layers[-2].output, name="trunk")
    teacher = keras.Model(inputs, layers.Dense(2)(trunk(inputs, training=False)))
    student = drop_layers(teacher, keep=["stage0_block0_1", 1, -1])
    names = {layer.name for layer in student.get_layer("trunk").layers}
    assert "stage0_block1_2" in names and "stage0_block2_2" not in names
    assert "stage1_block2_2" in names and "stage1_block1_2" not in names
    assert "stage1_block0_skip" in names


def test_any_layer_names_its_block():
    student = drop_layers(encoder(3), keep=["wide_1"])
    names = {layer.name for layer in student.layers}
    assert "attention_1" in names and "attention_0" not in names


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, TypeError, "one of `keep` and `every`. Received: keep=None, every=None"),
        ({"keep": [0], "every": 2}, TypeError, r"keep=\[0\], every=2"),
        ({"keep": "wide_0"}, TypeError, "takes a list of blocks. .*'wide_0'"),
        ({"keep": ["logits"]}, ValueError, "'logits', .*'attention_0', 'attention_1'"),
        ({"keep": [2]}, ValueError, "has 2, which isn't in a block"),
        ({"every": 1}, ValueError, "above 1. Received: every=1"),
        ({"every": 0.5}, ValueError, "Received: every=0.5"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        drop_layers(encoder(2), **call)


def test_models_without_a_graph():
    with pytest.raises(ValueError, match="isn't built"):
        drop_layers(keras.Sequential([layers.Dense(2)]), every=2)
