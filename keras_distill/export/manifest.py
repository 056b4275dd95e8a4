"""`manifest.json`: what an export holds, how exact it is and what made it."""

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.formats import Format
from keras_distill.export.serving import Served
from keras_distill.export.signature import Specs

FILE = "manifest.json"
_KIND = "keras_distill.export"
_FORMAT_VERSION = 1

Manifest = dict[str, Any]


def describe(
    served: Served,
    directory: Path,
    differences: Iterable[tuple[Format, float]],
    tolerance: float,
) -> Manifest:
    """Describe the artefacts that lie in `directory`.

    Args:
        served: The model behind them.
        directory: Where the artefacts are.
        differences: Each format with the largest absolute difference from Keras.
        tolerance: What they were checked against.

    Returns:
        What `write` stores, made of what JSON knows.
    """
    differences = list(differences)
    return {
        "kind": _KIND,
        "format_version": _FORMAT_VERSION,
        "model": served.model.name,
        "parameters": int(served.model.count_params()),
        "signature": {
            "inputs": _describe_specs(served.inputs),
            "outputs": _describe_specs(served.outputs),
        },
        "artefacts": {
            target.name: {
                "files": _describe_files(directory, target.file),
                "max_abs_difference": difference,
                "tolerance": tolerance,
            }
            for target, difference in differences
        },
        "versions": _versions(target for target, _ in differences),
    }


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest` into `directory`."""
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> Manifest | None:
    """Read the manifest in `directory`; None where there is none of this package."""
    try:
        manifest = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("kind") == _KIND
    return manifest if ours else None


def listed_files(manifest: Manifest) -> set[str]:
    """Return the relative paths of all the files of an export, itself included."""
    artefacts = manifest["artefacts"].values()
    return {FILE, *(file["path"] for item in artefacts for file in item["files"])}


def _describe_specs(specs: Specs) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": spec.dtype.name, "shape": _shape(spec)}
        for name, spec in specs.items()
    ]


def _shape(spec: tf.TensorSpec) -> list[int | None] | None:
    return None if spec.shape.rank is None else list(spec.shape)


def _describe_files(directory: Path, name: str) -> list[dict[str, Any]]:
    root = directory / name
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    return [
        {
            "path": path.relative_to(directory).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in paths
        if path.is_file()
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions(formats: Iterable[Format]) -> dict[str, str]:
    packages = {name for target in formats for name in target.modules.values()}
    return {
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        **{name: metadata.version(name) for name in sorted(packages)},
    }
