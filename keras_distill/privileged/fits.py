"""Fits of an audit: the student alone, the control, and the student with a teacher."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import retracing
from keras_distill.cautions import TeacherWarning
from keras_distill.distiller import Distiller
from keras_distill.privileged.folds import Array, Fold
from keras_distill.privileged.scores import Score, checked
from keras_distill.tuning.fits import Rows, no_teacher, take

ALONE, CONTROL, PRIVILEGED = "student alone", "student, control", "student, privileged"
TEACHER, CONTROL_TEACHER = "teacher", "teacher, control"
MODELS = ALONE, CONTROL, PRIVILEGED, CONTROL_TEACHER, TEACHER
_NAMES = "x", "y", "sample_weight"
_ROWS_PER_CALL = 4096

# The loss of each row, by the name of a model or by `without(feature)`.
Values = dict[str, Array]


def without(feature: str) -> str:
    """Return the name of the teacher that reads another row's value of a feature."""
    return f"teacher, {feature} shuffled"


def shuffled(rows: Rows, columns: Sequence[str], seed: int) -> Rows:
    """Return rows in which all `columns` have the values of the same other row."""
    x = rows[0]
    other = np.random.default_rng(seed).permutation(len(x[columns[0]]))
    return ({**x, **{name: x[name][other] for name in columns}}, *rows[1:])


@dataclasses.dataclass
class Fits:
    """Makes, scores and counts fits.

    Args:
        build_student: As in `audit`.
        build_teacher: As in `audit`.
        compile: As in `audit`.
        fit: Arguments of `fit`.
        privileged_features: As in `audit`.
        score: Returns the loss of each row.
        verbose: As in `audit`.
        count: The number of fits made.
    """

    build_student: Callable[[], Any]
    build_teacher: Callable[[], Any]
    compile: Callable[[], Mapping[str, Any]]
    fit: Mapping[str, Any]
    privileged_features: Sequence[str]
    score: Score
    verbose: int
    count: int = 0

    def values(self, train: Rows, test: Rows, seed: int) -> Values:
        """Train all models on `train`, and return their losses on the rows of `test`.

        All students begin with the same weights and read the same batches.
        """
        begin, features = time.monotonic(), self.privileged_features
        cut, cut_test = (shuffled(rows, features, seed) for rows in (train, test))
        control, teacher = (self._teacher(rows, seed) for rows in (cut, train))
        with warnings.catch_warnings():
            # The control's teacher learns nothing if it reads no other columns.
            warnings.simplefilter("ignore", TeacherWarning)
            under_control = self._student(cut, seed, control)
        found = {
            ALONE: self._scored(self._student(train, seed, None), test),
            CONTROL: self._scored(under_control, test),
            PRIVILEGED: self._scored(self._student(train, seed, teacher), test),
            CONTROL_TEACHER: self._scored(control, cut_test),
            TEACHER: self._scored(teacher, test),
        }
        if self.verbose:
            means = ", ".join(f"{name} {of.mean():.4g}" for name, of in found.items())
            seconds = time.monotonic() - begin
            print(f"seed {seed}: {means}; {seconds:.0f} s", flush=True)
        for name in features:
            found[without(name)] = self._scored(teacher, shuffled(test, [name], seed))
        return found

    def _student(self, rows: Rows, seed: int, teacher: Distiller | None) -> Distiller:
        return self._fitted(
            self.build_student,
            rows,
            seed,
            teacher=None if teacher is None else teacher.student,
            privileged_features=self.privileged_features,
        )

    def _teacher(self, rows: Rows, seed: int) -> Distiller:
        return self._fitted(self.build_teacher, rows, seed)

    def _fitted(
        self,
        build: Callable[[], Any],
        rows: Rows,
        seed: int,
        *,
        teacher: Any = None,
        privileged_features: Sequence[str] = (),
    ) -> Distiller:
        """Train a model on labels, and on the outputs of a teacher if it has one.

        The seed is set twice, so that a teacher changes neither the student's initial
        weights nor its batches.
        """
        keras.utils.set_random_seed(seed)
        model = Distiller(
            build(), teacher or no_teacher, privileged_features=privileged_features
        )
        given = dict(self.compile())
        model.compile(**(given if teacher else {**given, "alpha": 0.0}))
        keras.utils.set_random_seed(seed)
        model.fit(**dict(zip(_NAMES, rows, strict=False)), **self.fit, verbose=0)
        self.count += 1
        return model

    def _scored(self, model: Distiller, rows: Rows) -> Array:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(rows)
        prediction = model.predict(x, batch_size=_ROWS_PER_CALL, verbose=0)
        return checked(self.score, y, prediction, weight)


def all_values(
    fits: Fits, rows: Rows, folds: Sequence[Fold], seeds: int, seed: int
) -> Values:
    """Return losses of shape `(seeds, test rows)`, with the folds in order.

    No two folds have a seed in common.
    """
    of_seeds = []
    for index in range(seeds):
        first = seed + index * len(folds)
        with retracing.without_remarks():
            of_folds = [
                fits.values(take(rows, it.train), take(rows, it.test), first + number)
                for number, it in enumerate(folds)
            ]
        of_seeds.append(_joined(np.concatenate, of_folds))
    return _joined(np.stack, of_seeds)


def _joined(join: Callable[..., Array], parts: Sequence[Values]) -> Values:
    return {name: join([part[name] for part in parts]) for name in parts[0]}
