"""Export of any Keras model to the files that servers and phones take.

One call writes a SavedModel, an ONNX and a LiteRT file, runs each of them in its own
runtime against the model, and puts them in place together or not at all.
"""

from keras_distill.export.exporter import export

__all__ = ["export"]
