"""Students made from a model that has learned."""

from keras_distill.students.quantization_aware import quantization_aware

__all__ = ["quantization_aware"]


def __dir__() -> list[str]:
    return sorted(__all__)
