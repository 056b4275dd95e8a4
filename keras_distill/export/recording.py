"""Records of calls, and of the layer or operation that made each node of a graph."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.patching import replaced


@dataclass(eq=False)
class Call:
    """One call of a layer, or of an operation such as `keras.ops.sort`.

    Attributes:
        operation: The layer or operation; None at the root, which is no call.
        parent: The call within which it is made.
        args: Its positional arguments.
        kwargs: Its keyword arguments, including masks and `training`.
        output: Its return value; None if it raised an error.
        children: The calls made within it, in order.
    """

    operation: Any = None
    parent: "Call | None" = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    children: list["Call"] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The path inside the model and the class: `'encoder/sort' (Sort)`."""
        kind = type(self.operation).__name__
        if isinstance(self.operation, keras.layers.TimeDistributed):
            kind = f"{kind} of {type(self.operation.layer).__name__}"
        return f"{self.path!r} ({kind})"

    @property
    def is_outermost(self) -> bool:
        """Whether it isn't made within another call, e.g. the call of the model."""
        return self.parent is None or self.parent.operation is None

    @property
    def path(self) -> str:
        """The path of names to it, without the model's own unless it is the model."""
        names: list[str] = []
        call: Call | None = self
        while call is not None and call.operation is not None:
            names.append(call.operation.name)
            call = call.parent
        return "/".join(names[::-1][1:] or names)


@dataclass(eq=False)
class Recording:
    """The calls that were made, and the nodes of graphs that they made.

    Attributes:
        root: The parent of the outermost calls.
        makers: Name of a node to the innermost calls that made it, one for each graph.
        failed: The innermost call that raised an error; None without one.
    """

    root: Call = field(default_factory=Call)
    makers: dict[str, list[Call]] = field(default_factory=dict)
    failed: Call | None = None


@contextmanager
def recording() -> Iterator[Recording]:
    """Record the calls of all layers and operations that this thread makes.

    Layers and models aren't changed. Within the block, `keras.Operation.__call__` is
    replaced, which every layer calls inside its name scope.
    """
    recorded = Recording()
    recorder = _Recorder(recorded)
    thread = threading.get_ident()

    def recording_call(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            run = functools.partial(original, operation)
            if threading.get_ident() != thread:
                return run(*args, **kwargs)
            return recorder.record(run, operation, args, kwargs)

        return call

    with replaced(keras.Operation, {"__call__": recording_call}):
        yield recorded


class _Recorder:
    def __init__(self, recorded: Recording) -> None:
        self._recorded = recorded
        self._current = recorded.root
        # Per graph, the index of each node whose maker is known.
        self._known: dict[int, set[int]] = {}
        self._graphs: list[Any] = []  # Kept, so that no id is used twice.

    def record(
        self,
        run: Callable[..., Any],
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        parent, graph = self._current, tf.compat.v1.get_default_graph()
        begin = len(graph.get_operations())
        call = Call(operation, parent, args, kwargs)
        parent.children.append(call)
        self._current = call
        try:
            call.output = run(*args, **kwargs)
        except Exception:
            self._recorded.failed = self._recorded.failed or call
            raise
        finally:
            self._current = parent
            self._own(call, graph, begin)
        return call.output

    def _own(self, call: Call, graph: Any, begin: int) -> None:
        """Record the maker of the nodes from `begin` on; inner calls end first."""
        if id(graph) not in self._known:
            self._known[id(graph)] = set()
            self._graphs.append(graph)
        known = self._known[id(graph)]
        for index, node in enumerate(graph.get_operations()[begin:], begin):
            if index not in known:
                known.add(index)
                self._recorded.makers.setdefault(node.name, []).append(call)
