"""Methods of distillation on a pair of residual networks, with published figures.

The teacher is a ResNet-20, the student a ResNet-8 of half the width (He et al. 2016,
section 4.2). The data are a part of Fashion-MNIST, with small shifts and flips. All
methods have one teacher, and the same initial weights and batches for the same seed. No
hyperparameter was tuned here. They are those of the published figures on CIFAR-100
(Tian et al. 2020; Zhao et al. 2022; Sun et al. 2024) and of the papers. Decoupled KD
has no warm-up. FitNets and attention transfer are combined with KD.

    python benchmarks/resnet_reference.py [--train-examples 10000] [--epochs 12]
        [--seeds 3] [--methods KD DIST] [--output FILE] [--data-dir DIR] [--smoke]

Every result is appended to the output file, from which a stopped run resumes.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from results import Results, spread

import keras_distill as kd
from keras_distill import hints

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from data import load_images

TEACHER_WIDTH, STUDENT_WIDTH = 16, 8  # of the first stage
BATCH = 64
RATE = 0.05
DECAY_AT = (150 / 240, 180 / 240, 210 / 240)  # of the training; each time to a tenth
WEIGHT_DECAY = 5e-4
SHIFT = 2  # pixels of 28
POSITIONS = {"stage1": 28 * 28, "stage2": 14 * 14, "stage3": 7 * 7}


class Method(NamedTuple):
    """A method by the papers' weights, which needn't add up to one.

    `label * label loss + distillation * loss(teacher, student) + sum of the hints`.
    """

    published: str
    label: float = 1.0
    distillation: float = 0.0
    loss: Callable[[], keras.losses.Loss] = kd.losses.ForwardKL
    hints: Callable[[float], Sequence[Any]] = lambda scale: ()


def fitnets(scale: float) -> Sequence[Any]:
    """Return the hint on the second stage; its weight is 100.

    Its projector is that of the published figures, a convolution, batch normalisation
    and ReLU; through a convolution alone a weight as large as this diverges.
    """
    regressor = keras.Sequential(
        [
            layers.Conv2D(2 * TEACHER_WIDTH, 1),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    )
    return [
        hints.Hint(
            guided="stage2", hint="stage2", projector=regressor, weight=100.0 / scale
        )
    ]


def attention(scale: float) -> Sequence[Any]:
    """Return maps of all stages; the weight is 1,000, of the mean over positions."""
    return [
        hints.Hint(
            guided=stage,
            hint=stage,
            loss=hints.losses.AttentionTransfer(),
            weight=1000.0 / positions / scale,
        )
        for stage, positions in POSITIONS.items()
    ]


def tempered_kl() -> keras.losses.Loss:
    """Return the loss of Hinton et al. at the temperature of the published figures."""
    return kd.losses.ForwardKL(temperature=4.0)


METHODS = {
    "student alone": Method("69.06"),
    "KD": Method("70.66", 0.1, 0.9, tempered_kl),
    "decoupled KD": Method(
        "71.97", 1.0, 1.0, lambda: kd.losses.DecoupledKD(4.0, alpha=1.0, beta=2.0)
    ),
    "DIST": Method("71.75", 1.0, 1.0, lambda: kd.losses.DIST(4.0, beta=2.0, gamma=2.0)),
    "standardised KD": Method(
        "71.43", 0.1, 9.0, lambda: kd.losses.Standardized(kd.losses.ForwardKL(2.0))
    ),
    "FitNets + KD": Method("69.21 without KD", 1.0, 1.0, tempered_kl, fitnets),
    "attention + KD": Method("70.55 without KD", 1.0, 1.0, tempered_kl, attention),
}


def resnet(depth: int, width: int, *, decay: float, name: str) -> keras.Model:
    """Return a ResNet of `6n + 2` layers; "stage1" to "stage3" are its stages' outputs.

    Shortcuts that change the size are 1x1 convolutions, as in the networks of the
    published figures.
    """
    regularizer = keras.regularizers.L2(decay / 2.0)

    def convolved(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
        x = layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=regularizer,
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    images = keras.Input((28, 28, 1))
    x = layers.Activation("relu")(convolved(images, width))
    blocks = (depth - 2) // 6
    for stage in range(3):
        filters = width * 2**stage
        for block in range(blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            y = layers.Activation("relu")(convolved(x, filters, strides=strides))
            y = convolved(y, filters)
            if strides > 1:
                x = convolved(x, filters, size=1, strides=strides)
            last = block == blocks - 1
            x = layers.Activation("relu", name=f"stage{stage + 1}" if last else None)(
                layers.Add()([x, y])
            )
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(10, kernel_regularizer=regularizer)(x)
    return keras.Model(images, logits, name=name)


def augmented(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return an image shifted by up to two pixels, half of the time flipped."""
    padded = tf.pad(image, [[SHIFT, SHIFT], [SHIFT, SHIFT], [0, 0]])
    cropped = tf.image.random_crop(padded, (28, 28, 1))
    return tf.image.random_flip_left_right(cropped), label


def batches(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    """Return an epoch's batches of standardised images, which the seed decides."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    data = data.map(augmented).batch(BATCH, drop_remainder=True)
    return data.map(lambda x, y: (standardised(x), y)).prefetch(4)


def standardised(x: Any) -> Any:
    """Return images with the mean and the deviation of the set taken out."""
    return (x - 0.286) / 0.353


def fit(
    trainer: keras.Model,
    train: tuple,
    epochs: int,
    *,
    scale: float = 1.0,
    **losses: Any,
) -> None:
    """Fit a model or a Distiller whose losses were divided by `scale`."""
    data = batches(*train)
    steps = epochs * len(data)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [round(share * steps) for share in DECAY_AT],
        [RATE * scale * 0.1**k for k in range(len(DECAY_AT) + 1)],
    )
    trainer.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # XLA's convolutions take half as long again on a CPU
        **losses,
    )
    trainer.fit(data, epochs=epochs, shuffle=False, verbose=0)


def trained(
    method: Method, teacher: keras.Model, train: tuple, epochs: int
) -> keras.Model:
    """Return a student trained by a method.

    The weights of a `Distiller`'s losses add up to one; a loss over their sum at a
    learning rate times their sum makes the same steps.
    """
    scale = method.label + method.distillation
    student = resnet(8, STUDENT_WIDTH, decay=WEIGHT_DECAY / scale, name="student")
    if not method.distillation:
        fit(student, train, epochs)
        return student
    distiller = kd.Distiller(student, teacher, hints=method.hints(scale))
    fit(
        distiller,
        train,
        epochs,
        scale=scale,
        distillation_loss=method.loss(),
        alpha=method.distillation / scale,
    )
    return student


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Return the accuracy in percent."""
    right = 0
    for begin in range(0, len(x), 500):
        logits = model(standardised(x[begin : begin + 500]), training=False)
        right += int(np.sum(np.argmax(logits, -1) == y[begin : begin + 500]))
    return 100.0 * right / len(x)


def the_teacher(
    results: Results, train: tuple, test: tuple, epochs: int
) -> keras.Model:
    """Return the teacher, trained here or in a run that was stopped."""
    size = "-".join(map(str, results.size.values()))
    path = results.path.with_suffix(f".teacher-{size}.weights.h5")
    keras.utils.set_random_seed(0)
    teacher = resnet(20, TEACHER_WIDTH, decay=WEIGHT_DECAY, name="teacher")
    if path.exists() and ("teacher", 0) in results.found:
        teacher.load_weights(path)
    else:
        results.found.pop(("teacher", 0), None)

    def measure() -> float:
        fit(teacher, train, epochs)
        teacher.save_weights(path)
        return accuracy(teacher, *test)

    results.add("teacher", 0, measure)
    return teacher


def show(results: Results, methods: Sequence[str], seeds: int) -> None:
    """Print the table."""
    values = {
        name: [results.found[name, seed] for seed in range(seeds)] for name in methods
    }
    print(f"\n{'':18s} {'accuracy':>14s} {'minus alone':>14s}   CIFAR-100, published")
    print(f"{'teacher':18s} {results.found['teacher', 0]:6.2f} {'':22s}   72.34")
    for name, of_name in values.items():
        alone = values.get("student alone", [])
        gains = [a - b for a, b in zip(of_name, alone, strict=bool(alone))]
        print(
            f"{name:18s} {spread(of_name)} {spread(gains, '+')}"
            f"   {METHODS[name].published}"
        )
    print(
        "Published: resnet56 to resnet20, 240 epochs of CIFAR-100. Data, depth and "
        "schedule differ:\nonly signs and the order of gains can be compared, where "
        "they are larger than the deviations."
    )


def main() -> None:
    """Train the teacher, then every method at every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="a TensorFlow Datasets folder")
    parser.add_argument("--train-examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--output", type=pathlib.Path, default="build/resnet_reference.jsonl"
    )
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    options = parser.parse_args()
    train, test = load_images("fashion_mnist", options.data_dir)
    if options.smoke:
        options.train_examples, options.epochs, options.seeds = 256, 1, 1
        test = test[0][:500], test[1][:500]
    train = train[0][: options.train_examples], train[1][: options.train_examples]
    size = {"train_examples": len(train[0]), "epochs": options.epochs}
    results = Results(options.output, size)
    teacher = the_teacher(results, train, test, options.epochs)
    for seed in range(options.seeds):
        for name in options.methods:
            keras.utils.set_random_seed(seed)

            def measure(name: str = name) -> float:
                student = trained(METHODS[name], teacher, train, options.epochs)
                return accuracy(student, *test)

            results.add(name, seed, measure)
            keras.backend.clear_session(free_memory=True)
    show(results, options.methods, options.seeds)


if __name__ == "__main__":
    main()
