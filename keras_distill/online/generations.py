"""Born-again networks: students in generations, each taught by the one before."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_distill import atomic
from keras_distill.distiller import Distiller
from keras_distill.online.backup import Backup
from keras_distill.teachers.base import TeacherLike
from keras_distill.teachers.ensemble import Ensemble

Fit = Callable[[Distiller, list[keras.callbacks.Callback]], Any]


class Generations:
    """The trained students of all generations, the result of `born_again`.

    Args:
        students: The students, beginning with the first generation.

    Example:
        >>> students = [
        ...     keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        ...     for _ in range(3)
        ... ]
        >>> generations = Generations(students)
        >>> len(generations.students), len(generations.ensemble(last=2).models)
        (3, 2)
    """

    def __init__(self, students: Sequence[keras.Model]) -> None:
        self.students = list(students)

    def ensemble(self, last: int | None = None) -> Ensemble:
        """Return one model with the mean of the last generations' logits.

        Args:
            last: The number of generations. Defaults to all.

        Raises:
            ValueError: If there are fewer generations, or `last` isn't positive.
        """
        last = len(self.students) if last is None else last
        if not 1 <= last <= len(self.students):
            raise ValueError(
                f"`last` must be from 1 to the {len(self.students)} generations. "
                f"Received: last={last}"
            )
        return Ensemble(self.students[-last:])


def born_again(
    make_student: Callable[[], keras.Model],
    teacher: TeacherLike,
    generations: int,
    *,
    fit: Fit,
    directory: str | Path,
) -> Generations:
    """Train students in generations, each taught by the generation before.

    A finished generation is saved in the directory as `generation_<number>.keras`, and
    a running one after each epoch. A run that was killed resumes at its last complete
    epoch when this function is called again. It ends with the same weights as an
    uninterrupted run if `make_student` and `fit` are deterministic. For this, set the
    seed before the call, and don't shuffle with a random generator whose state is lost
    when the process ends.

    Args:
        make_student: Returns a built student with fresh weights. All students are made
            before the first is trained, so that their initial weights don't depend on
            what was trained in this process.
        teacher: The teacher of the first generation, as in `Distiller`.
        generations: The total number of generations, at least 1.
        fit: Called as `fit(distiller, callbacks)` for each generation. It must compile
            the distiller, and call `distiller.fit` once with these callbacks.
        directory: The directory of the run. If `generations` is larger than before, a
            finished run continues there.

    Returns:
        The generations, with `students` and `ensemble(last)`.

    Raises:
        ValueError: If `generations` isn't positive, a student isn't built, the
            directory contains a run with other students, or `fit` doesn't pass the
            callbacks to `distiller.fit`.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> def make_student():
        ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> def fit(distiller, callbacks):
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     distiller.compile("adam", loss)
        ...     distiller.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
        >>> result = born_again(
        ...     make_student, make_student(), 2, fit=fit, directory="born")
        >>> result.ensemble().predict(x, verbose=0).shape
        (64, 3)

    Reference:
        Furlanello et al. 2018, "Born-Again Neural Networks",
        https://arxiv.org/abs/1805.04770.
    """
    whole = isinstance(generations, int) and not isinstance(generations, bool)
    if not whole or generations < 1:
        raise ValueError(
            "`generations` must be a whole number from 1 on. Received: "
            f"generations={generations!r}"
        )
    directory = Path(directory)
    students = [_checked(make_student()) for _ in range(generations)]
    _check_same_run(directory / "students.json", students)
    for number, student in enumerate(students, 1):
        finished = directory / f"generation_{number}.keras"
        running = directory / f"generation_{number}.running"
        if finished.exists():
            student.load_weights(finished)
        else:
            _train(student, teacher, fit, Backup(running))
            atomic.replace(finished, student.save)
        # If the process is killed before this line, both exist. The finished one is
        # read then.
        shutil.rmtree(running, ignore_errors=True)
        teacher = student
    return Generations(students)


def _train(
    student: keras.Model, teacher: TeacherLike, fit: Fit, backup: Backup
) -> None:
    distiller = Distiller(student, teacher)
    fit(distiller, [backup])
    if backup.model is not distiller:
        raise ValueError(
            "`fit` must pass the callbacks that it is given on to `distiller.fit`: "
            "without them a run that is killed loses the generation. Received: "
            f"fit={fit}, which trained without {backup}"
        )


def _checked(student: Any) -> keras.Model:
    if not isinstance(student, keras.Model) or not student.built:
        raise ValueError(
            "`make_student` must return a built Keras model. Give it a `keras.Input`, "
            f"or call it on a batch. Received: {student!r}"
        )
    return student


def _check_same_run(path: Path, students: Sequence[keras.Model]) -> None:
    """Raise ValueError if the directory holds other students. Else record these.

    Layers are compared by class and by the shapes of their weights. Names aren't
    compared, because they depend on what else the process has made.
    """
    described = [_description(student) for student in students]
    earlier = json.loads(path.read_text()) if path.exists() else []
    for number, (this, was) in enumerate(zip(described, earlier, strict=False), 1):
        if this != was:
            raise ValueError(
                "`directory` holds a run of other students. Choose another directory, "
                "or the `make_student` of that run. Received: "
                f"directory={str(path.parent)!r}, whose generation {number} is {was}; "
                f"`make_student` made {this}"
            )
    if len(described) > len(earlier):
        atomic.replace_text(path, json.dumps(described))


def _description(student: keras.Model) -> list[str]:
    layers = [layer for layer in student._flatten_layers() if not layer._layers]
    return [
        f"{type(layer).__name__}{[list(weight.shape) for weight in layer.weights]}"
        for layer in layers
    ]
