"""Label masks: labels that only some rows of a batch have."""

from keras_distill.labels.labelled_model import LabelledModel
from keras_distill.labels.masks import LabelMask

__all__ = ["LabelMask", "LabelledModel"]
