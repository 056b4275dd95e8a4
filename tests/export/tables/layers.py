"""Every class of `keras.layers`."""

import inspect

from keras import layers

from tests.export.tables.case import Case

NOT_IN_A_MODEL = {
    "InputLayer": "is in every model",
    "InputSpec": "is no layer",
    "Layer": "is abstract",
    "Wrapper": "is abstract",
    "FlaxLayer": "needs JAX",
    "JaxLayer": "needs JAX",
    "TorchModuleWrapper": "needs Torch",
    "TFSMLayer": "is a SavedModel",
    "MaxNumBoundingBoxes": "takes labels",
    "Equalization": "can't be called on a symbolic input",
}


def of(input_name, layer):
    """A layer by itself, on the input of that name."""
    return Case(lambda x: layer()(x), (input_name,))


def _embedded(inner):
    return lambda tokens: inner(layers.Embedding(20, 4, mask_zero=True)(tokens))


def _reversed_embedding(tokens):
    layer = layers.ReversibleEmbedding(20, 4)
    return layer(layer(tokens), reverse=True)


def _adapted(layer, data):
    layer.adapt(data)
    return layer


LAYERS = {
    "Activation": of("x", lambda: layers.Activation("relu")),
    "ActivityRegularization": of("x", lambda: layers.ActivityRegularization(l2=0.1)),
    "AdaptiveAveragePooling1D": of(
        "sequence", lambda: layers.AdaptiveAveragePooling1D(3)
    ),
    "AdaptiveAveragePooling2D": of("image", lambda: layers.AdaptiveAveragePooling2D(3)),
    "AdaptiveAveragePooling3D": of(
        "volume", lambda: layers.AdaptiveAveragePooling3D(2)
    ),
    "AdaptiveMaxPooling1D": of("sequence", lambda: layers.AdaptiveMaxPooling1D(3)),
    "AdaptiveMaxPooling2D": of("image", lambda: layers.AdaptiveMaxPooling2D(3)),
    "AdaptiveMaxPooling3D": of("volume", lambda: layers.AdaptiveMaxPooling3D(2)),
    "Add": Case(lambda x, y: layers.Add()([x, y])),
    "AdditiveAttention": Case(
        lambda matrix, memory: layers.AdditiveAttention()([matrix, memory])
    ),
    "AlphaDropout": of("x", lambda: layers.AlphaDropout(0.5)),
    "Attention": Case(
        lambda matrix, memory: layers.Attention(use_scale=True)([matrix, memory])
    ),
    "AugMix": of("picture", lambda: layers.AugMix(value_range=(0, 2))),
    "AutoContrast": of("picture", lambda: layers.AutoContrast(value_range=(0, 2))),
    "Average": Case(lambda x, y: layers.Average()([x, y])),
    "AveragePooling1D": of("sequence", lambda: layers.AveragePooling1D(2)),
    "AveragePooling2D": of("image", lambda: layers.AveragePooling2D(3, padding="same")),
    "AveragePooling3D": of("volume", lambda: layers.AveragePooling3D(2)),
    "BatchNormalization": of("image", layers.BatchNormalization),
    "Bidirectional": of("sequence", lambda: layers.Bidirectional(layers.LSTM(3))),
    "CategoryEncoding": of(
        "tokens", lambda: layers.CategoryEncoding(12, output_mode="multi_hot")
    ),
    "CenterCrop": of("image", lambda: layers.CenterCrop(5, 4)),
    "Concatenate": Case(lambda x, y: layers.Concatenate()([x, y])),
    "ContrastLimitedAdaptiveHistogramEqualization": of(
        "picture",
        lambda: layers.ContrastLimitedAdaptiveHistogramEqualization(
            value_range=(0, 2), tile_grid_size=(2, 2)
        ),
    ),
    "Conv1D": of(
        "sequence", lambda: layers.Conv1D(3, 2, padding="causal", dilation_rate=2)
    ),
    "Conv1DTranspose": of("sequence", lambda: layers.Conv1DTranspose(3, 2, strides=2)),
    "Conv2D": of("image", lambda: layers.Conv2D(3, 3, strides=2, padding="same")),
    "Conv2D of groups": of("image", lambda: layers.Conv2D(6, 3, groups=2)),
    "Conv2DTranspose": of(
        "image", lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same")
    ),
    "Conv2DTranspose with output padding": of(
        "image", lambda: layers.Conv2DTranspose(3, 3, strides=2, output_padding=1)
    ),
    "Conv2DTranspose of strides over its kernel": of(
        "image", lambda: layers.Conv2DTranspose(3, 2, strides=3)
    ),
    "Conv3D": of("volume", lambda: layers.Conv3D(3, 2)),
    "Conv3DTranspose": of("volume", lambda: layers.Conv3DTranspose(3, 2, strides=2)),
    "ConvLSTM1D": of("frames", lambda: layers.ConvLSTM1D(2, 2)),
    "ConvLSTM2D": of("pictures", lambda: layers.ConvLSTM2D(2, 2)),
    "ConvLSTM3D": of("volumes", lambda: layers.ConvLSTM3D(2, 2)),
    "Cropping1D": of("sequence", lambda: layers.Cropping1D((1, 2))),
    "Cropping2D": of("image", lambda: layers.Cropping2D(2)),
    "Cropping3D": of("volume", lambda: layers.Cropping3D(1)),
    "CutMix": of("picture", layers.CutMix),
    "Dense": of("x", lambda: layers.Dense(3, activation="relu")),
    "DepthwiseConv1D": of("sequence", lambda: layers.DepthwiseConv1D(2)),
    "DepthwiseConv2D": of(
        "image", lambda: layers.DepthwiseConv2D(3, depth_multiplier=2)
    ),
    "Discretization": of(
        "x", lambda: layers.Discretization(bin_boundaries=[-1.0, 0.5])
    ),
    "Dot": Case(lambda x, y: layers.Dot(1)([x, y])),
    "Dropout": of("x", lambda: layers.Dropout(0.5)),
    "ELU": of("x", layers.ELU),
    "EinsumDense": of(
        "sequence", lambda: layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")
    ),
    "Embedding": of("tokens", lambda: layers.Embedding(20, 3)),
    "Flatten": of("image", layers.Flatten),
    "GRU": of("sequence", lambda: layers.GRU(3)),
    "GRU unrolled": of("sequence", lambda: layers.GRU(3, unroll=True)),
    "GRUCell": of("sequence", lambda: layers.RNN(layers.GRUCell(3))),
    "GaussianDropout": of("x", lambda: layers.GaussianDropout(0.5)),
    "GaussianNoise": of("x", lambda: layers.GaussianNoise(0.5)),
    "GlobalAveragePooling1D": of("sequence", layers.GlobalAveragePooling1D),
    "GlobalAveragePooling1D of a mask": Case(
        _embedded(lambda x: layers.GlobalAveragePooling1D()(x))
    ),
    "GlobalAveragePooling2D": of("image", layers.GlobalAveragePooling2D),
    "GlobalAveragePooling3D": of("volume", layers.GlobalAveragePooling3D),
    "GlobalMaxPooling1D": of("sequence", layers.GlobalMaxPooling1D),
    "GlobalMaxPooling2D": of("image", layers.GlobalMaxPooling2D),
    "GlobalMaxPooling3D": of("volume", layers.GlobalMaxPooling3D),
    "GroupNormalization": of("image", lambda: layers.GroupNormalization(2)),
    "GroupedQueryAttention": Case(
        lambda matrix, memory: layers.GroupQueryAttention(2, 4, 2)(matrix, memory)
    ),
    "HashedCrossing": Case(
        lambda whole, other: layers.HashedCrossing(5)((whole[:, 0], other[:, 0]))
    ),
    "Hashing": of("tokens", lambda: layers.Hashing(5)),
    "Hashing of text": of("words", lambda: layers.Hashing(5)),
    "Identity": of("x", layers.Identity),
    "IntegerLookup": of("tokens", lambda: layers.IntegerLookup(vocabulary=[3, 5])),
    "LSTM": of("sequence", lambda: layers.LSTM(3)),
    "LSTM unrolled": of("sequence", lambda: layers.LSTM(3, unroll=True)),
    "LSTM of a mask": Case(_embedded(lambda x: layers.LSTM(3)(x))),
    "LSTMCell": of("sequence", lambda: layers.RNN(layers.LSTMCell(3))),
    "Lambda": of("x", lambda: layers.Lambda(lambda x: 2 * x)),
    "LayerNormalization": of("sequence", layers.LayerNormalization),
    "LeakyReLU": of("x", layers.LeakyReLU),
    "Masking": Case(
        lambda sequence: layers.LSTM(3, unroll=True)(layers.Masking()(sequence))
    ),
    "MaxPooling1D": of("sequence", lambda: layers.MaxPooling1D(2)),
    "MaxPooling2D": of("image", lambda: layers.MaxPooling2D(3, padding="same")),
    "MaxPooling2D of padding": Case(
        lambda image: layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(image))
    ),
    "MaxPooling3D": of("volume", lambda: layers.MaxPooling3D(2)),
    "Maximum": Case(lambda x, y: layers.Maximum()([x, y])),
    "MelSpectrogram": of(
        "audio",
        lambda: layers.MelSpectrogram(
            fft_length=16, sequence_stride=8, num_mel_bins=4, sampling_rate=100
        ),
    ),
    "Minimum": Case(lambda x, y: layers.Minimum()([x, y])),
    "MixUp": of("picture", layers.MixUp),
    "MultiHeadAttention": Case(
        lambda matrix, memory: layers.MultiHeadAttention(2, 3)(matrix, memory)
    ),
    "Multiply": Case(lambda x, y: layers.Multiply()([x, y])),
    "Normalization": of("x", lambda: layers.Normalization(mean=1.0, variance=2.0)),
    "PReLU": of("x", layers.PReLU),
    "Permute": of("image", lambda: layers.Permute((3, 1, 2))),
    "Pipeline": of(
        "picture",
        lambda: layers.Pipeline([layers.Rescaling(2.0), layers.CenterCrop(4, 4)]),
    ),
    "RMSNormalization": of("sequence", layers.RMSNormalization),
    "RNN": of("sequence", lambda: layers.RNN(layers.SimpleRNNCell(3), unroll=True)),
    "ReLU": of("x", lambda: layers.ReLU(1.0, negative_slope=0.1)),
    "RepeatVector": of("x", lambda: layers.RepeatVector(3)),
    "Rescaling": of("picture", lambda: layers.Rescaling(2.0, offset=-1.0)),
    "Reshape": of("image", lambda: layers.Reshape((16, -1))),
    "Resizing": of("picture", lambda: layers.Resizing(5, 11)),
    "Resizing to nearest": of(
        "picture", lambda: layers.Resizing(5, 11, interpolation="nearest")
    ),
    "Resizing by bicubic": of(
        "picture", lambda: layers.Resizing(5, 11, interpolation="bicubic")
    ),
    "ReversibleEmbedding": Case(_reversed_embedding),
    "STFTSpectrogram": of(
        "wave", lambda: layers.STFTSpectrogram(frame_length=16, frame_step=8)
    ),
    "SeparableConv1D": of("sequence", lambda: layers.SeparableConv1D(3, 2)),
    "SeparableConv2D": of("image", lambda: layers.SeparableConv2D(3, 3)),
    "SimpleRNN": of("sequence", lambda: layers.SimpleRNN(3)),
    "SimpleRNNCell": of(
        "sequence", lambda: layers.RNN(layers.SimpleRNNCell(3), unroll=True)
    ),
    "Softmax": of("x", layers.Softmax),
    "Solarization": of("picture", lambda: layers.Solarization(value_range=(0, 2))),
    "SpatialDropout1D": of("sequence", lambda: layers.SpatialDropout1D(0.5)),
    "SpatialDropout2D": of("image", lambda: layers.SpatialDropout2D(0.5)),
    "SpatialDropout3D": of("volume", lambda: layers.SpatialDropout3D(0.5)),
    "SpectralNormalization": of(
        "x", lambda: layers.SpectralNormalization(layers.Dense(3))
    ),
    "StackedRNNCells": of(
        "sequence",
        lambda: layers.RNN(
            layers.StackedRNNCells([layers.LSTMCell(3), layers.LSTMCell(2)]),
            unroll=True,
        ),
    ),
    "StringLookup": of("words", lambda: layers.StringLookup(vocabulary=["a", "b"])),
    "Subtract": Case(lambda x, y: layers.Subtract()([x, y])),
    "TextVectorization": of(
        "words",
        lambda: layers.TextVectorization(
            vocabulary=["a", "b"], output_sequence_length=2
        ),
    ),
    "TimeDistributed": of("sequence", lambda: layers.TimeDistributed(layers.Dense(3))),
    "UnitNormalization": of("positive", layers.UnitNormalization),
    "UpSampling1D": of("sequence", lambda: layers.UpSampling1D(2)),
    "UpSampling2D": of("image", lambda: layers.UpSampling2D(2)),
    "UpSampling2D by bilinear": of(
        "image", lambda: layers.UpSampling2D(2, interpolation="bilinear")
    ),
    "UpSampling3D": of("volume", lambda: layers.UpSampling3D(2)),
    "ZeroPadding1D": of("sequence", lambda: layers.ZeroPadding1D(2)),
    "ZeroPadding2D": of("image", lambda: layers.ZeroPadding2D(1)),
    "ZeroPadding3D": of("volume", lambda: layers.ZeroPadding3D(1)),
}

# Augmentation: the identity where nothing trains.
_RANDOM = {
    "RandAugment": lambda: layers.RandAugment(value_range=(0, 2)),
    "RandomBrightness": lambda: layers.RandomBrightness(0.2, value_range=(0, 2)),
    "RandomColorDegeneration": lambda: layers.RandomColorDegeneration(0.2),
    "RandomColorJitter": lambda: layers.RandomColorJitter(value_range=(0, 2)),
    "RandomContrast": lambda: layers.RandomContrast(0.2, value_range=(0, 2)),
    "RandomCrop": lambda: layers.RandomCrop(5, 4),
    "RandomElasticTransform": lambda: layers.RandomElasticTransform(),
    "RandomErasing": lambda: layers.RandomErasing(),
    "RandomFlip": lambda: layers.RandomFlip(),
    "RandomGaussianBlur": lambda: layers.RandomGaussianBlur(),
    "RandomGrayscale": lambda: layers.RandomGrayscale(),
    "RandomHue": lambda: layers.RandomHue(0.2, value_range=(0, 2)),
    "RandomInvert": lambda: layers.RandomInvert(value_range=(0, 2)),
    "RandomPerspective": lambda: layers.RandomPerspective(),
    "RandomPosterization": lambda: layers.RandomPosterization(4, value_range=(0, 2)),
    "RandomRotation": lambda: layers.RandomRotation(0.2),
    "RandomSaturation": lambda: layers.RandomSaturation(0.2, value_range=(0, 2)),
    "RandomSharpness": lambda: layers.RandomSharpness(0.2, value_range=(0, 2)),
    "RandomShear": lambda: layers.RandomShear(0.2, 0.2),
    "RandomTranslation": lambda: layers.RandomTranslation(0.2, 0.2),
    "RandomZoom": lambda: layers.RandomZoom(0.2),
}
LAYERS |= {name: of("picture", layer) for name, layer in _RANDOM.items()}


def classes():
    """The names of the classes of `keras.layers`, each once."""
    found = {}
    for name in dir(layers):
        thing = getattr(layers, name)
        if inspect.isclass(thing):
            found.setdefault(thing, thing.__name__)
    return set(found.values())
