"""Generation functions, traced as a part of a step or compiled once."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras

from keras_distill import backend, scopes
from keras_distill.types import Nested, Tensor

# The compiled functions of models that are alive.
_FUNCTIONS: weakref.WeakKeyDictionary[
    keras.Model, dict[Hashable, Callable[..., Nested]]
] = weakref.WeakKeyDictionary()


def run(
    function: Callable[..., Nested],
    models: tuple[keras.Model, ...],
    options: tuple[Hashable, ...],
    *tensors: Tensor,
) -> Nested:
    """Return `function(*models, *options, *tensors)`, with layers as in inference.

    While a step is traced, the function becomes a part of the step. Elsewhere it is
    compiled once for these models and options.

    Args:
        function: A function on `keras.ops`.
        models: The models whose variables the function reads.
        options: All other arguments that aren't tensors.
        *tensors: The tensors that the function computes on.
    """
    if any(backend.is_traced(tensor) for tensor in tensors):
        return _called(function, models, options, tensors)
    # A model has other variables after one of its layers was replaced.
    variables = tuple(id(v) for model in models for v in model.variables)
    references = tuple(weakref.ref(model) for model in models)
    key = (function, references[1:], options, variables)
    of_model = _FUNCTIONS.setdefault(models[0], {})
    if key not in of_model:

        def alive() -> tuple[Any, ...]:
            return tuple(reference() for reference in references)

        def called(*tensors: Tensor) -> Nested:
            return _called(function, alive(), options, tensors)

        of_model[key] = backend.compiled(called, alive)
    return of_model[key](*tensors)


def _called(
    function: Callable[..., Nested],
    models: tuple[Any, ...],
    options: tuple[Hashable, ...],
    tensors: tuple[Tensor, ...],
) -> Nested:
    with scopes.inference(*models):
        return function(*models, *options, *tensors)
