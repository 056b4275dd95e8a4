"""Small teachers, one for each kind of layer that students are cut from."""

import keras
import numpy as np
from keras import layers, ops
from keras.src.applications.convnext import ConvNeXt

IMAGE, STEPS, WORDS = (8, 8, 3), (6, 4), 30


def _image_net(middle, head=layers.GlobalAveragePooling2D):
    """A convolution, the layers under test, and a classifier."""
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    x = head()(middle(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="teacher")


def _sequence_net(middle):
    inputs = keras.Input(STEPS)
    x = layers.Dense(8, name="stem")(inputs)
    x = layers.GlobalAveragePooling1D()(middle(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="teacher")


def _residual(x):
    for _ in range(2):
        y = layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.Add()([x, layers.Conv2D(8, 1)(y)])
    return layers.Activation("relu")(x)


def _inverted_residual(x):
    y = layers.Conv2D(16, 1, activation="relu6")(x)
    y = layers.ZeroPadding2D(1)(y)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2)(y)
    y = layers.BatchNormalization()(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(32, 1, activation="hard_sigmoid")(gate)
    return x + layers.Conv2D(8, 1)(layers.Multiply()([y, gate]))


def _gate_of_one_unit(x):
    return x * layers.Conv2D(1, 1, activation="sigmoid")(x)


def _concatenated(x):
    for _ in range(2):
        y = layers.BatchNormalization()(x)
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same")(y)])
    return layers.MaxPooling2D()(x)


def _beside_the_input(x):
    image = x._keras_history.operation.input
    return layers.Conv2D(6, 1)(layers.Concatenate()([image, x]))


def _grouped(x):
    x = layers.Conv2D(16, 3, groups=4)(x)
    x = layers.GroupNormalization(8)(x)
    return layers.Conv2D(16, 3, groups=16)(x)


def _separable(x):
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2)(x)
    return layers.Conv2DTranspose(6, 3, strides=2)(x)


def _shared_out(x):
    squeezed = layers.GlobalAveragePooling2D()(x)
    squeezed = layers.Reshape((1, 1, 8))(layers.Dense(8)(squeezed))
    return layers.Permute((2, 1, 3))(ops.maximum(x * squeezed, 0.5 * x) / 2.0)


def _parametric(x):
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.LeakyReLU()(layers.Dropout(0.3)(x))
    return layers.UpSampling2D()(layers.SpatialDropout2D(0.1)(layers.ELU()(x)))


def _nested(x):
    branch = keras.Sequential(
        [layers.Conv2D(6, 1, activation="relu"), layers.Conv2D(8, 1)], name="branch"
    )
    shared_input = keras.Input((8, 8, 8))
    inner = layers.BatchNormalization()(branch(shared_input))
    inner = keras.Model(shared_input, layers.Add()([shared_input, inner]), name="inner")
    return inner(x)


def _attention(x):
    # On JAX, Keras fails at values of another width than the keys'.
    value_dim = 5 if keras.backend.backend() == "jax" else 3
    attention = layers.MultiHeadAttention(4, 5, value_dim=value_dim, output_shape=8)
    return x + attention(x, x, use_causal_mask=True)


def _grouped_attention(x):
    return x + layers.GroupQueryAttention(3, 8, 4)(x, x)


def _recurrent(x):
    x = layers.LSTM(6, return_sequences=True)(x)
    x = layers.GRU(6, return_sequences=True)(x)
    return layers.SimpleRNN(4, return_sequences=True)(x)


def _convolution_1d(x):
    x = layers.Conv1D(6, 3, padding="causal", activation="tanh")(x)
    return layers.AveragePooling1D(2)(layers.DepthwiseConv1D(2)(x))


def perceptron():
    """A Sequential model."""
    hidden = layers.Dense(16, "relu"), layers.BatchNormalization(), layers.Dense(8)
    return keras.Sequential([keras.Input((5,)), *hidden, layers.Dense(3)])


def embedded():
    """Words, their mean, a class of the model's own activation."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(WORDS, 8, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(8, activation=lambda x: ops.sin(x))(x)
    return keras.Model(inputs, layers.Dense(2, "softmax")(x))


def two_outputs():
    """Two inputs; an output of a hidden layer, which keeps its width."""
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
    x = layers.Dense(6, "relu")(layers.Concatenate()(list(inputs.values())))
    hidden = layers.Dense(4, "relu", name="hidden")(layers.Dense(6)(x))
    return keras.Model(inputs, {"y": layers.Dense(2)(hidden), "hidden": hidden})


def encoder(blocks=2, width=8, norm=layers.LayerNormalization):
    """A transformer encoder over words."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(WORDS, width)(inputs)
    for i in range(blocks):
        y = norm()(x)
        y = layers.MultiHeadAttention(4, 4, name=f"attention_{i}")(y, y)
        x = layers.Add()([x, y])
        y = layers.Dense(16, "gelu", name=f"wide_{i}")(norm()(x))
        x = layers.Add()([x, layers.Dense(width, name=f"narrow_{i}")(y)])
    x = layers.GlobalAveragePooling1D()(norm()(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="encoder")


def convnext():
    """A small ConvNeXt, in the way of `keras.applications`."""
    return ConvNeXt(
        [1, 1, 1, 1],
        [4, 8, 8, 12],
        input_shape=(32, 32, 3),
        include_preprocessing=False,
        classes=3,
        classifier_activation=None,
    )


def _of(net, *args, **kwargs):
    return lambda: net(*args, **kwargs)


# Teachers whose units compute zeros where their weights are zeros.
PLAIN = {
    "perceptron": perceptron,
    "residual": _of(_image_net, _residual),
    "flattened": _of(_image_net, _residual, layers.Flatten),
    "inverted residual": _of(_image_net, _inverted_residual),
    "gate of one unit": _of(_image_net, _gate_of_one_unit),
    "concatenated": _of(_image_net, _concatenated, layers.Flatten),
    "beside the input": _of(_image_net, _beside_the_input),
    "grouped": _of(_image_net, _grouped),
    "separable": _of(_image_net, _separable),
    "reshaped and transposed": _of(_image_net, _shared_out),
    "parametric": _of(_image_net, _parametric),
    "nested": _of(_image_net, _nested),
    "attention": _of(_sequence_net, _attention),
    "grouped attention": _of(_sequence_net, _grouped_attention),
    "recurrent": _of(_sequence_net, _recurrent),
    "convolution over time": _of(_sequence_net, _convolution_1d),
    "embedded": embedded,
    "two outputs": two_outputs,
}
ALL = {
    **PLAIN,
    "encoder": encoder,
    "ConvNeXt": convnext,
    "encoder of RMS norms": _of(encoder, norm=layers.RMSNormalization),
}


def batch(model, rows=3, seed=0):
    """Random inputs in the structure of the model's."""
    rng = np.random.default_rng(seed)

    def drawn(tensor):
        shape = (rows, *tensor.shape[1:])
        if "int" in tensor.dtype:
            return rng.integers(1, WORDS, shape, dtype="int32")
        return rng.normal(size=shape).astype("float32")

    if isinstance(model, keras.Sequential):
        return drawn(model.inputs[0])
    return keras.tree.map_structure(drawn, model.input)
