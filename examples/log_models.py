"""Networks over the columns of a log, with functions to train and measure them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import logs
import numpy as np
from keras import layers, ops
from logs import Log
from sklearn.metrics import log_loss, roc_auc_score

import keras_distill as kd

CROSS_ENTROPY = keras.losses.BinaryCrossentropy(from_logits=True)


class Recipe(NamedTuple):
    """How a model is trained. The learning rate of Adam falls linearly to 0."""

    rate: float
    epochs: int
    dropout: float
    alpha: float = 0.5
    batch: int = 1024


def build(log: Log, reads: Sequence[str], recipe: Recipe) -> keras.Model:
    """Build a network over the columns `reads`: embeddings of ids, plain numbers."""
    inputs, parts, tables = {}, [], {}
    for name in reads:
        column = log.x[name]
        inputs[name] = keras.Input(column.shape[1:], dtype=column.dtype, name=name)
        if column.dtype != np.int32:
            parts.append(inputs[name])
            continue
        of = "item" if name == "history" else name
        if of not in tables:
            tables[of] = layers.Embedding(log.sizes[of], 8)
        vectors = tables[of](inputs[name])
        if name == "history":
            held = ops.cast(ops.not_equal(inputs[name], 0), "float32")[..., None]
            count = ops.maximum(ops.sum(held, axis=1), 1.0)
            parts.append(ops.sum(held * vectors, axis=1) / count)
        else:
            parts.append(layers.Flatten()(vectors))
    hidden = layers.Concatenate()(parts)
    for units in (64, 32):
        hidden = layers.Dropout(recipe.dropout)(hidden)
        hidden = layers.Dense(units, "relu")(hidden)
    return keras.Model(inputs, layers.Dense(1)(hidden))


def fit(
    trainer: keras.Model,
    x: dict[str, np.ndarray],
    y: np.ndarray,
    recipe: Recipe,
    seed: int,
    *,
    lists: np.ndarray | None = None,
    **terms: Any,
) -> keras.Model:
    """Train a model or a `Distiller`, and return it.

    Args:
        trainer: The model. It need not be compiled.
        x: Columns; a model reads those that it declares.
        y: Labels of shape (rows, 1).
        recipe: How it is trained.
        seed: The seed of the batches.
        lists: As in `logs.batches`.
        **terms: Further arguments of `compile`.
    """
    if not isinstance(trainer, kd.Distiller):
        x = {name: x[name] for name in trainer.input}
    steps = -(-len(y) // recipe.batch)
    rate = keras.optimizers.schedules.PolynomialDecay(
        recipe.rate, steps * recipe.epochs, 0.0
    )
    # XLA would compile for longer than these small networks train.
    terms |= {"jit_compile": False, "steps_per_execution": min(20, steps)}
    trainer.compile(keras.optimizers.Adam(rate), CROSS_ENTROPY, **terms)
    data = logs.batches(x, y, recipe.batch, seed, lists=lists)
    trainer.fit(data, epochs=recipe.epochs, shuffle=False, verbose=0)
    return trainer


def predict(model: keras.Model, log: Log) -> np.ndarray:
    """Return the probabilities of a log's rows, of shape (rows,)."""
    x = {name: log.x[name] for name in model.input}
    logits = model.predict(x, batch_size=8192, verbose=0).astype("float64")
    return 1.0 / (1.0 + np.exp(-logits.ravel()))


def measure(model: keras.Model, log: Log, task: str) -> tuple[float, float, float]:
    """Return AUC, log-loss, and the mean prediction over the mean label."""
    y, p = log.y[task].ravel(), predict(model, log)
    return roc_auc_score(y, p), log_loss(y, p), p.mean() / y.mean()
