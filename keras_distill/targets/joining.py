"""The join of recorded outputs with the examples that they belong to."""

from pathlib import Path
from typing import Any

from keras_distill.targets import checks, elements, fingerprints
from keras_distill.targets import shards as shard_files
from keras_distill.targets import views as augmenting
from keras_distill.targets.manifest import CONTENT, Manifest
from keras_distill.targets.matching import Matching


def join(
    dataset: Any,
    directory: str | Path,
    *,
    by: str | None = None,
    key: str = "teacher",
    augment: augmenting.Augment | None = None,
    verify: bool = True,
) -> Any:
    """Return a data set with the recorded outputs under a key of its inputs.

    Pass it to `Distiller.fit`, with `teachers.Recorded(key)` as the teacher. If the
    inputs are a tensor, they become a dict with the tensor under the key `"inputs"`. A
    student with a single input reads this key, whatever the name of its input is.

    The content of each row is compared with the recording. If it differs, reading the
    data set raises `tf.errors.InvalidArgumentError`, which names the row.

    Args:
        dataset: The data set that was recorded, in batches of any size. It may be
            repeated. With `by`, it may also be shuffled, or be a part of the data set.
        directory: The directory of a complete recording.
        by: How a row is found in the recording. By default, by its position: `dataset`
            has the recorded order. `"content"` finds it by its content hash. A key of
            the inputs finds it by the id under that key, which is the row's position if
            `record` got no `ids`. For hashes and other ids, an index is kept in the
            directory, in 16 bytes a row.
        key: The key of the inputs to add. It holds a teacher's single output as a
            tensor, or several outputs as a tuple or dict of tensors. A tensor's format
            describes its content, e.g. logits for `LogProbabilities`. Defaults to
            `"teacher"`.
        augment: The `augment` of `record`. For each batch, one of the recorded views is
            drawn at random: its outputs, and the inputs that the teacher read.
        verify: Whether this call compares the SHA-256 of all files (default), or only
            their sizes.

    Returns:
        A `tf.data.Dataset` of the same elements with one more key.

    Raises:
        FileNotFoundError: If the directory doesn't hold a recording.
        ValueError: If the recording isn't complete, if a file is missing or damaged, if
            the data set lacks keys that were hashed, or if `key` is one of its keys.

    Example:
        >>> import tensorflow as tf
        >>> from keras_distill import targets
        >>> data = tf.data.Dataset.from_tensor_slices([[1.0, 2.0], [3.0, 4.0]])
        >>> _ = targets.record(lambda x: 2.0 * x, data.batch(2), "recorded")
        >>> for x in targets.join(data.skip(1).batch(1), "recorded", by="content"):
        ...     print(x["inputs"].numpy(), x["teacher"].numpy().round(4))
        [[3. 4.]] [[6. 8.]]
    """
    import tensorflow as tf

    checks.check_dataset_type(dataset)
    path = checks.checked_directory(directory)
    # Rows in order are in one shard after another.
    reader = opened(path, verify=verify, at_once=4 if by is None else 512)
    checks.check_replay(reader.manifest, augment)
    checks.check_key(dataset.element_spec, key)
    matching = Matching(reader, by)
    attach = _attaching(matching, by, key, augment)
    first = tf.constant(0, tf.int64)
    zeros = tf.data.Dataset.from_tensors(first).repeat()
    views = zeros
    if augment is not None:
        drawn = tf.data.Dataset.random(
            seed=reader.manifest.seed, rerandomize_each_iteration=True
        )
        views = drawn.map(lambda number: number % reader.manifest.views)
    if by is None:
        numbered = dataset.scan(first, elements.mapped(_numbered))
    else:
        numbered = tf.data.Dataset.zip(zeros, dataset)
    joined = tf.data.Dataset.zip(numbered, views).map(
        elements.mapped(attach),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return joined.prefetch(tf.data.AUTOTUNE)


def opened(directory: Path, *, verify: bool, at_once: int = 512) -> shard_files.Reader:
    """Return the reader of a complete recording.

    Args:
        directory: The directory.
        verify: Whether to compare the SHA-256 of all files, or only their sizes.
        at_once: The number of shards that are kept open.

    Raises:
        ValueError: If the recording isn't complete, or if a file is damaged.
    """
    manifest = Manifest.read(directory)
    if not manifest.complete:
        raise ValueError(
            "The recording must be complete. Call `targets.record` again with the same "
            f"arguments: it goes on where it was stopped. Received: {str(directory)!r}"
        )
    bad = shard_files.damaged(
        directory, manifest.shards, manifest.layout(), contents=verify
    )
    if bad:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
        raise ValueError(
            "The recording is damaged. Call `targets.record` again with the same "
            "arguments: it makes only these files again. Received: "
            f"{str(directory)!r}, {reasons}"
        )
    return shard_files.Reader(directory, manifest, at_once=at_once)


def _numbered(position: Any, *parts: Any) -> Any:
    """Return the next batch's position, and this batch with its own position."""
    import tensorflow as tf

    element = elements.of_arguments(parts)
    (_, leaf), *_ = elements.leaves(elements.inputs_of(element))
    return position + tf.shape(leaf, out_type=tf.int64)[0], (position, element)


def _attaching(
    matching: Matching, by: str | None, key: str, augment: augmenting.Augment | None
) -> Any:
    """Return the function that adds the recorded outputs to a batch."""
    import tensorflow as tf

    manifest = matching.reader.manifest
    outputs = manifest.outputs

    def attach(numbered: Any, view: Any) -> Any:
        position, element = numbered
        x = elements.inputs_of(element)
        content = fingerprints.of_inputs(x, manifest.hash_keys)
        wanted, seen = position, content
        if by is not None and by != CONTENT:
            wanted = fingerprints.of_ids(elements.chosen(x, [by], argument="by")[0][1])
        if augment is not None:
            x, seen = augmenting.view_of(
                augment,
                x,
                seed=manifest.seed,
                content=content,
                view=view,
                keys=manifest.hash_keys,
            )
        flat = tf.numpy_function(
            matching.read, [wanted, content, seen, view], [tf.float32] * len(outputs)
        )
        _, leaf = next(elements.leaves(x))
        rows = leaf.shape[0]
        for output, tensor in zip(outputs, flat, strict=True):
            tensor.set_shape([rows, *output.stored.packed_shape(output.shape)])
        joined = {**elements.as_dict(x), key: manifest.structured(flat)}
        return elements.with_inputs(element, joined)

    return attach
