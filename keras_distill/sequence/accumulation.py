"""Gradients of several batches, added so that all tokens weigh the same."""

from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.sequence.token_loss import TokenLoss
from keras_distill.types import Tensor


class TokenAccumulation:
    """Weighs batches by their numbers of tokens in gradient accumulation.

    An optimiser with `gradient_accumulation_steps=k` takes the mean of `k` gradients.
    Each is the gradient of a mean over the tokens of one batch. This class turns the
    result into the gradient of a mean over the tokens of all `k` batches. Let batch `i`
    have `n_i` tokens, and the batches up to it `N_i`. The gradients that were added
    before it are multiplied by `N_{i-1} / N_i`, and its own gradient by `k n_i / N_i`.
    The model's weights are the same in all `k` batches, so the sum is exact, for all
    terms of the loss.
    """

    def __init__(self) -> None:
        # The number of tokens in the batches since the last update.
        self.tokens = keras.Variable(
            0.0, dtype="float32", trainable=False, autocast=False, name="tokens"
        )

    def add(self, optimizer: Any, loss: TokenLoss, weight: Tensor) -> None:
        """Count the tokens of a batch, and scale the gradients added before it."""
        if backend.replicas() > 1:
            raise ValueError(
                "Gradients of several batches can't be added on several devices here: "
                "let each device take a larger batch. Received: "
                f"gradient_accumulation_steps={steps(optimizer)}"
            )
        begins = ops.equal(backend.accumulated_batches(optimizer), 0)
        before = ops.where(begins, 0.0, ops.add(self.tokens, 0.0))
        total = before + ops.cast(loss.count(weight), "float32")
        self.tokens.assign(total)
        backend.scale_accumulated(optimizer, before / ops.maximum(total, 1.0))

    def weighed(
        self, total: Tensor, optimizer: Any, loss: TokenLoss, weight: Tensor
    ) -> Tensor:
        """Return a batch's loss of the same value, with the gradient to be added."""
        count = ops.cast(loss.count(weight), "float32")
        total_count = ops.maximum(ops.add(self.tokens, 0.0), 1.0)
        share = steps(optimizer) * count / total_count
        scaled = total * ops.cast(share, total.dtype)
        return ops.stop_gradient(total - scaled) + scaled


def steps(optimizer: Any) -> int:
    """Return the number of batches whose gradients an optimiser adds for an update."""
    return backend.batches_per_update(optimizer)
