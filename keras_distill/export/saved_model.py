"""The format SavedModel, for TensorFlow Serving and as the source of LiteRT."""

import keyword
from collections.abc import Iterable
from pathlib import Path

import keras
import tensorflow as tf

from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Conversion, Format, Loaded, Refusal
from keras_distill.export.names import any_name
from keras_distill.export.quiet import quiet

SIGNATURE = "serving_default"
# It reads raw features, and contains the preprocessing.
RAW_SIGNATURE = "serving_raw"


def write(conversion: Conversion, path: Path) -> None:
    """Write a SavedModel with the endpoint `serve`, which is also `serving_default`."""
    served = conversion.served
    for inputs in (served.inputs, served.raw.inputs if served.raw else {}):
        _check_names(inputs)
    archive = keras.export.ExportArchive()
    # The archive itself finds the variables that the function uses. Tracking the model
    # would store every weight a second time, and also its metrics.
    models = [served.model]
    archive.add_endpoint("serve", served.function)
    if served.raw is not None:
        models.append(served.raw.preprocessing)
        archive.add_endpoint(RAW_SIGNATURE, served.raw.function)
    for model in models:
        _refuse_colons(model)
        for table in _tables(model):
            archive.track(table)
    with quiet("tensorflow", "absl"), any_name():
        archive.write_out(str(path), verbose=False)


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that can't be arguments of signatures.

    Signatures convert names to lower case. `self` is an argument of their functions.
    """
    seen: dict[str, str] = {}
    for name in names:
        if name == "self" or keyword.iskeyword(name):
            raise Refusal(
                f"its input {name!r} can't be an argument of a Python function",
                remedy=f"rename the input {name!r} of the Keras model",
            )
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise Refusal(
                f"its inputs {other!r} and {name!r} differ only in case, and "
                "TensorFlow takes them for one",
                remedy=f"rename the input {name!r} of the Keras model",
            )


def load(path: Path, threads: int | None = None) -> Loaded:
    """Load an artefact. `threads` is ignored: TensorFlow sets them for the process."""
    return load_signature(path, SIGNATURE)


def load_signature(path: Path, signature: str) -> Loaded:
    """Load an artefact to run one of its signatures."""
    saved = tf.saved_model.load(str(path))
    function = saved.signatures[signature]

    def run(arrays: Arrays) -> Arrays:
        # `saved` must stay referenced: a signature doesn't keep its variables alive.
        outputs = saved.signatures[signature](
            **{name: tf.constant(array) for name, array in arrays.items()}
        )
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return Loaded(
        frozenset(function.structured_input_signature[1]),
        frozenset(function.structured_outputs),
        run,
    )


def _refuse_colons(model: keras.layers.Layer) -> None:
    """Refuse ":" in names: TensorFlow reads what follows as the number of an output.

    This applies to LiteRT too, as it is converted from the SavedModel. ONNX allows ":".
    """
    for weight in model.variables:
        if ":" in weight.path:
            raise Refusal(
                f"it can't hold weights with ':' in their names, as {weight.path!r}",
                remedy="name the model and its layers without ':'",
            )


def _tables(
    model: keras.layers.Layer,
) -> list[tf.saved_model.experimental.TrackableResource]:
    return [
        resource
        for resource in tf.train.TrackableView(model).descendants()
        if isinstance(resource, tf.saved_model.experimental.TrackableResource)
    ]


FORMAT = Format(
    name="saved_model",
    file="saved_model",
    precisions=(),
    extra=None,
    modules={},
    write=write,
    load=load,
)
