"""Logits at some positions of rows that grow, with a key-value cache or without."""

import inspect
from typing import Any, Protocol

from keras import ops

from keras_distill.sequence.models import check_length, logits_of
from keras_distill.types import Nested, Tensor


class Decoder(Protocol):
    """A model that is asked for logits again and again, while its rows grow."""

    def start(self, tokens: Tensor) -> Nested:
        """Return a cache for rows of this shape `(batch, length)`, which has read them.

        What it has read is read again where the rows change.
        """

    def logits(
        self, tokens: Tensor, cache: Nested, index: Tensor, width: int
    ) -> tuple[Tensor, Nested]:
        """Return logits `(batch, width, vocabulary)` after the tokens from `index` on.

        The cache must have read all tokens before `index` as they are. Later ones may
        have changed since.
        """


def decoder_of(model: Any, use_cache: bool = True) -> Decoder:
    """Return the decoder of a model: cached where the model has a cache.

    A model has a cache if it has two methods, as the `CausalLM`s of keras-hub do:

    - `call_with_cache(token_ids, cache, cache_update_index)` returns `(logits,
      hidden_states, cache)`: logits `(batch, width, vocabulary)` for token ids `(batch,
      width)` that stand at the positions from `cache_update_index` on. They attend to
      themselves and to what the cache holds of earlier positions. The cache is
      replaced at their positions, whatever it holds from there on.
    - `_build_cache(token_ids)` returns `(hidden_states, cache)`: a cache with room for
      rows of that shape, which has read them. A model may name it `build_cache`.

    Models whose methods need other arguments, such as a recurrent state that can't be
    written again, are called without a cache.

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
