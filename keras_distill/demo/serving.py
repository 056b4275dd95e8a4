"""The demo's exported files: how large, how exact, how fast on a single image."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export import export

WARM_UPS = 20
CALLS = 300

Image = npt.NDArray[np.float32]


class Artefact(NamedTuple):
    """One exported file or folder.

    Attributes:
        bytes: Size of all its files.
        parity: Largest absolute difference of its logits from Keras'.
        latency_ms: Median time of a call with a single image, in milliseconds.
    """

    bytes: int
    parity: float
    latency_ms: float


class Served(NamedTuple):
    """A model as it can be served.

    Attributes:
        artefacts: One a format.
        predict_ms: Median time of `model.predict` on a single image, to compare.
        compiled_ms: The same of the model inside a `tf.function`.
    """

    artefacts: dict[str, Artefact]
    predict_ms: float
    compiled_ms: float


def serve(model: keras.Model, directory: Path, images: Image) -> Served:
    """Export a model in every format, and time each in its own runtime.

    Args:
        model: A trained model.
        directory: Where the files go.
        images: Real images to check the files on; the first is timed.
    """
    manifest = export(model, directory, example_batch=images)
    image = images[:1]
    runners = {
        "saved_model": _saved_model(directory / "saved_model", image),
        "onnx": _onnx(directory / "model.onnx", image),
        "litert": _litert(directory / "model.tflite", image),
    }
    artefacts = {
        name: Artefact(
            bytes=sum(file["bytes"] for file in artefact["files"]),
            parity=artefact["max_abs_difference"],
            latency_ms=_median_ms(runners[name], CALLS),
        )
        for name, artefact in manifest["artefacts"].items()
    }
    compiled = tf.function(model)
    return Served(
        artefacts,
        # takes tens of milliseconds a call, so it is called less often
        predict_ms=_median_ms(lambda: model.predict(image, verbose=0), CALLS // 10),
        compiled_ms=_median_ms(lambda: compiled(image).numpy(), CALLS),
    )


def _saved_model(path: Path, image: Image) -> Callable[[], Any]:
    loaded = tf.saved_model.load(str(path))
    tensor = tf.constant(image)
    # through `loaded`, as a signature alone doesn't keep its variables alive
    return lambda: loaded.signatures["serving_default"](image=tensor)["logits"].numpy()


def _onnx(path: Path, image: Image) -> Callable[[], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"image": image})


def _litert(path: Path, image: Image) -> Callable[[], Any]:
    from ai_edge_litert.interpreter import Interpreter

    call = Interpreter(str(path)).get_signature_runner()
    return lambda: call(image=image)["logits"]


def _median_ms(call: Callable[[], Any], calls: int) -> float:
    """Time each call; leave out the first ones, which allocate and trace."""
    seconds = []
    for _ in range(WARM_UPS + calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[WARM_UPS:]))
