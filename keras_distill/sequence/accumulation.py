"""Gradients of several batches, added so that all tokens weigh the same."""

from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.sequence.token_loss import TokenLoss
from keras_distill.types import Tensor


class TokenAccumulation:
    """Weighs batches by their tokens where an optimiser adds gradients.

    An optimiser with `gradient_accumulation_steps=k` takes the mean of `k` gradients,
    each of a mean over the tokens of its batch. A mean over the tokens of all `k`
    batches is a running mean: with batch `i`, which has `n_i` tokens of the `N_i` so
    far, the gradients added before are multiplied by `N_{i-1} / N_i`, and the gradient
    that is added by `k n_i / N_i`. Weights are the same in all `k` batches, so the sum
    is exact, for all terms of the loss.
    """

    def __init__(self) -> None:
        # The tokens of the batches since the last update.
        self.tokens = keras.Variable(
            0.0, dtype="float32", trainable=False, autocast=False, name="tokens"
        )

    def add(self, optimizer: Any, loss: TokenLoss, weight: Tensor) -> None:
        """Count the tokens of a batch, and weigh the gradients before it."""
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
        """Return a batch's loss with its value, and the gradient that is added."""
        count = ops.cast(loss.count(weight), "float32")
        total_count = ops.maximum(ops.add(self.tokens, 0.0), 1.0)
        share = steps(optimizer) * count / total_count
        scaled = total * ops.cast(share, total.dtype)
        return ops.stop_gradient(total - scaled) + scaled


def steps(optimizer: Any) -> int:
    """Return how many batches an optimiser takes for an update."""
    return backend.batches_per_update(optimizer)
