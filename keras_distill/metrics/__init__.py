"""How far predicted probabilities can be trusted, and how a model ranks in groups.

Only what is not to be had elsewhere. The area under the ROC curve and log-loss are
`keras.metrics.AUC` and `keras.metrics.BinaryCrossentropy`. NDCG@k and the mean
reciprocal rank are `keras_rs.metrics.NDCG` and `keras_rs.metrics.MeanReciprocalRank`;
`by_group` makes the lists that they read of a flat log. Agreement with the teacher is
Keras' accuracy with the teacher's output as the label: of several classes, on the last
axis, the share of examples with the same argmax; of one unit, the share on the same
side of a threshold, 0 for logits.

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
