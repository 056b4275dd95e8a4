"""`export`: one model, every format, checked and published together."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_distill.export import litert, manifest, onnx, parity, saved_model
from keras_distill.export.batches import to_arrays
from keras_distill.export.manifest import Manifest
from keras_distill.export.publish import replacing
from keras_distill.export.serving import serve

# In the order of writing: LiteRT is converted from the SavedModel.
_FORMATS = (saved_model.FORMAT, onnx.FORMAT, litert.FORMAT)


def export(
    model: keras.Model,
    directory: str | os.PathLike[str],
    formats: Sequence[str] = ("saved_model", "onnx", "litert"),
    *,
    example_batch: Any = None,
    tolerance: float = 1e-5,
) -> Manifest:
    """Export `model` to `directory`, checked in each format's own runtime.

    Every artefact takes the same named inputs, of any batch size, and gives the same
    named outputs, which are what `model(x, training=False)` gives:

    - Inputs are called what the model calls them: the name of a Functional `Input`, or
      the key where inputs are a dict. Inputs without a name of their own are `input`,
      or `input_0`, `input_1`, ... where there are several.
    - Outputs are called by their key in a dict, by their layer in a Functional or
      Sequential model, else `output`, or `output_0`, `output_1`, .... A name that is
      taken gets the suffix `_1`, `_2`, ....

    Before anything is put in place, each artefact is loaded by TensorFlow, ONNX
    Runtime or the LiteRT interpreter, and compared with Keras on `example_batch` and
    on a batch of another size:

        max |artefact - keras| <= tolerance * max(scale, |keras|)

    value by value, where `scale` is the largest magnitude of that output in
    `example_batch`, leaving out masks (values of 1e4 and more). Outputs that aren't
    floats have to be equal.

    `directory` then holds `manifest.json` and, as asked for, `saved_model/`,
    `model.onnx` (opset 18) and `model.tflite` (LiteRT operators alone). An earlier
    export there is replaced as a whole at the very end: a process that dies before
    leaves it as it was.

    Args:
        model: A built Keras model. Of a distilled one, the student.
        directory: Where the export goes: absent, empty, or an earlier export.
        formats: Any of `"saved_model"`, `"onnx"`, `"litert"`.
        example_batch: A batch of real inputs as the model takes them: an array, a
            list of arrays or a dict of arrays, of shape `(batch, ...)`. Models that
            are neither Functional nor Sequential take dtypes and shapes from it.
        tolerance: The largest difference from Keras, relative to the scale of the
            output. Defaults to 1e-5, about five times what deep float32 networks
            need; a model that computes in 16 bits needs 1e-2.

    Returns:
        The manifest, as in `manifest.json`: the model's name, parameter count and
        signature; for each artefact its files with sizes and SHA-256, the largest
        absolute difference seen and the tolerance; the versions that made it.

    Raises:
        TypeError: `model` isn't a Keras model.
        ValueError: An argument isn't usable, the model isn't built, or it has NaN in
            its weights or outputs.
        ImportError: A package that a format needs isn't installed.
        OSError: `directory` can't be written, or holds something else.
        RuntimeError: A format can't hold the model, or an artefact differs from it.

    Example:
    >>> import tempfile
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     manifest = export(
    ...         model, f"{parent}/served", ["saved_model"],
    ...         example_batch=np.ones((3, 4), "float32"),
    ...     )
    >>> manifest["signature"]["inputs"]
    [{'name': 'x', 'dtype': 'float32', 'shape': [None, 4]}]
    """
    _check_arguments(model, formats, example_batch, tolerance)
    targets = [target for target in _FORMATS if target.name in formats]
    for target in targets:
        target.require()
    with replacing(Path(os.path.realpath(directory))) as scratch:
        served = serve(model, example_batch)
        expected = parity.reference(served, to_arrays(example_batch, served.inputs))
        differences = []
        for target in targets:
            path = scratch / target.file
            with target.explaining("converting it"):
                target.write(served, path)
            with target.explaining("loading what the converter wrote"):
                loaded = target.load(path)
            difference = parity.compare(target, loaded, expected, tolerance)
            differences.append((target, difference))
        described = manifest.describe(served, scratch, differences, tolerance)
        manifest.write(described, scratch)
    return described


def _check_arguments(
    model: keras.Model, formats: Sequence[str], example_batch: Any, tolerance: float
) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a `keras.Model`. Received: {type(model).__name__}."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built. Received: a model without weights, named "
            f"{model.name!r}. Call it on a batch first."
        )
    _check_formats(formats)
    if example_batch is None:
        raise ValueError(
            "`example_batch` must be a batch of inputs as the model takes them; every "
            "artefact is compared with the model on it. Received: example_batch=None."
        )
    if not tolerance > 0:
        raise ValueError(
            f"`tolerance` must be positive. Received: tolerance={tolerance}."
        )


def _check_formats(formats: Sequence[str]) -> None:
    known = [target.name for target in _FORMATS]
    if isinstance(formats, str) or not formats or not set(formats) <= set(known):
        raise ValueError(
            f"`formats` must be a list of some of {known}. Received: formats={formats}."
        )
