"""Pairs of teacher and student logits that floating point finds hard."""

import inspect

import numpy as np

from keras_distill import losses


def two_classes():
    """Every pair of gaps, as `(gap, 0)` and with a large offset in common."""
    sizes = [1e-3, 0.1, 1.0, 5.0, 17.0, 30.0, 90.0, 104.0, 1e3, 1e4]
    gaps = np.array([-g for g in sizes] + [0.0] + sizes)
    teacher_gap, student_gap = (g.ravel() for g in np.meshgrid(gaps, gaps))
    teacher = np.stack([teacher_gap, np.zeros_like(teacher_gap)], -1)
    student = np.stack([student_gap, np.zeros_like(student_gap)], -1)
    return (
        np.concatenate([teacher, teacher - 500.0]),
        np.concatenate([student, student + 500.0]),
    )


def ten_classes():
    """One adversarial structure a row, as a dict of name -> (teacher, student)."""
    rng = np.random.default_rng(0)

    def normal(scale=1.0):
        return scale * rng.standard_normal(10)

    def one_hot(index, gap):
        return gap * np.eye(10)[index]

    def masked(logits, *classes):
        logits = logits.copy()
        logits[list(classes)] = -np.inf
        return logits

    some = normal(3.0)
    swapped = some[[0, 2, 1, 3, 4, 5, 7, 6, 8, 9]]  # many p == q, but not all
    close = np.r_[normal(0.3)[:4], np.full(6, -1e4)]  # four classes close together
    tiers = np.r_[0.2, 0.1, 0.0, -0.1, np.full(6, -40.0)]
    cases = {
        "moderate": (normal(3.0), normal(3.0)),
        "wide": (rng.uniform(-5e3, 5e3, 10), rng.uniform(-5e3, 5e3, 10)),
        "wide teacher": (rng.uniform(-5e3, 5e3, 10), normal()),
        "wide student": (normal(), rng.uniform(-5e3, 5e3, 10)),
        "wide, both the same order": (np.linspace(0, 1e4, 10),) * 2,
        "opposite orders": (np.linspace(0, 1e4, 10), np.linspace(1e4, 0, 10)),
        "equal": (some, some.copy()),
        "nearly equal": (some, some + normal(1e-3)),
        "equal but for an offset": (some, some + 3.0),
        "offset in common": (1e4 + normal(), 1e4 + normal()),
        "negative offset": (-1e4 + normal(), -1e4 + normal()),
        "opposite offsets": (1e4 + normal(3.0), -1e4 + normal(3.0)),
        "partly equal": (some, swapped),
        "all equal": (np.full(10, 7.0), np.full(10, -1e4)),
        "uniform teacher": (np.zeros(10), some),
        "uniform student": (some, np.zeros(10)),
        "same one-hot": (one_hot(3, 1e4), one_hot(3, 1e4)),
        "same one-hot, other gap": (one_hot(3, 1e4), one_hot(3, 20.0)),
        "different one-hot": (one_hot(3, 1e4), one_hot(5, 1e4)),
        "one-hot at the edge of underflow": (one_hot(0, 88.0), one_hot(1, 104.0)),
        "one-hot against moderate": (one_hot(3, 1e4), some),
        "moderate against one-hot": (some, one_hot(3, 1e4)),
        "belief ruled out": (np.r_[normal()[:4] - 1e4, normal()[:6]], close),
        "belief ruled out by one class": (one_hot(9, 1e4) + normal(0.3), close),
        "belief ruled out at an offset": (
            np.r_[normal()[:4] - 5e3, normal()[:6] + 5e3],
            close + 1e4,
        ),
        "belief ruled out in tiers": (
            np.r_[-1e4, -9999.0, -5e3, -4999.0, normal()[:6]],
            tiers,
        ),
        "likely class ruled out, unlikely one not": (
            np.r_[-1e4, -1e4 + 2, -1e4 + 1, -1e4, 0.0, np.full(5, -1.0)],
            np.r_[0.1, 0.0, 0.2, -0.1, -12.0, np.full(5, -14.0)],
        ),
        "masked": (masked(normal(3.0), 3, 4), masked(normal(3.0), 3, 4)),
        "masked, wide": (
            masked(rng.uniform(-5e3, 5e3, 10), 0, 9),
            masked(rng.uniform(-5e3, 5e3, 10), 0, 9),
        ),
        "masked but for two": (masked(some, *range(8)), masked(swapped, *range(8))),
        "masked but for one": (masked(some, *range(9)), masked(some, *range(9))),
        "masked, belief ruled out": (
            masked(np.r_[normal()[:4] - 1e4, normal()[:6]], 1, 6),
            masked(close, 1, 6),
        ),
    }
    return cases


def many_classes(classes=32_768):
    """A few rows over a large vocabulary."""
    rng = np.random.default_rng(1)
    moderate = 3.0 * rng.standard_normal((4, classes))
    student = moderate + rng.standard_normal((4, classes))
    student[2] *= 1e3  # gaps up to 1e4
    moderate[3, 17] += 40.0
    return moderate, student


def batches():
    """The cases above as two arrays for each number of classes."""
    rows = ten_classes().values()
    teacher, student = (np.stack(side) for side in zip(*rows, strict=True))
    return {
        "two classes": two_classes(),
        "ten classes": (teacher, student),
        "32k classes": many_classes(),
    }


def assert_all_divergences(made):
    """Every public divergence of softmax outputs is among the losses of a table."""
    public = {
        name
        for name, value in vars(losses).items()
        if inspect.isclass(value) and issubclass(value, losses.SoftmaxDivergence)
    } - {"SoftmaxDivergence"}
    missing = sorted(public - {type(loss).__name__ for loss in made})
    assert not missing, f"add them to the table at the top of this file: {missing}"
