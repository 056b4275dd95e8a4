"""A comparison of models on the same rows: quality, cost, and a verdict in words."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_distill import atomic
from keras_distill.report import (
    costs,
    measuring,
    page,
    pictures,
    reading,
    tasks,
    wording,
)
from keras_distill.report.measuring import Answers
from keras_distill.report.reading import Read
from keras_distill.report.resampling import Resamples
from keras_distill.report.results import Findings
from keras_distill.report.tasks import Array, Kind

TEACHER, ALONE = "teacher", "student alone"
DATA_FILE, PAGE_FILE = "report.json", "report.html"


class Report(Findings):
    """The results of a comparison. `print` shows them as a table."""

    @property
    def verdicts(self) -> list[str]:
        """The verdicts, one sentence for each compared model and output."""
        return wording.verdicts(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values of JSON; None for what couldn't be computed."""
        return {**super().to_dict(), "verdicts": self.verdicts}

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Write `report.html`, `report.json` and the pictures as PNGs.

        The page contains its pictures and needs no other file.

        Args:
            directory: The directory to write to. It is made if absent. Files of the
                same names are replaced.

        Returns:
            The path of the page.

        Raises:
            ImportError: If Matplotlib or Jinja isn't installed.
        """
        directory = Path(directory)
        drawn = pictures.draw(self)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        html = page.render(self, drawn)
        for name, picture in drawn.items():
            atomic.replace_bytes(directory / name, picture)
        atomic.replace_text(directory / DATA_FILE, text + "\n")
        atomic.replace_text(directory / PAGE_FILE, html)
        return directory / PAGE_FILE

    def __str__(self) -> str:
        return wording.table(self)


def compare(
    models: Mapping[str, Any],
    data: Any,
    *,
    baseline: str | None = None,
    teacher: str | None = None,
    task: str | Mapping[str, str] | None = None,
    from_logits: bool | Mapping[str, bool] | None = None,
    primary: str | Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    exports: Mapping[str, str | os.PathLike[str]] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 64),
    peak_memory: bool = False,
    batch_size: int = 256,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Report:
    """Compare models on held-out data, with intervals and a verdict.

    All models run over the same rows. A bootstrap of these rows gives each measure an
    interval, and each difference to the baseline an interval and a paired test. A model
    is "better" or "worse" only if the interval of its difference excludes zero and the
    test agrees. By chance, one in twenty pairs of equal models is called different. The
    intervals apply to these trained models only. They don't include the variation
    between trainings with different seeds.

    Args:
        models: Keras models by name. A `Distiller` counts as its student. The path of a
            `.keras` file is loaded. Each model reads its own keys of the inputs, so a
            teacher may read privileged features.
        data: Held-out data: `(x, y)` of arrays, or an iterable of such batches. No
            model may have been trained on it.
        baseline: The name of the model that the others are compared with. Defaults to
            `"student alone"` if a model has that name, else to the first model that
            isn't the teacher.
        teacher: The name of the teacher. The other models' agreement with it is
            measured. Defaults to `"teacher"` if a model has that name.
        task: `"classes"`, `"binary"`, `"multi-label"` or `"regression"`, or a dict of
            them by output. By default, labels and outputs decide.
        from_logits: Whether outputs are logits, or a dict by model. By default, each
            model's graph and values decide.
        primary: The measure that decides the verdict, or a dict by output. Defaults to
            `"accuracy"` for classes, `"auc"` for a binary task, `"nll"` for several
            labels and `"mse"` for a regression.
        class_names: The names of the classes, for page and pictures.
        exports: Directories of exports by the name of their model. Their files are
            measured in their own runtimes.
        batch_sizes: The batch sizes of latencies. Empty for no latencies.
        peak_memory: Whether to measure the peak memory of each Keras model and exported
            file, when it is loaded and called on the largest of `batch_sizes`. Each is
            loaded in a process of its own, which takes seconds. The memory of the
            imported runtime isn't counted. On Linux only.
        batch_size: The rows of a batch of `predict`.
        resamples: The number of resamples of the bootstrap.
        confidence: The share of the resamples that an interval covers.
        seed: The seed of the bootstrap.

    Returns:
        The report.

    Raises:
        ValueError: If the models don't fit each other or the data, or an output is NaN
            or infinite, or if peak memory is asked for and another process can't load
            a model.
        TypeError: If something in `models` isn't a model.
        OSError: If peak memory is asked for outside Linux.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> models = {
        ...     name: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     for name in ("student alone", "distilled")
        ... }
        >>> kernel = np.zeros((4, 2))
        >>> kernel[0] = [-9.0, 9.0]  # the right one
        >>> models["distilled"].set_weights([kernel, np.zeros(2)])
        >>> models["student alone"].set_weights([kernel[::-1], np.zeros(2)])
        >>> report = compare(models, (x, y), batch_sizes=())
        >>> report.verdict("distilled")
        'better'
    """
    names = _roles(models, baseline, teacher, list(exports or {}))
    x, y = reading.rows_of(data)
    found = {name: reading.read(name, models[name], x, batch_size) for name in models}
    settings = _settings(found, y, task, from_logits, primary)
    rows = len(next(iter(settings.values())).labels)
    drawn = Resamples(rows, count=resamples, seed=seed, confidence=confidence)
    return Report(
        **names._asdict(),
        **costs.measured(found, exports or {}, batch_sizes, with_memory=peak_memory),
        rows=rows,
        confidence=confidence,
        outputs={
            output: measuring.measured(
                **setting._asdict(), **names._asdict(), resamples=drawn
            )
            for output, setting in settings.items()
        },
        class_names=class_names,
    )


class _Roles(NamedTuple):
    baseline: str
    teacher: str | None


def _roles(
    models: Mapping[str, Any],
    baseline: str | None,
    teacher: str | None,
    exported: list[str],
) -> _Roles:
    """Return the names of the baseline and the teacher, and check all names."""
    if not isinstance(models, Mapping) or len(models) < 2:
        raise ValueError(
            "`models` must be a dict of two models or more by name. Received: "
            f"{list(models) if isinstance(models, Mapping) else type(models).__name__}"
        )
    for argument, name in (("baseline", baseline), ("teacher", teacher)):
        if name is not None and name not in models:
            raise ValueError(
                f"`{argument}` must be one of the models {list(models)}. Received: "
                f"{argument}={name!r}"
            )
    unknown = sorted(set(exported) - set(models))
    if unknown:
        raise ValueError(
            f"`exports` must have names of models, {list(models)}. Received: {unknown}"
        )
    if teacher is None and TEACHER in models:
        teacher = TEACHER
    others = [name for name in models if name != teacher]
    default = ALONE if ALONE in models else others[0]
    return _Roles(baseline or default, teacher)


def _same_outputs(found: Mapping[str, Read]) -> list[str]:
    """Return the names of the outputs, which all models must share."""
    shapes = {
        name: {output: it.shape[1:] for output, it in read.outputs.items()}
        for name, read in found.items()
    }
    first, *others = shapes.values()
    if any(other != first for other in others):
        raise ValueError(
            "All models must have the same outputs, with as many classes. Received: "
            + ", ".join(f"{name!r} with {its}" for name, its in shapes.items())
        )
    return list(first)


class _Setting(NamedTuple):
    """How one output is measured."""

    kind: Kind
    primary: str
    labels: Array
    answers: dict[str, Answers]

    @classmethod
    def of(
        cls,
        output: str,
        found: Mapping[str, Read],
        labels: Mapping[str, Array],
        task: Any,
        from_logits: Any,
        primary: Any,
    ) -> "_Setting":
        """Return the setting of an output, from the arguments of `compare`."""
        outputs = {name: _flat(read.outputs[output]) for name, read in found.items()}
        shape = next(iter(outputs.values())).shape
        kind = _given(task, output) or tasks.kind_of(labels[output], shape[-1])
        if kind not in tasks.KINDS:
            raise ValueError(
                f"`task` must be one of {list(tasks.KINDS)}. Received: task={kind!r}"
            )
        answers = {}
        for name, values in outputs.items():
            logits = _given(from_logits, name)
            if logits is None:
                logits = found[name].linear[output]
                logits = logits or tasks.look_like_logits(values, kind)
            log_probs = None
            if kind != "regression":
                log_probs = tasks.log_probabilities(values, kind, bool(logits))
            answers[name] = Answers(values, log_probs)
        decides = _given(primary, output) or tasks.PRIMARY[kind]
        known = tasks.deciding(kind)
        if decides not in known:
            raise ValueError(
                f"`primary` must be one of {known} for a task of {kind}. Received: "
                f"primary={decides!r}"
            )
        ids = tasks.as_labels(labels[output], kind, shape)
        return cls(kind, decides, ids, answers)


def _settings(
    found: Mapping[str, Read], y: Any, task: Any, from_logits: Any, primary: Any
) -> dict[str, _Setting]:
    """Return how each output is measured."""
    labels = reading.labels_of(y, _same_outputs(found))
    return {
        output: _Setting.of(output, found, labels, task, from_logits, primary)
        for output in labels
    }


def _flat(values: Array) -> Array:
    """Return outputs of shape `(rows, units)`."""
    if values.ndim == 1:
        return values[:, None]
    if values.ndim > 2:
        raise ValueError(
            "`compare` measures outputs of shape (rows, units). Received: outputs of "
            f"shape {values.shape}. Reduce them in a model that ends with one row"
        )
    return values


def _given(argument: Any, name: str) -> Any:
    """Return an argument's value for one name; None if it has none."""
    return argument.get(name) if isinstance(argument, Mapping) else argument
