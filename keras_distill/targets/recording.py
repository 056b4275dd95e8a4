"""Recording: a teacher's outputs for a data set, written as shards.

`record` is `begin`, then `Recorder.write` for the shards that are missing, then
`finish`. Several workers may share the middle part: each makes a `Recorder` and writes
the shards whose numbers it is given.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import atomic
from keras_distill.targets import asking, checks, elements, fingerprints, shards
from keras_distill.targets import manifest as manifests
from keras_distill.targets import views as augmenting
from keras_distill.targets.formats import Format, check_finite
from keras_distill.targets.manifest import CONTENT, ID, VIEW, Manifest, shard_name
from keras_distill.targets.planning import plan_of, read_by_teacher
from keras_distill.targets.progress import Progress
from keras_distill.targets.records import Layout
from keras_distill.targets.writing import InOrder
from keras_distill.teachers.base import TeacherLike

Arrays = Mapping[str, np.ndarray]


def record(
    teacher: TeacherLike,
    dataset: Any,
    directory: str | Path,
    *,
    stored: Format | Mapping[str, Format] | None = None,
    from_logits: bool = True,
    ids: str | None = None,
    hash_keys: Sequence[str] | None = None,
    augment: augmenting.Augment | None = None,
    views: int = 1,
    seed: int | None = None,
    rows_per_shard: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Manifest:
    r"""Run a teacher over a data set once, and keep its outputs in a directory.

    Students are trained from the directory with `join`, without the teacher. Where a
    call was interrupted, the next one with the same arguments goes on after the last
    whole shard. Where shards are missing or damaged, it makes only these again. A
    recording that is complete and whole is left as it is.

    Each row has a hash of its content, so that `join` never puts an output beside
    another example.

    Args:
        teacher: A built Keras model, an `Ensemble`, another `Teacher`, or a function of
            the inputs of a batch, also one that computes with NumPy. Of a dict, a model
            reads the keys that it declares. It is called with `training=False`.
        dataset: A `tf.data.Dataset` of batches `x`, `(x, y)` or `(x, y,
            sample_weight)`, as `fit` takes them; `x` is a tensor or a dict of tensors.
            It has an end, and gives the same rows in the same order each time. Leave
            out augmentation, which `augment` does, and `shuffle`.
        directory: Where to write. It is made if it doesn't exist.
        stored: The form in which outputs are stored, or a dict of forms by output name:
            the key where the teacher returns a dict, else its name in the Keras model,
            `"output"` for a single one. Defaults to `LogProbabilities("float32")`.
        from_logits: Whether the outputs are logits (default), or else probabilities.
            `Values` are stored as they are.
        ids: A key of the inputs with an id of each row, a whole number or text, by
            which `join` may find it. Defaults to None: the id is the row's position.
        hash_keys: The keys of the inputs that the content hash covers, e.g. those that
            students will have. Keys of nested dicts are joined by `/`. Defaults to all.
        augment: A function of an example, without a batch axis, and a seed of shape
            `(2,)` for `tf.random.stateless_*` and `tf.image.stateless_*`. It returns
            the view of the example that the teacher sees, which `join` makes again for
            the student.
        views: The number of augmented views of each example. Defaults to 1.
        seed: The seed of the views. Defaults to 0.
        rows_per_shard: The rows of a file, a multiple of the batch size. A killed
            process loses the work on one of them. Defaults to about 32,768.
        batch_size: The rows that the teacher is given at once. Defaults to the batches
            of `dataset`.
        progress: Whether to show a line with examples a second and the time left. It is
            written to stderr, only where that is a terminal.

    Returns:
        The manifest of the recording.

    Raises:
        TypeError: If `dataset` isn't a data set of dense tensors, or the teacher
            changes while it teaches.
        ValueError: If the data set is empty, infinite or not in batches, if outputs
            can't be stored or aren't finite, or if `directory` holds something else,
            such as the recording of another teacher.
        RuntimeError: If another process records to the directory.
        OSError: If files can't be written. Whole shards remain.

    Example:
        >>> import tensorflow as tf
        >>> from keras_distill import targets
        >>> data = tf.data.Dataset.from_tensor_slices([[1.0, 2.0]] * 3).batch(2)
        >>> manifest = targets.record(lambda x: 2.0 * x, data, "recorded")
        >>> for x in targets.join(data, "recorded").take(1):
        ...     print(x["teacher"].numpy().round(4).tolist())
        [[2.0, 4.0], [2.0, 4.0]]

    Reference:
        Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
        consistent", https://arxiv.org/abs/2106.05237, for the views.
    """
    path = checks.checked_directory(directory)
    plan = plan_of(
        teacher,
        dataset,
        path,
        stored=stored,
        from_logits=from_logits,
        ids=ids,
        hash_keys=hash_keys,
        augment=augment,
        views=views,
        seed=seed,
        rows_per_shard=rows_per_shard,
        batch_size=batch_size,
    )
    with begin(plan, path) as current:
        missing = current.missing() if current.complete else None
        if missing != []:
            recorder = Recorder(teacher, dataset, path, augment=augment)
            recorder.write(missing, whole=current.shards, progress=progress)
        return finish(path)


@contextmanager
def begin(plan: Manifest, directory: Path) -> Iterator[Manifest]:
    """Write the manifest of a recording that begins, or take up one that was begun.

    No other process can begin one in the directory during the block.

    Args:
        plan: The manifest, as `plan_of` makes it.
        directory: The directory. It is made if there is none.

    Yields:
        The manifest, which lists the shards that are whole.

    Raises:
        RuntimeError: If another process records to the directory.
        ValueError: If the directory holds something else: another recording, or other
            files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        shards.remove_scratch(directory)
        if not (directory / manifests.FILE).exists():
            _check_empty(directory)
            plan.write(directory)
        current = Manifest.read(directory)
        _check_same(current, plan, directory)
        listed = current.shards if current.complete else shards.noted(directory)
        bad = shards.damaged(directory, listed, current.layout())
        if bad:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
            warnings.warn(f"Shards are made again: {reasons}", stacklevel=4)
        for name in bad:
            (directory / name).unlink(missing_ok=True)
            shards.note_of(directory / name).unlink(missing_ok=True)
        whole = {name: listed[name] for name in listed if name not in bad}
        yield replace(current, shards=whole)


def finish(directory: Path, count: int | None = None) -> Manifest:
    """Complete the manifest of a recording whose shards are all written.

    Args:
        directory: The directory of the recording.
        count: The number of shards; None where the last one that is there is the last.

    Returns:
        The complete manifest.

    Raises:
        ValueError: If a shard is missing, or has too few rows.
    """
    manifest = Manifest.read(directory)
    found = {**manifest.shards, **shards.noted(directory)}
    listed = {
        shard_name(number): found.get(shard_name(number))
        for number in range(count or len(found))
    }
    missing = [name for name, of_shard in listed.items() if of_shard is None]
    if missing or not listed or len(found) != len(listed):
        raise ValueError(
            f"The recording in {str(directory)!r} isn't finished. Received: "
            f"{len(found)} shards, without {missing[:3] or [shard_name(0)]}"
        )
    rows = [of_shard["rows"] for of_shard in listed.values() if of_shard]
    if set(rows[:-1]) - {manifest.rows_per_shard}:
        raise ValueError(
            "All shards but the last must have the same number of rows. Received: "
            f"{rows} rows, rows_per_shard={manifest.rows_per_shard}"
        )
    if manifest.complete and sum(rows) != manifest.rows:
        raise ValueError(
            "The data set must have the rows that were recorded. Received: "
            f"{sum(rows)} rows instead of {manifest.rows}"
        )
    done = replace(
        manifest,
        complete=True,
        rows=sum(rows),
        shards=listed,  # type: ignore[arg-type]
        versions=manifests.versions(),
    )
    if done != manifest:
        done.write(directory)
    shards.remove_notes(directory)
    return done


class Recorder:
    """Writes shards of a recording that was begun.

    Args:
        teacher: The teacher. It is compiled once.
        dataset: The data set, as for `record`, or a function of `start` and `stop` that
            returns the rows between them in batches. `stop` is None for all rows from
            `start` on.
        directory: The directory of the recording.
        augment: As for `record`.

    Raises:
        ValueError: If the manifest is of another teacher.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        dataset: Any,
        directory: Path,
        *,
        augment: augmenting.Augment | None = None,
    ) -> None:
        self.manifest = Manifest.read(directory)
        of_teacher = fingerprints.of_teacher(teacher)
        if of_teacher != self.manifest.teacher:
            raise ValueError(
                "The teacher must be the one of the manifest. Received: "
                f"{of_teacher} instead of {self.manifest.teacher}"
            )
        self.directory = directory
        self.dataset = dataset
        self.augment = augment
        self.layout: Layout = self.manifest.layout()
        self._labels = read_by_teacher(teacher)
        self._ask = asking.asked(
            teacher, self.manifest.outputs, self.manifest.from_logits
        )

    def write(
        self,
        numbers: Iterable[int] | None = None,
        *,
        whole: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        """Write shards.

        Args:
            numbers: The numbers of the shards to write, best adjacent ones: the data
                set is read from the first to the last of them. None for all.
            whole: Shards that aren't written again. The data set must have their rows
                in their places, which is checked. Where it is given, the data set is
                read from the beginning.
            progress: Whether to show a line of progress.

        Raises:
            ValueError: If rows aren't in the places that they had in an earlier call,
                or if an output isn't finite.
            OSError: If a file can't be written.
        """
        whole = whole or {}
        chosen = None if numbers is None else set(numbers)
        per_shard = self.manifest.rows_per_shard // self.manifest.batch_size
        first = 0 if whole or chosen is None else min(chosen)
        end = None if chosen is None else max(chosen) + 1
        stream = self._stream(first, end)
        batches = enumerate(stream.prefetch(2), first * per_shard)
        shown = Progress(progress, self._total(chosen))
        seen = set()
        with InOrder() as writing:
            for number, of_shard in groupby(batches, lambda b: b[0] // per_shard):
                seen.add(shard_name(number))
                if shard_name(number) in whole:
                    self._compare(number, of_shard, whole, shown)
                elif chosen is None or number in chosen:
                    self._write(number, of_shard, writing, shown)
                else:
                    for _ in of_shard:
                        pass
        shown.end()
        if chosen is None and set(whole) - seen:
            raise self._differs(len(seen) * self.manifest.rows_per_shard, "no row")

    def _stream(self, first: int, end: int | None) -> Any:
        """Return the rows of shards in the teacher's batches, with hashes and views."""
        import tensorflow as tf

        rows, size = self.manifest.rows_per_shard, self.manifest.batch_size
        stop = None if end is None else end * rows
        by_range = callable(self.dataset)
        given = (
            self.dataset(start=first * rows, stop=stop) if by_range else self.dataset
        )
        stream = given.map(elements.mapped(self._parts)).rebatch(size)
        if not by_range:
            stream = stream.skip(first * rows // size)
        if end is not None:
            stream = stream.take((end - first) * rows // size)
        return stream.map(
            elements.mapped(self._prepared), num_parallel_calls=tf.data.AUTOTUNE
        )

    def _parts(self, *arguments: Any) -> dict[str, Any]:
        """Return what the teacher reads of an element."""
        element = elements.of_arguments(arguments)
        y = elements.labels_of(element) if self._labels else None
        kept = {"x": elements.inputs_of(element)}
        return kept if y is None else {**kept, "y": y}

    def _prepared(self, element: dict[str, Any]) -> dict[str, Any]:
        """Return the hashes of a batch, its ids, and the views of its inputs."""
        import tensorflow as tf

        manifest, x = self.manifest, element.pop("x")
        content = fingerprints.of_inputs(x, manifest.hash_keys)
        element[CONTENT] = content
        if manifest.ids is not None:
            (named,) = elements.chosen(x, [manifest.ids], argument="ids")
            element[ID] = fingerprints.of_ids(named[1])
        if self.augment is None:
            return {**element, "views": (x,)}
        made = [
            augmenting.view_of(
                self.augment,
                x,
                seed=manifest.seed,
                content=content,
                view=view,
                keys=manifest.hash_keys,
            )
            for view in range(manifest.views)
        ]
        seen, hashes = zip(*made, strict=True)
        return {**element, "views": seen, VIEW: tf.stack(hashes, axis=1)}

    def _write(
        self,
        number: int,
        batches: Iterable[tuple[int, dict[str, Any]]],
        writing: InOrder,
        shown: Progress,
    ) -> None:
        """Ask the teacher for the rows of a shard, which the thread writes."""
        writer = shards.Writer(self.directory, number, self.layout)
        try:
            for index, batch in batches:
                views = [self._ask(x, batch.get("y")) for x in batch.pop("views")]
                first_row = index * self.manifest.batch_size
                writing.put(self._append, writer, batch, views, first_row)
                shown.add(int(batch[CONTENT].shape[0]), asked=True)
            writing.put(writer.close)
        except BaseException:
            writing.put_always(writer.discard)
            raise

    def _append(
        self,
        writer: shards.Writer,
        batch: dict[str, Any],
        views: list[dict[str, Any]],
        first_row: int,
    ) -> None:
        """Append a batch to a shard."""
        try:
            arrays = self._arrays(batch, views, first_row)
        except BaseException:
            writer.discard()
            raise
        writer.append(arrays, len(arrays[CONTENT]))

    def _arrays(
        self, batch: dict[str, Any], views: list[dict[str, Any]], first_row: int
    ) -> Arrays:
        """Return the columns of a batch."""
        found = [
            self._stored(columns, first_row, view) for view, columns in enumerate(views)
        ]
        arrays: dict[str, np.ndarray] = {
            name: np.stack([of_view[name] for of_view in found], axis=1)
            if self.augment
            else found[0][name]
            for name in found[0]
        }
        for name in (CONTENT, ID, VIEW):
            if name in batch:
                values = batch[name].numpy()
                arrays[name] = values if name == ID else values.view("uint64")
        return arrays

    def _stored(self, packed: dict[str, Any], first_row: int, view: int) -> Arrays:
        """Return the columns of all outputs of a batch as they are stored."""
        arrays = {
            name: keras.ops.convert_to_numpy(value) for name, value in packed.items()
        }
        found: dict[str, np.ndarray] = {}
        for output in self.manifest.outputs:
            start = f"{output.name}/"
            own = {
                name.removeprefix(start): value
                for name, value in arrays.items()
                if name.startswith(start)
            }
            stored = output.stored.stored(own, output.shape, (first_row, view))
            for name, values in stored.items():
                check_finite(f"{start}{name}", values, first_row)
                found[f"{start}{name}"] = values
        return found

    def _compare(
        self,
        number: int,
        batches: Iterable[tuple[int, dict[str, Any]]],
        whole: Mapping[str, Any],
        shown: Progress,
    ) -> None:
        """Raise ValueError if a shard was recorded from other rows than these."""
        reader = shards.Reader(
            self.directory, replace(self.manifest, shards=dict(whole))
        )
        recorded = reader.column_of(CONTENT, number)
        start = number * self.manifest.rows_per_shard
        rows = 0
        for _, batch in batches:
            given = batch[CONTENT].numpy().view("uint64")
            known = recorded[rows : rows + len(given)]
            same = given[: len(known)] == known
            if len(known) < len(given) or not same.all():
                place = int(np.argmin(same)) if not same.all() else len(known)
                raise self._differs(start + rows + place, "another row")
            rows += len(given)
            shown.add(len(given), asked=False)
        if rows < len(recorded):
            raise self._differs(start + rows, "no row")

    def _differs(self, row: int, what: str) -> ValueError:
        return ValueError(
            "`dataset` must have the rows of the unfinished recording in the same "
            "order, in each call: don't shuffle it, or shuffle it with a seed and "
            f"`reshuffle_each_iteration=False`. Received: {what} at position {row} "
            f"in {str(self.directory)!r}"
        )

    def _total(self, chosen: set[int] | None) -> int | None:
        """Return the number of rows, as far as the data set tells it."""
        if chosen is not None:
            return len(chosen) * self.manifest.rows_per_shard
        if callable(self.dataset):
            return None
        batches = int(self.dataset.cardinality())
        return batches * self.manifest.batch_size if batches > 0 else None


def _check_empty(directory: Path) -> None:
    """Raise ValueError if a directory without a manifest has files."""
    found = sorted(path.name for path in directory.iterdir())
    if [name for name in found if not name.startswith(".writing.")]:
        raise ValueError(
            "`directory` must be empty or hold a recording. Received: "
            f"directory={str(directory)!r} without {manifests.FILE}, with {found[:3]}"
        )


def _check_same(current: Manifest, plan: Manifest, directory: Path) -> None:
    """Raise ValueError if a directory's recording is another than is asked for."""
    differences = current.differences(plan)
    if current.begins_with != plan.begins_with:
        first = (current.begins_with, plan.begins_with)
        differences["the content hash of the first row"] = first
    if differences:
        listed = "; ".join(
            f"{name}: {there!r} there, {asked!r} here"
            for name, (there, asked) in differences.items()
        )
        raise ValueError(
            "`directory` holds another recording. Choose another directory, or remove "
            f"it. Received: directory={str(directory)!r}, which differs in {listed}"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from recording to a directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not atomic.lock(descriptor, wait=False):
            raise RuntimeError(
                "Another process records to this directory. Wait for it, or choose "
                f"another one. Received: directory={str(directory)!r}"
            )
        yield
    finally:
        os.close(descriptor)
