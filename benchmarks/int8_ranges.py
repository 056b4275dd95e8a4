"""The accuracy that full int8 loses in LiteRT, with ranges of ours and of TensorFlow.

Nets of nine kinds learn Fashion-MNIST. Each is converted twice from one SavedModel,
with the same calibration images: by `keras_distill.export`, and by TensorFlow's
converter as it is. The first table has the points of test accuracy that each file
loses, and how often its class is that of the float net.

The second table is about weights of 4 bits. Some files are only rounded. Others are
from models that a `Distiller` trained with rounding for some epochs, with the float net
as the teacher and without labels. As a control, the float net is trained for as many
more epochs on labels, and then rounded. Files are compared with the Keras models that
they are made from.

    python benchmarks/int8_ranges.py [--seeds 3] [--epochs 3] [--train 12000]
        [--only ranges | bits]

The measured values are kept in `--results`, from which a stopped run resumes.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from results import Results

import keras_distill as kd
from keras_distill.export import export

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from data import load_images

# The bounds: points of accuracy that a file in int8 may lose; the part of what rounding
# to 4 bits loses that training regains; how often a file and its model agree, in
# percent; points of accuracy between them.
MOST, REGAINED, AGREEMENT, APART = 0.5, 2 / 3, 98.0, 0.3
METHODS = ("own", "tensorflow")
BATCH = 500

# Statistics that follow within a short training.
normalised = functools.partial(layers.BatchNormalization, momentum=0.9)


def normalised_before(x):
    """Convolution, BatchNormalization, activation: the normalisation is folded."""
    for filters, strides in ((16, 2), (32, 1), (32, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(normalised()(x))
    return layers.GlobalAveragePooling2D()(x)


def normalised_after(x):
    """Convolution, activation, BatchNormalization, which can't be folded."""
    for filters, strides in ((16, 2), (32, 1), (32, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", activation="relu")(x)
        x = normalised()(x)
    return layers.GlobalAveragePooling2D()(x)


def depthwise(x):
    """Depthwise separable convolutions, normalised after each activation."""
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu")(x)
    x = normalised()(x)
    for filters in (32, 32, 48):
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
        x = normalised()(x)
        x = layers.Conv2D(filters, 1, activation="relu")(x)
        x = normalised()(x)
    return layers.GlobalAveragePooling2D()(x)


def hard_swish(x):
    """Inverted bottlenecks with hard-swish, as in MobileNetV3."""
    x = layers.Conv2D(16, 3, 2, padding="same", use_bias=False)(x)
    x = layers.Activation("hard_swish")(normalised()(x))
    for _ in range(2):
        y = layers.Conv2D(48, 1, use_bias=False)(x)
        y = layers.Activation("hard_swish")(normalised()(y))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.Activation("hard_swish")(normalised()(y))
        y = normalised()(layers.Conv2D(16, 1, use_bias=False)(y))
        x = layers.Add()([x, y])
    return layers.GlobalAveragePooling2D()(layers.Conv2D(64, 1, activation="relu")(x))


def residual(x):
    """Residual blocks that normalise first, as in ResNetV2."""
    x = layers.Conv2D(16, 3, 2, padding="same")(x)
    for _ in range(3):
        y = layers.ReLU()(normalised()(x))
        y = layers.Conv2D(16, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(normalised()(y))
        x = layers.Add()([x, layers.Conv2D(16, 3, padding="same")(y)])
    return layers.GlobalAveragePooling2D()(layers.ReLU()(x))


def layer_norm(x):
    """Blocks of depthwise convolution, LayerNormalization and GELU, as in ConvNeXt."""
    x = layers.LayerNormalization()(layers.Conv2D(24, 4, 4)(x))
    for _ in range(2):
        y = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
        y = layers.Dense(24)(layers.Dense(48, activation="gelu")(y))
        x = layers.Add()([x, y])
    return layers.GlobalAveragePooling2D()(x)


def attention(x):
    """A transformer encoder over patches of 4 x 4 pixels."""
    x = layers.Reshape((49, 32))(layers.Conv2D(32, 4, 4)(x))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 16)(y, y)])
        y = layers.Dense(64, activation="relu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(32)(y)])
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))


def dense(x):
    """A perceptron that normalises after each activation."""
    x = layers.Flatten()(x)
    for units in (96, 48):
        x = normalised()(layers.Dense(units, activation="relu")(x))
    return x


def recurrent(x):
    """An unrolled LSTM over the rows, two at a time."""
    return layers.LSTM(32, unroll=True)(layers.Reshape((14, 56))(x))


NETS = (
    normalised_before,
    normalised_after,
    depthwise,
    hard_swish,
    residual,
    layer_norm,
    attention,
    dense,
    recurrent,
)


# Those that are trained with weights in 4 bits.
NETS_OF_4_BITS = (normalised_before, depthwise, residual)


def trained(net: Callable, seed: int, train: tuple, epochs: int) -> keras.Model:
    """Return a net that has learned, with logits as its output."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), name="image")
    logits = layers.Dense(10, name="logits")(net(image))
    model = keras.Model(image, logits, name=net.__name__)
    fit(model, train, 2e-3, epochs, loss=label_loss())
    return model


def fit(model: keras.Model, data: tuple, rate: float, epochs: int, **losses) -> None:
    """Train with a learning rate that falls to zero.

    At a constant rate the last steps' noise moves accuracy by more than rounding does.
    """
    steps = epochs * -(-len(data[0]) // 64)
    rates = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(rates), **losses)
    model.fit(*data, epochs=epochs, batch_size=64, verbose=0)


def label_loss() -> keras.losses.Loss:
    """Return the loss of a net that learns from labels."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def files(model: keras.Model, calibration: np.ndarray) -> dict[str, bytes]:
    """Return the int8 files of both, made from one SavedModel."""
    with tempfile.TemporaryDirectory() as parent:
        directory = pathlib.Path(parent, "exported")
        export(
            model,
            directory,
            ["saved_model", "litert"],
            example_batch=calibration[:8],
            calibration_data=calibration,
            quantize="int8",
            tolerance={"int8": 1e3},  # what it costs is measured here
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(directory / "saved_model"), signature_keys=["serving_default"]
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: (
            ("serving_default", {"image": image[None]}) for image in calibration
        )
        own = (directory / "model.int8.tflite").read_bytes()
        return {"own": own, "tensorflow": converter.convert()}


def logits_of(file: bytes, images: np.ndarray) -> np.ndarray:
    """Return what a LiteRT file computes."""
    run = Interpreter(model_content=file).get_signature_runner("serving_default")
    batches = np.array_split(images, max(1, len(images) // BATCH))
    return np.concatenate([next(iter(run(image=b).values())) for b in batches])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in percent."""
    return 100 * float(np.mean(np.argmax(logits, axis=-1) == labels))


def ranges(results: Results, options: argparse.Namespace, train, test) -> int:
    """Measure and print the table; return the number of bounds that are missed."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        for net in NETS:
            for column, measure in measures(options, net, seed, train, test).items():
                value = results.add(f"{net.__name__} {column}", seed, measure)
                found.setdefault((net.__name__, column), []).append(value)
    missed = 0
    print("\n| points lost | own | TensorFlow's | same class as the float net, % | | |")
    print("| --- | --- | --- | --- | --- | --- |")
    for net in NETS:
        whole = np.array(found[net.__name__, "float"])
        own, theirs = (whole - found[net.__name__, method] for method in METHODS)
        fails = max(own) > MOST or max(own) > max(theirs)
        missed += fails
        agreed = [found[net.__name__, f"{method} agreement"] for method in METHODS]
        cells = [
            *(" / ".join(f"{value:.2f}" for value in row) for row in (own, theirs)),
            *(" / ".join(f"{value:.1f}" for value in row) for row in agreed),
        ]
        name = net.__name__.replace("_", " ")
        print(f"| {name} | {' | '.join(cells)} | {'missed' if fails else ''} |")
    return missed


def measures(
    options: argparse.Namespace, net: Callable, seed: int, train, test
) -> dict[str, Callable[[], float]]:
    """Return what measures each column of a net, in percent."""
    images, labels = test

    @functools.cache
    def model() -> keras.Model:
        return trained(net, seed, train, options.epochs)

    @functools.cache
    def made() -> dict[str, bytes]:
        return files(model(), train[0][: options.calibration])

    @functools.cache
    def logits(method: str) -> np.ndarray:
        if method == "float":
            return model().predict(images, batch_size=BATCH, verbose=0)
        return logits_of(made()[method], images)

    def agreement(method: str) -> float:
        classes, of_float = (logits(it).argmax(-1) for it in (method, "float"))
        return 100 * float(np.mean(classes == of_float))

    columns: dict[str, Callable[[], float]] = {
        method: lambda method=method: accuracy(logits(method), labels)
        for method in ("float", *METHODS)
    }
    for method in METHODS:
        columns[f"{method} agreement"] = functools.partial(agreement, method)
    return columns


def four_bits(results: Results, options: argparse.Namespace, train, test) -> int:
    """Measure and print the table; return the number of bounds that are missed."""
    found: dict[tuple[str, str], list[float]] = {}
    columns = ("float", "rounded", "control", "trained", "apart", "agreement")
    for seed in range(options.seeds):
        for net in NETS_OF_4_BITS:
            measures = bits(options, net, seed, train, test)
            for column in columns:
                value = results.add(
                    f"{net.__name__} int4 {column}", seed, measures[column]
                )
                found.setdefault((net.__name__, column), []).append(value)
    missed = 0
    print("\n| 4-bit weights, means | " + " | ".join(columns) + " | regained | |")
    print("| --- |" + " --- |" * (len(columns) + 2))
    for net in NETS_OF_4_BITS:
        means = {c: float(np.mean(found[net.__name__, c])) for c in columns}
        regained = (means["trained"] - means["rounded"]) / max(
            means["float"] - means["rounded"], 1e-9
        )
        fails = (
            regained < REGAINED
            or min(found[net.__name__, "agreement"]) < AGREEMENT
            or max(found[net.__name__, "apart"]) > APART
        )
        missed += fails
        cells = " | ".join(f"{mean:.2f}" for mean in means.values())
        name, verdict = net.__name__.replace("_", " "), "missed" if fails else ""
        print(f"| {name} | {cells} | {regained:.0%} | {verdict} |")
    return missed


def bits(
    options: argparse.Namespace, net: Callable, seed: int, train, test
) -> dict[str, Callable[[], float]]:
    """Return what measures each column of a net."""
    images, labels = test
    calibration = train[0][: options.calibration]

    @functools.cache
    def model() -> keras.Model:
        return trained(net, seed, train, options.epochs)

    def rounded(student: keras.Model) -> keras.Model:
        return kd.students.quantization_aware(
            student, "int4", calibration_data=calibration
        )

    def logits(network: keras.Model) -> np.ndarray:
        return network.predict(images, batch_size=BATCH, verbose=0)

    def control() -> keras.Model:
        copy = keras.models.clone_model(model())
        copy.set_weights(model().get_weights())
        fit(copy, train, 1e-3, options.epochs, loss=label_loss())
        return rounded(copy)

    @functools.cache
    def taught() -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of the trained model and of its file."""
        distiller = kd.Distiller(rounded(model()), model())
        soft = {"distillation_loss": kd.losses.ForwardKL(temperature=2.0), "alpha": 1.0}
        fit(distiller, train[:1], 1e-3, options.epochs, **soft)
        return logits(distiller.student), of_file(distiller.student)

    def of_file(student: keras.Model) -> np.ndarray:
        with tempfile.TemporaryDirectory() as parent:
            directory = pathlib.Path(parent, "exported")
            export(
                student,
                directory,
                ["litert"],
                example_batch=calibration[:8],
                quantize="int8",
                tolerance={"full": 1e3, "int8": 1e3},
            )
            file = (directory / "model.int8.tflite").read_bytes()
        return logits_of(file, images)

    def apart() -> float:
        return abs(np.subtract(*(accuracy(each, labels) for each in taught())))

    def agreement() -> float:
        first, second = (each.argmax(axis=-1) for each in taught())
        return 100 * float(np.mean(first == second))

    return {
        "float": lambda: accuracy(logits(model()), labels),
        "rounded": lambda: accuracy(of_file(rounded(model())), labels),
        "control": lambda: accuracy(of_file(control()), labels),
        "trained": lambda: accuracy(taught()[1], labels),
        "apart": apart,
        "agreement": agreement,
    }


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=12_000)
    parser.add_argument("--calibration", type=int, default=200)
    parser.add_argument("--only", choices=("ranges", "bits"))
    parser.add_argument(
        "--results", type=pathlib.Path, default=pathlib.Path("build/int8_ranges.jsonl")
    )
    options = parser.parse_args()
    (images, labels), test = load_images("fashion_mnist", options.data_dir)
    size = {name: vars(options)[name] for name in ("epochs", "train", "calibration")}
    results = Results(options.results, size)
    train = images[: options.train], labels[: options.train]
    missed = 0
    if options.only != "bits":
        missed += ranges(results, options, train, test)
    if options.only != "ranges":
        missed += four_bits(results, options, train, test)
    print(f"\nnets that miss a bound: {missed}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
