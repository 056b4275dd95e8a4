"""Searches in traced graphs."""

from collections.abc import Iterator
from typing import Any


def behind(tensors: list[Any]) -> set[Any]:
    """Return the tensors that are computed from some tensors, and these tensors."""
    found: set[Any] = set()
    ends = list(tensors)
    while ends:
        tensor = ends.pop()
        if tensor.ref() not in found:
            found.add(tensor.ref())
            ends += [out for user in tensor.consumers() for out in user.outputs]
    return found


def functions(node: Any) -> Iterator[str]:
    """Yield the names of the functions that a node calls."""
    for attribute in node.attr.values():
        for function in (attribute.func, *attribute.list.func):
            if function.name:
                yield function.name


def running(graph: Any, kinds: set[str]) -> list[str]:
    """Return the nodes of a graph that run operators of some kinds.

    The operators may be in functions that the nodes call.
    """
    definition = graph.as_graph_def()
    library = {f.signature.name: f.node_def for f in definition.library.function}
    known: dict[str, bool] = {}

    def runs(node: Any) -> bool:
        return node.op in kinds or any(map(holds, functions(node)))

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False  # Ends the recursion if a function calls itself.
            known[name] = any(map(runs, library.get(name, ())))
        return known[name]

    return [node.name for node in definition.node if runs(node)]
