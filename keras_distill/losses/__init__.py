"""Distillation losses: Keras losses whose `y_true` is the teacher's output."""

from keras_distill.losses.base import DistillationLoss, TemperedLoss
from keras_distill.losses.binary import BinarySoftTargets
from keras_distill.losses.ranking import (
    CalibratedListwise,
    ListwiseSoftTargets,
    PairwiseSoftTargets,
)
from keras_distill.losses.regression import LogitMSE
from keras_distill.losses.softmax import (
    ForwardKL,
    GeneralizedJSD,
    Jeffreys,
    ReverseKL,
    SoftTargets,
    TotalVariation,
)

__all__ = [
    "BinarySoftTargets",
    "CalibratedListwise",
    "DistillationLoss",
    "ForwardKL",
    "GeneralizedJSD",
    "Jeffreys",
    "ListwiseSoftTargets",
    "LogitMSE",
    "PairwiseSoftTargets",
    "ReverseKL",
    "SoftTargets",
    "TemperedLoss",
    "TotalVariation",
]
