"""The blocks of a model that can be left out: their output fits their input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_distill.students.graph import Node, graph_of, nodes_of

# What two segments that repeat each other have in common.
Kind = tuple[Any, ...]


@dataclass
class Segment:
    """The calls between two tensors through which all of the model's paths lead.

    Attributes:
        entry: The tensor that it reads.
        exit: The tensor that it computes.
        nodes: The calls in between.
    """

    entry: Any
    exit: Any
    nodes: list[Node]

    @property
    def kind(self) -> Kind:
        """The classes of its layers and the shapes of their weights."""
        return tuple(
            (
                type(node.operation).__name__,
                tuple(tuple(w.shape) for w in _weights(node)),
            )
            for node in self.nodes
        )

    @property
    def keeps_shape(self) -> bool:
        """Whether its output has the shape and dtype of its input."""
        entry, output = self.entry, self.exit
        return bool(entry.shape == output.shape and entry.dtype == output.dtype)

    @property
    def has_kernel(self) -> bool:
        """Whether any of its weights has two or more axes."""
        return any(len(w.shape) > 1 for node in self.nodes for w in _weights(node))


@dataclass
class Block:
    """Segments that are left out together.

    Attributes:
        segments: The segments in their order.
        stage: The number of the stage: blocks of one stage repeat each other.
        place: The index of the block in its stage.
    """

    segments: list[Segment]
    stage: int
    place: int

    @property
    def nodes(self) -> list[Node]:
        """All calls of the block."""
        return [node for segment in self.segments for node in segment.nodes]

    @property
    def name(self) -> str:
        """The name of its first layer that has a kernel."""
        named = (
            node.operation.name
            for node in self.nodes
            if any(len(w.shape) > 1 for w in _weights(node))
        )
        return str(next(named))

    def holds(self, name: str) -> bool:
        """Return whether the block has a layer of this name, also in a sub-model."""
        return any(name in _names(node.operation) for node in self.nodes)


def blocks_of(model: keras.Model) -> list[Block]:
    """Return the blocks of a model and of its sub-models, in their order."""
    return _Search().blocks(model)


class _Search:
    def __init__(self) -> None:
        self.stage = -1
        self.seen: set[int] = set()

    def blocks(self, model: keras.Model) -> list[Block]:
        result = []
        inside: set[int] = set()
        graph = graph_of(model)
        for run in _runs(list(_segments(graph))):
            for block in self._of_run(run):
                result.append(block)
                inside.update(map(id, block.nodes))
        for node in nodes_of(graph):
            inner, key = graph_of(node.operation), id(node.operation)
            if inner is not None and id(node) not in inside and key not in self.seen:
                self.seen.add(key)
                result += self.blocks(node.operation)
        return result

    def _of_run(self, run: list[Segment]) -> Iterator[Block]:
        """Yield the repeated segments of a run, then what is left beside them."""
        start, period, count = _repeated(run)
        if not count:
            yield from self._alone(run)
            return
        yield from self._of_run(run[:start])
        self.stage += 1
        stage = self.stage
        for place in range(count):
            begin = start + place * period
            yield Block(run[begin : begin + period], stage, place)
        yield from self._of_run(run[start + count * period :])

    def _alone(self, run: list[Segment]) -> Iterator[Block]:
        """Yield a block for each segment with a kernel.

        Segments after it belong to the block if the block then ends with a layer of the
        class that came before the block: an activation, for example.
        """
        places = [place for place, segment in enumerate(run) if segment.has_kernel]
        if not places:
            return
        for place, following in zip(places, [*places[1:], len(run)], strict=True):
            begun = type(run[place].entry._keras_history.operation)
            end = place + 1
            for last in range(place, following):
                if type(run[last].exit._keras_history.operation) is begun:
                    end = last + 1
                    break
            self.stage += 1
            yield Block(run[place:end], self.stage, 0)


def _repeated(run: list[Segment]) -> tuple[int, int, int]:
    """Return the start, length and number of the repeats that cover most of a run."""
    kinds = [segment.kind for segment in run]
    best, found = (0, 0, 0), (0, 0, 0)
    for period in range(1, len(run) // 2 + 1):
        for start in range(len(run) - 2 * period + 1):
            count = 1
            while (
                kinds[start + count * period : start + (count + 1) * period]
                == kinds[start : start + period]
            ):
                count += 1
            kernels = [s.has_kernel for s in run[start : start + period]]
            # Of equal covers: the shortest period, then one that begins with a kernel.
            rank = (count * period, -period, int(kernels[0]))
            if count > 1 and any(kernels) and rank > best:
                best, found = rank, (start, period, count)
    return found


def _runs(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Yield the longest runs of segments that keep the shape."""
    run: list[Segment] = []
    for segment in segments:
        if segment.keeps_shape:
            run.append(segment)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _segments(graph: Any) -> Iterator[Segment]:
    """Yield the segments of a graph in their order.

    Tensors that are computed without weights, such as masks, may bypass a segment.
    """
    nodes = nodes_of(graph)
    last_use = {id(tensor): len(nodes) for tensor in graph.outputs}
    for place, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = max(place, last_use.get(id(tensor), place))
    beside = {id(tensor) for tensor in graph.inputs}
    computed, entry, between = list(graph.inputs), None, []
    if len(graph.inputs) == 1:
        (entry,) = graph.inputs
    for place, node in enumerate(nodes):
        computed += node.outputs
        if not _weights(node) and all(id(t) in beside for t in node.input_tensors):
            beside.update(id(tensor) for tensor in node.outputs)
        else:
            between.append(node)
        computed = [t for t in computed if last_use.get(id(t), -1) > place]
        through = [t for t in computed if id(t) not in beside]
        if len(through) == 1 and any(through[0] is t for t in node.outputs):
            if entry is not None:
                yield Segment(entry, through[0], between)
            entry, between = through[0], []


def _weights(node: Node) -> list[Any]:
    return list(getattr(node.operation, "weights", []))


def _names(operation: Any) -> Iterator[str]:
    yield operation.name
    if graph_of(operation) is not None:
        for node in nodes_of(graph_of(operation)):
            yield from _names(node.operation)
