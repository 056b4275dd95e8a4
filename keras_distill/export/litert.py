"""LiteRT (TensorFlow Lite) from the SavedModel, read back by its interpreter."""

import tempfile
from pathlib import Path

import tensorflow as tf

from keras_distill.export import saved_model
from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Format, Loaded
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import Served


def write(served: Served, path: Path) -> None:
    """Convert with LiteRT's own operators alone, so that the plain runtime reads it."""
    with tempfile.TemporaryDirectory() as scratch:
        source = path.with_name(saved_model.FORMAT.file)
        if not source.exists():
            source = Path(scratch, saved_model.FORMAT.file)
            saved_model.write(served, source)
        # `from_concrete_functions` with a Keras 3 model writes a file that gives NaN.
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(source), signature_keys=[saved_model.SIGNATURE]
        )
        with quiet("tensorflow", "absl"):
            path.write_bytes(converter.convert())


def load(path: Path) -> Loaded:
    """Load it with the interpreter of `ai_edge_litert`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner(saved_model.SIGNATURE)

    def run(arrays: Arrays) -> Arrays:
        outputs: Arrays = runner(**arrays)
        return outputs

    return Loaded(
        frozenset(runner.get_input_details()),
        frozenset(runner.get_output_details()),
        run,
    )


FORMAT = Format(
    "litert",
    "model.tflite",
    "litert",
    {"ai_edge_litert": "ai-edge-litert"},
    write,
    load,
    (
        "compute in float32 and give LSTM and GRU layers `unroll=True`, as LiteRT has "
        "no loops over a batch of open size"
    ),
)
