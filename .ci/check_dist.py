"""Check the wheel and the sdist of `make dist` where no checkout is.

A fresh virtual environment gets the wheel and what the extra `demo` declares. In an
empty folder there, all of the package is imported, and `keras-distill demo` and
`keras-distill compare` run on models and data that this check saves itself.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "keras_distill"
# The wheel has no other top folder, and the licence and the command are in this one.
INFORMATION = re.compile(r"keras_distill-[^/]+\.dist-info/")
SDIST_NEEDS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO")

# Every module, also those that serve an extra that isn't installed here.
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import keras_distill

here = pathlib.Path(keras_distill.__file__).parent
assert pathlib.Path(sys.prefix).resolve() in here.resolve().parents, here
names = [m.name for m in pkgutil.walk_packages([str(here)], "keras_distill.")]
assert len(names) > 100, names
for name in names:
    if not name.endswith("__main__") and ".templates." not in name:
        importlib.import_module(name)
for public in keras_distill.__all__:
    getattr(keras_distill, public)
print(f"{len(names)} modules are imported, and {len(keras_distill.__all__)} names")
"""

SAVE_MODELS = """
import keras
import numpy as np

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).random((300, 8), dtype="float32")
y = x[:, :3].argmax(axis=1)
for name, width in {"teacher": 64, "alone": 4, "distilled": 4}.items():
    model = keras.Sequential(
        [
            keras.Input((8,), name="x"),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x[:200], y[:200], epochs=5, verbose=0)
    model.save(f"{name}.keras")
np.savez("test.npz", x=x[200:], labels=y[200:])
"""


def main() -> None:
    """Run all checks; the first one that fails ends with an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--whole", action="store_true", help="the whole demo, as before a release"
    )
    arguments = parser.parse_args()
    wheel, sdist = (only(arguments.dist, pattern) for pattern in ("*.whl", "*.tar.gz"))
    check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        python = install(wheel, Path(folder) / "environment")
        print(f"installed in {time.perf_counter() - begin:.0f} s", flush=True)
        begin = time.perf_counter()
        (empty := Path(folder) / "elsewhere").mkdir()
        check_running(python, empty, whole=arguments.whole)
        print(f"ran in {time.perf_counter() - begin:.0f} s")


def only(folder: Path, pattern: str) -> Path:
    """Return the one file that matches."""
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, f"{folder}/{pattern}: {found}. Run `make dist`."
    return found[0]


def sources() -> dict[str, bytes]:
    """Return the files that the package consists of, by their path in the wheel."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_wheel(wheel: Path) -> None:
    """The wheel holds every file of the package as it is here, and nothing else."""
    expected = sources()
    with zipfile.ZipFile(wheel) as file:
        held = {name: file.read(name) for name in file.namelist()}
    information = {name for name in held if INFORMATION.match(name)}
    package = held.keys() - information
    assert package == expected.keys(), sorted(package ^ expected.keys())
    changed = [name for name in package if held[name] != expected[name]]
    assert not changed, changed
    endings = {name.partition(".dist-info/")[2] for name in information}
    assert {"licenses/LICENSE", "entry_points.txt"} <= endings, endings
    assert f"{PACKAGE}/py.typed" in package
    version = wheel.name.split("-")[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(), version
    print(f"{wheel.name}: {len(package)} files, as in the checkout")


def check_sdist(sdist: Path) -> None:
    """The sdist holds what builds the wheel, and no test.

    `python -m build` made the wheel from the sdist, so that it needs no second build.
    """
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    missing = {*SDIST_NEEDS, *sources()} - held
    assert not missing, sorted(missing)
    tests = [name for name in held if name.startswith("tests")]
    assert not tests, tests
    print(f"{sdist.name}: all that builds the wheel")


def install(wheel: Path, environment: Path) -> Path:
    """Make an environment of the wheel and its extra `demo`; return its Python.

    uv links files from its cache, so that this takes seconds from the second time on.
    """
    uv = [sys.executable, "-m", "uv"]
    subprocess.run(
        [*uv, "venv", "--quiet", "--python", sys.executable, environment], check=True
    )
    python = environment / "bin" / "python"
    subprocess.run(
        [
            *(*uv, "pip", "install", "--quiet", "--python", python),
            *("--constraints", ROOT / "constraints.txt", f"{wheel}[demo]"),
        ],
        check=True,
    )
    return python


def check_running(python: Path, folder: Path, *, whole: bool) -> None:
    """Import the package and run the two commands, away from the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}

    def run(*line: str | Path) -> None:
        subprocess.run(line, cwd=folder, env=environment, check=True)

    command = python.with_name("keras-distill")
    run(python, "-c", IMPORT_ALL + SAVE_MODELS)
    models = ["teacher=teacher.keras", "student alone=alone.keras", "b=distilled.keras"]
    data = ("--data", "test.npz", "--out", "report", "--batch-sizes", "1")
    run(command, "compare", *models, *data)
    assert (folder / "report" / "report.html").stat().st_size < 2_000_000
    run(command, "demo", *([] if whole else ["--smoke"]))
    assert (folder / "demo-output" / "student" / "model.tflite").is_file()


if __name__ == "__main__":
    main()
