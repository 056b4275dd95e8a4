"""Callbacks of a distiller's `fit`."""

from keras_distill.callbacks.agreement import TeacherAgreement

__all__ = ["TeacherAgreement"]


def __dir__() -> list[str]:
    return sorted(__all__)
