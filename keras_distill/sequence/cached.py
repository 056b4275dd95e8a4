"""Decoders: logits at chosen positions of growing rows, with or without a cache."""

import inspect
from typing import Any, Protocol

from keras import ops

from keras_distill.sequence.models import check_length, logits_of
from keras_distill.types import Nested, Tensor


class Decoder(Protocol):
    """A model that computes logits repeatedly while its rows grow."""

    def start(self, tokens: Tensor) -> Nested:
        """Return a cache computed from rows of shape `(batch, length)`.

        `logits` computes it again at positions whose tokens have changed.
        """

    def logits(
        self, tokens: Tensor, cache: Nested, index: Tensor, width: int
    ) -> tuple[Tensor, Nested]:
        """Return logits after `width` tokens from `index` on, and the new cache.

        The logits have shape `(batch, width, vocabulary)`. The cache must match all
        tokens before `index`. Later tokens may have changed.
        """


def decoder_of(model: Any, use_cache: bool = True) -> Decoder:
    """Return the decoder of a model, with a cache if the model has one.

    A model has a cache if it has two methods, as the `CausalLM`s of keras-hub do:

    - `call_with_cache(token_ids, cache, cache_update_index)` returns `(logits,
      hidden_states, cache)`: logits `(batch, width, vocabulary)` for token ids `(batch,
      width)` at the positions from `cache_update_index` on. The tokens attend to
      themselves and to the cache of earlier positions. The method overwrites the cache
      at their positions. Earlier contents of the cache from there on have no effect.
    - `_build_cache(token_ids)` returns `(hidden_states, cache)`: a cache for rows of
      that shape, computed from these rows. A model may name it `build_cache`.

    Models whose methods need other arguments are called without a cache. Such an
    argument is a recurrent state, which can't be overwritten at one position.

    Args:
        model: The model.
        use_cache: False calls the model on whole rows.
    """
    build = getattr(model, "build_cache", None) or getattr(model, "_build_cache", None)
    call = getattr(model, "call_with_cache", None)
    if use_cache and _takes(build, 1) and _takes(call, 3):
        return _Cached(model, build, call)
    return _Uncached(model)


class _Cached:
    def __init__(self, model: Any, build: Any, call: Any) -> None:
        self._model, self._build, self._call = model, build, call

    def start(self, tokens: Tensor) -> Nested:
        check_length(self._model, tokens.shape[1])
        return self._build(tokens)[-1]

    def logits(
        self, tokens: Tensor, cache: Nested, index: Tensor, width: int
    ) -> tuple[Tensor, Nested]:
        read = ops.slice(tokens, [0, index], [ops.shape(tokens)[0], width])
        logits, *_, cache = self._call(read, cache, index)
        return logits, cache


class _Uncached:
    def __init__(self, model: Any) -> None:
        self._model = model

    def start(self, tokens: Tensor) -> Nested:
        return ()

    def logits(
        self, tokens: Tensor, cache: Nested, index: Tensor, width: int
    ) -> tuple[Tensor, Nested]:
        logits = logits_of(self._model, tokens)
        start, shape = [0, index, 0], [ops.shape(tokens)[0], width, logits.shape[-1]]
        return ops.slice(logits, start, shape), cache


def _takes(method: Any, arguments: int) -> bool:
    """Return whether a method can be called with so many positional arguments."""
    if method is None:
        return False
    try:
        inspect.signature(method).bind(*range(arguments))
    except TypeError:
        return False
    return True
