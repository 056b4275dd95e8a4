"""The memory of `keras-distill export` for a model of 100 million parameters.

Claim: for SavedModel, an export takes less than three times the model's size, beyond
the memory of importing TensorFlow. The values for ONNX and LiteRT, for loading the
model, and for tf2onnx by itself are printed without a bound. Each side is a process of
its own. Its peak resident memory is the value that the kernel reports at its end.

    python benchmarks/export_memory.py [--skip-tf2onnx]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PARAMETERS = 98_820_196
# Not in this process: a child's peak begins with the memory of who started it.
SAVING = f"""
import keras, numpy as np
inputs = keras.Input((1024,), name="x")
x = inputs
for _ in range(24):
    x = keras.layers.Dense(2048, activation="relu")(x)
model = keras.Model(inputs, keras.layers.Dense(100, name="y")(x))
assert model.count_params() == {PARAMETERS}
model.save("large.keras")
examples = np.random.default_rng(0).standard_normal((32, 1024))
np.savez("examples.npz", x=examples.astype("float32"))
"""
LOADING = "import keras; keras.saving.load_model('large.keras', compile=False)"
TF2ONNX = """
import keras, tensorflow as tf, tf2onnx
model = keras.saving.load_model('large.keras', compile=False)
spec = [tf.TensorSpec(model.input_shape, name='x')]
function = tf.function(lambda x: model(x, training=False), input_signature=spec)
tf2onnx.convert.from_function(function, spec, opset=18, output_path='plain.onnx')
"""


def peak(command: list[str], folder: Path) -> int:
    """Run a command; return its largest resident memory in bytes."""
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} left with {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Measure every side in turn and print it beside the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-tf2onnx", action="store_true", help="20 GB, minutes")
    arguments = parser.parse_args()
    python = sys.executable
    export = [str(Path(python).with_name("keras-distill")), "export", "large.keras"]
    export += ["--examples", "examples.npz", "--out", "out", "--to"]
    commands = {
        "import keras_distill": [python, "-c", "import keras_distill"],
        "load_model": [python, "-c", LOADING],
        **{name: [*export, name] for name in ("saved_model", "onnx", "litert")},
        "litert float16": [*export, "litert", "--quantize", "float16"],
        "onnx dynamic_int8": [*export, "onnx", "--quantize", "dynamic_int8"],
    }
    if not arguments.skip_tf2onnx:
        commands["tf2onnx by itself"] = [python, "-c", TF2ONNX]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peak([python, "-c", SAVING], folder)
        size = 4 * PARAMETERS
        print(f"a model of {PARAMETERS:,} parameters, {size / 1e9:.2f} GB\n")
        print(f"{'':24s} {'GB':>6s} {'x model':>8s} {'beyond import':>14s}")
        base = 0
        for side, command in commands.items():
            used = peak(command, folder)
            base = base or used
            print(
                f"{side:24s} {used / 1e9:6.2f} {used / size:8.2f} "
                f"{(used - base) / size:14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
