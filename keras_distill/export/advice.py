"""Advice on models that a format can't represent, by the cause."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_distill.export.formats import Refusal, Target
from keras_distill.export.portability import described, is_graph, unportable_layers
from keras_distill.export.preprocessing import split_preprocessing
from keras_distill.export.serving import Served

# Operators of text and of tables.
_TEXT = re.compile(r"String|Regex|HashTable|LookupTable|lookup tables|AsString")
# Operators that draw random numbers.
_RANDOM = re.compile(r"Stateless(?:Random|Truncated|Parameterized)\w+|\bRandom[A-Z]\w+")
# Operators that a converter doesn't know for any dtype.
_UNKNOWN = re.compile(r"Tensorflow op \[.+?\] is not supported|Custom ops: ")
_SPLIT = (
    "split off the preprocessing with `keras_distill.export.split_preprocessing(model, "
    "formats)`, or with `--split-preprocessing` on the command line"
)
_BY_HAND = "split off by hand what is named here, and give it as `preprocessing=`"
_OTHER_FLOATS = {"float16", "bfloat16", "float64"}


def remedies(
    served: Served, target: Target, error: Exception, operations: Sequence[Any]
) -> Iterator[str]:
    """Yield remedies other than leaving the format out.

    Args:
        served: The model.
        target: The format and precision that it was converted to.
        error: The error of the converter or the runtime.
        operations: The layers and operations at fault, as far as they are known.
    """
    if isinstance(error, Refusal):
        if error.remedy:
            yield error.remedy
        return
    layers = list(served.model._flatten_layers())
    quantized = [layer for layer in layers if is_quantized(layer)]
    if quantized:
        yield (
            f"export the float model with `quantize=...`, as {described(quantized[:3])}"
            f"{' and others are' if len(quantized) > 3 else ''} quantised by Keras"
        )
    elif _TEXT.search(str(error)) or unportable_layers(
        served.model, (target.format.name,)
    ):
        yield _SPLIT if _can_be_split(served.model, target.format.name) else _BY_HAND
    elif _RANDOM.search(str(error)):
        yield (
            "draw the random numbers that the outputs depend on outside of the model, "
            "and make them an input"
        )
    elif target.format.name == "litert" and _are_loops(layers, error, operations):
        fixed = "" if served.batch_size else " or the export a `batch_size`"
        yield (
            f"give recurrent layers `unroll=True`{fixed}, as LiteRT has no loops over "
            "a batch of open size"
        )
    else:
        others = {layer.compute_dtype for layer in layers} & _OTHER_FLOATS
        if others and not _UNKNOWN.search(str(error)):
            yield f"compute in float32 rather than {', '.join(sorted(others))}"
        elif operations:
            yield (
                "build the model without what is named here; docs/export.md lists what "
                "each format holds"
            )


def _can_be_split(model: keras.Model, name: str) -> bool:
    """Return whether `split_preprocessing` can split the model; try it on a copy."""
    try:
        copy = keras.models.clone_model(model)
    except Exception:  # Some layers can't be copied. Then the graph decides.
        return is_graph(model)
    try:
        split_preprocessing(copy, (name,))
    except Exception:
        return False
    return True


def is_quantized(layer: keras.layers.Layer) -> bool:
    """Return whether Keras' `quantize` changed the layer, as in QLoRA."""
    return isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy)


def computes_in_16_bits(model: keras.Model) -> bool:
    """Return whether a layer of the model computes in float16 or bfloat16."""
    return any(
        layer.compute_dtype in ("float16", "bfloat16")
        for layer in model._flatten_layers()
    )


def _are_loops(
    layers: Sequence[Any], error: Exception, operations: Sequence[Any]
) -> bool:
    at_fault = any(_is_loop(operation) for operation in operations)
    # The operator may belong to a cell within a layer.
    return at_fault or ("TensorList" in str(error) and any(map(_is_loop, layers)))


def _is_loop(operation: Any) -> bool:
    return isinstance(operation, keras.layers.RNN) and not operation.unroll
