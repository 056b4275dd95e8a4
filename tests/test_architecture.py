"""Rooms import from floors below their own, and only some of them use a backend."""

import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source import PACKAGE, calls, imports, modules

# A room is a file or a folder of the package. It imports from lower floors only.
FLOORS = {
    "types": 0,
    "version": 0,
    "backend": 0,
    "arguments": 0,
    "cautions": 0,
    "installing": 0,
    "naming": 0,
    "retracing": 0,
    "signatures": 0,
    "standard_error": 0,
    "atomic": 1,
    "batch": 1,
    "building": 1,
    "fake_quantization": 1,
    "guard": 1,
    "inputs": 1,
    "lending": 1,
    "metrics": 1,
    "own_training": 1,
    "per_output": 1,
    "schedules": 1,
    "scopes": 1,
    "shared_weights": 1,
    "values": 1,
    "export": 2,
    "labels": 2,
    "losses": 2,
    "resuming": 2,  # Below teachers: one that trains has random states to restore.
    "students": 2,
    "devices": 3,
    "guards": 3,
    "hints": 3,
    "targets": 3,
    "teachers": 3,
    "objective": 4,
    "tracing": 4,
    "distiller": 5,
    "callbacks": 6,
    "demo": 6,
    "online": 6,
    "privileged": 6,
    "report": 6,
    "sequence": 6,
    "tuning": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,  # The public names, of every room; no room imports them.
}
# Files of one room that have no folder of their own.
PARTS = {
    "distilled_fit": "distiller",
    "fitting": "distiller",
    "serving": "distiller",
    "setup": "distiller",
    "step": "distiller",
    "teaching": "distiller",
}
ON_THE_SAME_FLOOR = {
    ("backend", "types"),
    ("demo", "report"),  # The demo ends with a report.
    ("batch", "per_output"),  # The record of one output is found by the output's path.
    ("labels", "losses"),  # A label mask acts as the sample weights of a loss.
    ("privileged", "tuning"),  # An audit's intervals are those of a search.
    ("targets", "teachers"),  # What is recorded is a teacher's answer to a batch.
}

OPTIONAL = {
    "ai_edge_litert",
    "apache_beam",
    "jinja2",
    "keras_rs",
    "keras_tuner",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "scipy",
    "sklearn",
    "tensorflow_datasets",
    "tf2onnx",
    "tritonclient",
}

BACKENDS = {"jax", "tensorflow", "torch"}
ASKS_FOR_THE_BACKEND = {
    "keras.backend.backend",
    "keras.config.backend",
}
# Rooms that run on one backend whatever Keras runs on: converters of TensorFlow, and
# pipelines of `tf.data`.
OF_TENSORFLOW = {"export", "demo", "targets"}
# Files that may use TensorFlow within functions: the one that asks for everybody, and
# what only TensorFlow's trainer calls.
WITHIN_FUNCTIONS = {
    "keras_distill.backend",
    "keras_distill.building",
    "keras_distill.devices.workers",
    "keras_distill.distiller",
    "keras_distill.tracing",
}


def own_module(name: str, known: dict[str, Path]) -> str | None:
    """Return the longest prefix of an imported name that is a module of the package."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return None


def room(name: str) -> str:
    """Return the room of a module."""
    parts = name.split(".")
    of_package = parts[1] if len(parts) > 1 else "__init__"
    return PARTS.get(of_package, of_package)


def wrong_imports(package: Path = PACKAGE) -> Iterator[str]:
    """Yield the imports that don't come from a floor below."""
    known = modules(package)
    for name, path in known.items():
        for imported in imports(path, package):
            target = own_module(imported, known)
            if target is None or room(target) == room(name):
                continue
            pair = room(name), room(target)
            if pair not in ON_THE_SAME_FLOOR and FLOORS[pair[0]] <= FLOORS[pair[1]]:
                yield f"{name} imports {imported}"


def import_graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return which modules of the package each of them imports."""
    known = modules(package)
    return {
        name: {
            target
            for imported in imports(path, package)
            if (target := own_module(imported, known)) is not None and target != name
        }
        for name, path in known.items()
    }


def optional_at_import(package: Path = PACKAGE) -> Iterator[str]:
    """Yield the imports of optional packages that run when the package is imported."""
    for name, path in modules(package).items():
        for imported in imports(path, package, everywhere=False):
            if imported.split(".")[0] in OPTIONAL:
                yield f"{name} imports {imported}"


def uses_of_a_backend(package: Path = PACKAGE) -> Iterator[str]:
    """Yield the uses of a backend outside of the rooms and functions that may."""
    for name, path in modules(package).items():
        if room(name) in OF_TENSORFLOW:
            continue
        may = name.replace(package.name, "keras_distill", 1) in WITHIN_FUNCTIONS
        for imported in imports(path, package, everywhere=not may):
            if imported.split(".")[0] in BACKENDS:
                yield f"{name} imports {imported}"
        for called in calls(path):
            if called in ASKS_FOR_THE_BACKEND and room(name) != "backend":
                yield f"{name} calls {called}"


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in modules()} <= set(FLOORS)


def test_rooms_import_from_floors_below() -> None:
    assert list(wrong_imports()) == []


def test_no_circles() -> None:
    graphlib.TopologicalSorter(import_graph()).prepare()


def test_optional_dependencies_are_imported_where_they_are_used() -> None:
    assert list(optional_at_import()) == []


def test_one_file_asks_which_backend_runs() -> None:
    found = list(uses_of_a_backend())
    assert not found, "\n".join(found)


class TestTheWalkItself:
    """The tests above find nothing only if the walk can find something."""

    @pytest.fixture
    def house(self, tmp_path: Path) -> Path:
        package = tmp_path / "house"
        (package / "losses").mkdir(parents=True)
        (package / "export").mkdir()
        (package / "__init__.py").write_text("from house import distiller\n")
        (package / "distiller.py").write_text(
            "from house.losses import base\ndef f():\n    import tensorflow as tf\n"
        )
        (package / "losses" / "__init__.py").write_text("from . import base\n")
        (package / "losses" / "base.py").write_text("from house import schedules\n")
        (package / "export" / "__init__.py").write_text("import tensorflow as tf\n")
        (package / "schedules.py").write_text("def f():\n    import scipy\n")
        (package / "step.py").write_text("from house import distiller\n")
        (package / "backend.py").write_text(
            "import keras\ndef f():\n    return keras.backend.backend()\n"
        )
        return package

    def test_finds_nothing_in_order(self, house: Path) -> None:
        assert list(wrong_imports(house)) == []
        assert list(optional_at_import(house)) == []
        assert list(uses_of_a_backend(house)) == []
        graphlib.TopologicalSorter(import_graph(house)).prepare()

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("losses/base.py", "from house.distiller import Distiller"),
            ("losses/base.py", "from house.step import Step"),
            ("losses/base.py", "from .. import distiller"),
            ("schedules.py", "def f():\n    from house import losses"),
            ("schedules.py", "import house.losses.base"),
            ("distiller.py", "from house import Distiller"),
        ],
    )
    def test_finds_an_import_from_above(
        self, house: Path, file: str, line: str
    ) -> None:
        (house / file).write_text(line + "\n")
        assert len(list(wrong_imports(house))) == 1

    def test_finds_a_circle_in_a_room(self, house: Path) -> None:
        (house / "losses" / "checks.py").write_text("from .base import x\n")
        (house / "losses" / "base.py").write_text("from . import checks\n")
        assert list(wrong_imports(house)) == []
        with pytest.raises(graphlib.CycleError):
            graphlib.TopologicalSorter(import_graph(house)).prepare()

    def test_finds_a_circle_between_files_of_one_room(self, house: Path) -> None:
        (house / "distiller.py").write_text("from house import step\n")
        assert list(wrong_imports(house)) == []
        with pytest.raises(graphlib.CycleError):
            graphlib.TopologicalSorter(import_graph(house)).prepare()

    @pytest.mark.parametrize(
        "line",
        [
            "import scipy.special",
            "from sklearn import metrics",
            "try:\n    import onnx\nexcept ImportError:\n    onnx = None",
            "class A:\n    import onnxruntime",
        ],
    )
    def test_finds_an_optional_dependency(self, house: Path, line: str) -> None:
        (house / "schedules.py").write_text(line + "\n")
        assert len(list(optional_at_import(house))) == 1

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("schedules.py", "import tensorflow as tf"),
            ("schedules.py", "def f():\n    from jax import numpy"),
            ("losses/base.py", "import keras\nx = keras.backend.backend()"),
            ("losses/base.py", "def f():\n    return keras.config.backend() == 'jax'"),
            ("distiller.py", "import tensorflow as tf"),
            ("distiller.py", "def f():\n    return keras.backend.backend()"),
            ("backend.py", "import torch"),
        ],
    )
    def test_finds_a_use_of_a_backend(self, house: Path, file: str, line: str) -> None:
        (house / file).write_text(line + "\n")
        assert len(list(uses_of_a_backend(house))) == 1
