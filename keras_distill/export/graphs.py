"""Ways through traced graphs."""

from collections.abc import Iterator
from typing import Any


def behind(tensors: list[Any]) -> set[Any]:
    """Return the tensors that are computed of some tensors, with those."""
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


def nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the functions that it calls."""
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def
