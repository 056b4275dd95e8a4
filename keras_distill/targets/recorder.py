"""The recorder of a teacher's outputs: it runs the teacher, and writes shards."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill.targets import asking, elements, fingerprints, shards
from keras_distill.targets import views as augmenting
from keras_distill.targets.formats import check_finite
from keras_distill.targets.manifest import CONTENT, ID, VIEW, Manifest, shard_name
from keras_distill.targets.planning import read_by_teacher
from keras_distill.targets.progress import Progress
from keras_distill.targets.records import Layout
from keras_distill.targets.writing import InOrder
from keras_distill.teachers.base import TeacherLike

Arrays = Mapping[str, np.ndarray]


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
            numbers: The numbers of the shards to write; None for all. Adjacent shards
                are best: the data set is read from the first of them to the last.
            whole: Complete shards, which aren't written again. Their rows are compared
                with the data set, which is then read from the beginning.
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
        """Return the parts of an element that the teacher reads."""
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
        """Run the teacher on the rows of a shard, and let the thread write them."""
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
        """Return the number of rows, or None if the data set doesn't know it."""
        if chosen is not None:
            return len(chosen) * self.manifest.rows_per_shard
        if callable(self.dataset):
            return None
        batches = int(self.dataset.cardinality())
        return batches * self.manifest.batch_size if batches > 0 else None
