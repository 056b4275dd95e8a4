"""The source of a repository: an export whose files match its manifest."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from keras_distill.export import manifest, verification
from keras_distill.export.manifest import Manifest


@dataclass(frozen=True)
class Export:
    """An export on disk.

    Attributes:
        directory: Its directory, with symbolic links resolved.
        manifest: The content of its `manifest.json`.
    """

    directory: Path
    manifest: Manifest

    def files(self, artefact: str, formats: Collection[str]) -> list[Path]:
        """Return the files of an artefact, which must have one of `formats`."""
        artefacts = self.manifest["artefacts"]
        usable = [name for name, it in artefacts.items() if it["format"] in formats]
        if not usable:
            raise ValueError(
                "`export` must hold an artefact in a format that the server reads "
                f"({', '.join(formats)}). Received: export={str(self.directory)!r}, "
                f"which holds {', '.join(artefacts)}. Export the model again, with one "
                "of these `formats`."
            )
        if artefact not in usable:
            raise ValueError(
                f"`artefact` must be one of {usable}, which the export holds in a "
                f"format that the server reads ({', '.join(formats)}). "
                f"Received: artefact={artefact!r}."
            )
        return [self.directory / file["path"] for file in artefacts[artefact]["files"]]


def open_export(export: str | os.PathLike[str]) -> Export:
    """Read the export at `export`, and check its files."""
    directory = Path(os.path.realpath(export))
    described = manifest.require(directory)
    verification.check_files(directory, described)
    return Export(directory, described)


def onnx_files(files: list[Path]) -> dict[str, Path]:
    """Name the files of an ONNX artefact: `model.onnx` and any files of weights."""
    models = [path for path in files if path.suffix == ".onnx"]
    if len(models) != 1:
        raise ValueError(
            "`artefact` must have one file that ends in .onnx. "
            f"Received: {[path.name for path in files]}."
        )
    # `model.onnx` refers to its files of weights by name, so they keep their names.
    return {path.name: path for path in files if path not in models} | {
        "model.onnx": models[0]
    }


def saved_model_files(files: list[Path]) -> dict[str, Path]:
    """Name the files of a SavedModel relative to its own directory."""
    [root] = [path.parent for path in files if path.name == "saved_model.pb"]
    return {path.relative_to(root).as_posix(): path for path in files}
