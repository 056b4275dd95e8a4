"""Recording: a teacher's outputs for a data set, written as shards.

`record` is `begin`, then `Recorder.write` for the missing shards, then `finish`.
Several workers may share the writing: each makes a `Recorder` and writes the shards
whose numbers it gets.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_distill import atomic
from keras_distill.targets import checks, shards
from keras_distill.targets import manifest as manifests
from keras_distill.targets import views as augmenting
from keras_distill.targets.formats import Format
from keras_distill.targets.manifest import Manifest, shard_name
from keras_distill.targets.planning import plan_of
from keras_distill.targets.recorder import Recorder
from keras_distill.teachers.base import TeacherLike


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

    Students are trained from the directory with `join`, without the teacher. If a call
    is interrupted, the next call with the same arguments continues after the last
    complete shard. If shards are missing or damaged, the next call writes only these
    again. Complete and undamaged shards aren't changed.

    Each row has a hash of its content, so that `join` never adds an output to
    another example.

    Args:
        teacher: A built Keras model, an `Ensemble`, another `Teacher`, or a function of
            the inputs of a batch, which may compute with NumPy. If the inputs are a
            dict, a model reads the keys that it declares. It is called with
            `training=False`.
        dataset: A `tf.data.Dataset` of batches `x`, `(x, y)` or `(x, y,
            sample_weight)`, as for `fit`; `x` is a tensor or a dict of tensors. It has
            an end, and yields the same rows in the same order each time. Leave out
            `shuffle`, and pass augmentation as `augment`.
        directory: The directory to write to. It is made if it doesn't exist.
        stored: The format of the stored outputs, or a dict of formats by output name.
            The name is the key if the teacher returns a dict, `"output"` for a single
            output, else the output's name in the Keras model. Defaults to
            `LogProbabilities("float32")`.
        from_logits: Whether the outputs are logits (default) or probabilities. `Values`
            doesn't convert either.
        ids: A key of the inputs with an id of each row, a whole number or text, by
            which `join` may find the row. Defaults to None: the id is the row's
            position.
        hash_keys: The keys of the inputs that the content hash covers, e.g. those that
            students will read. Keys of nested dicts are joined by `/`. Defaults to all.
        augment: A function of an example, without a batch axis, and a seed of shape
            `(2,)` for `tf.random.stateless_*` and `tf.image.stateless_*`. It returns
            the view of the example that the teacher reads. `join` makes this view again
            for the student.
        views: The number of augmented views of each example. Defaults to 1.
        seed: The seed of the views. Defaults to 0.
        rows_per_shard: The number of rows in a file, a multiple of the batch size. A
            killed process loses the work on one file. Defaults to that of an earlier
            call for this directory, else to about 32,768.
        batch_size: The number of rows in a batch of the teacher. Defaults to that of an
            earlier call for this directory, else to the batch size of `dataset`.
        progress: Whether to show a line with examples a second and the time left. It is
            written to stderr, and only if stderr is a terminal.

    Returns:
        The manifest of the recording.

    Raises:
        TypeError: If `dataset` isn't a data set of dense tensors, or the teacher
            changes while it teaches.
        ValueError: If the data set is empty, infinite or not in batches, if outputs
            can't be stored or aren't finite, or if `directory` holds something else,
            such as the recording of another teacher.
        RuntimeError: If another process records to the directory.
        OSError: If files can't be written. Complete shards remain.

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
    """Write the manifest of a new recording, or resume a recording that was begun.

    During the block, no other process can begin a recording in the directory.

    Args:
        plan: The manifest, as `plan_of` returns it.
        directory: The directory. It is made if it doesn't exist.

    Yields:
        The manifest, which lists the complete shards.

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
        count: The number of shards. Defaults to the number in the directory.

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


def _check_empty(directory: Path) -> None:
    """Raise ValueError if a directory without a manifest has files."""
    found = sorted(path.name for path in directory.iterdir())
    if [name for name in found if not name.startswith(".writing.")]:
        raise ValueError(
            "`directory` must be empty or hold a recording. Received: "
            f"directory={str(directory)!r} without {manifests.FILE}, with {found[:3]}"
        )


def _check_same(current: Manifest, plan: Manifest, directory: Path) -> None:
    """Raise ValueError if a directory's recording isn't the planned one."""
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
