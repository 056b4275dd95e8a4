"""Completions follow their model, row by row, wherever and however they are written."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.sequence import Completions, generate, logits_of
from keras_distill.sequence.cached import decoder_of
from tests.backends import compiled, gradients, tensorflow_only
from tests.sequence.writers import (
    VOCABULARY,
    attending,
    bigram,
    cached_models,
    gpt2,
    needs_hub,
    recurrent,
)

PROMPTS = [[3, 1, 4], [2], [], [5, 5], [9, 0, 7]]
NEW, END = 5, 4


def padded(prompts: list[list[int]], width: int, *, left: bool) -> np.ndarray:
    """Return prompts of one width, padded with zeros at one side."""
    rows = np.zeros((len(prompts), width), "int32")
    for row, prompt in zip(rows, prompts, strict=True):
        row[slice(width - len(prompt), None) if left else slice(len(prompt))] = prompt
    return rows


def as_arrays(written: Completions) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the mask of completions."""
    return tuple(ops.convert_to_numpy(part) for part in written)


def greedy(model: keras.Model, prompt: list[int], new: int) -> list[int]:
    """Return the most probable completion of one prompt, without a cache."""
    row = list(prompt)
    while prompt and len(row) < len(prompt) + new:
        # All of one length, for each of which JAX compiles. What follows isn't read.
        whole = row + [1] * (4 + new - len(row))
        logits = ops.convert_to_numpy(logits_of(model, np.array([whole], "int32")))
        row.append(int(logits[0, len(row) - 1].argmax()))
        if row[-1] == END:
            break
    return row[len(prompt) :]


@pytest.fixture(scope="module")
def plain() -> keras.Model:
    return recurrent()


@pytest.fixture(scope="module")
def expected(plain: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the mask of the greedy completions of `PROMPTS`."""
    tokens = np.zeros((len(PROMPTS), 4 + NEW), "int32")
    mask = np.zeros_like(tokens, bool)
    for row, prompt in enumerate(PROMPTS):
        completion = greedy(plain, prompt, NEW)
        whole = [*prompt, *completion]
        tokens[row, : len(whole)] = whole
        mask[row, len(prompt) : len(whole)] = True
    # Some rows end early and others don't, so that both are seen.
    assert {int(length) for length in mask.sum(1)} > {0, NEW}
    return tokens, mask


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("use_mask", [False, True], ids=["by_token", "by_mask"])
def test_each_row_is_the_completion_of_its_prompt_alone(
    plain: keras.Model, expected: Any, left: bool, use_mask: bool
) -> None:
    prompts = padded(PROMPTS, 4, left=left)
    mask = padded([[1] * len(row) for row in PROMPTS], 4, left=left)
    written = generate(
        plain,
        prompts,
        max_new_tokens=NEW,
        end_token=END,
        temperature=0,
        prompt_mask=mask if use_mask else None,
    )
    for found, right in zip(as_arrays(written), expected, strict=True):
        np.testing.assert_array_equal(found, right)


def test_a_mask_keeps_padding_tokens_of_prompts_and_removes_holes() -> None:
    # After each token, the next one is the most probable.
    model = bigram(10 * np.roll(np.eye(5), 1, axis=1))
    prompts = np.array([[0, 1, 0, 4], [1, 4, 2, 0]])
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    written = generate(
        model,
        prompts.tolist(),
        max_new_tokens=2,
        temperature=0,
        prompt_mask=mask.tolist(),
    )
    tokens, is_completion = as_arrays(written)
    assert tokens.tolist() == [[0, 1, 0, 1, 2, 0], [1, 2, 3, 0, 0, 0]]
    assert np.flatnonzero(is_completion[1]).tolist() == [1, 2]


def test_samples_follow_the_model() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    rows = 20_000
    prompts = np.full((rows, 1), 2)
    # The bound holds for all but one of a thousand seeds.
    written = generate(bigram(logits), prompts, max_new_tokens=2, seed=1)
    tokens, _ = as_arrays(written)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right = rows * p[2][:, None] * p
    found = np.zeros((4, 4))
    np.add.at(found, (tokens[:, 1], tokens[:, 2]), 1)
    assert ((found - right) ** 2 / right).sum() < 37.7  # chi-square, 15 degrees


@cached_models
def test_a_cache_gives_the_logits_of_whole_rows(make: Any) -> None:
    model = make()
    rng = np.random.default_rng(0)
    rows = ops.convert_to_tensor(rng.integers(1, VOCABULARY, (2, 9)), "int32")
    right = ops.convert_to_numpy(logits_of(model, rows))
    for use_cache in (True, False):
        decoder = decoder_of(model, use_cache)
        assert bool(keras.tree.flatten(decoder.start(rows))) == use_cache
        # What the cache holds of later tokens is replaced as they are read.
        cache = decoder.start(ops.concatenate([rows[:, :2], rows[:, 1:8]], axis=1))
        for index, width in [(2, 3), (5, 1), (4, 5), (3, 6)]:
            logits, cache = decoder.logits(rows, cache, index, width)
            np.testing.assert_allclose(
                ops.convert_to_numpy(logits),
                right[:, index : index + width],
                rtol=1e-4,
                atol=1e-5,
            )


@cached_models
def test_completions_are_the_same_with_a_cache_and_without(make: Any) -> None:
    model = make()
    prompts = padded(PROMPTS, 4, left=True)
    written = [
        as_arrays(
            generate(
                model,
                prompts,
                max_new_tokens=8,
                end_token=END,
                seed=2,
                use_cache=use_cache,
            )
        )
        for use_cache in (True, False)
    ]
    np.testing.assert_array_equal(written[0][0], written[1][0])
    np.testing.assert_array_equal(written[0][1], written[1][1])


class Training(keras.Model):
    """A model that writes with another one while it trains."""

    def __init__(self, model: keras.Model, use_cache: bool) -> None:
        super().__init__()
        self.model, self.use_cache = model, use_cache

    def call(self, prompts: Any) -> Any:
        return generate(
            self.model,
            prompts,
            max_new_tokens=NEW,
            seed=4,
            use_cache=self.use_cache,
        )


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize(
    "make", [attending, pytest.param(gpt2, marks=needs_hub)], ids=["attending", "gpt2"]
)
def test_training_neither_leaks_into_writing_nor_is_changed_by_it(
    make: Any, use_cache: bool, traced: bool
) -> None:
    model = make()
    prompts = ops.convert_to_tensor(padded(PROMPTS, 4, left=False))
    right = generate(model, prompts, max_new_tokens=NEW, seed=4, use_cache=use_cache)
    before = [ops.convert_to_numpy(variable) for variable in model.variables]
    outer = Training(model, use_cache)

    def called(prompts: Any) -> Any:
        return tuple(outer(prompts, training=True))

    call = compiled(called, reads=model.variables) if traced else called
    written = call(prompts)
    np.testing.assert_array_equal(ops.convert_to_numpy(written[0]), as_arrays(right)[0])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def test_a_layer_that_trains_goes_on_training_after_it_has_written() -> None:
    class Both(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.model = layers.Dropout(0.9, seed=1), recurrent()

        def call(self, prompts: Any) -> Any:
            generate(self.model, prompts, max_new_tokens=1, seed=1)
            return self.dropout(ops.ones((1, 100)))

    outputs = ops.convert_to_numpy(Both()(ops.ones((1, 2), "int32"), training=True))
    assert (outputs == 0).any()


def test_writing_has_no_gradient(plain: keras.Model) -> None:
    prompts = ops.convert_to_tensor(padded(PROMPTS, 4, left=False))

    def loss() -> Any:
        tokens, mask = generate(plain, prompts, max_new_tokens=2, seed=1)
        logits = logits_of(plain, tokens)
        return ops.sum(ops.where(mask[..., None], logits, 0.0))

    written = generate(plain, prompts, max_new_tokens=2, seed=1)

    def of_fixed() -> Any:
        logits = logits_of(plain, written.tokens)
        return ops.sum(ops.where(written.is_completion[..., None], logits, 0.0))

    weights = plain.trainable_variables
    for found, right in zip(
        gradients(loss, weights), gradients(of_fixed, weights), strict=True
    ):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def test_seeds_repeat_completions_and_generators_go_on(plain: keras.Model) -> None:
    prompts = padded(PROMPTS, 4, left=False)

    def tokens(seed: Any) -> list[list[int]]:
        written = generate(plain, prompts, max_new_tokens=NEW, seed=seed)
        return as_arrays(written)[0].tolist()

    assert tokens(1) == tokens(1) != tokens(2)
    generator, again = (keras.random.SeedGenerator(1) for _ in range(2))
    first, second = tokens(generator), tokens(generator)
    assert first != second
    assert [tokens(again), tokens(again)] == [first, second]
    assert tokens(None) != tokens(None)


@tensorflow_only("shapes are known on other backends")
@pytest.mark.parametrize(
    ("make", "jit_compile"),
    [
        pytest.param(recurrent, False, id="recurrent-graph"),
        pytest.param(attending, True, id="attending-xla"),
        pytest.param(gpt2, False, id="gpt2-graph", marks=needs_hub),
    ],
)
def test_a_tensorflow_step_writes_the_same(make: Any, jit_compile: bool) -> None:
    import tensorflow as tf

    model = make()
    spec = tf.TensorSpec((None, None), tf.int32)

    @tf.function(jit_compile=jit_compile, input_signature=[spec])
    def step(prompts: Any) -> Any:
        return generate(
            model, prompts, max_new_tokens=NEW, end_token=END, temperature=0
        )

    # XLA draws other random numbers from a seed.
    prompts = padded(PROMPTS, 4, left=False)
    right = generate(model, prompts, max_new_tokens=NEW, end_token=END, temperature=0)
    written = Completions(*step(tf.convert_to_tensor(prompts)))
    for found, of_eager in zip(as_arrays(written), as_arrays(right), strict=True):
        np.testing.assert_array_equal(found, of_eager)


@tensorflow_only("shapes are known on other backends")
def test_a_mask_may_have_another_unknown_dimension_than_its_prompts() -> None:
    import tensorflow as tf

    model = bigram(10 * np.roll(np.eye(5), 1, axis=1))
    specs = [tf.TensorSpec((None, 3), tf.int32), tf.TensorSpec((2, None), tf.bool)]

    @tf.function(input_signature=specs)
    def step(prompts: Any, mask: Any) -> Any:
        return generate(
            model, prompts, prompt_mask=mask, max_new_tokens=1, temperature=0
        ).tokens

    prompts = tf.constant([[1, 2, 0], [3, 0, 0]])
    tokens = ops.convert_to_numpy(step(prompts, prompts > 0))
    assert tokens.tolist() == [[1, 2, 3, 0], [3, 4, 0, 0]]


def test_weights_are_read_at_each_call_and_exchanged_layers_are_seen() -> None:
    model = bigram(10 * np.roll(np.eye(5), 1, axis=1))

    def written() -> list[int]:
        prompts = np.array([[1]])
        found = generate(model, prompts, max_new_tokens=2, temperature=0)
        return as_arrays(found)[0][0].tolist()

    assert written() == [1, 2, 3]
    model.layers[0].embeddings.assign(10 * np.roll(np.eye(5), 2, axis=1))
    assert written() == [1, 3, 0]


def test_a_model_that_has_written_can_be_freed() -> None:
    model = recurrent()
    generate(model, np.array([[1]]), max_new_tokens=1)
    reference = weakref.ref(model)
    keras.backend.clear_session()
    del model
    gc.collect()
    assert reference() is None


@pytest.fixture
def short() -> Iterator[keras.Model]:
    """A model of a fixed time of 6 tokens."""
    yield keras.Sequential(
        [keras.Input((6,), dtype="int32"), layers.Embedding(5, 5, name="table")]
    )


def test_a_model_of_fixed_length_writes_shorter_rows(short: keras.Model) -> None:
    written = generate(short, np.array([[1, 2]]), max_new_tokens=3, seed=1)
    assert tuple(written.tokens.shape) == (1, 5)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"max_new_tokens": 5}, r"Rows have 7 tokens.*context of model .* has 6"),
        ({"max_new_tokens": 0}, r"whole number from 1 on.*max_new_tokens=0"),
        ({"max_new_tokens": True}, r"max_new_tokens=True"),
        ({"end_token": 5}, r"`end_token` must be a token id from 0 to 4.*end_token=5"),
        ({"padding_token": -1}, r"`padding_token` must be .*padding_token=-1"),
        ({"prompts": np.zeros((0, 2), "int32")}, r"at least one row.*\(0, 2\)"),
        ({"prompts": np.zeros((2, 0), "int32")}, r"at least one row.*\(2, 0\)"),
        ({"prompts": np.zeros((2,), "int32")}, r"shape \(batch, time\).*\(2,\)"),
        ({"prompts": np.ones((1, 2))}, r"whole numbers.*float64"),
        ({"prompts": np.array([[1, 5]])}, r"ids from 0 to 4.*the token 5"),
        ({"prompts": np.array([[1, -1]])}, r"the token -1"),
        ({"prompt_mask": np.ones((1, 3))}, r"shape of the prompts.*\(1, 3\)"),
        ({"temperature": -1.0}, r"`temperature` must be at least 0.*-1.0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"top_k": 0}, r"`top_k` must be a whole number from 1 on.*top_k=0"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\].*top_p=0.0"),
        ({"top_p": 1.5}, r"top_p=1.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments(short: keras.Model, changed: Any, error: str) -> None:
    arguments = {"prompts": np.array([[1, 2]]), "max_new_tokens": 2, **changed}
    with pytest.raises((ValueError, TypeError), match=error):
        generate(short, **arguments)


@needs_hub
def test_the_context_of_a_backbone_is_a_limit() -> None:
    for use_cache in (True, False):
        with pytest.raises(ValueError, match="Rows have 17 tokens.*has 16"):
            generate(
                gpt2(), np.ones((1, 12), int), max_new_tokens=5, use_cache=use_cache
            )


def test_a_model_that_isn_t_built_or_returns_something_else_is_refused() -> None:
    class Tokens(keras.Model):
        def call(self, tokens: Any) -> Any:
            return tokens

    with pytest.raises(ValueError, match="must be built"):
        generate(Tokens(), np.array([[1]]), max_new_tokens=1)
    model = Tokens()
    model(ops.ones((1, 2), "int32"))
    with pytest.raises(ValueError, match=r"must return logits of shape \(batch, time"):
        generate(model, np.array([[1]]), max_new_tokens=1)
