"""One worker of several, or all the work in one process: `python -m
tests.devices.worker FITS FILE`, where `TF_CONFIG` tells which."""

import contextlib
import os
import sys
from functools import partial
from typing import Any

import tensorflow as tf

# Before anything else runs on TensorFlow.
STRATEGY = (
    tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else None
)

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_distill as kd  # noqa: E402
from tests.distiller import mirrored  # noqa: E402
from tests.distiller.models import crossentropy, data, mlp  # noqa: E402
from tests.online import mirrored as mutual  # noqa: E402


def scope() -> Any:
    return STRATEGY.scope() if STRATEGY else contextlib.nullcontext()


def train_keras(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The error of what Keras does by itself, "" if there is none."""
    with scope:
        model = mlp()
        model.compile("sgd", crossentropy())
    batches = tf.data.Dataset.from_tensor_slices(data(32)).batch(8)
    try:
        model.fit(batches, verbose=0)
    except Exception as error:
        return [], {"error": repr(error)}
    return [], {"error": ""}


def predict(scope: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Scores of all rows, of which the last batch has fewer."""
    with scope:
        distiller = kd.Distiller(mlp(), mlp(seed=1))
        distiller.compile("sgd", crossentropy())
    x, _ = data(27)
    batches = tf.data.Dataset.from_tensor_slices(x).batch(8)
    return [distiller.predict(batches, verbose=0)], {}


FITS = {
    "keras": train_keras,
    "hints": partial(mirrored.train, labelled=True),
    "unlabelled": partial(mirrored.train, labelled=False),
    "privileged": mirrored.train_together,
    "average": mirrored.train_under_its_average,
    "weighted": mirrored.train_weighted,
    "recorded": mirrored.train_recorded,
    "tokens": mirrored.train_on_tokens,
    "peers": partial(mutual.train, staleness=3),
    "predict": predict,
}


def main(fits: str, file: str) -> None:
    found = {}
    for name in fits.split(","):
        weights, history = FITS[name](scope())
        found |= {f"{name}/weight/{n}": weight for n, weight in enumerate(weights)}
        found |= {f"{name}/log/{log}": values for log, values in history.items()}
    np.savez(file, **found)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main(*sys.argv[1:])
