"""Hints: layers of a teacher that guide layers of a student."""

from keras_distill.hints import losses
from keras_distill.hints.hint import Hint
from keras_distill.hints.recorded import Recorded

__all__ = ["Hint", "Recorded", "losses"]


def __dir__() -> list[str]:
    return sorted(__all__)
