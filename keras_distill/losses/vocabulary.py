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
    """Return a divergence of each token, without holding the logits of all tokens.

    It is `loss` of `teacher_hidden @ teacher_kernel + teacher_bias` and of the same of
    the student. Gradients reach the student's hidden states, kernel and bias. They are
    computed in closed form, from logits that are computed a second time. `weighted_sum`
    computes them once.

    Args:
        loss: A `SoftmaxDivergence` of logits, such as `ForwardKL` or your own.
        teacher_hidden: Hidden states of shape `(..., hidden)`.
        student_hidden: The same of the student; the last axis may differ. In half
            precision, products are computed and added up in float32.
        teacher_head: The layer that turns hidden states into logits, a `Dense` or a
            tied `Embedding`; or a `Head` of a kernel `(hidden, vocabulary)` and a bias.
        student_head: The same of the student.
        chunk: The number of tokens whose logits are held at a time. Defaults to 96.

    Returns:
        A tensor of the shape of the hidden states without their last axis.

    Raises:
        TypeError: If `loss` has no gradient in closed form, or a head is of no such
            type.
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
        loss: As in `per_token`; so are the others.
        teacher_hidden: Hidden states of shape `(..., hidden)`.
        student_hidden: The same of the student.
        teacher_head: The teacher's head.
        student_head: The student's head.
        weight: A number for each token, of the shape of the hidden states without their
            last axis: a mask over the number of its tokens for the mean over tokens.
            The hidden states of tokens of weight 0 don't matter. No gradient passes
            through the weights.
        chunk: The number of tokens whose logits are held at a time. Defaults to 96.

    Returns:
        A scalar.

    Raises:
        TypeError: As `per_token`.
        ValueError: As `per_token`.

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
    biases of their heads. A call holds the logits of `chunk` tokens at a time.

    The models that a `Distiller` is given return hidden states, and the student must
    hold its head, so that it trains. Give the student two outputs, the hidden states
    and the logits: the logits aren't computed where nothing reads them. A model whose
    embedding is its head needs no second output.

    Files of a `Distiller` don't hold the heads, which are layers of the models. After
    loading one, compile it again: `distiller.compile(distiller.optimizer, ...)`.

    Args:
        loss: As in `per_token`: `ForwardKL()`, `GeneralizedJSD()`, ... Its own
            reduction isn't used.
        teacher_head: The layer that turns the teacher's hidden states into logits, a
            `Dense` or a tied `Embedding`; or a `Head`. It doesn't train.
        student_head: The same of the student. It trains with the student.
        chunk: The number of tokens whose logits are held at a time. Defaults to 96.
        reduction: `"token"` (default): the sum of the weighted values over the number
            of valid tokens in the whole batch, also where several devices share it. A
            token is valid if its sample weight isn't 0 and Keras' mask, where there is
            one, is True. Or `"sum"`, or None for a value of each token.
        name: Name of the loss.

    Raises:
        TypeError: If `loss` has no gradient in closed form, or a head is of no such
            type.
        ValueError: If a head does more than a linear map, `chunk` isn't positive, the
            reduction is another, or, when called, if the shapes don't fit.

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

    # Hidden states have another width than the student's, and labels don't fit them.
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
        # Keras knows other reductions only.
        self.reduction = reduction
        self.loss = loss
        self.tempering = loss.tempering
        self.teacher_head: HeadLike | None = teacher_head
        self.student_head: HeadLike | None = student_head
        self.chunk = chunk

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables that a call reads: the temperature's and those of the heads."""
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
        """Return the loss, reduced, of a student's output with a Keras mask or None."""
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
        """Raise ValueError if the shapes can't be those of hidden states."""
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
