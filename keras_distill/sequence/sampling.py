"""The choice of a token from a model's logits."""

import dataclasses
import math

import keras
from keras import ops

from keras_distill.types import Tensor

# The number of uniform numbers that the choice of one token uses.
NUMBERS = 2


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution from which tokens are chosen.

    Args:
        temperature: Divides the logits. 0 chooses the most probable token. Defaults to
            1: ancestral sampling.
        top_k: Keep the `top_k` most probable tokens, and all tokens that are as
            probable as the last of these. Defaults to None: all tokens.
        top_p: Of these, keep the fewest most probable tokens whose normalised
            probabilities sum to at least `top_p`, and all tokens that are as probable
            as the last of these. Defaults to None: all tokens.

    Raises:
        ValueError: If `temperature` is negative or not finite, `top_k` isn't a whole
            number from 1 on, or `top_p` isn't in (0, 1].

    Reference:
        Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
        https://arxiv.org/abs/1904.09751 (top-p).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                "`temperature` must be at least 0, and 0 chooses the most probable "
                f"token. Received: temperature={self.temperature!r}"
            )
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                "`top_p` must be in (0, 1]. Use None to keep all tokens. Received: "
                f"top_p={self.top_p!r}"
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return float32 probabilities for logits of shape `(..., vocabulary)`."""
        logits = ops.cast(logits, "float32")
        size = logits.shape[-1]
        if self.temperature == 0:
            return ops.one_hot(ops.argmax(logits, axis=-1), size, dtype="float32")
        kept = ops.softmax(logits / self.temperature, axis=-1)
        if self.top_k is not None and self.top_k < size:
            last = ops.top_k(kept, self.top_k)[0][..., -1:]
            kept = ops.where(kept >= last, kept, 0.0)
        if self.top_p is not None and self.top_p < 1:
            largest_first = ops.flip(ops.sort(kept, axis=-1), axis=-1)
            needed = self.top_p * ops.sum(kept, axis=-1, keepdims=True)
            before = ops.cumsum(largest_first, axis=-1) - largest_first
            # The first is always kept, also where rounding leaves `needed` at 0.
            within = ops.concatenate(
                [ops.ones_like(before[..., :1], "bool"), (before < needed)[..., 1:]], -1
            )
            last = ops.min(ops.where(within, largest_first, 1.0), -1, keepdims=True)
            kept = ops.where(kept >= last, kept, 0.0)
        return kept / ops.sum(kept, axis=-1, keepdims=True)

    def choose(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Return a token id for each row of logits of shape `(batch, vocabulary)`.

        `numbers` are uniform numbers, as in the function `choose`.
        """
        if self.temperature == 0:
            return ops.cast(ops.argmax(logits, axis=-1), "int32")
        return choose(self.probabilities(logits), numbers)


def choose(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return one index for each row, drawn in proportion to the row's weights.

    The cumulative weights are inverted in two steps: first over groups of about
    `sqrt(vocabulary)` tokens, then within the group. In one step, float32 would lose
    probabilities below 1e-7. A large vocabulary has many of them.

    Args:
        weights: Weights of at least 0, of shape `(batch, vocabulary)`. An index of
            weight 0 is never returned, unless all weights of a row are 0.
        numbers: Uniform numbers in [0, 1), of shape `(batch, NUMBERS)`.
    """
    size = weights.shape[-1]
    width = math.isqrt(size - 1) + 1
    weights = ops.pad(weights, [[0, 0], [0, width * width - size]])
    groups = ops.reshape(weights, (-1, width, width))
    group = _inverted(ops.sum(groups, axis=-1), numbers[:, 0])
    members = ops.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return group * width + _inverted(members, numbers[:, 1])


def _inverted(weights: Tensor, number: Tensor) -> Tensor:
    sums = ops.cumsum(weights, axis=-1)
    # Rounding may raise a sum where nothing is added, or lower the last one.
    over = (sums > number[:, None] * sums[:, -1:]) & (weights > 0)
    most = ops.argmax(weights, axis=-1)
    first = ops.argmax(ops.cast(over, "int32"), axis=-1)
    return ops.cast(ops.where(ops.any(over, axis=-1), first, most), "int32")


def uniform(
    prompts: Tensor,
    max_new_tokens: int,
    numbers: int,
    seed: int | keras.random.SeedGenerator | None,
) -> Tensor:
    """Return uniform numbers for each token of rows that begin with the prompts.

    They are drawn before generation. So a token depends on its position and on the
    tokens before it in its row, but on no other generated token.
    """
    batch, time = ops.shape(prompts)
    shape = (batch, time + max_new_tokens, numbers)
    return keras.random.uniform(shape, dtype="float32", seed=seed)


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless an argument is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number from 1 on. Received: {name}={value!r}"
        )
