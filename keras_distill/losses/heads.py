"""Output heads: the kernels and biases that turn hidden states into logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.losses import checks
from keras_distill.losses.base import INFINITE
from keras_distill.types import Tensor


class Head(NamedTuple):
    """A kernel and a bias: `logits = hidden @ kernel + bias`.

    Args:
        kernel: A variable or tensor of shape `(hidden, vocabulary)`.
        bias: A variable or tensor of shape `(vocabulary,)`, or None, the default.

    Example:
        >>> head = Head(ops.ones((4, 10)))
        >>> head.bias is None
        True
    """

    kernel: Any
    bias: Any = None


# A `Dense` or `Embedding` layer, or a `Head`.
HeadLike = Any


def check_head(name: str, head: HeadLike) -> None:
    """Raise an error unless a head is built and is only a linear map.

    Raises:
        TypeError: If the head is neither a `Head`, nor a `Dense`, nor an `Embedding`.
        ValueError: If the layer isn't built, or computes more than a linear map.
    """
    if isinstance(head, Head):
        return
    received = f"Received: {name}={head!r} of type {type(head).__name__}"
    if not isinstance(head, keras.layers.Dense | keras.layers.Embedding):
        raise TypeError(
            f"`{name}` must be a `Dense` layer, an `Embedding` whose weights are the "
            "kernel too, or a `keras_distill.losses.vocabulary.Head(kernel, bias)`. "
            f"{received}"
        )
    if not head.built:
        raise ValueError(f"`{name}` must be a layer that is built. {received}")
    activation = getattr(head, "activation", keras.activations.linear)
    does = {
        "an activation": activation is not keras.activations.linear,
        "a soft cap of the logits": getattr(head, "logit_soft_cap", None) is not None,
        "a quantised kernel": getattr(head, "quantization_mode", None) is not None,
    }
    found = [what for what, is_there in does.items() if is_there]
    if found:
        raise ValueError(
            "A head must be a linear map, for the divergence is computed from its "
            f"kernel and bias. This one has {found[0]}. {received}"
        )


def resolved(head: HeadLike, dtype: Any) -> Head:
    """Return the kernel and the bias of a head as tensors.

    Each call reads them again, because a layer may compute them, e.g. with LoRA.
    """
    if isinstance(head, keras.layers.Embedding):
        head = Head(_embedding_kernel(head))
    elif not isinstance(head, Head):
        head = Head(head.kernel, head.bias)
    kernel, bias = head
    if len(kernel.shape) != 2 or None in tuple(kernel.shape):
        raise ValueError(
            "The kernel of a head must have the shape (hidden, vocabulary). Received: "
            f"shape {tuple(kernel.shape)}"
        )
    kernel = ops.cast(ops.convert_to_tensor(kernel), dtype)
    if bias is None:
        return Head(kernel)
    if tuple(bias.shape) != tuple(kernel.shape[1:]):
        raise ValueError(
            "The bias of a head must have the shape (vocabulary,). Received: shape "
            f"{tuple(bias.shape)} beside a kernel of shape {tuple(kernel.shape)}"
        )
    # The bias of masked entries of the vocabulary is infinite.
    bias = ops.cast(ops.convert_to_tensor(bias), dtype)
    return Head(kernel, ops.clip(bias, -INFINITE, INFINITE))


def check_widths(
    teacher: Tensor, student: Tensor, teacher_head: Head, student_head: Head
) -> None:
    """Raise ValueError unless heads fit their hidden states and have one vocabulary."""
    pairs = {"teacher": (teacher, teacher_head), "student": (student, student_head)}
    for whose, (hidden, head) in pairs.items():
        if hidden.shape[-1] != head.kernel.shape[0]:
            raise ValueError(
                f"The {whose}'s hidden states must be as wide as the kernel of its "
                f"head is high. Received: {hidden.shape[-1]} hidden units, a kernel of "
                f"shape {tuple(head.kernel.shape)}"
            )
    if teacher_head.kernel.shape[1] != student_head.kernel.shape[1]:
        raise checks.other_vocabulary(
            "Received: a teacher's kernel of shape "
            f"{tuple(teacher_head.kernel.shape)}, a student's of shape "
            f"{tuple(student_head.kernel.shape)}"
        )
    checks.check_classes(student_head.kernel, -1)


def variables(head: HeadLike) -> Sequence[keras.Variable]:
    """Return the variables of a head."""
    if isinstance(head, keras.Layer):
        found: list[keras.Variable] = head.variables
        return found
    return [part for part in head or () if isinstance(part, keras.Variable)]


def logits(hidden: Tensor, head: Head) -> Tensor:
    """Return the logits of hidden states of shape `(tokens, hidden)`."""
    found = ops.matmul(hidden, head.kernel)
    return found if head.bias is None else found + head.bias


def _embedding_kernel(layer: keras.layers.Embedding) -> Tensor:
    """Return the kernel of a tied embedding, or of a reversible one that isn't tied."""
    if not getattr(layer, "tie_weights", True):
        return layer.reverse_embeddings
    return ops.transpose(layer.embeddings)
