"""The cost of a distillation step on a GPU, compared to the cost of its parts.

Claim: a step with a teacher the size of ResNet-50 and a student the size of ResNet-18,
in mixed bfloat16 with batches of 256 images of 224 x 224 x 3, costs at most
1.05 x (plain student step + teacher forward). A step from recorded outputs is compared
with the plain student's step, and Keras' own distiller with ours. All sides run
interleaved in one process, on a batch that is on the GPU. The ratios of the medians are
printed.

    KERAS_BACKEND=jax python benchmarks/gpu_step.py [--rounds 15] [--steps 5]
        [--batch 256] [--size 224]
"""

import argparse
import warnings
from collections.abc import Callable

import jax
import keras
import numpy as np
from keras import layers
from timing import forward_pass, interleaved, ratio, show, training_step

import keras_distill as kd

CLASSES = 1000
BLOCKS = {64: 2, 128: 2, 256: 2, 512: 2}  # of ResNet-18, by filters


def block(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    """Apply two convolutions beside a shortcut (He et al. 2016, figure 5)."""
    shortcut = x
    for number, step in enumerate((strides, 1)):
        x = layers.Conv2D(filters, 3, step, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        if number == 0:
            x = layers.ReLU()(x)
    if shortcut.shape != x.shape:
        shortcut = layers.Conv2D(filters, 1, strides, use_bias=False)(shortcut)
        shortcut = layers.BatchNormalization()(shortcut)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def resnet18(size: int) -> keras.Model:
    """Return a ResNet-18 that ends in logits."""
    image = keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(64, 7, 2, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage, (filters, count) in enumerate(BLOCKS.items()):
        for number in range(count):
            x = block(x, filters, 2 if stage and not number else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(CLASSES, dtype="float32")(x))


def resnet50(size: int) -> keras.Model:
    """Return a ResNet-50 that ends in float32 logits."""
    trunk = keras.applications.ResNet50(
        weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    logits = layers.Dense(CLASSES, dtype="float32")(trunk.output)
    return keras.Model(trunk.input, logits)


def sides(data: tuple, teacher: keras.Model, size: int) -> dict[str, Callable]:
    """Return what is timed, by name."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain = resnet18(size)
    ours = kd.Distiller(resnet18(size), teacher)
    recorded = kd.Distiller(resnet18(size), kd.teachers.Recorded("teacher"))
    rival = keras.distillation.Distiller(
        teacher,
        resnet18(size),
        keras.distillation.LogitsDistillation(
            temperature=1.0, loss=keras.losses.KLDivergence()
        ),
    )
    forward = forward_pass(teacher, data[0], jit_compile=True)
    with_outputs = {"image": data[0], "teacher": np.asarray(forward())}, data[1]
    models = {
        "student": (plain, data),
        "ours": (ours, data),
        "ours, recorded": (recorded, with_outputs),
        "keras.distillation": (rival, data),
    }
    steps: dict[str, Callable] = {"teacher forward": forward}
    for name, (model, batch) in models.items():
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        model.train_on_batch(*batch)  # compiles the step
        steps[name] = training_step(model, batch)
        print(f"compiled: {name}", flush=True)
    return steps


def main() -> None:
    """Time all sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    device = jax.devices()[0]
    warnings.simplefilter("ignore", kd.teachers.TeacherWarning)  # it isn't trained
    print(f"{device.device_kind}, JAX {jax.__version__}, Keras {keras.__version__}")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    generator = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 3)
    data = (
        generator.normal(size=shape).astype("float32"),
        generator.integers(CLASSES, size=options.batch),
    )
    teacher = resnet50(options.size)
    times = interleaved(
        sides(data, teacher, options.size), options.rounds, options.steps
    )
    student, ours = times["student"], times["ours"]
    show(
        f"training step, batch {options.batch} x {options.size}²",
        times,
        {
            "ours / (student + teacher forward)   (<= 1.05)": ratio(
                ours, student, times["teacher forward"]
            ),
            "ours / keras.distillation": ratio(ours, times["keras.distillation"]),
            "ours, recorded / student": ratio(times["ours, recorded"], student),
        },
    )


if __name__ == "__main__":
    main()
