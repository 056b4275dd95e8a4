"""Hidden states of a call, checked and reshaped to matrices of tokens."""

from typing import Any

from keras import ops

from keras_distill import backend
from keras_distill.losses import checks
from keras_distill.losses.base import computable
from keras_distill.losses.chunks import Chunks
from keras_distill.losses.heads import Head, HeadLike, check_widths, resolved
from keras_distill.losses.softmax import SoftmaxDivergence
from keras_distill.types import Tensor


class HiddenStates:
    """The hidden states of one call, checked, as matrices of tokens.

    Args:
        loss: The divergence, as in `per_token`.
        teacher_hidden: The teacher's hidden states.
        student_hidden: The student's hidden states.
        chunk: The number of tokens in a chunk.
    """

    def __init__(
        self,
        loss: SoftmaxDivergence,
        teacher_hidden: Tensor,
        student_hidden: Tensor,
        chunk: int,
    ) -> None:
        check_loss(loss)
        check_chunk(chunk)
        teacher = ops.convert_to_tensor(teacher_hidden)
        student = ops.convert_to_tensor(student_hidden)
        check_hidden(teacher, student)
        self._loss = loss
        self._shape = ops.shape(student)[:-1]
        student = _rows(computable(student))
        # The teacher's states get the student's dtype, in which gradients are computed.
        teacher = ops.cast(_rows(computable(teacher)), student.dtype)
        self._count = ops.shape(student)[0]
        static = student.shape[0]
        self._chunk = chunk if static is None else max(1, min(chunk, static))
        self._hidden = ops.stop_gradient(self._padded(teacher)), self._padded(student)

    def values(self, teacher_head: HeadLike, student_head: HeadLike) -> Tensor:
        """Return the divergence of each token."""

        def divergence(teacher: Tensor, student: Tensor, temperature: Tensor) -> Tensor:
            chunks, inputs = self._tempered(teacher_head, student_head, temperature)
            return chunks.values(*inputs)

        values = self._loss.tempered(divergence, *self._hidden)
        return ops.reshape(values[: self._count], self._shape)

    def weighted_sum(
        self, teacher_head: HeadLike, student_head: HeadLike, weight: Tensor
    ) -> Tensor:
        """Return the weighted sum of the divergences."""
        weight = ops.cast(ops.convert_to_tensor(weight), self._hidden[1].dtype)
        weight = ops.broadcast_to(weight, self._shape)
        weight = ops.stop_gradient(self._padded(ops.reshape(weight, (-1,))))

        def divergence(teacher: Tensor, student: Tensor, temperature: Tensor) -> Tensor:
            chunks, inputs = self._tempered(teacher_head, student_head, temperature)
            return chunks.weighted_sum(weight, *inputs)

        return self._loss.tempered(divergence, *self._hidden)

    def _tempered(
        self, teacher_head: HeadLike, student_head: HeadLike, temperature: Tensor
    ) -> tuple[Chunks, list[Tensor]]:
        """Return the chunks and the student's tensors, both for tempered logits."""
        teacher, student = self._hidden
        of_teacher = resolved(teacher_head, student.dtype)
        of_student = resolved(student_head, student.dtype)
        check_widths(teacher, student, of_teacher, of_student)
        of_teacher = Head(*map(ops.stop_gradient, _divided(of_teacher, temperature)))
        inputs = [student / temperature, *_divided(of_student, temperature)]
        loss, hidden = self._loss, teacher / temperature
        return Chunks(loss, hidden, of_teacher, self._chunk), inputs

    def _padded(self, x: Tensor) -> Tensor:
        """Return a tensor with rows of zeros added, up to a multiple of the chunk."""
        missing = -self._count % self._chunk
        if x.shape[0] == 0:
            missing = self._chunk  # JAX traces a chunk even if there are no tokens.
        return ops.concatenate([x, ops.zeros((missing, *x.shape[1:]), x.dtype)])


def _rows(hidden: Tensor) -> Tensor:
    return ops.reshape(hidden, (-1, hidden.shape[-1]))


def _divided(head: Head, temperature: Tensor) -> list[Tensor]:
    """Return the kernel, and the bias, if any, divided by the temperature."""
    if head.bias is None:
        return [head.kernel]
    return [head.kernel, head.bias / temperature]


def check_loss(loss: Any) -> None:
    """Raise an error unless a loss reads logits and has a gradient in closed form."""
    if not isinstance(loss, SoftmaxDivergence):
        raise TypeError(
            "A divergence over a large vocabulary needs a gradient in closed form, "
            "which a `SoftmaxDivergence` has, such as `ForwardKL` or your own. "
            f"Received: loss={loss!r} of type {type(loss).__name__}"
        )
    gradient, *values = (
        next(cls for cls in type(loss).__mro__ if name in vars(cls))
        for name in ("gradient", "divergence", "compare")
    )
    if not all(issubclass(gradient, cls) for cls in values):
        raise TypeError(
            f"`{type(loss).__name__}` computes another value than "
            f"`{gradient.__name__}`, whose gradient it has. Override `gradient` too. "
            f"Received: loss={loss!r}"
        )
    if not (loss.takes_logits("teacher") and loss.takes_logits("student")):
        raise ValueError(
            "Heads return logits, so the loss must take logits. Received: "
            f"loss={loss.name} with from_logits={loss.from_logits}, "
            f"teacher_from_logits={loss.teacher_from_logits}"
        )
    if loss.axis != -1:
        raise ValueError(
            "The class axis of logits is the last one here. Received: "
            f"loss={loss.name} with axis={loss.axis}"
        )


def check_chunk(chunk: int) -> None:
    """Raise ValueError unless a chunk has a token."""
    if chunk < 1:
        raise ValueError(f"`chunk` must be positive. Received: chunk={chunk}")


def check_hidden(teacher: Tensor, student: Tensor) -> None:
    """Raise ValueError unless both are hidden states of the same tokens."""
    known = backend.has_rank(teacher) and backend.has_rank(student)
    if known and len(student.shape) > 1:
        same = checks.may_have_shape(teacher, [*student.shape[:-1], None])
        if same and None not in (teacher.shape[-1], student.shape[-1]):
            return
    shapes = [tuple(x.shape) if known else x.shape for x in (teacher, student)]
    raise ValueError(
        "Hidden states must have the shape (..., hidden), with a hidden size that is "
        "known, and be of the same tokens. Received: teacher's of shape "
        f"{shapes[0]}, student's of shape {shapes[1]}"
    )
