"""The optimisers of a student and its teacher in one step of Keras' JAX trainer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_distill import backend
from keras_distill.teachers.joint import TrainingTeacher
from keras_distill.types import Tensor


class JointOptimizer:
    """The optimisers of a student and of its teacher, which act as one.

    Keras' JAX trainer asks one optimiser to scale the loss and to apply all gradients.
    This object takes the place of the student's optimiser while a step is traced. It
    gives each optimiser the loss and the gradients of its own model. All other
    attributes are those of the student's optimiser. Callbacks and files never get this
    object.

    Args:
        student: The student's optimiser.
        teacher: The teacher's optimiser.
        count: The number of weights that the teacher's optimiser updates. They are the
            last of the trainer's weights.
        state: The values of the variables of the teacher's optimiser.
    """

    def __init__(
        self,
        student: keras.optimizers.Optimizer,
        teacher: keras.optimizers.Optimizer,
        *,
        count: int,
        state: Sequence[Tensor],
    ) -> None:
        self._student, self._teacher = student, teacher
        self._count, self.state = count, list(state)
        self._loss_of_teacher: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    def taken(self, of_student: Tensor, of_teacher: Tensor) -> Tensor:
        """Store the teacher's loss for `scale_loss`, and return the student's loss.

        The trainer then logs the student's loss as `loss`, and minimises both losses.
        """
        self._loss_of_teacher = of_teacher
        return of_student

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the sum of both losses, each scaled by its own optimiser.

        No gradient of one loss reaches weights of the other optimiser, so each
        optimiser gets gradients of its own scale. Models that share weights have losses
        of one scale.
        """
        scaled = self._student.scale_loss(loss)
        of_teacher, self._loss_of_teacher = self._loss_of_teacher, None
        state = zip(self._teacher.variables, self.state, strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            return scaled + self._teacher.scale_loss(of_teacher)

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Return updated weights of both models, and the student's optimiser state.

        `state` is set to the new values of the teacher's optimiser.
        """
        end = len(grads) - self._count
        weights, optimizer_variables = _applied(
            self._student, optimizer_variables, grads[:end], trainable_variables[:end]
        )
        of_teacher, self.state = _applied(
            self._teacher, self.state, grads[end:], trainable_variables[end:]
        )
        return [*weights, *of_teacher], optimizer_variables

    def store(self) -> None:
        """Give the variables of the teacher's optimiser the values of `state`."""
        for variable, value in zip(self._teacher.variables, self.state, strict=True):
            variable.assign(value)


def step_of_both(
    step: Callable[..., Any],
    model: keras.Model,
    joint: TrainingTeacher,
    state: Any,
    data: Any,
) -> Any:
    """Run a step of Keras' JAX trainer in which both optimisers act.

    Args:
        step: `keras.Model.train_step` of the model.
        model: The model that trains. The teacher's weights are the last of its
            `trainable_variables`, and the variables of the teacher's optimiser are
            among its `non_trainable_variables`.
        joint: The teacher.
        state: The values of the model's variables, as the trainer gives them.
        data: The batch.

    Returns:
        The logs and the state after the step.
    """
    values = {
        id(variable): value
        for variable, value in zip(model.non_trainable_variables, state[1], strict=True)
    }
    optimizer = JointOptimizer(
        model.optimizer,
        joint.optimizer,
        count=len(joint.trainable_weights),
        state=[values[id(variable)] for variable in joint.optimizer.variables],
    )
    with _lent(model, optimizer):
        result = step(state, data)
    return backend.after_update(result, model, optimizer.store)


@contextmanager
def _lent(model: keras.Model, optimizer: JointOptimizer) -> Iterator[None]:
    """Replace a model's optimiser during the block."""
    own = model.optimizer
    # This avoids Keras' tracking, which would make the object a part of the model.
    object.__setattr__(model, "optimizer", optimizer)
    try:
        yield
    finally:
        object.__setattr__(model, "optimizer", own)


def _applied(
    optimizer: keras.optimizers.Optimizer,
    state: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Return weights and optimiser state after an update; unchanged if no weights."""
    if not gradients:
        return weights, list(state)
    updated, state = optimizer.stateless_apply(state, list(gradients), list(weights))
    return updated, list(state)
