"""`manifest.json`: what an export holds, how exact it is and what made it."""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import examples
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
    """What is known of one artefact.

    Attributes:
        target: Which it is.
        difference: The largest from Keras on the example batch.
        tolerance: The largest relative difference that `verify` will take.
        details: What its format or precision adds.
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
        served: The model behind them.
        directory: Where the artefacts are.
        artefacts: What is known of each.
        scales: Output name to the scale that differences are relative to.
        **more: Further entries; those that are None are left out.

    Returns:
        What `write` stores, made of what JSON knows.
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
    """Read the manifest in `directory`; None where there is none of this package."""
    try:
        manifest = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("kind") == _KIND
    return manifest if ours else None


def require(directory: Path) -> Manifest:
    """Read the manifest in `directory`.

    Raises:
        FileNotFoundError: There is none of this package.
        ValueError: It was written by another version of this package.
    """
    manifest = read(directory)
    if manifest is None:
        raise FileNotFoundError(
            "`directory` must hold an export with its manifest.json. "
            f"Received: directory={str(directory)!r}."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"The manifest must be of version {FORMAT_VERSION}. Received: "
            f"{manifest.get('format_version')!r} in {str(directory)!r}. Use the "
            "version of keras-distill that wrote it, or export the model again."
        )
    return manifest


def files(manifest: Manifest) -> list[dict[str, Any]]:
    """Return path, size and checksum of every file but the manifest itself."""
    artefacts = manifest["artefacts"].values()
    listed = [file for artefact in artefacts for file in artefact["files"]]
    return [*listed, *manifest.get("examples", [])]


def listed_files(manifest: Manifest) -> set[str]:
    """Return the relative paths of all the files of an export, itself included."""
    return {FILE, *(file["path"] for file in files(manifest))}


def describe_specs(specs: Specs) -> list[dict[str, Any]]:
    """Return names, dtypes and shapes as JSON knows them."""
    return [
        {"name": name, "dtype": spec.dtype.name, "shape": _shape(spec)}
        for name, spec in specs.items()
    ]


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            "sha256": sha256(path),
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
