"""The audit of privileged features, by the same fits in folds in the order of time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_distill import inputs
from keras_distill.privileged import checks
from keras_distill.privileged.fits import (
    ALONE,
    CONTROL,
    MODELS,
    PRIVILEGED,
    TEACHER,
    Fits,
    all_values,
    without,
)
from keras_distill.privileged.folds import (
    Array,
    Fold,
    by_group,
    chained,
    groups_of,
    order,
)
from keras_distill.privileged.result import Audit
from keras_distill.privileged.scores import Score, checked, label_loss
from keras_distill.tuning.fits import Rows, take
from keras_distill.tuning.interval import Gain, gain, quantile

_FUNCTIONS = "build_student", "build_teacher", "compile"
_NUMBERS = "epochs", "batch_size", "folds", "max_rows"


def audit(
    build_student: Callable[[], Any],
    build_teacher: Callable[[], Any],
    data: Any,
    *,
    privileged_features: Sequence[str],
    compile: Callable[[], Mapping[str, Any]],
    epochs: int = 1,
    batch_size: int | None = None,
    time: Any = None,
    groups: Any = None,
    folds: int = 3,
    seeds: int = 5,
    max_rows: int | None = None,
    score: Score | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> Audit:
    """Find out whether distillation from privileged features helps on a log.

    The audit trains three students for the same number of epochs, with the same initial
    weights and batches. It compares them on rows that are later than all rows in
    training. One student learns alone. One learns from a teacher that reads the
    privileged features. The third is the control: its teacher is trained, and teaches,
    with the privileged features of another row. The control shows what a student gains
    from any teacher. The verdict is one of these:

    - `"leaks"`: the teacher's inputs almost contain the label. The teacher explains
      more than 0.8 of the label loss that remains without the privileged features. By
      the law of total variance, if a teacher explains the share `e` of the labels'
      noise, its outputs still have the share `e` of that noise for the student. With
      0.8, they are worth at most a quarter more rows. And a feature that predicts the
      label so well is rarely recorded before the label.
    - `"pays"`: no leak, and the 95 % intervals of the student's gain over the student
      alone and of its gain over the control are both above 0.
    - `"doesn't"`: all other cases.

    The later half of the rows is cut into `folds` parts in the order of time. Each part
    tests models that were trained on all rows before it. The audit makes
    `5 * folds * seeds` fits, 75 with the defaults. Two of five fits are of teachers.

    The audit finds a leak of most labels, but not a leak of a few of them. If two
    columns contain the same leak, the teacher's loss shows it, but the result of
    neither column does. A teacher that was trained too briefly to use the leak doesn't
    show it.

    Args:
        build_student: A function that returns a fresh, uncompiled student.
        build_teacher: A function that returns a fresh, uncompiled teacher. It declares
            the privileged features as inputs.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, of shape `(rows, ...)`. `x`
            is a dict. Labels and sample weights may be dicts by output.
        privileged_features: Names of the columns of `x` that only the teacher reads.
        compile: A function that returns a dict of arguments of `Distiller.compile`:
            `optimizer`, `loss`, `distillation_loss`, `alpha` and others. Each call must
            return a fresh optimiser. The teacher is trained first, on the same rows and
            with the same arguments, but on `loss` only.
        epochs: As in `fit`, for students and for teachers. Defaults to 1.
        batch_size: As in `fit`.
        time: The time of each row, of shape `(rows,)`. A cut doesn't separate rows of
            the same time, e.g. of one day. Defaults to the order of the rows.
        groups: The group of each row, of shape `(rows,)`, such as its user or day. Rows
            of one group aren't independent, so intervals are computed over groups.
            Defaults to ten blocks of successive rows in each fold.
        folds: The number of folds. Defaults to 3.
        seeds: The number of seeds in each fold, 2 or more. Fewer seeds make wider
            intervals. Defaults to 5.
        max_rows: The number of the most recent rows to use. Defaults to all rows.
        score: A function of labels, predictions and sample weights that returns a loss
            for each row. Labels and weights have the structure of `data`. The loss
            of a perfect prediction is 0. Defaults to the label loss, summed over
            outputs.
        seed: The seed of the fits. Each fit sets the global seed. Defaults to 0.
        verbose: 1 prints a line for each fold and seed, 0 none. Defaults to 1.

    Returns:
        The verdict, with the intervals of the gains and of each column's effect.

    Raises:
        ImportError: If SciPy isn't installed.
        TypeError: If an argument that must be a function isn't one, or returns an
            object of another type.
        ValueError: If labels, columns or rows are missing, or values are NaN; if a
            privileged feature or a label doesn't vary; if the student reads a
            privileged feature, or the teacher doesn't read one; if a number is out of
            its range; if a score isn't a finite, positive loss for each row.

    Example:
        >>> import numpy as np
        >>> from keras_distill.losses import BinarySoftTargets
        >>> rng = np.random.default_rng(0)
        >>> item = rng.normal(size=(200, 4)).astype("float32")
        >>> dwell = item[:, :1] + rng.normal(size=(200, 1)).astype("float32")
        >>> bought = (dwell + rng.normal(size=(200, 1)) > 0).astype("float32")
        >>> def model(**sizes):
        ...     columns = {k: keras.Input((size,), name=k) for k, size in sizes.items()}
        ...     read = keras.layers.Concatenate()(list(columns.values()))
        ...     return keras.Model(columns, keras.layers.Dense(1)(read))
        >>> def settings():
        ...     return {"optimizer": keras.optimizers.Adam(0.01),
        ...             "loss": keras.losses.BinaryCrossentropy(from_logits=True),
        ...             "distillation_loss": BinarySoftTargets()}
        >>> found = audit(
        ...     lambda: model(item=4), lambda: model(item=4, dwell=1),
        ...     ({"item": item, "dwell": dwell}, bought), privileged_features=["dwell"],
        ...     compile=settings, folds=1, seeds=2, verbose=0)
        >>> found.fits, found.verdict in ("pays", "doesn't", "leaks")
        (10, True)

    Reference:
        Xu et al. 2020, "Privileged Features Distillation at Taobao Recommendations",
        https://arxiv.org/abs/1907.05171; Yang et al. 2022, "Toward Understanding
        Privileged Features Distillation in Learning-to-Rank",
        https://arxiv.org/abs/2209.08754.
    """
    given = dict(locals())
    checks.check_functions({name: given[name] for name in _FUNCTIONS})
    checks.check_numbers({name: given[name] for name in _NUMBERS}, seeds)
    quantile(0.975, seeds - 1)  # Raises an error without SciPy, before the fits.
    rows, cuts, of_test = _cut(given)
    fits = Fits(
        build_student=build_student,
        build_teacher=build_teacher,
        compile=compile,
        fit={"epochs": epochs, "batch_size": batch_size},
        privileged_features=list(privileged_features),
        score=_score(given, rows),
        verbose=verbose,
    )
    found = all_values(fits, rows, cuts, seeds, seed)
    return _result(found, of_test, fits, folds)


def _cut(given: Mapping[str, Any]) -> tuple[Rows, list[Fold], Array]:
    """Return the rows in the order of time, their folds, and the test rows' groups."""
    features, groups = given["privileged_features"], given["groups"]
    rows = checks.arrays(given["data"], features)
    count = len(rows[0][features[0]])
    time = checks.one_per_row("time", given["time"], count)
    groups = checks.one_per_row("groups", groups, count)
    kept = order(time, count, given["max_rows"])
    time, groups = (None if it is None else it[kept] for it in (time, groups))
    folds = chained(time, len(kept), given["folds"])
    rows = take(rows, kept)
    checks.check_values(rows, features, folds)
    of_test = groups_of(groups, folds)
    checks.check_groups(of_test)
    return rows, folds, of_test


def _score(given: Mapping[str, Any], rows: Rows) -> Score:
    """Return the score, after a check on a few rows that models and score fit them."""
    settings, few = given["compile"](), take(rows, slice(8))
    checks.check_compile(settings)
    hidden = given["privileged_features"]
    student = checks.check_models(
        given["build_student"], given["build_teacher"], few[0], hidden
    )
    seen = inputs.select(student, few[0], withheld=hidden)
    outputs = student.predict(seen, verbose=0)
    score = given["score"] or label_loss(
        settings, outputs, getattr(student, "output_names", None)
    )
    x, y, weight = keras.utils.unpack_x_y_sample_weight(few)
    checked(score, y, outputs, weight)
    return score


def _result(found: Mapping[str, Array], groups: Array, fits: Fits, folds: int) -> Audit:
    def lead(better: str, worse: str) -> Gain:
        return gain(by_group(found[worse] - found[better], groups))

    features = fits.privileged_features
    return Audit(
        gain=lead(PRIVILEGED, ALONE),
        over_control=lead(PRIVILEGED, CONTROL),
        control_gain=lead(CONTROL, ALONE),
        teacher_gain=lead(TEACHER, ALONE),
        columns={name: lead(TEACHER, without(name)) for name in features},
        losses={name: float(found[name].mean()) for name in MODELS},
        rows=len(groups),
        groups=int(groups.max()) + 1,
        folds=folds,
        fits=fits.count,
    )
