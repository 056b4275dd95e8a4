"""Recording in several processes or on several machines, with Apache Beam."""

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_distill.installing import advice
from keras_distill.targets import checks, elements, recording, references
from keras_distill.targets.formats import Format
from keras_distill.targets.manifest import shard_name
from keras_distill.targets.planning import plan_of
from keras_distill.targets.recorder import Recorder
from keras_distill.targets.references import DatasetReference, TeacherReference
from keras_distill.targets.views import Augment

__all__ = ["Record"]


def __dir__() -> list[str]:
    return sorted(__all__)


def Record(
    teacher: TeacherReference,
    dataset: DatasetReference,
    directory: str | Path,
    *,
    stored: Format | Mapping[str, Format] | None = None,
    from_logits: bool = True,
    ids: str | None = None,
    hash_keys: Sequence[str] | None = None,
    augment: Augment | None = None,
    views: int = 1,
    seed: int | None = None,
    rows_per_shard: int | None = None,
    batch_size: int | None = None,
) -> Any:
    """Return a `PTransform` that records a teacher, as `targets.record` does.

    When it is applied to a pipeline, it returns a collection of one element, the
    `Manifest`. Its files equal those of `targets.record`, byte by byte. Workers get the
    numbers of the missing shards, and write each shard completely or not at all. A
    worker loads the teacher and the data set once.

    When a pipeline fails, e.g. because a worker was killed, the complete shards remain.
    Run it again, or call `targets.record`: only missing shards are written. Complete
    shards aren't compared with the data set; `join` compares each row. Run one pipeline
    at a time on a directory.

    Args:
        teacher: The path of a `.keras` file; or a function that returns the teacher, or
            its name as `"module:function"`.
        dataset: A function that returns the data set, or its name as
            `"module:function"`. The data set must know its number of batches. If the
            function has the parameters `start` and `stop`, it is called with a range of
            rows, as in `x[start:stop]`, and a shard's worker reads only its rows.
            Otherwise the worker also reads all rows before the shard. All batches
            except the last must have the same number of rows.
        directory: The directory to write to. All workers must reach it under this path,
            e.g. on a disk that they share.
        stored: As for `targets.record`.
        from_logits: As for `targets.record`.
        ids: As for `targets.record`.
        hash_keys: As for `targets.record`.
        augment: As for `targets.record`.
        views: As for `targets.record`.
        seed: As for `targets.record`.
        rows_per_shard: As for `targets.record`. A worker writes one shard at a time, so
            there should be several shards for each worker.
        batch_size: As for `targets.record`.

    Returns:
        The transform. A pipeline that runs it raises the errors of `targets.record`, in
        the form in which its runner raises errors.

    Raises:
        ImportError: If Apache Beam isn't installed.
        TypeError: If `teacher` or `dataset` is an object that workers can't load.
        ValueError: If one of them is text that isn't a reference.

    Example:
        >>> import apache_beam as beam
        >>> import tensorflow as tf
        >>> from keras_distill import targets
        >>> def teacher():
        ...     return lambda x: 2.0 * x
        >>> def data(start=0, stop=None):
        ...     x = tf.ones((10, 3))[start:stop]
        ...     return tf.data.Dataset.from_tensor_slices(x).batch(2)
        >>> with beam.Pipeline("FnApiRunner") as pipeline:
        ...     _ = pipeline | targets.beam.Record(
        ...         teacher, data, "recorded", rows_per_shard=4
        ...     )
        >>> len(targets.Manifest.read("recorded").shards)
        3
    """
    options = {
        "stored": stored,
        "from_logits": from_logits,
        "ids": ids,
        "hash_keys": hash_keys,
        "augment": augment,
        "views": views,
        "seed": seed,
        "rows_per_shard": rows_per_shard,
        "batch_size": batch_size,
    }
    job = _Job(
        references.checked_teacher(teacher),
        references.checked_dataset(dataset),
        checks.checked_directory(directory),
        options,
    )
    return _transform(job)


def _transform(job: "_Job") -> Any:
    """Return the steps of a recording as a `PTransform`."""
    try:
        import apache_beam as beam
        from apache_beam.pvalue import AsList
        from apache_beam.utils.shared import Shared
    except ImportError as error:
        raise ImportError(
            "`targets.beam` needs Apache Beam, which isn't installed. Install it with "
            f"{advice('beam')}."
        ) from error
    job = dataclasses.replace(job, shared=Shared())

    def recorded(pipeline: Any) -> Any:
        begun = pipeline | "One" >> beam.Create([None]) | "Begin" >> beam.Map(job.begin)
        absent = (
            begun
            | "Missing" >> beam.FlatMap(_Begun.work)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.FlatMap(job.write)
        )
        return begun | "Finish" >> beam.Map(job.finish, AsList(absent))

    return "Record" >> beam.ptransform_fn(recorded)()


class _Begun(NamedTuple):
    """A recording that was begun.

    Args:
        total: The largest number of shards that its rows can need.
        missing: The numbers of the shards that must be written.
        complete: Whether it was recorded before, so that its number of rows is known.
    """

    total: int
    missing: list[int]
    complete: bool

    def work(self) -> Iterator[list[int]]:
        """Yield lists of shards to write, one for each element of the collection.

        They include the number after the last shard, which must have no rows.
        """
        numbers = [[number] for number in self.missing]
        if not self.complete:
            last = numbers.pop() if self.total - 1 in self.missing else []
            numbers.append([*last, self.total])
        yield from numbers


@dataclasses.dataclass(frozen=True)
class _Job:
    """The steps of a recording, as they are sent to the workers."""

    teacher: TeacherReference
    dataset: DatasetReference
    directory: Path
    options: Mapping[str, Any]
    shared: Any = None

    def begin(self, _: Any) -> Any:
        """Begin a recording, or resume one that was begun."""
        worker = self._worker()
        dataset = references.whole(worker.dataset)
        plan = plan_of(worker.teacher, dataset, self.directory, **self.options)
        with recording.begin(plan, self.directory) as current:
            count = -(-(current.rows or _rows(dataset)) // current.rows_per_shard)
            missing = [n for n in range(count) if shard_name(n) not in current.shards]
            return _Begun(count, missing, current.complete)

    def write(self, numbers: Any) -> Any:
        """Write shards, and yield the numbers of those that have no rows."""
        self._worker().recorder(self).write(numbers)
        for number in numbers:
            if not (self.directory / shard_name(number)).exists():
                yield number

    def finish(self, begun: Any, absent: Any) -> Any:
        """Complete the recording, given the numbers of the shards without rows."""
        if not begun.complete and begun.total not in absent:
            raise ValueError(
                "All batches of `dataset` must have as many rows as the first, but the "
                "last one, which may have fewer: add `.rebatch(...)`. Received: more "
                f"rows than {begun.total} shards hold"
            )
        return recording.finish(self.directory, min([begun.total, *absent]))

    def _worker(self) -> "_Worker":
        return self.shared.acquire(lambda: _Worker(self))  # type: ignore[no-any-return]


class _Worker:
    """The teacher and the data set in one process."""

    def __init__(self, job: _Job) -> None:
        self.teacher = references.teacher_of(job.teacher)
        self.dataset = references.dataset_of(job.dataset)
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()

    def recorder(self, job: _Job) -> Recorder:
        """Return the recorder of this process. Its teacher is compiled once."""
        with self._lock:
            if self._recorder is None:
                self._recorder = Recorder(
                    self.teacher,
                    self.dataset,
                    job.directory,
                    augment=job.options["augment"],
                )
            return self._recorder


def _rows(dataset: Any) -> int:
    """Return the number of rows, counting the last batch as a full one.

    Raises:
        ValueError: If the data set doesn't know its number of batches.
    """
    batches = int(dataset.cardinality())
    if batches < 0:
        raise ValueError(
            "`dataset` must know its number of batches, by which the shards are "
            "counted: add `.apply(tf.data.experimental.assert_cardinality(number))`. "
            "Received: a data set of unknown length"
        )
    for element in dataset.take(1):
        return batches * checks.rows_of(elements.inputs_of(element))
    raise checks.empty()
