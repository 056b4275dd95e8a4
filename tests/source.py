"""The package's source code as syntax trees, for the tests of its shape."""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

# Found without importing it, which would import Keras.
_SPEC = importlib.util.find_spec("keras_distill")
assert _SPEC is not None and _SPEC.origin is not None
PACKAGE = Path(_SPEC.origin).parent

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """Return the dotted name of a file's module."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Return the files of a package by their modules' names."""
    return {module_name(path, package): path for path in package.rglob("*.py")}


def imports(
    path: Path, package: Path = PACKAGE, *, everywhere: bool = True
) -> Iterator[str]:
    """Yield the absolute names of what a file imports.

    Args:
        path: The file.
        package: The package that relative imports refer to.
        everywhere: Whether imports inside of functions count, which run when the
            function is called.
    """
    tree = ast.parse(path.read_text())
    nodes: Iterable[ast.AST] = ast.walk(tree) if everywhere else _at_import(tree)
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


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if _is_function(child) or _is_for_type_checkers(child):
            continue
        yield child
        yield from _at_import(child)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def calls(path: Path) -> Iterator[str]:
    """Yield the names of what a file calls, as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def method_counts(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each class of a file and how many methods and properties it defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            # A property and its setter have one name.
            names = {
                child.name
                for child in node.body
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            yield node.name, len(names)


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each function of a file, as `Class.method`, and its lines of code.

    The signature counts; docstrings, comments and blank lines don't.
    """
    source = path.read_text()
    tree = ast.parse(source)
    code = _lines_with_tokens(source) - _lines_of_docstrings(tree)
    for name, node in _functions(tree):
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        yield name, len(code.intersection(lines))


def _functions(
    node: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        yield from _functions(child, inner)


def _lines_with_tokens(source: str) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def _lines_of_docstrings(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(
            node,
            ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
        ):
            continue
        if node.body and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines
