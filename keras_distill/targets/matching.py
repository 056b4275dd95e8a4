"""The recorded rows of a batch: found by position, content or id, and compared."""

from typing import Any

import numpy as np

from keras_distill.targets.fingerprints import shown
from keras_distill.targets.manifest import CONTENT, VIEW
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

    def read(
        self, wanted: Any, content: np.ndarray, seen: np.ndarray, view: Any
    ) -> list[np.ndarray]:
        """Return the packed outputs of a batch.

        Args:
            wanted: The position of the first row, or the ids of all rows.
            content: The content hashes of the rows.
            seen: The same of the views, where rows are augmented.
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

    def _packed(self, output: Any, arrays: dict[str, np.ndarray], view: int) -> Any:
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
        return (int(wanted) + np.arange(len(content))) % self.reader.rows

    def _compare(
        self, positions: np.ndarray, content: np.ndarray, recorded: np.ndarray
    ) -> None:
        same = content == recorded
        if same.all():
            return
        first = int(np.argmin(same))
        raise ValueError(
            "The data set has other rows than the recording, or has them in another "
            f"order. Received: a row with content {shown(content[first])} at position "
            f"{positions[first]}, where content {shown(recorded[first])} was recorded"
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
