"""The task of sorting digits as text, and small models of characters that learn it."""

import keras
import numpy as np
from keras import ops

from keras_distill.sequence import generate

CHARACTERS, DIGITS, BATCH = "_.>0123456789", 8, 64  # "_" is padding
PADDING, END, BEGIN, ZERO = range(4)
WRITES = {"max_new_tokens": DIGITS + 1, "end_token": END, "padding_token": PADDING}
Texts = dict[str, np.ndarray]


def draw(count: int) -> Texts:
    """Draw prompts and their answers, as tokens."""
    digits = np.random.randint(0, 10, (count, DIGITS), "int32")
    last = np.ones((count, 1), "int32")
    prompts = np.concatenate([ZERO + digits, BEGIN * last], axis=1)
    answers = np.concatenate([ZERO + np.sort(digits), END * last], axis=1)
    return {"prompts": prompts, "completions": answers}


def build(width: int, blocks: int) -> keras.Model:
    """Build a transformer: tokens `(batch, time)` to logits of the next ones."""
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32")
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(len(CHARACTERS), width)(tokens)
    x += layers.Embedding(3 * (DIGITS + 1), width)(positions)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x += layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=True)
        y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
        x += layers.Dense(width)(y)
    x = layers.LayerNormalization()(x)
    return keras.Model(tokens, layers.Dense(len(CHARACTERS))(x))


def adam(rate: float, texts: Texts) -> keras.optimizers.Optimizer:
    """Return the optimiser of one pass over texts. Its rate falls to zero."""
    updates = len(texts["prompts"]) // BATCH
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, updates))


def learn(model: keras.Model, rate: float, texts: Texts) -> keras.Model:
    """Train a model on the characters of answers, in one pass."""
    tokens = np.concatenate([texts["prompts"], texts["completions"]], axis=1)
    x, y = tokens[:, :-1], tokens[:, 1:]
    weight = (y != PADDING).astype("float32")
    weight[:, : texts["prompts"].shape[1] - 1] = 0.0
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile(adam(rate, texts), loss, steps_per_execution=10)
    model.fit(x, y, BATCH, sample_weight=weight, shuffle=False, verbose=0)
    return model


def measure(student: keras.Model, teacher: keras.Model, test: Texts) -> list[float]:
    """Return the % of right answers, greedy and sampled, and their reverse KL."""
    rights, begin = [], DIGITS + 1
    for temperature in (0.0, 1.0):
        written = generate(
            student, test["prompts"], temperature=temperature, seed=1, **WRITES
        )
        tokens, mask = (ops.convert_to_numpy(part) for part in written)
        is_right = (tokens[:, begin:] == test["completions"]).all(axis=1)
        rights.append(100.0 * is_right.mean())
    q, p = (ops.log_softmax(model(tokens[:, :-1])) for model in (student, teacher))
    gaps = ops.take_along_axis(q - p, tokens[:, 1:, None], axis=-1)[..., 0]
    return [*rights, float(ops.sum(gaps * mask[:, 1:]) / len(tokens))]
