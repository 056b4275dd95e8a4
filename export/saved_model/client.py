"""Score one batch with an exported student in TensorFlow, without Keras.

python client.py saved_model batch.npz
"""

import sys

import numpy as np
import tensorflow as tf


def main(model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    inputs = dict(np.load(batch))  # one array an input, under the input's name
    served = tf.saved_model.load(model).signatures["serving_default"]
    outputs = served(**{name: tf.constant(value) for name, value in inputs.items()})
    for name, value in sorted(outputs.items()):
        print(name, value.shape, value[0].numpy().astype(float).round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
