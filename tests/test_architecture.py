"""A room imports only from floors below its own, and nothing optional at its door."""

import ast
import graphlib
from pathlib import Path

import pytest

import keras_distill

PACKAGE = Path(keras_distill.__file__).parent

FLOORS = {
    "version": 1,
    "backend": 0,
    "types": 0,
    "values": 1,
    "arguments": 0,
    "building": 0,
    "cautions": 0,
    "atomic": 0,
    "installing": 0,
    "signatures": 0,
    "standard_error": 0,
    "naming": 0,
    "per_output": 0,
    "own_training": 0,
    "shared_weights": 0,
    "scopes": 0,
    "labels": 1,
    "tracing": 1,
    "resuming": 1,
    "inputs": 1,
    "schedules": 1,
    "losses": 1,
    "export": 1,
    "metrics": 1,
    "monitoring": 1,
    "distillation": 2,
    "guards": 2,
    "teachers": 2,
    "hints": 2,
    "compilation": 3,
    "distiller": 3,
    "online": 4,
    "report": 4,
    "targets": 4,
    "sequence": 4,
    "demo": 4,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,  # the public names: it may import from every room, none from it
}
ON_THE_SAME_FLOOR = {
    ("losses", "schedules"),  # a temperature may be a schedule
    ("labels", "losses"),  # a label mask acts as sample weights of a loss
    ("distiller", "compilation"),  # one room, too large for one file
}

OPTIONAL = {
    "ai_edge_litert",
    "keras_rs",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "scipy",
    "sklearn",
    "tensorflow_datasets",
    "tf2onnx",
    "tritonclient",
}


def module_name(path, package=PACKAGE):
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package=PACKAGE):
    return {module_name(path, package): path for path in package.rglob("*.py")}


def imports(path, package=PACKAGE, *, everywhere=True):
    """Absolute names of what a file imports; `everywhere`: in functions too."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else list(at_import(tree))
    here = module_name(path, package).split(".")
    if path.name == "__init__.py":
        here.append("__init__")
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = [*here[: -node.level], *base]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def at_import(node):
    """The nodes that run when the module is imported, not when it is called."""
    for child in ast.iter_child_nodes(node):
        if is_function(child) or is_for_type_checkers(child):
            continue
        yield child
        yield from at_import(child)


def is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def own_module(name, known):
    """The longest prefix of an imported name that is a module of the package."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return None


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def wrong_imports(package=PACKAGE):
    known = modules(package)
    for name, path in known.items():
        for imported in imports(path, package):
            target = own_module(imported, known)
            if target is None or room(target) == room(name):
                continue
            pair = room(name), room(target)
            if pair not in ON_THE_SAME_FLOOR and FLOORS[pair[0]] <= FLOORS[pair[1]]:
                yield f"{name} imports {imported}"


def import_graph(package=PACKAGE):
    known = modules(package)
    return {
        name: {
            target
            for imported in imports(path, package)
            if (target := own_module(imported, known)) not in (None, name)
        }
        for name, path in known.items()
    }


def optional_at_import(package=PACKAGE):
    for name, path in modules(package).items():
        for imported in imports(path, package, everywhere=False):
            if imported.split(".")[0] in OPTIONAL:
                yield f"{name} imports {imported}"


def test_every_room_has_a_floor():
    assert {room(name) for name in modules()} <= set(FLOORS)


def test_rooms_import_from_floors_below():
    assert list(wrong_imports()) == []


def test_no_circles():
    graphlib.TopologicalSorter(import_graph()).prepare()


def test_optional_dependencies_are_imported_where_they_are_used():
    assert list(optional_at_import()) == []


class TestTheWalkItself:
    """That nothing wrong was found is worth what the walk can find."""

    @pytest.fixture
    def house(self, tmp_path):
        package = tmp_path / "house"
        (package / "losses").mkdir(parents=True)
        (package / "__init__.py").write_text("from house import distiller\n")
        (package / "distiller.py").write_text("from house.losses import base\n")
        (package / "losses" / "__init__.py").write_text("from . import base\n")
        (package / "losses" / "base.py").write_text("from house import schedules\n")
        (package / "schedules.py").write_text("def f():\n    import scipy\n")
        return package

    def test_finds_nothing_in_order(self, house):
        assert list(wrong_imports(house)) == []
        assert list(optional_at_import(house)) == []
        graphlib.TopologicalSorter(import_graph(house)).prepare()

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("losses/base.py", "from house.distiller import Distiller"),
            ("losses/base.py", "from .. import distiller"),
            ("schedules.py", "def f():\n    from house import losses"),
            ("schedules.py", "import house.losses.base"),
            ("distiller.py", "from house import Distiller"),
        ],
    )
    def test_finds_an_import_from_above(self, house, file, line):
        (house / file).write_text(line + "\n")
        assert len(list(wrong_imports(house))) == 1

    def test_finds_a_circle_in_a_room(self, house):
        (house / "losses" / "checks.py").write_text("from .base import x\n")
        (house / "losses" / "base.py").write_text("from . import checks\n")
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
    def test_finds_an_optional_dependency(self, house, line):
        (house / "schedules.py").write_text(line + "\n")
        assert len(list(optional_at_import(house))) == 1
