"""The recorded rows of a batch: found by position, content or id, and compared."""

from typing import Any

import numpy as np

from keras_distill.targets.fingerprints import shown
from keras_distill.targets.index import Index
from keras_distill.targets.manifest import CONTENT, ID, VIEW, Output
from keras_distill.targets.shards import Reader


class Matching:
    """Finds the rows of a batch in a recording, and compares their content.

    Args:
        reader: The recording.
        by: None for rows in the recording's order, `"content"`, or a key of ids.
    """

    def __init__(self, reader: Reader, by: str | None) -> None:
        self.reader = reader
        self.by = by
        manifest = reader.manifest
        self._columns = {
            output.name: [column.name for column in output.columns()]
            for output in manifest.outputs
        }
        self._names = [CONTENT, *sum(self._columns.values(), [])]
        if manifest.augmented:
            self._names.append(VIEW)
        self._index: Index | None = None
        if by == CONTENT:
            self._index = Index(reader, CONTENT)
            self._check_content()
        elif by is not None and manifest.ids is not None:
            self._index = Index(reader, ID)
            self._check_ids()

    def read(
        self, wanted: Any, content: np.ndarray, seen: np.ndarray, view: Any
    ) -> list[np.ndarray]:
        """Return the packed outputs of a batch.

        Args:
            wanted: The position of the first row, or the ids of all rows.
            content: The content hashes of the rows.
            seen: The content hashes of the views, if rows are augmented.
            view: The number of the view.

        Raises:
            ValueError: If a row isn't the one that was recorded.
        """
        content = content.view("uint64")
        positions = self._positions(wanted, content)
        arrays = self.reader.take(self._names, positions)
        self._compare(positions, content, arrays[CONTENT])
        if self.reader.manifest.augmented:
            self._compare_views(positions, seen, arrays[VIEW][:, view], view)
        return [
            self._packed(output, arrays, int(view))
            for output in self.reader.manifest.outputs
        ]

    def _packed(self, output: Output, arrays: dict[str, np.ndarray], view: int) -> Any:
        augmented = self.reader.manifest.augmented
        own = {
            name.removeprefix(f"{output.name}/"): (
                arrays[name][:, view] if augmented else arrays[name]
            )
            for name in self._columns[output.name]
        }
        return output.stored.unpack(own).astype("float32", copy=False)

    def _positions(self, wanted: Any, content: np.ndarray) -> np.ndarray:
        """Return the positions of a batch's rows in the recording."""
        rows = self.reader.rows
        if self.by is None:
            return (int(wanted) + np.arange(len(content))) % rows
        if self._index is None:
            positions = np.asarray(wanted)
            known = (wanted >= 0) & (wanted < rows)
        else:
            keys = content if self.by == CONTENT else wanted
            positions, known = self._index.find(keys)
        if not known.all():
            first = int(np.argmin(known))
            key = shown(content[first]) if self.by == CONTENT else wanted[first]
            raise ValueError(
                "The data set has a row that isn't in the recording: record this data "
                f"set, or leave the row out. Received: row {first} of a batch, with "
                f"{self.by} {key}"
            )
        return positions

    def _check_content(self) -> None:
        """Raise ValueError if rows of equal content may have other outputs."""
        index, manifest = self._index, self.reader.manifest
        twice = index.duplicate() if index is not None else None
        if twice is None:
            return
        names = [name for names in self._columns.values() for name in names]
        rows = self.reader.take(names, np.array(twice))
        if any((of_name[0] != of_name[1]).any() for of_name in rows.values()):
            raise ValueError(
                'With by="content", rows of equal content must have the same outputs. '
                "Record with `hash_keys` that tell them apart, or join by an id. "
                f"Received: rows {min(twice)} and {max(twice)} of equal "
                f"{manifest.hash_keys}"
            )

    def _check_ids(self) -> None:
        """Raise ValueError if two rows have the same id."""
        twice = self._index.duplicate() if self._index is not None else None
        if twice is not None:
            ids = self.reader.take([ID], np.array(twice))[ID]
            raise ValueError(
                "Ids must be different in each row. Received: id "
                f"{ids[0]} in rows {min(twice)} and {max(twice)}"
            )

    def _compare(
        self, positions: np.ndarray, content: np.ndarray, recorded: np.ndarray
    ) -> None:
        same = content == recorded
        if same.all():
            return
        first = int(np.argmin(same))
        remedy = ' Where it is shuffled, join it by="content".' if not self.by else ""
        raise ValueError(
            "The data set has other rows than the recording, or has them in another "
            f"order.{remedy} Received: a row with content {shown(content[first])} at "
            f"position {positions[first]}, where content {shown(recorded[first])} was "
            "recorded"
        )

    def _compare_views(
        self, positions: np.ndarray, seen: np.ndarray, recorded: np.ndarray, view: Any
    ) -> None:
        same = seen.view("uint64") == recorded
        if not same.all():
            raise ValueError(
                "`augment` must make the views that the teacher saw. Received: another "
                f"view {view} of row {positions[int(np.argmin(same))]}"
            )
