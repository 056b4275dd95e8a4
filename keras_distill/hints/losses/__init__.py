"""Losses between layers: Keras losses whose `y_true` is the teacher's features."""

from keras_distill.hints.losses.base import FeatureLoss
from keras_distill.hints.losses.between_examples import (
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)
from keras_distill.hints.losses.within_examples import AttentionTransfer, FeatureMSE

__all__ = [
    "AttentionTransfer",
    "FeatureLoss",
    "FeatureMSE",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
]


def __dir__() -> list[str]:
    return sorted(__all__)
