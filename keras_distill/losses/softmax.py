"""Losses between tempered softmax distributions of teacher and student."""

from abc import abstractmethod
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.losses import checks, divergences, gradients
from keras_distill.losses.base import TemperedLoss
from keras_distill.types import Tensor

_register = keras.saving.register_keras_serializable(package="keras_distill")


class SoftmaxLoss(TemperedLoss):
    """A tempered loss over a class axis, which must have two units or more."""

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return `temperature**2` times the divergence, per example."""
        checks.check_classes(student_logits, self.axis)
        return super().compare(teacher_logits, student_logits)


class SoftmaxDivergence(SoftmaxLoss):
    """A tempered divergence with a gradient in closed form.

    `keras_distill.losses.vocabulary` uses this gradient. Elsewhere, the backend
    differentiates `divergence`.
    """

    @abstractmethod
    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient of `divergence` with respect to the student's logits.

        Args:
            teacher_logits: As in `divergence`.
            student_logits: Logits of the same shape.
            temperature: A scalar tensor.

        Returns:
            A tensor of the logits' shape. Each row is the gradient of that row's value.
        """


@_register
class SoftTargets(SoftmaxDivergence):
    r"""Cross-entropy of the student under the teacher's soft targets.

    `T**2 * -sum(p * log(q))`, with `p = softmax(t / T)` of the teacher's logits and
    `q = softmax(s / T)` of the student's. The loss has the same gradient as
    `ForwardKL`. Its value is larger by `T**2` times the entropy of `p`.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            the class axis has one unit only.

    Example:
        >>> loss = SoftTargets(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 2.0]])), 4)
        4.1773

    Reference:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
        https://arxiv.org/abs/1503.02531, section 2.
    """

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the cross-entropy per example."""
        return divergences.soft_target_cross_entropy(
            teacher_logits, student_logits, temperature, self.axis
        )

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        return gradients.forward_kl(
            teacher_logits, student_logits, temperature, self.axis
        )


@_register
class ForwardKL(SoftmaxDivergence):
    r"""Forward KL divergence, KL(teacher || student).

    It is large if the student gives little probability to a class that the teacher
    considers likely, so the student covers all of the teacher's modes.

    `T**2 * sum(p * (log(p) - log(q)))`, with `p = softmax(t / T)` of the teacher's
    logits and `q = softmax(s / T)` of the student's.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            the class axis has one unit only.

    Example:
        >>> loss = ForwardKL(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 2.0]])), 4)
        1.8485

    Reference:
        Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2.
    """

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example."""
        return divergences.forward_kl(
            teacher_logits, student_logits, temperature, self.axis
        )

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        return gradients.forward_kl(
            teacher_logits, student_logits, temperature, self.axis
        )


@_register
class ReverseKL(SoftmaxDivergence):
    r"""Reverse KL divergence, KL(student || teacher).

    It is large if the student gives probability to a class that the teacher considers
    unlikely, so the student concentrates on some of the teacher's modes.

    `T**2 * sum(q * (log(q) - log(p)))`, with `p = softmax(t / T)` of the teacher's
    logits and `q = softmax(s / T)` of the student's.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            the class axis has one unit only.

    Example:
        >>> loss = ReverseKL(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 2.0]])), 4)
        1.8485

    Reference:
        Gu et al. 2024, "MiniLLM", https://arxiv.org/abs/2306.08543, section 2.1.
    """

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example."""
        return divergences.reverse_kl(
            teacher_logits, student_logits, temperature, self.axis
        )

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        return gradients.reverse_kl(
            teacher_logits, student_logits, temperature, self.axis
        )


@_register
class GeneralizedJSD(SoftmaxDivergence):
    r"""Generalised Jensen-Shannon divergence between forward and reverse KL.

    `T**2 * (beta * KL(p || m) + (1 - beta) * KL(q || m))` with
    `m = beta * p + (1 - beta) * q`, `p = softmax(t / T)` of the teacher's logits, and
    `q = softmax(s / T)` of the student's. With `beta=0` the divergence is the forward
    KL, and with `beta=1` the reverse KL. With other values it approaches 0 as `beta`
    approaches 0 or 1. `normalize=True` divides it by `beta * (1 - beta)`. Then it
    approaches the forward KL for `beta` near 0 and the reverse KL for `beta` near 1.

    Args:
        beta: In [0, 1]. Defaults to 0.5, the symmetric divergence.
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        normalize: Whether to divide by `beta * (1 - beta)`. Defaults to False.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `beta` is outside [0, 1], the temperature isn't positive, the
            outputs' shapes differ, or the class axis has one unit only.

    Example:
        >>> loss = GeneralizedJSD(beta=0.5)
        >>> round(float(loss([[9.0, -9.0]], [[-9.0, 9.0]])), 4)  # at most log 2
        0.6931

    Reference:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models",
        https://arxiv.org/abs/2306.13649, section 2.
    """

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        normalize: bool = False,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            teacher_from_logits=teacher_from_logits,
            axis=axis,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"`beta` must be in [0, 1]. Received: beta={beta}")
        self.beta = float(beta)
        self.normalize = normalize

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example."""
        values = divergences.generalized_jsd(
            teacher_logits, student_logits, temperature, self.axis, beta=self.beta
        )
        return values / self._divisor

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        gradient = gradients.generalized_jsd(
            teacher_logits, student_logits, temperature, self.axis, beta=self.beta
        )
        return gradient / self._divisor

    @property
    def _divisor(self) -> float:
        """The divisor of the divergence; 1 if it is a KL or isn't normalised."""
        inside = self.normalize and 0.0 < self.beta < 1.0
        return self.beta * (1.0 - self.beta) if inside else 1.0

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "beta": self.beta, "normalize": self.normalize}


@_register
class Jeffreys(SoftmaxDivergence):
    r"""Jeffreys divergence: forward plus reverse KL.

    `T**2 * (KL(p || q) + KL(q || p))`, with `p = softmax(t / T)` of the teacher's
    logits and `q = softmax(s / T)` of the student's.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            the class axis has one unit only.

    Example:
        >>> loss = Jeffreys(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 2.0]])), 4)
        3.6969

    Reference:
        Jeffreys 1946, "An invariant form for the prior probability in estimation
        problems", https://doi.org/10.1098/rspa.1946.0056.
    """

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example."""
        return divergences.jeffreys(
            teacher_logits, student_logits, temperature, self.axis
        )

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        return gradients.jeffreys(
            teacher_logits, student_logits, temperature, self.axis
        )


@_register
class TotalVariation(SoftmaxDivergence):
    r"""Total variation distance between tempered distributions.

    `1/2 * sum(|p - q|)`, with `p = softmax(t / T)` of the teacher's logits and
    `q = softmax(s / T)` of the student's. The distance is in [0, 1] at all
    temperatures, so it isn't multiplied by `T**2`.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            the class axis has one unit only.

    Example:
        >>> loss = TotalVariation()
        >>> round(float(loss([[9.0, -9.0]], [[-9.0, 9.0]])), 4)
        1.0

    Reference:
        Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge
        Distillation", https://arxiv.org/abs/2307.15190, section 3.
    """

    times_squared_temperature = False

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the distance per example."""
        return divergences.total_variation(
            teacher_logits, student_logits, temperature, self.axis
        )

    def gradient(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the gradient with respect to the student's logits."""
        return gradients.total_variation(
            teacher_logits, student_logits, temperature, self.axis
        )
