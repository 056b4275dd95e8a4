"""Cross-fitting: targets from teachers that weren't trained on the same rows."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_distill import inputs
from keras_distill.scopes import scopes_kept
from keras_distill.teachers.base import TeacherLike
from keras_distill.types import Nested

Array = Any
tree = keras.tree


def cross_fit(
    make_teacher: Callable[..., TeacherLike],
    data: tuple[Any, ...],
    *,
    folds: int | Iterable[tuple[Array, Array]] = 5,
    labelled: Array | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> Nested:
    """Return the outputs of teachers for rows that they weren't trained on.

    A teacher memorises labels that it was trained on. Its outputs for the same rows
    repeat these labels to the student. The effect is larger with fewer labels. This
    function divides the labelled rows into folds. For each fold, it trains a teacher
    without the fold's rows, and returns that teacher's outputs for them. Rows without a
    label, on which no teacher was trained, get the mean of all teachers' outputs.

    Args:
        make_teacher: Called as `make_teacher(x, y)`, or with `sample_weight` too if
            `data` has it, with all labelled rows except those of one fold. A dict has
            all its keys. Returns a trained Keras model, or a callable that takes the
            inputs of a batch.
        data: `(x, y)` or `(x, y, sample_weight)`, NumPy arrays or structures of them,
            of shape `(rows, ...)`. If `x` is a dict, a model predicts from the keys
            that it declares.
        folds: The number of folds, at least 2, into which rows are divided at random.
            Or pairs `(training, held_out)` of positions among the labelled rows, as the
            splitters of scikit-learn return them, e.g. to keep the rows of a user
            in one fold.
        labelled: A boolean mask of the rows that have a label, of shape `(rows,)`.
            Defaults to all rows.
        seed: The seed of the random folds. Defaults to 0.
        batch_size: Rows per call of a teacher. Defaults to 1024.

    Returns:
        The teachers' outputs for all rows in the order of `data`. Pass them to `fit`
        under a key of the inputs, with `Recorded(key)` as the teacher.

    Raises:
        ValueError: If there are fewer than 2 folds or more folds than labelled rows, if
            arrays differ in length, or if the folds hold out a row twice or never.

    Example:
        >>> def mean_of_labels(x, y):
        ...     return lambda batch: np.full((len(batch), 1), y.mean())
        >>> x, y = np.zeros((4, 1)), np.array([0.0, 0.0, 1.0, 1.0])
        >>> folds = [([0, 1], [2, 3]), ([2, 3], [0, 1])]
        >>> cross_fit(mean_of_labels, (x, y), folds=folds).ravel()
        array([1., 1., 0., 0.])

    Reference:
        Chernozhukov et al. 2018, "Double/debiased machine learning",
        https://arxiv.org/abs/1608.00060, definition 3.1; Dao et al. 2021, "Knowledge
        Distillation as Semiparametric Inference", https://arxiv.org/abs/2104.09732,
        section 4.
    """
    rows = _rows(data)
    with_label = np.flatnonzero(
        np.ones(rows, bool) if labelled is None else _checked_mask(labelled, rows)
    )
    unlabelled = np.setdiff1d(np.arange(rows), with_label)
    pairs = _pairs(folds, len(with_label), seed)
    taught, outputs = [], []
    for training, held_out in pairs:
        teacher = make_teacher(*_take(data, with_label[training]))
        if not callable(teacher):
            raise TypeError(
                "`make_teacher` must return a trained Keras model or a callable of a "
                f"batch. Received: {teacher!r}"
            )
        taught.append(np.concatenate([with_label[held_out], unlabelled]))
        outputs.append(_predict(teacher, _take(data[0], taught[-1]), batch_size))

    def collected(*parts: Array) -> Array:
        # Outputs may be integers, such as votes. Their mean needs a float.
        is_float = np.issubdtype(parts[0].dtype, np.floating)
        dtype = parts[0].dtype if is_float else "float32"
        total = np.zeros((rows, *parts[0].shape[1:]), dtype)
        for indices, part in zip(taught, parts, strict=True):
            total[indices] += part
        # The sum over all teachers becomes their mean.
        total[unlabelled] /= len(pairs)
        return total

    return tree.map_structure(collected, *outputs)


def _predict(teacher: TeacherLike, x: Nested, batch_size: int) -> Nested:
    """Return a teacher's outputs for all rows, as NumPy arrays."""
    x = inputs.select(teacher, x)
    if isinstance(teacher, keras.Model):
        with scopes_kept():
            return teacher.predict(x, batch_size=batch_size, verbose=0)
    batches = [
        tree.map_structure(
            keras.ops.convert_to_numpy, teacher(_take(x, slice(i, i + batch_size)))
        )
        for i in range(0, _rows(x), batch_size)
    ]
    return tree.map_structure(lambda *parts: np.concatenate(parts), *batches)


def _pairs(folds: Any, rows: int, seed: int) -> list[tuple[Array, Array]]:
    """Return the indices `(training, held_out)` of each fold."""
    if isinstance(folds, int | np.integer):
        if not 2 <= folds <= rows:
            raise ValueError(
                "`folds` must be at least 2, and at most the number of labelled rows. "
                f"Received: folds={folds} for {rows} labelled rows"
            )
        shuffled = np.random.default_rng(seed).permutation(rows)
        held_out = np.array_split(shuffled, folds)
        return [(np.setdiff1d(np.arange(rows), fold), fold) for fold in held_out]
    pairs = [(np.asarray(training), np.asarray(fold)) for training, fold in folds]
    times_held_out = np.zeros(rows, int)
    for training, fold in pairs:
        for part in (training, fold):
            if part.dtype.kind not in "iu" or (part.size and part.max() >= rows):
                raise ValueError(
                    "Folds must be pairs of indices of the labelled rows, of which "
                    f"there are {rows}. Received: {part.dtype} values up to "
                    f"{part.max(initial=0)}"
                )
        np.add.at(times_held_out, fold, 1)
        both = np.intersect1d(training, fold)
        if both.size:
            raise ValueError(
                "A fold's teacher must not be trained on the rows that it speaks "
                f"about. Received: rows {both[:5]} in both parts of a fold"
            )
    if not pairs or (times_held_out != 1).any():
        wrong = np.flatnonzero(times_held_out != 1)
        raise ValueError(
            "The folds must hold out each labelled row once. Received: row "
            f"{wrong[0]} of {rows} held out {times_held_out[wrong[0]]} times"
        )
    return pairs


def _checked_mask(labelled: Array, rows: int) -> Array:
    mask = np.asarray(labelled)
    if mask.shape != (rows,):
        raise ValueError(
            "`labelled` must say of each row whether it has a label. Received: shape "
            f"{mask.shape} for {rows} rows"
        )
    return mask.astype(bool)


def _rows(data: Any) -> int:
    lengths = {len(array) for array in tree.flatten(data)}
    if len(lengths) != 1:
        raise ValueError(
            "All arrays must have the same number of rows. Received: "
            f"{sorted(lengths)} rows"
        )
    return lengths.pop()


def _take(data: Any, rows: Any) -> Any:
    return tree.map_structure(lambda array: np.asarray(array)[rows], data)
