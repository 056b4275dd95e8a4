"""Divergences over a large vocabulary, computed from hidden states."""

from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_distill import backend
from keras_distill.batch import Batch
from keras_distill.losses import hidden
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.heads import Head, HeadLike, check_head, variables
from keras_distill.losses.softmax import SoftmaxDivergence
from keras_distill.losses.weighting import are_valid, token_weights
from keras_distill.types import Tensor

__all__ = ["Head", "VocabularyLoss", "per_token", "weighted_sum"]

REDUCTIONS = ("token", "sum", None)


def __dir__() -> list[str]:
    return sorted(__all__)


def per_token(
    loss: SoftmaxDivergence,
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    *,
    teacher_head: HeadLike,
    student_head: HeadLike,
    chunk: int = 96,
) -> Tensor:
    """Return a divergence of each token, without the logits of all tokens in memory.

    The result is `loss` between the teacher's logits
    `teacher_hidden @ teacher_kernel + teacher_bias` and the student's logits, computed
    in the same way. Gradients reach the student's hidden states, kernel and bias. They
    are computed in closed form, for which the logits are computed a second time.
    `weighted_sum` computes the logits once.

    Args:
        loss: A `SoftmaxDivergence` of logits, such as `ForwardKL` or your own.
        teacher_hidden: The teacher's hidden states, of shape `(..., hidden)`.
        student_hidden: The student's hidden states. The size of the last axis may
            differ. In half precision, products are computed and added up in float32.
        teacher_head: The layer that turns hidden states into logits, a `Dense` or a
            tied `Embedding`; or a `Head` of a kernel `(hidden, vocabulary)` and a bias.
        student_head: The student's head, of one of these types.
        chunk: The number of tokens with logits in memory at a time. Defaults to 96.

    Returns:
        A tensor of the shape of the hidden states without their last axis.

    Raises:
        TypeError: If `loss` has no gradient in closed form, or a head has another type.
        ValueError: If the shapes don't fit, or a head does more than a linear map.

    Example:
        >>> from keras_distill.losses import ForwardKL
        >>> heads = dict.fromkeys(["teacher_head", "student_head"], Head(ops.eye(2)))
        >>> values = per_token(ForwardKL(2.0), [[2.0, 0.0]], [[0.0, 2.0]], **heads)
        >>> round(float(values[0]), 4)
        1.8485

    Reference:
        Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training",
        https://arxiv.org/abs/2410.10989, section 3.2, for losses by chunks.
    """
    given = hidden.HiddenStates(loss, teacher_hidden, student_hidden, chunk)
    return given.values(teacher_head, student_head)


def weighted_sum(
    loss: SoftmaxDivergence,
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    *,
    teacher_head: HeadLike,
    student_head: HeadLike,
    weight: Tensor,
    chunk: int = 96,
) -> Tensor:
    """Return `sum(weight * per_token(...))`, and compute the gradients in one pass.

    Args:
        loss: As in `per_token`.
        teacher_hidden: The teacher's hidden states, of shape `(..., hidden)`.
        student_hidden: The student's hidden states.
        teacher_head: The teacher's head, as in `per_token`.
        student_head: The student's head.
        weight: A number for each token, of the shape of the hidden states without their
            last axis. For the mean over the tokens of a mask, pass the mask divided by
            the number of its tokens. The hidden states of tokens of weight 0 may have
            any values. No gradient passes through the weights.
        chunk: The number of tokens with logits in memory at a time. Defaults to 96.

    Returns:
        A scalar.

    Raises:
        TypeError: For the same reasons as `per_token`.
        ValueError: For the same reasons as `per_token`.

    Example:
        >>> from keras_distill.losses import ForwardKL
        >>> heads = dict.fromkeys(["teacher_head", "student_head"], Head(ops.eye(2)))
        >>> teacher, student = [[2.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 9.0]]
        >>> total = weighted_sum(
        ...     ForwardKL(2.0), teacher, student, weight=[1.0, 0.0], **heads)
        >>> round(float(total), 4)
        1.8485
    """
    given = hidden.HiddenStates(loss, teacher_hidden, student_hidden, chunk)
    return given.weighted_sum(teacher_head, student_head, weight)


@keras.saving.register_keras_serializable(package="keras_distill")
class VocabularyLoss(DistillationLoss):
    r"""A divergence of next-token distributions, whose `y_true` are hidden states.

    `loss(t @ W_t + b_t, s @ W_s + b_s)` for each token, where `t` and `s` are the
    hidden states of the teacher and the student, and `W` and `b` are the kernels and
    biases of their heads. Memory contains the logits of only `chunk` tokens at a time.

    Both models of the `Distiller` must return hidden states. The student must contain
    its head, so that the head trains. So give the student two outputs: the hidden
    states and the logits. The logits aren't computed if nothing reads them. A model
    whose embedding is its head needs no second output.

    A saved `Distiller` doesn't contain the heads of its loss, because they are layers
    of the models. After loading, compile it again:
    `distiller.compile(distiller.optimizer, ...)`.

    Args:
        loss: As in `per_token`: `ForwardKL()`, `GeneralizedJSD()`, ... Its own
            reduction isn't used.
        teacher_head: The layer that turns the teacher's hidden states into logits, a
            `Dense` or a tied `Embedding`; or a `Head`. It doesn't train.
        student_head: The student's head, of one of these types. It trains with the
            student.
        chunk: The number of tokens with logits in memory at a time. Defaults to 96.
        reduction: `"token"` (default), `"sum"`, or None for a value of each token.
            `"token"` divides the sum of the weighted values by the number of valid
            tokens in the whole batch, even if several devices share the batch. A token
            is valid if its sample weight isn't 0 and its Keras mask, if any, is True.
        name: Name of the loss.

    Raises:
        TypeError: If `loss` has no gradient in closed form, or a head has another type.
        ValueError: If a head does more than a linear map, `chunk` isn't positive, or
            `reduction` has another value. When called, if the shapes don't fit.

    Example:
        >>> from keras_distill.losses import ForwardKL
        >>> head = Head(ops.eye(2))
        >>> loss = VocabularyLoss(ForwardKL(), teacher_head=head, student_head=head)
        >>> teacher, student = [[[2.0, 0.0], [0.0, 0.0]]], [[[0.0, 2.0], [0.0, 9.0]]]
        >>> round(float(loss(teacher, student, [[1.0, 0.0]])), 4)
        1.5232

    Reference:
        Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training",
        https://arxiv.org/abs/2410.10989, section 3.2, for losses by chunks.
    """

    # The teacher's hidden states may have another width than the student's, and labels
    # don't fit them.
    reads_packed = True

    def __init__(
        self,
        loss: SoftmaxDivergence,
        *,
        teacher_head: HeadLike,
        student_head: HeadLike,
        chunk: int = 96,
        reduction: str | None = "token",
        name: str | None = None,
    ) -> None:
        hidden.check_loss(loss)
        super().__init__(reduction=None, name=name, dtype=loss.dtype)
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}. Received: "
                f"reduction={reduction!r}"
            )
        hidden.check_chunk(chunk)
        check_head("teacher_head", teacher_head)
        check_head("student_head", student_head)
        # Keras accepts only other reductions.
        self.reduction = reduction
        self.loss = loss
        self.tempering = loss.tempering
        self.teacher_head: HeadLike | None = teacher_head
        self.student_head: HeadLike | None = student_head
        self.chunk = chunk

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables that a call reads, of the temperature and the heads."""
        heads = variables(self.teacher_head), variables(self.student_head)
        return [*super().state, *heads[0], *heads[1]]

    @property
    def trains(self) -> Sequence[keras.Variable]:
        """The variables of the student's head that train."""
        return [v for v in variables(self.student_head) if v.trainable]

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss with its temperature at the batch's step."""
        loss = self.copied()
        loss.loss = self.loss.for_batch(batch)
        return loss

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `mask` is the Keras mask of `y_pred`, or None."""
        if self.reduction is None:
            return super().with_mask(y_true, y_pred, sample_weight, mask)
        y_pred = ops.convert_to_tensor(y_pred)
        tokens = ops.ones(ops.shape(y_pred)[:-1], self.dtype)
        weight = token_weights(tokens, sample_weight, mask)
        total = weighted_sum(self.loss, y_true, y_pred, weight=weight, **self._options)
        if self.reduction == "token":
            counted = ops.cast(are_valid(weight), total.dtype)
            count = backend.sum_over_replicas(ops.sum(counted))
            total = total / ops.maximum(count, 1.0)
        return ops.cast(total, self.dtype)

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the loss per token of hidden states."""
        return per_token(self.loss, teacher_logits, student_logits, **self._options)

    def check_outputs(self, teacher_output: Tensor, student_output: Tensor) -> None:
        """Raise ValueError unless the shapes are those of hidden states."""
        hidden.check_hidden(teacher_output, student_output)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the heads."""
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "chunk": self.chunk,
            "reduction": self.reduction,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "VocabularyLoss":
        """Build the loss from `get_config`'s result, without heads."""
        config = dict(config)
        nowhere = Head(None)
        loss = cls(
            keras.saving.deserialize_keras_object(config.pop("loss")),
            teacher_head=nowhere,
            student_head=nowhere,
            **config,
        )
        loss.teacher_head = loss.student_head = None
        return loss

    @property
    def _options(self) -> dict[str, Any]:
        if self.teacher_head is None or self.student_head is None:
            raise ValueError(
                f"`{self.name}` was loaded from a file, which doesn't hold the heads. "
                "Compile again with a loss that has them: "
                "`distiller.compile(distiller.optimizer, distillation_loss=...)`. "
                f"Received: teacher_head={self.teacher_head}, "
                f"student_head={self.student_head}"
            )
        return {
            "teacher_head": self.teacher_head,
            "student_head": self.student_head,
            "chunk": self.chunk,
        }
