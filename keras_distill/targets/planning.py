"""The plan of a recording: its manifest before it begins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_distill.targets import asking, checks, elements, fingerprints
from keras_distill.targets import manifest as manifests
from keras_distill.targets import views as augmenting
from keras_distill.targets.formats import Format, LogProbabilities
from keras_distill.targets.manifest import Manifest, Output
from keras_distill.teachers.base import Teacher, TeacherLike, as_teacher

# A shard has a few MB at least, and a killed process loses little work.
_ROWS_PER_SHARD = 32_768
# Enough that a record's own 16 bytes don't count.
_ROWS_PER_BLOCK = 1_024


def plan_of(
    teacher: TeacherLike,
    dataset: Any,
    directory: Path,
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
) -> Manifest:
    """Return the manifest of a recording before it begins.

    It reads the first batch and runs the teacher on it. The arguments are those of
    `record`.
    """
    checks.check_dataset(dataset)
    checks.check_views(augment, views, seed)
    x, y, first = _first(dataset, teacher)
    keys = _hash_keys(teacher, x, hash_keys)
    content = fingerprints.of_inputs(x, keys)
    if ids is not None:
        checks.check_ids(elements.chosen(x, [ids], argument="ids")[0])
    batch, block, shard = _rows(directory, first, batch_size, rows_per_shard)
    return Manifest(
        teacher=fingerprints.of_teacher(teacher),
        outputs=_outputs(teacher, x, y, stored),
        from_logits=from_logits,
        hash_keys=keys,
        ids=ids,
        augmented=augment is not None,
        views=views,
        seed=seed or 0,
        begins_with=fingerprints.shown(content[0].numpy()),
        versions=manifests.versions(),
        batch_size=batch,
        block_rows=block,
        rows_per_shard=shard,
    )


def read_by_teacher(teacher: TeacherLike) -> bool:
    """Return whether a teacher may read labels: models and functions can't."""
    return isinstance(teacher, Teacher)


def _first(dataset: Any, teacher: TeacherLike) -> tuple[Any, Any, int]:
    """Return the inputs, the labels and the number of rows of the first batch."""
    for element in dataset.take(1):
        x = elements.inputs_of(element)
        y = elements.labels_of(element) if read_by_teacher(teacher) else None
        return x, y, checks.rows_of(x)
    raise checks.empty()


def _hash_keys(teacher: TeacherLike, x: Any, given: Sequence[str] | None) -> list[str]:
    """Return the keys that the content hash covers."""
    if given is not None:
        if isinstance(given, str) or not given:
            raise ValueError(
                "`hash_keys` must be a list of keys of the inputs. Received: "
                f"hash_keys={given!r}"
            )
        return sorted(given)
    recorded = as_teacher(teacher).reads
    keys = [key for key, _ in elements.leaves(x) if key.split("/")[0] not in recorded]
    if not keys:
        raise ValueError(
            "The inputs must hold more than outputs of a teacher. Received: keys "
            f"{[key for key, _ in elements.leaves(x)]}"
        )
    return keys


def _rows(
    directory: Path, first: int, batch_size: int | None, rows_per_shard: int | None
) -> tuple[int, int, int]:
    """Return the rows of a batch, a block and a shard.

    Those that aren't given are those of an earlier call, if there was one.
    """
    if (directory / manifests.FILE).exists():
        earlier = Manifest.read(directory)
        batch_size = batch_size or earlier.batch_size
        if batch_size == earlier.batch_size:
            rows_per_shard = rows_per_shard or earlier.rows_per_shard
    batch = checks.checked_count(
        "batch_size", first if batch_size is None else batch_size
    )
    if rows_per_shard is not None:
        shard = checks.checked_count("rows_per_shard", rows_per_shard)
        if shard % batch:
            raise ValueError(
                "`rows_per_shard` must be a multiple of the batch size. Received: "
                f"rows_per_shard={shard}, batch_size={batch}"
            )
    else:
        shard = -(-_ROWS_PER_SHARD // batch) * batch
    block = min(-(-_ROWS_PER_BLOCK // batch) * batch, shard)
    return batch, block, shard


def _outputs(
    teacher: TeacherLike, x: Any, y: Any, stored: Format | Mapping[str, Format] | None
) -> list[Output]:
    """Return the teacher's outputs, each with the format in which it is stored."""
    found = asking.outputs_of(teacher, x, y)
    names = [name for _, name, _ in found]
    if isinstance(stored, Mapping):
        if set(stored) != set(names):
            raise ValueError(
                "`stored` must hold a format for each output of the teacher. Received: "
                f"stored for {sorted(stored)}, outputs {sorted(names)}"
            )
        by_name = dict(stored)
    else:
        by_name = dict.fromkeys(names, stored or LogProbabilities())
    outputs = []
    for path, name, tensor in found:
        checks.check_format(name, by_name[name])
        shape = tuple(int(size) for size in tensor.shape)
        checks.check_output(name, shape, checks.rows_of(x), by_name[name])
        outputs.append(Output(path, name, shape[1:], by_name[name]))
    return outputs
