"""Distillation losses: Keras losses whose `y_true` is the teacher's output."""

from keras_distill.losses import vocabulary
from keras_distill.losses.base import BatchContext, DistillationLoss, TemperedLoss
from keras_distill.losses.binary import BinarySoftTargets
from keras_distill.losses.decoupled import DecoupledKD
from keras_distill.losses.packed import SampledSoftTargets, TopKForwardKL
from keras_distill.losses.ranking import (
    CalibratedListwise,
    ListwiseSoftTargets,
    PairwiseSoftTargets,
)
from keras_distill.losses.regression import LogitMSE
from keras_distill.losses.relations import DIST
from keras_distill.losses.softmax import (
    ForwardKL,
    GeneralizedJSD,
    Jeffreys,
    ReverseKL,
    SoftmaxDivergence,
    SoftTargets,
    TotalVariation,
)
from keras_distill.losses.standardized import Standardized

__all__ = [
    "DIST",
    "BatchContext",
    "BinarySoftTargets",
    "CalibratedListwise",
    "DecoupledKD",
    "DistillationLoss",
    "ForwardKL",
    "GeneralizedJSD",
    "Jeffreys",
    "ListwiseSoftTargets",
    "LogitMSE",
    "PairwiseSoftTargets",
    "ReverseKL",
    "SampledSoftTargets",
    "SoftTargets",
    "SoftmaxDivergence",
    "Standardized",
    "TemperedLoss",
    "TopKForwardKL",
    "TotalVariation",
    "vocabulary",
]


def __dir__() -> list[str]:
    return sorted(__all__)
