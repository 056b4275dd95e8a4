"""The memory and time of divergences over a large vocabulary.

Claim: at 2,048 tokens, 50,257 words and 256 hidden units, `losses.vocabulary`, which
reads hidden states, takes at most 1/12 of the memory of the plain formulation by logits
for the generalised Jensen-Shannon divergence and 1/6 for the forward KL divergence. It
takes at most the same time, and its gradients are within 5e-6 of those in float64. With
a value for each token, `reduction=None`, it takes longer. This time is printed without
a bound.

    python benchmarks/large_vocabulary.py [--rounds 5] [--tokens 2048] [--xla]

Memory is the peak of the resident memory in the first call of loss and gradients, minus
the memory before it, as Linux counts it. Each side is a process of its own. Times are
medians of interleaved rounds in one process. Gradients are compared by the norm of
their difference, with float64 NumPy. `--xla` compiles the steps of TensorFlow with XLA.
On JAX (`KERAS_BACKEND=jax`), XLA compiles both sides anyway.
"""

import argparse
import gc
import pathlib
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import keras
import numpy as np
from keras import ops
from timing import interleaved, ratio

from keras_distill import losses
from keras_distill.losses.vocabulary import Head, VocabularyLoss

VOCABULARY, HIDDEN = 50_257, 256
LOSSES = {"GeneralizedJSD": losses.GeneralizedJSD, "ForwardKL": losses.ForwardKL}
MEMORY_BOUNDS = {"GeneralizedJSD": 1 / 12, "ForwardKL": 1 / 6}
TIME_BOUND, ERROR_BOUND = 1.0, 5e-6


def data(tokens: int) -> list[np.ndarray]:
    """Return the teacher's and the student's hidden states, and both kernels."""
    generator = np.random.default_rng(0)
    of_hidden, of_kernel = (tokens, HIDDEN), (HIDDEN, VOCABULARY)
    drawn = (
        generator.standard_normal(s, "float32") for s in (of_hidden, of_kernel) * 2
    )
    hidden, kernel, student, head = drawn
    return [hidden, student, 0.1 * kernel, 0.1 * head]


def plain(loss: keras.losses.Loss, *given: object) -> object:
    """Return the loss of the logits of all tokens."""
    teacher, student, kernel, head = given
    return loss(ops.matmul(teacher, kernel), ops.matmul(student, head))


def chunked(
    loss: keras.losses.Loss, *given: object, reduction: str | None = "token"
) -> object:
    """Return the loss from hidden states."""
    teacher, student, kernel, head = given
    heads = {"teacher_head": Head(kernel), "student_head": Head(head)}
    return VocabularyLoss(loss, reduction=reduction, **heads)(teacher, student)


def by_token(loss: keras.losses.Loss, *given: object) -> object:
    """Return the mean of the losses of each token, which is the same number."""
    return ops.mean(chunked(loss, *given, reduction=None))


SIDES = {"plain": plain, "vocabulary": chunked}
COMPUTED = {**SIDES, "by token": by_token}


def step(side: str, name: str, given: list, xla: bool) -> Callable[[], object]:
    """Return a compiled call that returns the loss and its gradients."""
    loss, compute = LOSSES[name](), COMPUTED[side]
    if keras.backend.backend() == "jax":
        import jax

        def value(trained: list, fixed: list) -> object:
            return compute(loss, fixed[0], trained[0], fixed[1], trained[1])

        call = jax.jit(jax.value_and_grad(value))
        teacher, student, kernel, head = map(ops.convert_to_tensor, given)
        return lambda: call([student, head], [teacher, kernel])
    import tensorflow as tf

    teacher, student, kernel, head = (tf.Variable(x) for x in given)

    @tf.function(jit_compile=xla, autograph=False)
    def call() -> object:
        with tf.GradientTape() as tape:
            found = map(tf.convert_to_tensor, (teacher, student, kernel, head))
            value = compute(loss, *found)
        return value, tape.gradient(value, [student, head])

    return call


def resident(key: str) -> float:
    """Return the MB of this process at present, `VmRSS`, or at most, `VmHWM`."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) / 1e3


def memory(side: str, name: str, tokens: int, xla: bool) -> None:
    """Print the MB that a first call takes beyond what the process had."""
    call = step(side, name, data(tokens), xla)
    gc.collect()
    # Forgets the peak of what made the data.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = call()
    keras.tree.map_structure(np.asarray, result)
    print(resident("VmHWM") - before)


def measured(side: str, name: str, options: argparse.Namespace) -> float:
    """Return what `memory` prints in a process of its own."""
    command = [sys.executable, __file__, "--memory", side, name]
    command += ["--tokens", str(options.tokens), *["--xla"] * options.xla]
    found = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True
    )
    return float(found.stdout.split()[-1])


def errors(name: str, given: list, xla: bool) -> list[float]:
    """Return the relative errors of the gradients in hidden states and kernel."""
    teacher, student, kernel, head = (x.astype("float64") for x in given)
    expected = [np.zeros_like(student), np.zeros_like(head)]
    for begin in range(0, len(student), 128):
        rows = slice(begin, begin + 128)
        of_logits = exact(name, teacher[rows] @ kernel, student[rows] @ head)
        of_logits /= len(student)
        expected[0][rows] = of_logits @ head.T
        expected[1] += student[rows].T @ of_logits
    _, found = step("vocabulary", name, given, xla)()
    return [
        float(np.linalg.norm(np.asarray(f) - e) / np.linalg.norm(e))
        for f, e in zip(found, expected, strict=True)
    ]


def exact(name: str, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return the gradient in the student's logits, in float64."""
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    if name == "ForwardKL":
        return q - p
    ratio_to_mean = np.log(q / (0.5 * (p + q)))
    mean = (q * ratio_to_mean).sum(-1, keepdims=True)
    return 0.5 * q * (ratio_to_mean - mean)


def row(what: str, figures: str, value: float, bound: float) -> bool:
    """Print a line of the table; return whether the value is within its bound."""
    kept = value <= bound
    print(
        f"  {what:34s} {figures:32s} {value:9.2g} {bound:9.2g}  "
        f"{'ok' if kept else 'ABOVE'}",
        flush=True,
    )
    return kept


def main() -> int:
    """Measure, print the table, return whether a value is out of its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(*options.memory, options.tokens, options.xla)
        return 0
    print(
        f"{options.tokens:,} tokens, {VOCABULARY:,} words, {HIDDEN} hidden units, "
        f"{keras.backend.backend()}{', XLA' * options.xla}\n"
        f"  {'':34s} {'plain, vocabulary':32s} {'':>9s} {'bound':>9s}"
    )
    kept = True
    given = data(options.tokens)
    for name in LOSSES:
        used = [measured(side, name, options) for side in SIDES]
        figures = f"{used[0]:,.0f} MB, {used[1]:,.0f} MB"
        found = used[1] / used[0]
        kept &= row(f"{name}: memory, ratio", figures, found, MEMORY_BOUNDS[name])
        calls = {side: step(side, name, given, options.xla) for side in COMPUTED}
        times = interleaved(calls, options.rounds, 1)
        found = median(ratio(times["vocabulary"], times["plain"]))
        figures = ", ".join(f"{median(times[side]) / 1e3:.2f} s" for side in SIDES)
        kept &= row(f"{name}: time, ratio", figures, found, TIME_BOUND)
        found = median(ratio(times["by token"], times["vocabulary"]))
        row(f"{name}: time of reduction=None, ratio", "", found, float("inf"))
        del calls
        for what, error in zip(
            ("hidden", "kernel"), errors(name, given, options.xla), strict=True
        ):
            kept &= row(f"{name}: error of {what} gradient", "", error, ERROR_BOUND)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
