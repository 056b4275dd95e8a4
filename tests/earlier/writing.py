"""Writes the files that later versions must read, with the version that runs.

`python -m tests.earlier.writing` adds `files/<version>.zip` beside this file. It holds,
for each case of `trainers.py`, a trainer after three steps as `<case>.keras` and
`<case>.weights.h5`, and in `<case>.npz` the numbers that it must give when it is
loaded and trained for three steps more. `written_by.txt` names the versions. A zip is
written once, by the version that it is named after.
"""

import importlib.metadata
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_distill.version import __version__
from tests.earlier.trainers import CASES, fitted, results

FILES = Path(__file__).with_name("files")


def write(name: str, folder: Path) -> None:
    """Write the files of one case."""
    made = CASES[name]()
    fitted(name, made)
    made.trainer.save(folder / f"{name}.keras")
    made.trainer.save_weights(folder / f"{name}.weights.h5")
    if name == "ensemble":
        made.teacher.save(folder / f"{name}.teacher.keras")
    np.savez(folder / f"{name}.npz", **results(name, made))


def versions() -> str:
    """Return the versions of what writes the files."""
    names = ["keras", "numpy", keras.backend.backend()]
    others = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return f"keras-distill {__version__}, {', '.join(others)}"


def main() -> None:
    """Write the files of all cases."""
    packed = FILES / f"{__version__}.zip"
    if packed.exists():
        sys.exit(f"{packed} is there: the files of a version are written once")
    FILES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "written_by.txt").write_text(versions() + "\n")
        for name in CASES:
            write(name, folder)
        # HDF5 files of tiny models are mostly zeros.
        with zipfile.ZipFile(
            packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9
        ) as file:
            for path in sorted(folder.iterdir()):
                file.write(path, path.name)
    size = packed.stat().st_size
    print(f"{versions()}: {len(CASES)} trainers, {size} bytes in {packed}")


if __name__ == "__main__":
    main()
