"""`manifest.json`: the files of an export, their exactness and their provenance."""

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill import atomic
from keras_distill.export import examples, schema
from keras_distill.export.formats import FULL, Format, Target
from keras_distill.export.parity import Difference
from keras_distill.export.serving import Served
from keras_distill.export.signature import Specs

FILE = "manifest.json"
_KIND = "keras_distill.export"
FORMAT_VERSION = 2

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Artefact:
    """The results of writing and checking one artefact.

    Attributes:
        target: Its format and precision.
        difference: The largest difference from Keras on the example batch.
        tolerance: The largest relative difference that `verify` will allow.
        details: Further entries for its format or precision.
    """

    target: Target
    difference: Difference
    tolerance: float
    details: dict[str, Any] = field(default_factory=dict)


def describe(
    served: Served,
    directory: Path,
    artefacts: list[Artefact],
    scales: dict[str, float],
    **more: Any,
) -> Manifest:
    """Describe the artefacts that lie in `directory`.

    Args:
        served: The model that they were made from.
        directory: The directory of the artefacts.
        artefacts: The results for each artefact.
        scales: Output name to the scale that differences are relative to.
        **more: Further entries; those that are None are left out.

    Returns:
        The manifest for `write`, in types of JSON.
    """
    return {
        "kind": _KIND,
        "format_version": FORMAT_VERSION,
        "model": served.model.name,
        "parameters": int(served.model.count_params()),
        "signature": {
            "inputs": describe_specs(served.inputs),
            "outputs": describe_specs(served.outputs),
            **({"raw_inputs": describe_specs(served.raw.inputs)} if served.raw else {}),
        },
        "scales": scales,
        "artefacts": {
            artefact.target.name: _describe_artefact(artefact, served, directory)
            for artefact in artefacts
        },
        "examples": _describe_files(directory, examples.FILE),
        **{name: value for name, value in more.items() if value is not None},
        "versions": _versions(artefact.target.format for artefact in artefacts),
    }


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest` into `directory`."""
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> Manifest | None:
    """Read the manifest in `directory`; None if there is none of this package."""
    try:
        manifest = _load(directory)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest if _is_ours(manifest) else None


def require(directory: Path, *, to_run: bool = False) -> Manifest:
    """Read the manifest in `directory`.

    Args:
        directory: An export.
        to_run: Whether it must contain everything for running the artefacts, and not
            only the entries that a server's repository needs.

    Raises:
        FileNotFoundError: There is no manifest of this package.
        ValueError: It is damaged, or another version of this package wrote it.
    """
    try:
        manifest = _load(directory)
    except (FileNotFoundError, NotADirectoryError):
        manifest = {}
    if isinstance(manifest, dict) and not _is_ours(manifest):
        raise FileNotFoundError(
            "`directory` must hold an export with its manifest.json. Received: "
            f"directory={str(directory)!r}{_instead(directory)}."
        )
    if not isinstance(manifest, dict):
        raise _damaged(directory, "it must be a JSON object")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"The manifest must be of version {FORMAT_VERSION}. Received: "
            f"{manifest.get('format_version')!r} in {str(directory)!r}. Use the "
            "version of keras-distill that wrote it, or export the model again."
        )
    damage = schema.damage(manifest, schema.MANIFEST if to_run else schema.SERVED)
    if damage is None and to_run:
        damage = _inconsistency(manifest)
    if damage:
        raise _damaged(directory, damage)
    return manifest


def _load(directory: Path) -> Any:
    """Return the content of the file.

    Raises:
        ValueError: It isn't JSON.
    """
    data = (directory / FILE).read_bytes()
    if not data.strip():
        raise _damaged(directory, "the file is empty")
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(directory, f"it isn't JSON: {error}") from error


def _is_ours(manifest: Any) -> bool:
    return isinstance(manifest, dict) and manifest.get("kind") == _KIND


def _damaged(directory: Path, reason: str) -> ValueError:
    return ValueError(
        f"The manifest in {str(directory)!r} is damaged: {reason}. Copy the export "
        "again from where it was made, or export the model again."
    )


def _inconsistency(manifest: Manifest) -> str | None:
    """Return a contradiction in a manifest of the right structure; None without."""
    outputs = {spec["name"] for spec in manifest["signature"]["outputs"]}
    if set(manifest["scales"]) != outputs:
        return (
            f"the manifest has scales of {sorted(manifest['scales'])} for the outputs "
            f"{sorted(outputs)}"
        )
    if not manifest["artefacts"]:
        return "the manifest has no artefacts"
    listed = [file["path"] for file in manifest["examples"]]
    return None if listed == [examples.FILE] else f"the manifest lacks {examples.FILE}"


def _instead(directory: Path) -> str:
    """Return an explanation why a directory is no export, or an empty text."""
    if not directory.exists():
        return ", where there is nothing"
    if not directory.is_dir():
        return ", which is a file"
    names = [path.name for path in directory.iterdir() if path.name.isdecimal()]
    versions = sorted(
        (name for name in names if read(directory / name) is not None), key=int
    )
    if not versions:
        return ""
    last = str(directory / versions[-1])
    return f", which holds the versions {', '.join(versions)}. Pass one, as {last!r}"


def check_examples(kept: examples.Examples, manifest: Manifest) -> None:
    """Raise `ValueError` if the examples don't fit the signature."""
    for group in ("inputs", "outputs"):
        specs = {spec["name"]: spec for spec in manifest["signature"][group]}
        if set(kept[group]) != set(specs):
            raise ValueError(
                f"{examples.FILE} must hold the {group} {sorted(specs)} of the "
                f"manifest. Received: {sorted(kept[group])}. Export the model again."
            )
        for name, spec in specs.items():
            array = kept[group][name]
            shape, dtype = tf.TensorShape(spec["shape"]), tf.as_dtype(spec["dtype"])
            if not shape.is_compatible_with(array.shape) or dtype != array.dtype:
                raise ValueError(
                    f"{examples.FILE} must hold the {group} of the manifest, with "
                    f"{spec['dtype']} of shape {spec['shape']} in {name!r}. Received: "
                    f"{array.dtype} of shape {list(array.shape)}. Export the model "
                    "again."
                )


def files(manifest: Manifest) -> list[dict[str, Any]]:
    """Return path, size and checksum of every file except the manifest itself."""
    artefacts = manifest["artefacts"].values()
    listed = [file for artefact in artefacts for file in artefact["files"]]
    return [*listed, *manifest.get("examples", [])]


def listed_files(manifest: Manifest) -> set[str]:
    """Return the relative paths of all files of an export, including the manifest.

    For a damaged manifest, which `read` also returns, there are none.
    """
    if schema.damage(manifest, schema.FILES):
        return set()
    return {FILE, *(file["path"] for file in files(manifest))}


def describe_specs(specs: Specs) -> list[dict[str, Any]]:
    """Return names, dtypes and shapes in types of JSON."""
    return [
        {"name": name, "dtype": spec.dtype.name, "shape": _shape(spec)}
        for name, spec in specs.items()
    ]


def _describe_artefact(
    artefact: Artefact, served: Served, directory: Path
) -> dict[str, Any]:
    target = artefact.target
    listed = _describe_files(directory, target.file)
    own = served.model.compute_dtype
    return {
        "format": target.format.name,
        "precision": own if target.precision == FULL else target.precision,
        "files": listed,
        "bytes": sum(file["bytes"] for file in listed),
        "max_abs_difference": artefact.difference.absolute,
        "max_relative_difference": artefact.difference.relative,
        "tolerance": artefact.tolerance,
        **artefact.details,
    }


def _shape(spec: tf.TensorSpec) -> list[int | None] | None:
    return None if spec.shape.rank is None else list(spec.shape)


def _describe_files(directory: Path, name: str) -> list[dict[str, Any]]:
    root = directory / name
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    return [
        {
            "path": path.relative_to(directory).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": atomic.sha256(path),
        }
        for path in paths
        if path.is_file()
    ]


def _versions(formats: Iterable[Format]) -> dict[str, str]:
    packages = {name for target in formats for name in target.modules.values()}
    return {
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        **{name: metadata.version(name) for name in sorted(packages)},
    }
