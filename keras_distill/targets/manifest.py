"""The manifest of a recording: what was recorded, from which teacher, in which files.

It is written before the first shard, without a list of shards, and again after the last
shard.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_distill import atomic
from keras_distill.targets import formats
from keras_distill.targets.fingerprints import HASH
from keras_distill.targets.records import Column, Layout
from keras_distill.types import Nested
from keras_distill.version import __version__

FILE = "manifest.json"
# Increased with each change that earlier versions of this package can't read.
FORMAT_VERSION = 1
# Fields in which two manifests of the same recording may differ.
_NOT_COMPARED = {"complete", "rows", "shards", "versions", "begins_with"}

CONTENT, ID, VIEW = "content", "id", "view"


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of the teacher.

    Args:
        path: Its path in the structure of the outputs: `[]` for a single output,
            else one key or index.
        name: Its name.
        shape: Its shape without the rows.
        stored: The format in which it is stored.
    """

    path: list[Any]
    name: str
    shape: tuple[int, ...]
    stored: formats.Format

    def columns(self) -> list[Column]:
        """Return the columns that hold it, named `<output>/<column>`."""
        return [
            column._replace(name=f"{self.name}/{column.name}")
            for column in self.stored.columns(self.shape)
        ]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a recording, which `record` returns and `manifest.json` holds.

    Args:
        teacher: What identifies the teacher: its class, and hashes of its config and
            weights if it has them.
        outputs: The teacher's outputs and how each is stored.
        from_logits: Whether the outputs were logits.
        hash_keys: The keys of the inputs that the content hash covers.
        ids: The key of the inputs that holds the ids; None if ids are positions.
        augmented: Whether views were augmented.
        views: The number of views of each example.
        seed: The seed of the views.
        batch_size: The number of rows in a batch of the teacher.
        block_rows: The number of rows in a block, which is one TFRecord.
        rows_per_shard: The number of rows in each shard except the last.
        begins_with: The content hash of the first row.
        complete: Whether all rows are recorded.
        rows: The number of rows.
        shards: By file name, the number of rows and the SHA-256 of each shard.
        versions: The versions of the libraries.

    Example:
        >>> import tensorflow as tf
        >>> from keras_distill import targets
        >>> data = tf.data.Dataset.from_tensor_slices([[1.0, 2.0]] * 5).batch(2)
        >>> manifest = targets.record(lambda x: 3 * x, data, "recorded")
        >>> manifest.rows, manifest.complete, list(manifest.shards)
        (5, True, ['shard-00000.tfrecord'])
        >>> targets.Manifest.read("recorded") == manifest
        True
    """

    teacher: dict[str, str]
    outputs: list[Output]
    from_logits: bool
    hash_keys: list[str]
    ids: str | None
    augmented: bool
    views: int
    seed: int
    batch_size: int
    block_rows: int
    rows_per_shard: int
    begins_with: str
    complete: bool = False
    rows: int = 0
    shards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """Return the manifest of a directory.

        Raises:
            FileNotFoundError: If the directory has none.
            ValueError: If the manifest can't be read.
        """
        path = Path(directory) / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                "`directory` must hold a recording, as `targets.record` makes it. "
                f"Received: directory={str(directory)!r}, without {FILE}"
            ) from None
        try:
            return cls._from_config(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The manifest can't be understood: {error!r}. Restore it from a copy, "
                "or remove the directory and record again. "
                f"Received: {path}, {len(text)} characters"
            ) from error

    def write(self, directory: Path) -> None:
        """Write the manifest to a directory, completely or not at all."""
        text = json.dumps(self._config(), indent=1) + "\n"
        atomic.replace_text(directory / FILE, text)

    def differences(self, other: Self) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which another manifest differs, as (own, other)."""
        own, others = self._config(), other._config()
        return {
            name: (own[name], others[name])
            for name in own
            if name not in _NOT_COMPARED and own[name] != others[name]
        }

    def missing(self) -> list[int]:
        """Return the numbers of the shards that `rows` need and `shards` lacks."""
        count = -(-self.rows // self.rows_per_shard)
        return [n for n in range(count) if shard_name(n) not in self.shards]

    def layout(self) -> Layout:
        """Return the layout of rows in the shards."""
        columns = [Column(CONTENT, HASH, ())]
        if self.ids is not None:
            columns.append(Column(ID, "int64", ()))
        if self.augmented:
            columns.append(Column(VIEW, HASH, (self.views,)))
        for output in self.outputs:
            columns += [
                column._replace(shape=(self.views, *column.shape))
                if self.augmented
                else column
                for column in output.columns()
            ]
        return Layout(columns, self.block_rows)

    def structured(self, values: Sequence[Any]) -> Nested:
        """Return values, one for each output, in the structure of the outputs."""
        paths = [output.path for output in self.outputs]
        if paths == [[]]:
            return values[0]
        if isinstance(paths[0][0], int):
            return tuple(values)
        return {path[0]: value for path, value in zip(paths, values, strict=True)}

    def _config(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in _fields(self)}
        fields["outputs"] = [
            {
                "path": output.path,
                "name": output.name,
                "shape": list(output.shape),
                "stored": output.stored.get_config(),
            }
            for output in self.outputs
        ]
        return {"format_version": FORMAT_VERSION, **fields}

    @classmethod
    def _from_config(cls, config: Mapping[str, Any]) -> Self:
        if config["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format_version must be {FORMAT_VERSION}, and is "
                f"{config['format_version']!r}"
            )
        known = [field.name for field in _fields(cls)]
        if set(config) != {*known, "format_version"}:
            odd = sorted(set(config) ^ {*known, "format_version"})
            raise ValueError(f"fields are missing or unknown: {odd}")
        outputs = [
            Output(
                output["path"],
                output["name"],
                tuple(output["shape"]),
                formats.from_config(output["stored"]),
            )
            for output in config["outputs"]
        ]
        fields = {name: config[name] for name in known}
        return cls(**{**fields, "outputs": outputs})


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tfrecord"


def versions() -> dict[str, str]:
    """Return the versions of the libraries that record."""
    import tensorflow as tf

    return {
        "keras_distill": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


def _fields(manifest: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(manifest)
