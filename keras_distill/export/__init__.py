"""Export of any Keras model to the files that servers and phones read.

One call writes a SavedModel, an ONNX and a LiteRT file, in full precision and
quantised. It runs each of them in its own runtime and compares it with the model. It
publishes all of them or none.
"""

from keras_distill.export.evaluation import Evaluation
from keras_distill.export.exporter import export
from keras_distill.export.parity import ParityError
from keras_distill.export.preprocessing import split_preprocessing
from keras_distill.export.verification import verify

__all__ = ["Evaluation", "ParityError", "export", "split_preprocessing", "verify"]


def __dir__() -> list[str]:
    return sorted(__all__)
