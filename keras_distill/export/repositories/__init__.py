"""Exports written as numbered versions into the model repositories of servers.

A new version is written under a hidden name and then renamed. So a server that watches
the repository never sees an incomplete version. No version is ever overwritten.
"""

from keras_distill.export.repositories.mlserver import mlserver
from keras_distill.export.repositories.tensorflow_serving import tensorflow_serving
from keras_distill.export.repositories.triton import triton

__all__ = ["mlserver", "tensorflow_serving", "triton"]
