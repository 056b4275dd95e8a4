"""The functions of `keras.ops` that a functional model can hold."""

import numpy as np
from keras import ops

from tests.export.tables.case import Case

NOT_IN_A_MODEL = {
    "makes constants, which no input reaches": """
        arange array bartlett blackman empty empty_like eye full full_like geomspace
        hamming hanning identity kaiser linspace logspace ones ones_like tri zeros
        zeros_like""",
    "returns no tensor": """
        convert_to_numpy dtype is_tensor jvp custom_gradient ndim shape size""",
    "gives one output for all rows, or rows of another number": """
        allclose bincount corrcoef correlate diag diagflat histogram inner kron lstsq
        matrix_rank meshgrid nonzero outer psnr ravel scatter segment_max segment_min
        segment_prod segment_sum unique vander vdot vsplit vstack image.ssim""",
    "needs to know the number of rows": "broadcast_to rearrange slice fold",
    "is a loss, or decodes one": """
        binary_crossentropy categorical_crossentropy ctc_decode ctc_loss
        sparse_categorical_crossentropy""",
    "has complex numbers as inputs or outputs": """
        eig polar view_as_complex view_as_real""",
    "is a namespace": "image linalg nn numpy",
    "fails in Keras itself": "argpartition conv_transpose",
    "is random, for training": "image.elastic_transform",
    "calls functions without arguments, which hold no input of a model": "cond",
    "wraps a function for NumPy's broadcasting": "vectorize",
    "takes coordinates of the whole batch": "image.map_coordinates",
}

# One input, by the name of the input.
_UNARY = {
    "x": """
        abs absolute arctan arcsinh ceil celu cos cosh deg2rad elu erf erfc exp exp2
        expm1 fabs floor gelu glu hard_shrink hard_sigmoid hard_silu hard_swish
        hard_tanh i0 imag isfinite isinf isnan isneginf isposinf isreal leaky_relu
        log_sigmoid log_softmax nan_to_num negative rad2deg real relu relu6 round selu
        sigmoid sign signbit silu sin sinc sinh soft_shrink softmax softplus softsign
        sparse_plus sparse_sigmoid sparsemax square squareplus stop_gradient swish tan
        tanh tanh_shrink trunc copy cbrt normalize angle conj
        conjugate""",
    "unit": "arccos arcsin arctanh erfinv",
    "positive": "log log10 log1p log2 reciprocal rsqrt sqrt",
    "flags": "logical_not",
    "whole": "bitwise_invert bitwise_not",
    "definite": "cholesky cholesky_inverse det inv pinv",
}
# Two inputs.
_BINARY = {
    ("x", "y"): """
        add arctan2 divide_no_nan equal fmax fmin greater greater_equal heaviside hypot
        isclose less less_equal logaddexp logaddexp2 maximum minimum multiply nextafter
        not_equal subtract""",
    ("x", "positive"): "divide floor_divide fmod mod true_divide",
    ("positive", "x"): "power",
    ("x", "whole"): "ldexp",
    ("flags", "flags_too"): "logical_and logical_or logical_xor",
    ("whole", "other"): """
        bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor gcd
        lcm left_shift right_shift""",
}
# Along the last axis.
_ALONG = {
    "x": """
        all amax amin any argmax argmin argsort average count_nonzero cumprod cumsum
        diff flip logsumexp max mean median min nanargmax nanargmin nancumprod nancumsum
        nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar norm prod ptp roll
        sort std sum var""",
}


def _call(name, reads, *rest, **options):
    function = getattr(ops, name)
    return Case(lambda *given: function(*given, *rest, **options), tuple(reads))


OPERATIONS = {
    name: _call(name, [read])
    for read, names in _UNARY.items()
    for name in names.split()
}
OPERATIONS |= {
    name: _call(name, reads)
    for reads, names in _BINARY.items()
    for name in names.split()
}
OPERATIONS |= {
    name: _call(name, [read], *([1] if name == "roll" else []), axis=-1)
    for read, names in _ALONG.items()
    for name in names.split()
}
_OTHERS = {
    "adaptive_average_pool": lambda image: ops.adaptive_average_pool(image, (3, 2)),
    "adaptive_max_pool": lambda image: ops.adaptive_max_pool(image, (3, 2)),
    "arccosh": lambda positive: ops.arccosh(1 + positive),
    "average_pool": lambda image: ops.average_pool(image, 3, 2, "same"),
    "batch_normalization": lambda x: ops.batch_normalization(
        x, ops.ones(4), 2 * ops.ones(4), -1
    ),
    "cast": lambda x: ops.cast(x, "int32"),
    "cast to bool": lambda x: ops.cast(x, "bool"),
    "cdist": lambda matrix, memory: ops.cdist(matrix, memory),
    "clip": lambda x: ops.clip(x, -0.5, 1.0),
    "concatenate": lambda x, y: ops.concatenate([x, y], axis=-1),
    "conv": lambda image: ops.conv(image, ops.ones((3, 3, 4, 2)), 2, "same"),
    "convert_to_tensor": lambda x: ops.convert_to_tensor(x) + 1,
    "cross": lambda matrix: ops.cross(matrix[..., :3], matrix[..., 1:]),
    "depth_to_space": lambda image: ops.depth_to_space(image, 2),
    "depthwise_conv": lambda image: ops.depthwise_conv(image, ops.ones((3, 3, 4, 1))),
    "diagonal": lambda matrix: ops.diagonal(matrix, 0, 1, 2),
    "digitize": lambda x: ops.digitize(x, np.array([-1.0, 0.0, 1.0])),
    "dot_product_attention": lambda image: ops.dot_product_attention(
        image, image, image
    ),
    "dstack": lambda matrix, memory: ops.dstack([matrix, memory[:, :3]]),
    "eigh": lambda definite: ops.eigh(definite)[0],
    "einsum": lambda matrix, memory: ops.einsum("bij,bkj->bik", matrix, memory),
    "expand_dims": lambda x: ops.expand_dims(x, 1),
    "fliplr": lambda matrix: ops.fliplr(matrix),
    "flipud": lambda matrix: ops.transpose(
        ops.flipud(ops.transpose(matrix, (1, 0, 2))), (1, 0, 2)
    ),
    "get_item": lambda image: image[:, 1:5, ::2, -1],
    "hstack": lambda matrix, memory: ops.hstack([matrix, memory]),
    "irfft": lambda x: ops.irfft((x, x * 0.5)),
    "istft": lambda audio: ops.istft(ops.stft(audio, 16, 8, 16), 16, 8, 16),
    "layer_normalization": lambda x: ops.layer_normalization(x),
    "lu_factor": lambda definite: ops.lu_factor(definite)[0],
    "matmul": lambda matrix, definite: ops.matmul(definite, matrix),
    "max_pool": lambda image: ops.max_pool(image, 3, 2, "same"),
    "moveaxis": lambda image: ops.moveaxis(image, 3, 1),
    "multi_hot": lambda tokens: ops.multi_hot(tokens, 12),
    "nanpercentile": lambda x: ops.nanpercentile(x, 30.0, axis=-1),
    "nanquantile": lambda x: ops.nanquantile(x, 0.3, axis=-1),
    "one_hot": lambda tokens: ops.one_hot(tokens, 12),
    "pad": lambda image: ops.pad(image, ((0, 0), (1, 2), (0, 1), (0, 0))),
    "pad by reflection": lambda image: ops.pad(
        image, ((0, 0), (1, 2), (0, 1), (0, 0)), "reflect"
    ),
    "percentile": lambda x: ops.percentile(x, 30.0, axis=-1),
    "qr": lambda definite: ops.qr(definite)[1],
    "quantile": lambda x: ops.quantile(x, 0.3, axis=-1),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "reshape": lambda image: ops.reshape(image, (-1, 16, 16)),
    "rfft": lambda audio: ops.rfft(audio)[0],
    "rms_normalization": lambda x: ops.rms_normalization(x),
    "rot90": lambda image: ops.rot90(image, axes=(1, 2)),
    "saturate_cast": lambda x: ops.saturate_cast(300 * x, "uint8"),
    "scatter_update": lambda x: ops.scatter_update(x, [[0, 1]], [0.5]),
    "searchsorted": lambda x: ops.searchsorted(
        ops.convert_to_tensor([-1.0, 0.0, 1.0]), x[:, 0]
    ),
    "select": lambda x, y: ops.select([x > 0.5, x > 0], [y, 2 * y], -1.0),
    "separable_conv": lambda image: ops.separable_conv(
        image, ops.ones((3, 3, 4, 1)), ops.ones((1, 1, 4, 2))
    ),
    "slice_update": lambda matrix: ops.slice_update(
        matrix, (0, 1, 1), ops.ones((1, 2, 2))
    ),
    "slogdet": lambda definite: ops.slogdet(definite)[1],
    "solve": lambda definite, matrix: ops.solve(definite, matrix),
    "solve_triangular": lambda definite, matrix: ops.solve_triangular(
        definite, matrix, lower=True
    ),
    "space_to_depth": lambda image: ops.space_to_depth(image, 2),
    "squeeze": lambda matrix: ops.squeeze(matrix[:, :1], 1),
    "stack": lambda x, y: ops.stack([x, y], axis=1),
    "stft": lambda audio: ops.stft(audio, 16, 8, 16)[0],
    "svd": lambda definite: ops.svd(definite, compute_uv=False),
    "swapaxes": lambda image: ops.swapaxes(image, 1, 3),
    "take": lambda sequence: ops.take(sequence, [2, 0, 2], axis=1),
    "take_along_axis": lambda x, tokens: ops.take_along_axis(
        x, tokens[:, :3] % 4, axis=1
    ),
    "threshold": lambda x: ops.threshold(x, 0.5, -1.0),
    "tile": lambda x: ops.tile(x, (1, 3)),
    "top_k": lambda x: ops.top_k(x, 2)[0],
    "top_k, the indices": lambda x: ops.top_k(x, 2)[1],
    "transpose": lambda image: ops.transpose(image, (0, 3, 1, 2)),
    "trapezoid": lambda x: ops.trapezoid(x, axis=-1),
    "tril": lambda definite: ops.tril(definite),
    "triu": lambda definite: ops.triu(definite),
    "where": lambda x, y: ops.where(x > 0, x, y),
    "append": lambda x, y: ops.append(x, y, axis=1),
    "array_split": lambda x: ops.array_split(x, 3, axis=1)[0],
    "associative_scan": lambda sequence: ops.associative_scan(
        ops.add, sequence, axis=1
    ),
    "dot": lambda x: ops.dot(x, ops.ones((4, 2))),
    "dsplit": lambda matrix: ops.dsplit(matrix, 2)[1],
    "extract_sequences": lambda audio: ops.extract_sequences(audio, 16, 8),
    "fft": lambda x, y: ops.fft((x, y))[0],
    "fft2": lambda matrix: ops.fft2((matrix, -matrix))[1],
    "fori_loop": lambda x: ops.fori_loop(0, 3, lambda i, v: 2 * v + 1, x),
    "hsplit": lambda matrix: ops.hsplit(matrix, 3)[1],
    "ifft2": lambda matrix: ops.ifft2((matrix, -matrix))[0],
    "in_top_k": lambda whole, x: ops.in_top_k(whole[:, 0] % 4, x, 2),
    "isin": lambda whole: ops.isin(whole, np.array([3, 5], "int32")),
    "logdet": lambda definite: ops.logdet(definite),
    "map": lambda x: ops.map(lambda row: 2 * row + 1, x),
    "moments": lambda matrix: ops.moments(matrix, axes=[1])[1],
    "scan": lambda x: ops.scan(lambda carry, row: (carry, 2 * row), ops.zeros(()), x)[
        1
    ],
    "split": lambda x: ops.split(x, 2, axis=1)[1],
    "switch": lambda x: ops.switch(1, [lambda v: v, lambda v: -v], x),
    "tensordot": lambda matrix: ops.tensordot(matrix, ops.ones((4, 2)), 1),
    "trace": lambda definite: ops.trace(definite, axis1=1, axis2=2),
    "unfold": lambda image: ops.unfold(ops.transpose(image, (0, 3, 1, 2)), 2),
    "unravel_index": lambda whole: ops.unravel_index(whole, (3, 4))[0],
    "unstack": lambda matrix: ops.unstack(matrix, axis=1)[1],
    "vectorized_map": lambda x: ops.vectorized_map(lambda row: 2 * row + 1, x),
    "view": lambda x: ops.view(x, "int32"),
    "while_loop": lambda x: ops.while_loop(
        lambda i, v: i < 3, lambda i, v: (i + 1, 2 * v), (ops.zeros((), "int32"), x)
    )[1],
}
_IMAGES = {
    "affine_transform": lambda picture: ops.image.affine_transform(
        picture, np.array([1.0, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, 0.0])
    ),
    "crop_images": lambda picture: ops.image.crop_images(
        picture, 1, 1, None, None, 4, 4
    ),
    "extract_patches": lambda picture: ops.image.extract_patches(picture, (4, 4)),
    "gaussian_blur": lambda picture: ops.image.gaussian_blur(picture),
    "hsv_to_rgb": lambda picture: ops.image.hsv_to_rgb(picture / 2),
    "extract_patches_3d": lambda volume: ops.image.extract_patches_3d(volume, 2),
    "sobel_edges": lambda picture: ops.image.sobel_edges(picture),
    "pad_images": lambda picture: ops.image.pad_images(picture, 1, 1, 1, 1),
    "perspective_transform": lambda picture: ops.image.perspective_transform(
        picture,
        np.array([[0.0, 0.0], [0.0, 7.0], [7.0, 0.0], [7.0, 7.0]]),
        np.array([[1.0, 0.0], [0.0, 7.0], [7.0, 1.0], [7.0, 6.0]]),
    ),
    "resize": lambda picture: ops.image.resize(picture, (5, 11)),
    "rgb_to_grayscale": lambda picture: ops.image.rgb_to_grayscale(picture),
    "rgb_to_hsv": lambda picture: ops.image.rgb_to_hsv(picture / 2),
    "scale_and_translate": lambda picture: ops.image.scale_and_translate(
        picture, (5, 5, 5, 3), [1.0, 1.0], [0.0, 0.0], (1, 2), "linear"
    ),
}
OPERATIONS |= {name: Case(make) for name, make in _OTHERS.items()}
OPERATIONS |= {f"image.{n}": Case(make) for n, make in _IMAGES.items()}
