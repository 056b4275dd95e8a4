"""Teacher outputs as data: recorded once, joined to the examples of each training."""

from keras_distill.targets import beam
from keras_distill.targets.formats import (
    Format,
    LogProbabilities,
    Sampled,
    TopK,
    Values,
)
from keras_distill.targets.function_teacher import from_function
from keras_distill.targets.joining import join
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.recording import record
from keras_distill.targets.remote_teacher import remote
from keras_distill.targets.table_rows import augment_rows

__all__ = [
    "Format",
    "LogProbabilities",
    "Manifest",
    "Sampled",
    "TopK",
    "Values",
    "augment_rows",
    "beam",
    "from_function",
    "join",
    "record",
    "remote",
]


def __dir__() -> list[str]:
    return sorted(__all__)
