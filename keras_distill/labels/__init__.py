"""Label masks: labels that only some rows of a batch have."""

from keras_distill.labels.labelled_model import LabelledModel
from keras_distill.labels.masks import LabelMask
from keras_distill.labels.own_loss import OwnLoss, log_loss

__all__ = ["LabelMask", "LabelledModel", "OwnLoss", "log_loss"]
