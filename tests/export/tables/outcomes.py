"""What each format refuses of the tables; it holds everything else."""

from tests.export.tables.activations import ACTIVATIONS
from tests.export.tables.layers import LAYERS
from tests.export.tables.operations import OPERATIONS

TABLES = {"activations": ACTIVATIONS, "layers": LAYERS, "operations": OPERATIONS}

# Keras itself fails to trace these, where the batch is open.
_UNTRACEABLE = """
    gcd isin lcm lu_factor nanmedian nanpercentile nanquantile scan unfold
    unravel_index
"""

_REFUSED = {
    ("saved_model", "operations"): _UNTRACEABLE,
    ("onnx", "layers"): """
        Discretization, HashedCrossing, Hashing, Hashing of text, IntegerLookup,
        MelSpectrogram, Resizing by bicubic, StringLookup, TextVectorization""",
    ("onnx", "operations"): """
        associative_scan cholesky cholesky_inverse cross cumprod digitize eigh
        erfinv fft fft2 i0 ifft2 image.affine_transform image.hsv_to_rgb
        image.perspective_transform image.rgb_to_hsv in_top_k inv irfft istft
        logdet nancumprod nextafter pinv qr rfft searchsorted
        slice_update slogdet solve solve_triangular stft svd switch
        view""",
    ("litert", "layers"): """
        AdaptiveAveragePooling3D, AdaptiveMaxPooling3D, AveragePooling3D,
        CategoryEncoding, HashedCrossing, Hashing, Hashing of text, IntegerLookup,
        MaxPooling3D, Resizing by bicubic, TextVectorization""",
    ("litert", "operations"): """
        arccos arccosh arcsin arcsinh arctan arctanh
        bitwise_and bitwise_invert bitwise_left_shift bitwise_not bitwise_or
        cholesky cholesky_inverse cosh cross cumprod det diagonal eigh erf erfc erfinv
        fft fft2 i0 ifft2 image.affine_transform image.hsv_to_rgb
        image.perspective_transform image.rgb_to_hsv in_top_k inv irfft istft
        left_shift logdet median nancumprod nextafter percentile pinv qr
        quantile roll searchsorted sinh slogdet solve
        solve_triangular svd tan""",
}

# They write into some rows of the batch, of which the export warns.
OVER_ROWS = {"scatter_update", "slice_update"}

# Layers with a loop over time, which LiteRT holds with `unroll=True` or a batch size.
LOOPS = {
    "layers": [
        "Bidirectional",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "GRU",
        "GRUCell",
        "LSTM",
        "LSTMCell",
        "LSTM of a mask",
        "SimpleRNN",
    ]
}


def refused(name, table):
    """The names of the cases that a format refuses, but for loops in LiteRT.

    What Keras can't trace is listed for SavedModel alone.
    """
    listed = _REFUSED.get((name, table), "")
    names = listed.split("," if table == "layers" else None)
    return [" ".join(name.split()) for name in names if name.strip()]


def loops(name, table):
    return LOOPS.get(table, []) if name == "litert" else []


def held(name, table):
    """The cases that a format agrees with Keras on."""
    others = {
        *refused(name, table),
        *loops(name, table),
        *refused("saved_model", table),
    }
    return {key: case for key, case in TABLES[table].items() if key not in others}
