"""Checks of the data sets and arguments of recordings."""

from pathlib import Path
from typing import Any

from keras_distill.targets import elements
from keras_distill.targets.formats import Format
from keras_distill.targets.manifest import Manifest


def check_dataset(dataset: Any) -> None:
    """Raise an error for a data set that can't be recorded, without reading it.

    Raises:
        TypeError: If it isn't a `tf.data.Dataset`, or if its elements don't have the
            form of `fit`'s data.
        ValueError: If it is empty, infinite, or not in batches.
    """
    import tensorflow as tf

    check_dataset_type(dataset)
    cardinality = dataset.cardinality()
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`dataset` must end. Record one epoch: leave out `repeat()`. Received: an "
            "infinite data set"
        )
    if cardinality == 0:
        raise empty()


def empty() -> ValueError:
    """Return the error for a data set without rows."""
    return ValueError("`dataset` must have rows. Received: an empty data set")


def check_elements(spec: Any) -> None:
    """Raise an error if elements aren't batches of dense tensors."""
    import tensorflow as tf

    if isinstance(spec, tuple) and not 1 <= len(spec) <= 3:
        raise TypeError(
            "Elements of `dataset` must be `x`, `(x, y)` or `(x, y, sample_weight)`. "
            f"Received: tuples of {len(spec)}"
        )
    inputs = list(elements.leaves(elements.inputs_of(spec)))
    for name, leaf in inputs:
        if not isinstance(leaf, tf.TensorSpec):
            raise TypeError(
                "The inputs must be a dense tensor, or a dict of them. Received: "
                f"'{name}' of type {type(leaf).__name__}"
            )
    for leaf in tf.nest.flatten(spec):
        if isinstance(leaf, tf.TensorSpec) and leaf.shape.rank == 0:
            raise ValueError(
                "`dataset` must have batches as its elements: add `.batch(128)`. "
                f"Received: elements {spec}"
            )


def checked_directory(directory: Any) -> Path:
    """Return a directory's absolute path.

    Raises:
        TypeError: If it isn't a path.
        NotADirectoryError: If it is a file.
    """
    if not isinstance(directory, str | Path) or not str(directory):
        raise TypeError(
            f"`directory` must be a path. Received: directory={directory!r}"
        )
    path = Path(directory).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            "`directory` must be a directory, or not exist yet. Received: "
            f"directory={str(directory)!r}, a file"
        )
    return path


def checked_count(name: str, value: Any) -> int:
    """Return a number, or raise ValueError unless it is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number from 1 on. Received: {name}={value!r}"
        )
    return value


def rows_of(x: Any) -> int:
    """Return the number of rows of the inputs of a batch.

    Raises:
        ValueError: If its tensors have different numbers of rows.
    """
    rows = {name: int(leaf.shape[0]) for name, leaf in elements.leaves(x)}
    if len(set(rows.values())) != 1:
        raise ValueError(
            "All inputs of a batch must have the same number of rows. Received: "
            f"rows {rows}"
        )
    return next(iter(rows.values()))


def check_views(augment: Any, views: Any, seed: Any) -> None:
    """Raise an error if the arguments of views don't fit together."""
    checked_count("views", views)
    if augment is None and (views != 1 or seed is not None):
        raise ValueError(
            "`views` and `seed` are those of `augment`. Without it, all views are the "
            f"same. Received: augment=None, views={views}, seed={seed}"
        )
    if augment is not None and not callable(augment):
        raise TypeError(
            "`augment` must be a function of an example and a seed. Received: "
            f"augment={augment!r}"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"`seed` must be a whole number. Received: seed={seed!r}")


def check_ids(named: tuple[str, Any]) -> None:
    """Raise ValueError if a key of the inputs can't hold ids."""
    name, tensor = named
    wrong = not (tensor.dtype.is_integer or tensor.dtype.name == "string")
    if wrong or tensor.shape.num_elements() != tensor.shape[0]:
        raise ValueError(
            "`ids` must be a key of whole numbers or text, one a row. Received: "
            f"ids={name!r} of {tensor.dtype.name} in shape {tuple(tensor.shape)}"
        )


def check_format(name: str, stored: Any) -> None:
    """Raise TypeError if the format that is given for an output isn't a `Format`."""
    if not isinstance(stored, Format):
        raise TypeError(
            "`stored` must be a format such as `targets.LogProbabilities()`, or a dict "
            f"of them by output. Received: {stored!r} for output '{name}'"
        )


def check_output(name: str, shape: tuple[int, ...], rows: int, stored: Format) -> None:
    """Raise ValueError if an output can't be stored in a format."""
    if not shape or shape[0] != rows:
        raise ValueError(
            "`teacher` must return an output for each row. Received: output "
            f"'{name}' of shape {shape} for {rows} rows"
        )
    stored.columns(shape[1:])


def check_dataset_type(dataset: Any) -> None:
    """Raise TypeError if something isn't a data set of batches."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            "`dataset` must be a `tf.data.Dataset` of batches, e.g. "
            "`tf.data.Dataset.from_tensor_slices((x, y)).batch(128)`. Received: "
            f"dataset of type {type(dataset).__name__}"
        )
    check_elements(dataset.element_spec)


def check_replay(manifest: Manifest, augment: Any) -> None:
    """Raise ValueError if only one of `record` and `join` has `augment`."""
    if manifest.augmented and augment is None:
        raise ValueError(
            "Augmented views were recorded: pass the same `augment` to `join`. "
            "Received: augment=None"
        )
    if augment is not None and not manifest.augmented:
        raise ValueError(
            "No augmented views were recorded: the teacher saw the examples as they "
            f"are. Pass `augment` to `record` too. Received: augment={augment!r}"
        )


def check_key(spec: Any, key: Any) -> None:
    """Raise ValueError if a key can't be added to the inputs."""
    held = elements.as_dict(elements.inputs_of(spec))
    if not isinstance(key, str) or not key or key in held:
        raise ValueError(
            "`key` must be text that isn't a key of the inputs yet. Received: "
            f"key={key!r}, inputs with keys {sorted(held)}"
        )
