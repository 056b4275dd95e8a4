"""Small token models for the tests of writing and of the losses over tokens."""

import importlib.util
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

VOCABULARY = 11

HUB = importlib.util.find_spec("keras_hub") is not None
needs_hub = pytest.mark.skipif(not HUB, reason="keras-hub isn't installed")


def recurrent(seed: int = 0, vocabulary: int = VOCABULARY) -> keras.Model:
    """Return a plain model without a cache, with dropout."""
    keras.utils.set_random_seed(seed)
    return sharpened(
        keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(vocabulary, 8),
                layers.GRU(8, return_sequences=True),
                layers.Dropout(0.5, seed=3),
                layers.Dense(vocabulary),
            ]
        ),
        seed,
    )


def bigram(logits: np.ndarray) -> keras.Model:
    """Return a model whose logits after a token are the row of a table."""
    size = len(logits)
    table = layers.Embedding(size, size)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), table])
    table.embeddings.assign(logits)
    return model


class Attending(keras.Model):
    """A subclassed model of one attention layer, with a key-value cache of its own."""

    def __init__(self, width: int = 8, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.width = width
        self.tokens = layers.Embedding(vocabulary, width)
        self.positions = layers.Embedding(32, width)
        self.projection = layers.Dense(3 * width)
        self.dropout = layers.Dropout(0.5)
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(vocabulary)

    def _embedded(self, tokens: Any, index: Any) -> Any:
        places = index + ops.arange(ops.shape(tokens)[1], dtype="int32")
        x = self.dropout(self.tokens(tokens) + self.positions(places)[None])
        return ops.split(self.projection(x), 3, axis=-1)

    def _attended(self, query: Any, key: Any, value: Any, index: Any) -> Any:
        scores = ops.matmul(query, ops.swapaxes(key, 1, 2)) / self.width**0.5
        at = index + ops.arange(ops.shape(query)[1], dtype="int32")[:, None]
        seen = ops.arange(ops.shape(key)[1], dtype="int32")[None] <= at
        weights = ops.softmax(ops.where(seen[None], scores, -1e9))
        return self.norm(ops.matmul(weights, value))

    def call(self, tokens: Any) -> Any:
        return self.head(self._attended(*self._embedded(tokens, 0), 0))

    def build_cache(self, token_ids: Any) -> Any:
        _, key, value = self._embedded(token_ids, 0)
        return None, (key, value)

    def call_with_cache(self, token_ids: Any, cache: Any, cache_update_index: Any):
        query, *new = self._embedded(token_ids, cache_update_index)
        start = [0, cache_update_index, 0]
        cache = tuple(
            ops.slice_update(old, start, at) for old, at in zip(cache, new, strict=True)
        )
        hidden = self._attended(query, *cache, cache_update_index)
        return self.head(hidden), hidden, cache


def attending(seed: int = 0) -> keras.Model:
    """Return a built plain model with a cache."""
    keras.utils.set_random_seed(seed)
    model = Attending()
    model(ops.ones((1, 2), "int32"))
    return sharpened(model, seed)


def gpt2(seed: int = 0) -> keras.Model:
    """Return a model of keras-hub with learnt positions and dropout."""
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=16,
        dropout=0.5,
    )
    return sharpened(keras_hub.models.GPT2CausalLM(backbone=backbone), seed)


def llama(seed: int = 0) -> keras.Model:
    """Return a model of keras-hub with rotary positions."""
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
    )
    return sharpened(keras_hub.models.LlamaCausalLM(backbone=backbone), seed)


def sharpened(model: keras.Model, seed: int = 0) -> keras.Model:
    """Return a model whose distributions aren't close to uniform."""
    for number, weight in enumerate(model.trainable_variables):
        if len(weight.shape) > 1:
            noise = np.random.default_rng(100 * seed + number).normal(size=weight.shape)
            weight.assign(2.0 * noise / len(noise) ** 0.5)
    return model


CACHED: dict[str, Callable[..., keras.Model]] = {
    "attending": attending,
    "gpt2": gpt2,
    "llama": llama,
}
cached_models = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name == "attending" else needs_hub)
        for name, make in CACHED.items()
    ],
)
