"""The mean of a distillation loss over the valid tokens of a batch of sequences."""

from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.losses import DistillationLoss, ForwardKL, checks
from keras_distill.losses.around import LossAround
from keras_distill.losses.weighting import are_valid, both, token_weights
from keras_distill.types import Tensor

REDUCTIONS = ("token", "sequence")


@keras.saving.register_keras_serializable(package="keras_distill")
class TokenLoss(LossAround):
    r"""A divergence between next-token distributions, averaged over valid tokens.

    `reduction="token"`: `sum_bt w_bt d_bt / max(1, N)`, where `d_bt` is `loss` between
    the distributions at position `t` of sequence `b`, `w_bt` is the sample weight, and
    `N` is the number of valid tokens. A token is valid if its weight isn't 0 and Keras'
    mask is True or absent. `N` counts the whole batch, also if several devices share
    it. So padding changes neither the loss nor a gradient, and a long sequence weighs
    more than a short one.

    `reduction="sequence"`: the mean over the valid tokens of each sequence, then over
    the sequences that have a valid token. So all sequences weigh the same.

    Without valid tokens the loss is 0, and so is its gradient.

    Position `t` predicts token `t + 1`. Shift once, in the data: the models read
    `tokens[:, :-1]`, and the weights are those of `tokens[:, 1:]`.

    Args:
        loss: A distillation loss over the last axis that returns one value per token:
            `ForwardKL`, `ReverseKL`, `GeneralizedJSD`, ... Its own reduction isn't
            used. Defaults to `ForwardKL()`.
        reduction: `"token"` (default) or `"sequence"`.
        name: Name of the loss.

    Raises:
        TypeError: If `loss` isn't a distillation loss.
        ValueError: If `reduction` is neither of these, or if the class axis of `loss`
            isn't the last axis. When called: if the outputs don't have the same shape
            `(batch, time, vocabulary)`.

    Example:
        >>> teacher = ops.zeros((1, 3, 4))
        >>> student = 2.0 * ops.one_hot([[0, 1, 2]], 4)
        >>> loss = TokenLoss(ForwardKL())
        >>> round(float(loss(teacher, student, [[1.0, 1.0, 0.0]])), 4)
        0.4545

    Reference:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models",
        https://arxiv.org/abs/2306.13649, section 3.1, for the mean over sequences.
    """

    does = "averages over tokens"

    def __init__(
        self,
        loss: DistillationLoss | None = None,
        *,
        reduction: str = "token",
        name: str | None = None,
    ) -> None:
        loss = ForwardKL() if loss is None else loss
        if not isinstance(loss, DistillationLoss):
            raise TypeError(
                "`loss` must be a distillation loss of `keras_distill.losses`, such as "
                f"`ForwardKL()`. Received: loss={loss!r} of type {type(loss).__name__}"
            )
        if loss.axis not in (-1, 2):
            raise ValueError(
                "The classes of `loss` must be the last axis, that of the vocabulary. "
                f"Received: loss={loss.name}, axis={loss.axis}"
            )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}. Received: "
                f"reduction={reduction!r}"
            )
        super().__init__(loss, name=name)
        # The constructor of Keras refuses these reductions.
        self.reduction = reduction

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss of an output. `mask` is Keras' mask, or None."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        self.check_outputs(y_true, y_pred)
        loss = self.loss.for_weights(sample_weight, mask)
        values = loss.call(y_true, y_pred)
        if len(values.shape) != 2:
            raise ValueError(
                "`loss` must return one value per token. Received: values of shape "
                f"{tuple(values.shape)} from {self.loss.name}"
            )
        valid = both(mask, loss.counted(y_true, y_pred))
        weight = token_weights(values, sample_weight, valid)
        return ops.cast(self.mean(values, weight), self.dtype)

    def mean(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return the mean of the tokens' values, as `reduction` defines it.

        Args:
            values: Of shape `(batch, time)`.
            weight: The weights, of the same shape. A token of weight 0 isn't valid, and
                its value may be anything.
        """
        weighted = ops.where(ops.equal(weight, 0.0), 0.0, values) * weight
        if self.reduction == "sequence":
            tokens = ops.sum(are_valid(weight), axis=-1)
            weighted = ops.sum(weighted, axis=-1) / ops.maximum(tokens, 1.0)
        return ops.sum(weighted) / ops.maximum(self.count(weight), 1.0)

    def count(self, weight: Tensor) -> Tensor:
        """Return the number of valid tokens or sequences that the mean divides by."""
        valid = are_valid(weight)
        if self.reduction == "sequence":
            valid = ops.max(valid, axis=-1, initial=0.0)
        return backend.sum_over_replicas(ops.sum(valid))

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the loss per token."""
        return self.loss.compare(teacher_logits, student_logits)

    def check_outputs(self, teacher_output: Tensor, student_output: Tensor) -> None:
        """Raise ValueError if the shapes of the outputs don't fit each other."""
        shapes = tuple(teacher_output.shape), tuple(student_output.shape)
        received = f"Received: teacher output {shapes[0]}, student output {shapes[1]}"
        if len(shapes[0]) != 3 or len(shapes[1]) != 3:
            raise ValueError(
                f"Outputs must be of shape (batch, time, vocabulary). {received}"
            )
        if self.reads_packed:
            return
        if None not in (sizes := (shapes[0][-1], shapes[1][-1])) and len({*sizes}) > 1:
            raise checks.other_vocabulary(received)
        self.loss.check_outputs(teacher_output, student_output)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "reduction": self.reduction}
