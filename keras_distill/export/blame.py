"""The search for the layers that a format can't represent, with advice."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_distill.export import parity, trials
from keras_distill.export.advice import computes_in_16_bits, remedies
from keras_distill.export.batches import Arrays
from keras_distill.export.formats import FULL, Diagnosis, Refusal, Target
from keras_distill.export.quiet import quiet
from keras_distill.export.recording import Call, Recording, recording
from keras_distill.export.serving import Served, Tensors, tensors_of, traced

# The name of the failing node in errors of converters and runtimes.
_NODES = (
    re.compile(r"Tensorflow op \[(.+?): \w+\] is not supported"),  # tf2onnx
    re.compile(r"Failed to convert node '(.+?)'"),
    re.compile(r"node name: ([^\s)]+)\)"),  # onnx
    re.compile(r"Node \(([^\s)]+)\) Op \("),  # ONNX Runtime
    re.compile(r"node\. Name:'([^']+)'"),
    re.compile(r"in node \(([^\s)]+)\)"),
    re.compile(r"node with name '([^']+)'"),
    re.compile(r"Input \d+ of node (\S+) was passed"),  # TensorFlow
    re.compile(r'fused\["\w+:", "([^"@]+)@'),  # LiteRT
)
_ALL_TRIED = (
    "Each layer and operation by itself is right, so the cause lies in how they are "
    "joined"
)
_ADDED_UP = "No layer or operation is off by itself: their rounding to 16 bits adds up"
_TRACED = (
    "Keras itself gives other values when it is traced, as by `predict`, than eagerly, "
    "as by `model(x)`. Files are made of the trace"
)
_CAST = (
    "give such a layer floats, as with `layers.Rescaling` before it or by "
    "`keras.ops.cast(x, 'float32')`: of integers it returns integers in one of both"
)
_THE_SAME = "let the layer compute the same in both"
_NOT_ALL_TRIED = "Which layer is at fault isn't known"


@dataclass(frozen=True)
class Examiner:
    """The search for the cause of a failed conversion or comparison.

    Attributes:
        served: The model that was converted.
        batch: A batch of its named inputs.
        tolerance: The largest relative difference from Keras, in full precision.
    """

    served: Served
    batch: Arrays
    tolerance: float

    def __call__(self, target: Target, error: Exception) -> Diagnosis:
        """Return the layers at fault for an error of a converter or runtime."""
        if isinstance(error, Refusal):
            return Diagnosis(error.where, self._remedies(target, error, ()))
        calls, note = self._at_fault(target, error)
        operations = [call.operation for call in calls]
        return Diagnosis(_named(calls), self._remedies(target, error, operations), note)

    def of_values(self, target: Target, error: Exception) -> Diagnosis:
        """Return the first layer whose output differs from Keras'."""
        others: list[str] = []
        in_16_bits = computes_in_16_bits(self.served.model)
        if in_16_bits:
            others.append("raise `tolerance`, as the model computes in 16 bits")
        if target.precision != FULL:
            return Diagnosis("", tuple(others))
        output = getattr(error, "output", None)
        calls, note = self._tried(target, self.tolerance, output)
        if self._differs_traced():
            integers = [it.dtype.is_integer for it in self.served.inputs.values()]
            others.append(_CAST if any(integers) else _THE_SAME)
            note = _TRACED
        elif in_16_bits and not calls:
            note = _ADDED_UP
        return Diagnosis(_named(calls), tuple(others), note)

    def _differs_traced(self) -> bool:
        """Return whether Keras itself computes other values when it is traced."""
        call, inputs = self.served.call, self.served.inputs
        graph = tf.function(call, input_signature=[inputs], autograph=False)
        tensors = tensors_of(self.batch)
        try:
            with tf.device("/CPU:0"), quiet("tensorflow", "absl"):
                first, again, traced = call(tensors), call(tensors), graph(tensors)
        except Exception:
            # The caller must get the earlier error, not this one.
            return False
        return self._agree(first, again) and not self._agree(first, traced)

    def _agree(self, wanted: Tensors, given: Tensors) -> bool:
        return all(
            parity.agree(given[name].numpy(), tensor.numpy(), self.tolerance)
            for name, tensor in wanted.items()
        )

    def _at_fault(self, target: Target, error: Exception) -> tuple[list[Call], str]:
        calls = mentioned(str(error), self._record())
        if calls or target.precision != FULL:
            return calls, "" if calls else _NOT_ALL_TRIED
        return self._tried(target)

    def _tried(
        self,
        target: Target,
        tolerance: float | None = None,
        output: str | None = None,
    ) -> tuple[list[Call], str]:
        try:
            verdict = trials.find(self.served, target, self.batch, tolerance, output)
        except Exception:
            # The caller must get the earlier error, not this one.
            return [], _NOT_ALL_TRIED
        return verdict.at_fault, _note(verdict)

    def _remedies(
        self, target: Target, error: Exception, operations: Sequence[Any]
    ) -> tuple[str, ...]:
        return tuple(remedies(self.served, target, error, operations))

    def _record(self) -> Recording:
        """Trace the model again: its nodes have the same names in each trace."""
        with recording() as recorded:
            traced(self.served.call, self.served.inputs)
        return recorded


def mentioned(message: str, recorded: Recording) -> list[Call]:
    """Return the calls whose nodes a message names, each layer once."""
    names = {name for pattern in _NODES for name in pattern.findall(message)}
    calls = [call for name in names for call in _makers(name, recorded)]
    order = {id(call): i for i, call in enumerate(_all_calls(recorded.root))}
    ordered = sorted(calls, key=lambda call: order[id(call)])
    return list({id(call.operation): call for call in ordered}.values())


def _makers(name: str, recorded: Recording) -> list[Call]:
    # tf2onnx numbers the nodes that it adds: `dense/MatMul__12`.
    parts = re.sub(r"(__\d+)+$", "", name).split("/")
    # An inlined function puts its own name before the node's.
    for begin in range(len(parts)):
        calls = recorded.makers.get("/".join(parts[begin:]), [])
        if calls:
            # A name that is in two graphs, e.g. of two loops, doesn't identify a layer.
            return calls if len({id(c.operation) for c in calls}) == 1 else []
    return []


def _all_calls(root: Call) -> Iterable[Call]:
    for call in root.children:
        yield call
        yield from _all_calls(call)


def _named(calls: list[Call]) -> str:
    return ", ".join(call.label for call in calls)


def _note(verdict: trials.Verdict) -> str:
    if verdict.at_fault:
        return ""
    return _ALL_TRIED if verdict.complete else _NOT_ALL_TRIED
