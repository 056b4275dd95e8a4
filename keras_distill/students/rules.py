"""The rules that follow units through layers and functions, by their class."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_distill.students import attention, functions, making, passing
from keras_distill.students.tracing import Call, Rule


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for a layer or a function of `keras.ops`, None without a rule.

    Subclasses of Keras' layers have no rule, because they may compute anything.
    """
    if isinstance(layer, keras.Layer):
        kind = type(layer)
        if kind.__module__ == "keras.src.applications.convnext":
            return _OF_APPLICATIONS.get(kind.__name__)
        return _OF_LAYERS.get(kind)
    if not type(layer).__module__.startswith("keras.src.ops."):
        return None
    return _OF_FUNCTIONS.get(type(layer).__name__, functions.function)


def _table(groups: dict[Rule, str]) -> dict[type, Rule]:
    """Return the rules by class. `#` in a name stands for the dimensions 1 to 3."""
    return {
        getattr(layers, name.replace("#", dimensions)): rule
        for rule, names in groups.items()
        for name in names.split()
        for dimensions in ("123" if "#" in name else "1")
        if hasattr(layers, name.replace("#", dimensions))
    }


_OF_LAYERS = _table(
    {
        making.dense: "Dense",
        making.embedding: "Embedding",
        making.convolution: "Conv#D Conv#DTranspose",
        making.depthwise: "DepthwiseConv#D",
        making.separable: "SeparableConv#D",
        making.recurrent: "LSTM GRU SimpleRNN",
        attention.multi_head_attention: "MultiHeadAttention",
        attention.grouped_query_attention: "GroupQueryAttention",
        passing.normalization: "BatchNormalization LayerNormalization RMSNormalization",
        passing.group_normalization: "GroupNormalization",
        passing.of_preprocessing: "Normalization CategoryEncoding Discretization "
        "Hashing IntegerLookup StringLookup TextVectorization",
        passing.rescaling: "Rescaling",
        passing.prelu: "PReLU",
        passing.same: "ReLU LeakyReLU ELU Identity UnitNormalization "
        "ActivityRegularization GaussianNoise GaussianDropout AlphaDropout "
        "SpatialDropout#D",
        passing.dropout: "Dropout",
        passing.activation: "Activation",
        passing.softmax: "Softmax",
        passing.pooling: "AveragePooling#D MaxPooling#D GlobalAveragePooling#D "
        "GlobalMaxPooling#D UpSampling#D ZeroPadding#D Cropping#D",
        passing.flatten: "Flatten",
        passing.reshape: "Reshape",
        passing.permute: "Permute",
        passing.repeat_vector: "RepeatVector",
        passing.merge: "Add Subtract Multiply Average Maximum Minimum",
        passing.concatenate: "Concatenate",
    }
)
_OF_APPLICATIONS: dict[str, Callable[[Call], Any]] = {
    "LayerScale": passing.layer_scale,
    "StochasticDepth": passing.same,
}
_OF_FUNCTIONS: dict[str, Callable[[Call], Any]] = {
    "Add": functions.arithmetic,
    "Subtract": functions.arithmetic,
    "Multiply": functions.arithmetic,
    "Divide": functions.arithmetic,
    "TrueDivide": functions.arithmetic,
    "Maximum": functions.arithmetic,
    "Minimum": functions.arithmetic,
    "Mean": functions.mean,
    "Transpose": functions.transpose,
    "Concatenate": passing.concatenate,
    "GetItem": functions.item,
}
