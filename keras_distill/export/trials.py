"""Exports of single layers, to find those that a format computes wrongly."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import parity
from keras_distill.export.batches import Arrays, other_size
from keras_distill.export.formats import Conversion, Target
from keras_distill.export.recording import Call, Recording, recording
from keras_distill.export.serving import Served, Tensors, tensors_of, traced

# The rows of a trial. The outputs of all layers for them are kept in memory.
_ROWS = 8
# The layers of one conversion, whose fixed cost is that of several layers.
_AT_ONCE = 8
_SECONDS = 20.0


@dataclass(frozen=True)
class Verdict:
    """The result of trials.

    Attributes:
        at_fault: The calls that the format refuses or computes wrongly by themselves,
            in the order of the model.
        complete: Whether every layer and operation of the model was tried.
    """

    at_fault: list[Call]
    complete: bool


@dataclass(frozen=True, eq=False)
class _Unit:
    """A call to try by itself.

    Attributes:
        call: The call, in eager mode.
        traced: The same call in the trace of the model.
        inputs: Name to spec of its tensors, as inputs of the trial.
        batches: The values of its tensors, with one dict for each batch.
        parts: The calls made within it, for a finer search.
    """

    call: Call
    traced: Call
    inputs: dict[str, tf.TensorSpec]
    batches: list[Arrays]
    parts: "list[_Unit]"

    def run(self, label: str, tensors: Tensors) -> Tensors:
        """Make the call on other tensors; return its outputs by name."""
        given = iter(tensors[f"{label}_{name}"] for name in self.inputs)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(given) if tf.is_tensor(x) else x,
            (self.call.args, self.call.kwargs),
        )
        output = keras.tree.flatten(self.call.operation(*args, **kwargs))
        values = [value for value in output if tf.is_tensor(value)]
        return {f"{label}_output_{i}": value for i, value in enumerate(values)}

    @property
    def kind(self) -> str:
        """A text that is equal for calls that a converter treats in the same way."""
        operation = self.call.operation
        try:
            config = {**operation.get_config(), "name": None}
        except Exception:  # One of the caller's layers that can't be saved.
            config = {"id": id(operation)}
        constants = [
            None if tf.is_tensor(x) else x
            for x in keras.tree.flatten((self.call.args, self.call.kwargs))
        ]
        return repr((type(operation), config, list(self.inputs.values()), constants))


def find(
    served: Served,
    target: Target,
    batch: Arrays,
    tolerance: float | None = None,
    output: str | None = None,
) -> Verdict:
    """Export the layers of a model by themselves, within some seconds.

    Args:
        served: The model.
        target: The format, in full precision.
        batch: Named inputs of the model.
        tolerance: The tolerance with which values are also compared with Keras', to
            find the first layer that differs. With None, only layers are found that
            can't be converted or run.
        output: The output that is wrong: only calls on which it depends are tried.
            None tries all.

    Returns:
        The calls that fail by themselves. Differences that only appear in the
        combination of layers aren't found.
    """
    end = time.monotonic() + _SECONDS
    units, complete = _units(served, batch, output)
    found, all_tried = _search(units, target, tolerance, end)
    inner = found
    while inner:
        # If a part of a layer also fails by itself, the part is named instead.
        inner, _ = _search([p for u in inner for p in u.parts], target, tolerance, end)
        found = [u for u in found if not set(u.parts) & set(inner)] + inner
    return Verdict([unit.call for unit in found], complete and all_tried)


def _search(
    units: list[_Unit], target: Target, tolerance: float | None, end: float
) -> tuple[list[_Unit], bool]:
    """Return the units at fault, and whether the search was finished.

    With a tolerance, the search ends at the first unit at fault.
    """
    unique = list({unit.kind: unit for unit in units[::-1]}.values())[::-1]
    found: list[_Unit] = []
    for begin in range(0, len(unique), _AT_ONCE):
        if time.monotonic() > end:
            return found, False
        found += _faulty(unique[begin : begin + _AT_ONCE], target, tolerance)
        if found and tolerance is not None:
            return found[:1], True
    return found, True


def _faulty(units: list[_Unit], target: Target, tolerance: float | None) -> list[_Unit]:
    try:
        trial, wanted = _trial(units)
    except Exception:
        # A layer can't be called by itself, which isn't the format's fault.
        return _halved(units, target, tolerance) if len(units) > 1 else []
    try:
        given = _exported(trial, target, _batches(units))
    except OSError:
        raise
    except Exception:
        return _halved(units, target, tolerance) if len(units) > 1 else units
    off = [
        name
        for got, want in zip(given, wanted, strict=True)
        for name in want
        if tolerance is not None and not parity.agree(got[name], want[name], tolerance)
    ]
    return [u for i, u in enumerate(units) if any(n.startswith(f"u{i}_") for n in off)]


def _halved(units: list[_Unit], target: Target, tolerance: float | None) -> list[_Unit]:
    middle = len(units) // 2
    halves = units[:middle], units[middle:]
    return [unit for half in halves for unit in _faulty(half, target, tolerance)]


def _trial(units: list[_Unit]) -> tuple[Served, list[Arrays]]:
    """Return the units as one model, side by side, and Keras' outputs for them."""
    specs = {
        f"u{i}_{name}": tf.TensorSpec(spec.shape, spec.dtype, name=f"u{i}_{name}")
        for i, unit in enumerate(units)
        for name, spec in unit.inputs.items()
    }

    def call(tensors: Tensors) -> Tensors:
        outputs: Tensors = {}
        for i, unit in enumerate(units):
            outputs |= unit.run(f"u{i}", tensors)
        return outputs

    function, outputs = traced(call, specs)
    holder = keras.layers.Layer()
    for i, unit in enumerate(units):
        # Converters need the weights and tables of the layers.
        setattr(holder, f"part_{i}", unit.call.operation)
    served = Served(holder, lambda tensors: tensors, call, function, specs, outputs)
    wanted = []
    for batch in _batches(units):
        with _unchanged():
            values = call(tensors_of(batch))
        wanted.append({name: value.numpy() for name, value in values.items()})
    return served, wanted


@contextmanager
def _unchanged() -> Iterator[None]:
    """Run layers on the CPU, and restore states and seeds afterwards."""
    with keras.StatelessScope(), tf.device("/CPU:0"):
        yield


def _batches(units: list[_Unit]) -> list[Arrays]:
    """Return the inputs of a trial of the units, with one dict for each batch."""
    return [
        {
            f"u{i}_{name}": array
            for i, batch in enumerate(batches)
            for name, array in batch.items()
        }
        for batches in zip(*(unit.batches for unit in units), strict=True)
    ]


def _exported(trial: Served, target: Target, batches: list[Arrays]) -> list[Arrays]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, target.file)
        target.format.write(Conversion(trial), path)
        loaded = target.format.load(path)
        return [loaded.run(batch) for batch in batches]


def _units(
    served: Served, batch: Arrays, output: str | None
) -> tuple[list[_Unit], bool]:
    """Return the calls of the model that can be tried, and whether these are all."""
    batches = [{name: array[:_ROWS] for name, array in batch.items()}]
    if served.batch_size is None:
        batches.append(other_size(batches[0]))
    else:
        batches = [{n: array[: served.batch_size] for n, array in batch.items()}]
    runs = []
    for arrays in batches:
        with recording() as recorded, _unchanged():
            served.call(tensors_of(arrays))
        runs.append(recorded.root)
    with recording() as recorded:
        function, outputs = traced(served.call, served.inputs)
    open_axes = any(None in spec.shape[1:] for spec in served.inputs.values())
    units, complete = _units_in(recorded.root, runs, open_axes)
    if output is not None:
        graph = function.get_concrete_function().graph
        # The outputs of a function are sorted by name.
        tensor = dict(zip(sorted(outputs), graph.outputs, strict=True))[output]
        upstream = _upstream(tensor.op, recorded)
        units = [unit for unit in units if unit.traced in upstream]
    return units, complete


def _upstream(operation: Any, recorded: Recording) -> set[Call]:
    """Return the calls whose nodes an operation depends on, and their parents."""
    calls: set[Call] = set()
    seen: set[str] = set()
    ends = [operation]
    while ends:
        node = ends.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        ends += [tensor.op for tensor in node.inputs]
        for call in recorded.makers.get(node.name, []):
            around: Call | None = call
            while around is not None:
                calls.add(around)
                around = around.parent
    return calls


def _units_in(
    symbolic: Call, runs: Sequence[Call], open_axes: bool
) -> tuple[list[_Unit], bool]:
    calls = [symbolic.children, *(run.children for run in runs)]
    made = [[call.operation for call in children] for children in calls]
    if any(operations != made[0] for operations in made):
        return [], False  # The calls differ: loops, or code that depends on values.
    found: list[_Unit] = []
    complete = True
    for trace, *eager in zip(*calls, strict=True):
        parts, all_parts = _units_in(trace, eager, open_axes)
        if isinstance(trace.operation, keras.Model):
            found += parts
            complete = complete and all_parts
            continue
        unit = _unit(trace, eager, parts, open_axes)
        found += [] if unit is None else [unit]
        complete = complete and unit is not None
    return found, complete


def _unit(
    trace: Call, runs: Sequence[Call], parts: list[_Unit], open_axes: bool
) -> _Unit | None:
    leaves = [_tensors((call.args, call.kwargs)) for call in (trace, *runs)]
    if not all(leaves) or not _tensors(runs[0].output):
        return None
    inputs = {
        f"input_{i}": tf.TensorSpec(_shape(symbolic, values, open_axes), symbolic.dtype)
        for i, (symbolic, *values) in enumerate(zip(*leaves, strict=True))
    }
    batches = [
        {f"input_{i}": tensor.numpy() for i, tensor in enumerate(tensors)}
        for tensors in leaves[1:]
    ]
    return _Unit(runs[0], trace, inputs, batches, parts)


def _tensors(structure: Any) -> list[Any]:
    """Return the tensors of a structure; an empty list if some aren't dense."""
    flat = keras.tree.flatten(structure)
    if any(isinstance(x, tf.RaggedTensor | tf.SparseTensor) for x in flat):
        return []
    return [x for x in flat if tf.is_tensor(x)]


def _shape(symbolic: Any, values: list[Any], open_axes: bool) -> list[int | None]:
    """Return a shape in which only the axes are open that the model needs open.

    Within the model, converters know the sizes of axes from the rest of the graph.
    Without these sizes, they might refuse a layer that they convert in the model.
    """
    shape = list(values[0].shape)
    known = symbolic.shape.as_list() if symbolic.shape.rank is not None else None
    for axis, sizes in enumerate(zip(*(v.shape for v in values), strict=True)):
        is_open = known is None or known[axis] is None
        if len(set(sizes)) > 1 or (is_open and open_axes):
            shape[axis] = None
    return shape
