"""Which rows of a batch have a label, and what a label may be."""

from keras_distill.labels.masks import LabelledModel, LabelMask

__all__ = ["LabelMask", "LabelledModel"]
