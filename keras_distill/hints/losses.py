"""placeholder until merged"""

from abc import ABC
import keras


class FeatureLoss(keras.losses.Loss, ABC):
    needs_equal_widths = False

    def check_shapes(self, t, s):
        pass


class SimilarityPreserving(FeatureLoss):
    pass
