"""SavedModel: TensorFlow Serving, and the source of the LiteRT file."""

from pathlib import Path

import keras
import tensorflow as tf

from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Format, Loaded
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import Served

SIGNATURE = "serving_default"


def write(served: Served, path: Path) -> None:
    """Write the endpoint `serve`, which is `serving_default` too."""
    archive = keras.export.ExportArchive()
    # The archive finds the variables that the function uses by itself. Tracking the
    # model would store every weight a second time, and its metrics with them.
    for table in _tables(served.model):
        archive.track(table)
    archive.add_endpoint("serve", served.function)
    with quiet("tensorflow", "absl"):
        archive.write_out(str(path), verbose=False)


def load(path: Path) -> Loaded:
    """Load it with `tf.saved_model.load`."""
    saved = tf.saved_model.load(str(path))
    function = saved.signatures[SIGNATURE]

    def run(arrays: Arrays) -> Arrays:
        # A signature doesn't keep its variables alive: `saved` has to.
        outputs = saved.signatures[SIGNATURE](
            **{name: tf.constant(array) for name, array in arrays.items()}
        )
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return Loaded(
        frozenset(function.structured_input_signature[1]),
        frozenset(function.structured_outputs),
        run,
    )


def _tables(model: keras.Model) -> list[tf.saved_model.experimental.TrackableResource]:
    return [
        resource
        for resource in tf.train.TrackableView(model).descendants()
        if isinstance(resource, tf.saved_model.experimental.TrackableResource)
    ]


FORMAT = Format(
    "saved_model",
    "saved_model",
    None,
    {},
    write,
    load,
    "build the model from layers that `tf.function` can trace",
)
