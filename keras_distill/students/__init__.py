"""Students made from a trained model by cutting or by quantisation."""

from keras_distill.students.dropping import drop_layers
from keras_distill.students.importance import Importance, MeanActivation, WeightNorm
from keras_distill.students.quantization_aware import quantization_aware
from keras_distill.students.slicing import slice_widths

__all__ = [
    "Importance",
    "MeanActivation",
    "WeightNorm",
    "drop_layers",
    "quantization_aware",
    "slice_widths",
]


def __dir__() -> list[str]:
    return sorted(__all__)
