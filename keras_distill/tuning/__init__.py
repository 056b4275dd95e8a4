"""A search for the settings of distillation that also tries the student alone."""

from keras_distill.tuning.answer import Answer
from keras_distill.tuning.interval import Gain, gain
from keras_distill.tuning.searching import search
from keras_distill.tuning.settings import Setting

__all__ = ["Answer", "Gain", "Setting", "gain", "search"]


def __dir__() -> list[str]:
    return sorted(__all__)
