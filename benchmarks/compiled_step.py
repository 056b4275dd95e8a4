"""The size and the compile time of a distillation step on JAX.

Claim: the teacher's weights are arguments of the compiled step. With a teacher of 25
million parameters, the step has less than 1 MB of constants. It compiles in at most 1.3
times the time of the student's step and the teacher's forward pass by themselves.

    KERAS_BACKEND=jax python benchmarks/compiled_step.py
"""

import statistics
import time
from typing import Any

import jax
import keras
import numpy as np
from keras import layers

import keras_distill as kd

FEATURES, WIDTH, CLASSES, REPEATS = 64, 2048, 10, 3
CONSTANTS, COMPILE_TIME = 1e6, 1.3


def network(width: int, depth: int) -> keras.Model:
    """Return a network of dense layers."""
    hidden = [layers.Dense(width, "relu") for _ in range(depth)]
    return keras.Sequential(
        [keras.Input((FEATURES,)), *hidden, layers.Dense(CLASSES)], name=f"n{width}"
    )


def state_of(model: keras.Model) -> Any:
    """Return the state that Keras' trainer gives to a compiled step."""
    return model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )


def compile_seconds(function: Any, *arguments: Any) -> float:
    """Trace and compile a function anew, and return how long it took."""
    jax.clear_caches()
    begin = time.perf_counter()
    jax.jit(lambda *given: function(*given)).lower(*arguments).compile()
    return time.perf_counter() - begin


def pairs() -> dict[str, tuple[keras.Model, keras.Model, keras.Model, int]]:
    """Return teachers of 25 million parameters, each with a student and its twin."""
    applications = keras.applications
    shape = (96, 96, 3)

    def mobile() -> keras.Model:
        return applications.MobileNetV2(
            shape, weights=None, classes=CLASSES, classifier_activation=None
        )

    resnet = applications.ResNet50(
        weights=None, input_shape=shape, classes=CLASSES, classifier_activation=None
    )
    return {
        "ResNet50, MobileNetV2": (resnet, mobile(), mobile(), 8),
        "dense layers": (network(WIDTH, 7), network(128, 3), network(128, 3), 64),
    }


def main() -> None:
    """Print constants and compile times."""
    keras.utils.set_random_seed(0)
    for name, (teacher, student, twin, rows) in pairs().items():
        print(f"{name}: a teacher of {teacher.count_params():,} parameters")
        measure(teacher, student, twin, rows)


def measure(
    teacher: keras.Model, student: keras.Model, twin: keras.Model, rows: int
) -> None:
    """Print constants and compile times of a pair.

    Args:
        teacher: The teacher.
        student: The student.
        twin: A model like the student, which is trained alone.
        rows: The number of rows in a batch.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, *teacher.input_shape[1:])).astype("float32")
    data = x, rng.integers(0, CLASSES, rows)
    twin.compile("adam", loss)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("adam", loss)
    for model in (twin, distiller):
        model.train_on_batch(*data)
    jaxpr = jax.make_jaxpr(distiller.train_step)(state_of(distiller), data)
    constants = sum(np.asarray(constant).nbytes for constant in jaxpr.consts)

    def forward(trainable: Any, others: Any, inputs: Any) -> Any:
        return teacher.stateless_call(trainable, others, inputs, training=False)[0]

    weights = [
        [variable.value for variable in variables]
        for variables in (teacher.trainable_variables, teacher.non_trainable_variables)
    ]
    ratios = []
    for _ in range(REPEATS):
        of_student = compile_seconds(twin.train_step, state_of(twin), data)
        of_teacher = compile_seconds(forward, *weights, x)
        of_both = compile_seconds(distiller.train_step, state_of(distiller), data)
        ratios.append(of_both / (of_student + of_teacher))
        print(
            f"  student step {of_student:.2f} s, teacher {of_teacher:.2f} s, "
            f"distillation step {of_both:.2f} s, ratio {ratios[-1]:.2f}"
        )
    print(f"  constants in the step: {constants:,} bytes (bound {CONSTANTS:,.0f})")
    print(f"  compile time: {statistics.median(ratios):.2f} (bound {COMPILE_TIME})")


if __name__ == "__main__":
    main()
