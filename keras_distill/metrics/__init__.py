"""Metrics of calibration, and of ranking within groups.

Other libraries have other metrics. For the area under the ROC curve and for log-loss,
use `keras.metrics.AUC` and `keras.metrics.BinaryCrossentropy`. For NDCG@k and the mean
reciprocal rank, use `keras_rs.metrics.NDCG` and `keras_rs.metrics.MeanReciprocalRank`.
`by_group` turns a log with one row per item into the lists that these metrics read.

For the agreement with a teacher, use an accuracy of Keras with the teacher's output as
the label. With several classes, it is the share of examples for which both models have
the same argmax. With one unit, it is the share of examples for which both outputs are
on the same side of a threshold, which is 0 for logits:

>>> import keras
>>> import numpy as np
>>> teacher = np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
>>> student = np.array([[1.0, 0.0, 0.5], [0.0, 3.0, 1.0]])
>>> float(keras.metrics.CategoricalAccuracy()(teacher, student))
0.5
>>> teacher, student = np.array([[2.0], [-1.0]]), np.array([[0.5], [-3.0]])
>>> float(keras.metrics.BinaryAccuracy(threshold=0.0)(teacher > 0.0, student))
1.0
"""

from keras_distill.metrics.calibration import (
    ExpectedCalibrationError,
    PredictedOverObserved,
)
from keras_distill.metrics.groups import by_group, group_auc

__all__ = [
    "ExpectedCalibrationError",
    "PredictedOverObserved",
    "by_group",
    "group_auc",
]


def __dir__() -> list[str]:
    return sorted(__all__)
