"""The fits of a search, each with a seed, and a file that keeps their scores."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import atomic, retracing
from keras_distill.distiller import Distiller
from keras_distill.tuning.settings import Setting, Space
from keras_distill.types import Nested

Rows = tuple[Any, ...]
BLOCKS = 10  # into which the rows that confirm a gain are split
_NAMES = "x", "y", "sample_weight"


def take(rows: Rows, index: Any) -> Rows:
    """Return some rows of inputs, labels and perhaps sample weights."""
    taken: Rows = keras.tree.map_structure(lambda array: array[index], rows)
    return taken


class Record:
    """Scores in a file of JSON lines. An incomplete last line is dropped."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores: dict[str, list[float]] = {}
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # A run was stopped while it wrote.
            atomic.replace_text(path, whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            self.scores[entry["fit"]] = entry["scores"]

    def add(self, fit: str, scores: list[float]) -> None:
        """Keep the scores of a fit."""
        self.scores[fit] = scores
        if self.path is not None:
            line = json.dumps({"fit": fit, "scores": scores}) + "\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)


@dataclasses.dataclass
class Fits:
    """Makes, scores and counts fits."""

    build_student: Callable[[], Any]
    teacher: Any
    train: Any
    parts: Mapping[str, Rows]
    compile: Callable[[], Mapping[str, Any]]
    callbacks: Callable[[], Sequence[Any]] | None
    fit: Mapping[str, Any]
    space: Space
    objective: str
    record: Record
    verbose: int
    seed: int = 0

    def scores(
        self, setting: Setting, seed: int, part: str, blocks: int
    ) -> list[float]:
        """Return the score of each block of a part of the held-out rows."""
        key = json.dumps([part, seed, *dataclasses.astuple(setting)])
        known = key in self.record.scores
        if not known:
            with retracing.without_remarks():
                model = self._fitted(setting, seed)
                self.record.add(key, self._scores(model, part, blocks))
        found = self.record.scores[key]
        if self.verbose:
            source = ", from the file" if known else ""
            mean = float(np.mean(found))
            print(f"{part} seed {seed}: {setting}: {mean:.4f}{source}", flush=True)
        return found

    def _fitted(self, setting: Setting, seed: int) -> Any:
        # The second seed below gives the same batches with and without a teacher.
        keras.utils.set_random_seed(seed)
        student = self.build_student()
        model = Distiller(student, self.teacher if setting.alpha else no_teacher)
        given = self.compile()
        _check_compile(given)
        model.compile(
            **given,
            alpha=setting.alpha,
            distillation_loss=self.space.distillation_loss(setting),
        )
        extra: dict[str, Any] = {}
        if self.callbacks is not None:
            extra["callbacks"] = list(self.callbacks())
            extra["validation_data"] = self.parts["search"]
        rows = self.train if isinstance(self.train, tuple) else (self.train,)
        named = dict(zip(_NAMES, rows, strict=False))
        keras.utils.set_random_seed(seed)
        model.fit(**named, **self.fit, **extra, verbose=0)
        return model

    def _scores(self, model: Any, part: str, blocks: int) -> list[float]:
        rows = self.parts[part]
        count = len(keras.tree.flatten(rows)[0])
        found = []
        for index in np.array_split(np.arange(count), blocks):
            named = dict(zip(_NAMES, take(rows, index), strict=False))
            logs = model.evaluate(**named, verbose=0, return_dict=True)
            if self.objective not in logs:
                raise ValueError(
                    f"`objective` must be one of {sorted(logs)}, or pass its metric in "
                    f"what `compile` returns. Received: objective={self.objective!r}"
                )
            found.append(float(logs[self.objective]))
        return found


def no_teacher(inputs: Nested) -> None:
    """Return None, so that the student learns from its labels only."""


def _check_compile(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(
            "`compile` must return a dict of arguments of `Distiller.compile`. "
            f"Received: {given!r}"
        )
    both = sorted({"alpha", "distillation_loss"} & set(given))
    if both:
        raise ValueError(
            f"`compile` must not return {both}, which the search chooses. Pass "
            f"`alphas` and `losses` instead. Received: {dict(given)}"
        )


def is_finite(scores: Sequence[float]) -> bool:
    """Return whether all scores are finite."""
    return all(map(math.isfinite, scores))
