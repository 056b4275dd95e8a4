"""Divergences and their gradients, computed from hidden states chunk by chunk.

Callers divide the hidden states and the biases by the temperature, which divides the
logits. So the temperature is 1 here.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_distill import backend
from keras_distill.losses.heads import Head, logits
from keras_distill.losses.softmax import SoftmaxDivergence
from keras_distill.types import Tensor

State = tuple[Tensor, ...]


class Chunks(NamedTuple):
    """The tokens of a batch, computed one chunk at a time.

    Args:
        loss: The divergence.
        teacher_hidden: The teacher's hidden states, `(tokens, hidden)`. No gradient
            passes through them.
        teacher_head: The teacher's kernel and bias, also without a gradient.
        size: The number of tokens in a chunk. It divides the number of all tokens.
    """

    loss: SoftmaxDivergence
    teacher_hidden: Tensor
    teacher_head: Head
    size: int

    def values(self, hidden: Tensor, kernel: Tensor, *bias: Tensor) -> Tensor:
        """Return the divergence of each token.

        The gradient is computed in a second pass, in which the logits are computed
        again.

        Args:
            hidden: The student's hidden states, `(tokens, hidden)`.
            kernel: The student's kernel.
            *bias: The student's bias, if there is one.
        """

        @ops.custom_gradient
        def differentiable(*inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], State]]:
            def gradient(upstream: Tensor) -> State:
                return self._differentiated(upstream, *inputs)[1]

            return self._values(*inputs), gradient

        return differentiable(hidden, kernel, *bias)

    def weighted_sum(
        self, weight: Tensor, hidden: Tensor, kernel: Tensor, *bias: Tensor
    ) -> Tensor:
        """Return the weighted sum of the divergences.

        The gradient is computed in the same pass, so that the logits are computed once.

        Args:
            weight: A weight for each token, through which no gradient passes.
            hidden: The student's hidden states, `(tokens, hidden)`.
            kernel: The student's kernel.
            *bias: The student's bias, if there is one.
        """

        @ops.custom_gradient
        def differentiable(*inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], State]]:
            values, gradients = self._differentiated(weight, *inputs)

            def gradient(upstream: Tensor) -> State:
                return tuple(upstream * each for each in gradients)

            return ops.sum(weight * values), gradient

        return differentiable(hidden, kernel, *bias)

    def _values(self, hidden: Tensor, *head: Tensor) -> Tensor:
        def body(i: Tensor, values: Tensor) -> State:
            of_teacher = logits(self._part(self.teacher_hidden, i), self.teacher_head)
            of_student = logits(self._part(hidden, i), Head(*head))
            found = self.loss.divergence(of_teacher, of_student, 1.0)
            return (self._put(values, i, found),)

        (values,) = self._each(body, (ops.zeros_like(hidden[:, 0]),))
        return values

    def _differentiated(
        self, weight: Tensor, hidden: Tensor, kernel: Tensor, *bias: Tensor
    ) -> tuple[Tensor, State]:
        """Return the values, and the gradients of their weighted sum.

        Hidden states of tokens of weight 0 may be NaN: they are replaced by 0.
        """
        counts = ops.not_equal(weight, 0.0)[:, None]
        hidden = ops.where(counts, hidden, 0.0)
        teacher_hidden = ops.where(counts, self.teacher_hidden, 0.0)

        def body(i: Tensor, values: Tensor, *sums: Tensor) -> State:
            of_tokens, scale = self._part(hidden, i), self._part(weight, i)
            of_teacher = logits(self._part(teacher_hidden, i), self.teacher_head)
            of_student = logits(of_tokens, Head(kernel, *bias))
            found = self.loss.divergence(of_teacher, of_student, 1.0)
            gradient = self.loss.gradient(of_teacher, of_student, 1.0)
            # The weights multiply the smaller factor of each product. The transposed
            # gradient comes second, which is the faster of two equal products.
            back = ops.transpose(ops.matmul(kernel, ops.transpose(gradient)))
            weighted = ops.transpose(of_tokens * scale[:, None])
            of_hidden, of_kernel, *of_bias = sums
            return (
                self._put(values, i, found),
                self._put(of_hidden, i, back * scale[:, None]),
                of_kernel + ops.matmul(weighted, gradient),
                *(total + ops.matmul(scale[None], gradient)[0] for total in of_bias),
            )

        start = [ops.zeros_like(x) for x in (weight, hidden, kernel, *bias)]
        values, *gradients = self._each(body, tuple(start))
        return values, tuple(gradients)

    def _each(self, body: Callable[..., State], state: State) -> State:
        """Return the state after all chunks, one at a time."""
        count = ops.shape(self.teacher_hidden)[0] // self.size
        return backend.one_by_one(count, body, state)

    def _part(self, x: Tensor, i: Tensor) -> Tensor:
        """Return the rows of a chunk."""
        sizes = (self.size, *x.shape[1:])
        return ops.slice(x, self._start(x, i), sizes)

    def _put(self, x: Tensor, i: Tensor, part: Tensor) -> Tensor:
        """Return a tensor with `part` in place of a chunk's rows."""
        return ops.slice_update(x, self._start(x, i), part)

    def _start(self, x: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return (i * self.size, *(0 for _ in x.shape[1:]))
