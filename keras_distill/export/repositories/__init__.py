"""Exports laid out as the model repositories of servers, one version after another.

A new version is written under a hidden name and renamed, so that a server that watches
the repository sees it whole or not at all. No version is ever overwritten.
"""

from keras_distill.export.repositories.mlserver import mlserver
from keras_distill.export.repositories.tensorflow_serving import tensorflow_serving
from keras_distill.export.repositories.triton import triton

__all__ = ["mlserver", "tensorflow_serving", "triton"]
