"""The cost of a step of `OnPolicyDistiller`, compared to the cost of its parts.

Claims: a step costs at most 1.2 x (generation + teacher forward + student step). Rows
of 256 tokens are generated at least 5 x as fast with a cache as without. The model is a
small transformer with a key-value cache. All sides run interleaved in one process. The
ratios of the medians are printed. KERAS_BACKEND=jax measures the same on JAX.

    python benchmarks/on_policy_step.py [--rounds 10] [--steps 2]
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from timing import forward_pass, interleaved, ratio, show, training_step

import keras_distill as kd

VOCABULARY, BATCH, PROMPT, NEW = 128, 16, 8, 64
CONTEXT, LONG = PROMPT + NEW, 256
BOUND, CACHED_BOUND = 1.2, 5.0


class Block(layers.Layer):
    """A causal transformer block whose keys and values may be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.projection, self.out = layers.Dense(3 * width), layers.Dense(width)
        self.wide, self.narrow = layers.Dense(4 * width, "gelu"), layers.Dense(width)

    def call(self, x: Any, cache: Any = None, index: Any = 0) -> Any:
        """Return the outputs, and the keys and values of all positions."""
        batch, time = ops.shape(x)[0], ops.shape(x)[1]
        projected = self.projection(self.norms[0](x))
        parts = ops.reshape(projected, (batch, time, 3, self.heads, self.size))
        query, *new = ops.unstack(ops.transpose(parts, (2, 0, 3, 1, 4)))
        if cache is not None:
            start = [0, 0, index, 0]
            pairs = zip(cache, new, strict=True)
            new = [ops.slice_update(old, start, at) for old, at in pairs]
        key, value = new
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) / self.size**0.5
        places = ops.arange(ops.shape(key)[2], dtype="int32")[None]
        seen = places <= index + ops.arange(time, dtype="int32")[:, None]
        attended = ops.matmul(ops.softmax(ops.where(seen, scores, -1e9)), value)
        attended = ops.reshape(ops.swapaxes(attended, 1, 2), (batch, time, -1))
        x = x + self.out(attended)
        return x + self.narrow(self.wide(self.norms[1](x))), (key, value)


class Transformer(keras.Model):
    """A causal transformer, with the two methods of a model that has a cache."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.tokens = layers.Embedding(VOCABULARY, width)
        self.positions = layers.Embedding(LONG, width)
        self.blocks = [Block(width, heads=4) for _ in range(depth)]
        self.head = layers.Dense(VOCABULARY)

    def _passed(self, tokens: Any, caches: Any, index: Any) -> tuple[Any, list]:
        places = index + ops.arange(ops.shape(tokens)[1], dtype="int32")
        x, kept = self.tokens(tokens) + self.positions(places)[None], []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, cache=cache, index=index)
            kept.append(cache)
        return x, kept

    def call(self, tokens: Any) -> Any:
        """Return logits."""
        return self.head(self._passed(tokens, [None] * len(self.blocks), 0)[0])

    def build_cache(self, token_ids: Any) -> Any:
        """Return hidden states and a cache of these rows."""
        return self._passed(token_ids, [None] * len(self.blocks), 0)

    def call_with_cache(self, token_ids: Any, cache: Any, cache_update_index: Any):
        """Return logits, hidden states and the cache at some positions."""
        hidden, cache = self._passed(token_ids, cache, cache_update_index)
        return self.head(hidden), hidden, cache


def transformer(width: int, depth: int, seed: int) -> Transformer:
    """Return a built model."""
    keras.utils.set_random_seed(seed)
    model = Transformer(width, depth)
    model(np.ones((1, 2), "int32"))
    return model


def generation(
    model: keras.Model,
    prompts: np.ndarray,
    jit_compile: bool,
    *,
    new: int = NEW,
    use_cache: bool = True,
) -> Callable[[], object]:
    """Return one call of a compiled generation."""
    seed = keras.random.SeedGenerator(0)

    def written(prompts: Any) -> Any:
        return kd.sequence.generate(
            model, prompts, max_new_tokens=new, seed=seed, use_cache=use_cache
        )

    if keras.backend.backend() == "jax":
        return lambda: written(prompts).tokens
    import tensorflow as tf

    run = tf.function(written, jit_compile=jit_compile, autograph=False)
    tokens = tf.convert_to_tensor(prompts)
    return lambda: run(tokens).tokens


def sides(jit_compile: bool) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    generator = np.random.default_rng(0)
    rows = generator.integers(1, VOCABULARY, (BATCH, CONTEXT)).astype("int32")
    prompts, x = rows[:, :PROMPT], rows[:, :-1]
    is_completion = np.arange(1, CONTEXT) >= PROMPT
    weight = np.broadcast_to(is_completion, x.shape).astype("float32")
    teacher = transformer(128, 4, seed=0)
    plain, writer = transformer(64, 2, seed=1), transformer(64, 2, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile("adam", loss, jit_compile=jit_compile)
    ours = kd.sequence.OnPolicyDistiller(
        transformer(64, 2, seed=1), teacher, max_new_tokens=NEW, end_token=None, seed=0
    )
    ours.compile("adam", jit_compile=jit_compile)
    plain.train_on_batch(x, rows[:, 1:], sample_weight=weight)  # Builds the optimiser.
    ours.train_on_batch(prompts)
    return {
        "generation": generation(writer, prompts, jit_compile),
        "teacher forward": forward_pass(teacher, x, jit_compile),
        "student step": training_step(plain, (x, rows[:, 1:], weight)),
        "on-policy step": training_step(ours, (prompts,)),
    }


def writing(jit_compile: bool) -> dict[str, Callable[[], object]]:
    """Return the writing of whole contexts with a cache and without, by name."""
    model = transformer(64, 2, seed=1)
    generator = np.random.default_rng(0)
    prompts = generator.integers(1, VOCABULARY, (BATCH, PROMPT)).astype("int32")
    return {
        name: generation(
            model, prompts, jit_compile, new=LONG - PROMPT, use_cache=name == "cached"
        )
        for name in ("uncached", "cached")
    }


def main() -> int:
    """Time all sides, print the ratios, return whether one is out of bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    kept = True
    on_jax = keras.backend.backend() == "jax"
    for jit_compile in (True,) if on_jax else (False, True):
        times = interleaved(sides(jit_compile), options.rounds, options.steps)
        *parts, step = times.values()
        ratios = ratio(step, *parts)
        kept &= median(ratios) <= BOUND
        show(
            f"{BATCH} prompts x {NEW} new tokens, jit_compile={jit_compile}",
            times,
            {f"on-policy step / (the other three)    (<= {BOUND})": ratios},
        )
        times = interleaved(writing(jit_compile), max(options.rounds // 2, 1), 1)
        ratios = ratio(times["uncached"], times["cached"])
        kept &= median(ratios) >= CACHED_BOUND
        show(
            f"{BATCH} rows of {LONG} tokens, jit_compile={jit_compile}",
            times,
            {f"uncached / cached    (>= {CACHED_BOUND})": ratios},
        )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
