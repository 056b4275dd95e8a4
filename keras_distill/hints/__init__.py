"""Hints: what a teacher's layers tell a student's, beside its outputs."""

from keras_distill.hints import losses
from keras_distill.hints.hint import Hint

__all__ = ["Hint", "losses"]


def __dir__() -> list[str]:
    return sorted(__all__)
