"""Base class of ranking losses, with a value per list of items."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.batch import Batch
from keras_distill.losses.base import computable
from keras_distill.losses.binary import SigmoidLoss
from keras_distill.losses.lists import Lists, arranged, read
from keras_distill.types import Tensor


class RankingLoss(SigmoidLoss):
    """A loss with a value per list of items.

    Subclasses implement `list_divergence` and `has_a_ranking`. Lists without a ranking
    are left out of the mean, and the loss is 0 if no list has one. The layouts and
    weights of lists are documented in `ListwiseSoftTargets`.

    Args:
        temperature: As in `TemperedLoss`. Defaults to 1.
        mask: Name of the input with the mask, for `with_lists`.
        group: Name of the input with the group ids, for `with_lists`.
        from_logits: Whether outputs are scores (default), or probabilities of a
            sigmoid head. The range of probabilities is checked, except in steps that
            XLA or JAX compiles.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        reduction: As in `keras.losses.Loss`, of the values of the lists. Defaults to
            `"sum_over_batch_size"`, the mean over lists that have a ranking.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        mask: str | None = None,
        group: str | None = None,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            teacher_from_logits=teacher_from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.mask = mask
        self.group = group
        self._inputs: Any = None
        for argument, value in (("mask", mask), ("group", group)):
            if not isinstance(value, str | None):
                raise TypeError(
                    f"`{argument}` must be the name of an input. A tensor goes into "
                    f"the call: `loss({{'scores': teacher_output, '{argument}': "
                    f"tensor}}, student_output)`. Received: {argument}={value!r}"
                )

    @abstractmethod
    def list_divergence(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        temperature: Tensor,
        lists: Lists,
    ) -> Tensor:
        """Return the divergence per list, without the squared temperature."""

    @abstractmethod
    def has_a_ranking(self, teacher_logits: Tensor, lists: Lists) -> Tensor:
        """Return a boolean per list: whether the teacher ranks its items."""

    def with_lists(self, teacher_output: Tensor, inputs: Any) -> Any:
        """Return the `y_true` of the loss for a batch of training data.

        Args:
            teacher_output: The teacher's output for the batch.
            inputs: The inputs of the batch by name.

        Returns:
            A dict of `teacher_output` and the inputs that `mask` and `group` name; the
            output itself if they are None.

        Raises:
            ValueError: If the batch has no input of such a name.
        """
        names = self._input_names()
        if not names:
            return teacher_output
        named = isinstance(inputs, Mapping)
        for argument, key in names.items():
            if not named or key not in inputs:
                held = sorted(map(str, inputs)) if named else type(inputs).__name__
                raise ValueError(
                    f"`{self.name}` has {argument}={key!r}, but the batch holds no "
                    f"input of that name. Received: inputs {held}"
                )
        found = {argument: inputs[key] for argument, key in names.items()}
        return {"scores": teacher_output, **found}

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss with the inputs that `mask` and `group` name."""
        loss = super().for_batch(batch)
        loss._inputs = batch.inputs
        return loss

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `y_true` is as `with_lists` returns it."""
        if self._inputs is not None:
            y_true = self.with_lists(y_true, self._inputs)
        given = y_true if isinstance(y_true, Mapping) else {"scores": y_true}
        self._check_keys(given)
        y_true, y_pred, weight = arranged(given, y_pred, sample_weight, mask)
        # The mask is per item, but the values are per list. `arranged` has applied it.
        return super().with_mask(y_true, y_pred, weight, None)

    def counted(self, y_true: dict[str, Tensor], y_pred: Tensor) -> Tensor:
        """Return a boolean per list: whether it has a ranking and isn't repeated."""
        scores = computable(ops.convert_to_tensor(y_true["scores"], dtype=self.dtype))
        if not self.takes_logits("teacher"):
            scores = self.logits_of_probabilities(scores)
        lists = read(y_true, scores.dtype)
        return lists.once(self.has_a_ranking(scores, lists))

    def call(self, y_true: dict[str, Tensor], y_pred: Tensor) -> Tensor:
        """Return the loss per list; `y_true` comes from `arranged`."""
        teacher_logits, student_logits = self.prepared(y_true["scores"], y_pred)
        lists = read(y_true, student_logits.dtype)
        divergence = partial(self.list_divergence, lists=lists)
        return self.tempered(divergence, teacher_logits, student_logits)

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per row, where each row is a list without padding."""
        lists = Lists(ops.ones_like(student_logits, dtype="bool"))
        return self.list_divergence(teacher_logits, student_logits, temperature, lists)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = {**super().get_config(), "mask": self.mask, "group": self.group}
        # Items are always on the last axis.
        del config["axis"]
        return config

    def _input_names(self) -> dict[str, str]:
        names = {"mask": self.mask, "group": self.group}
        return {argument: name for argument, name in names.items() if name is not None}

    def _check_keys(self, given: Mapping[str, Any]) -> None:
        if "scores" not in given or not set(given) <= {"scores", "mask", "group"}:
            raise ValueError(
                "`y_true` must be the teacher's output, or hold it under 'scores', "
                "besides 'mask' and 'group' where there are any. Received: keys "
                f"{sorted(map(str, given))}"
            )
        for argument, name in self._input_names().items():
            if given.get(argument) is None:
                raise ValueError(
                    f"`{self.name}` has {argument}={name!r}, an input that `Distiller` "
                    "looks up. Elsewhere call it as `loss(loss.with_lists("
                    "teacher_output, inputs), student_output)`. Received: a `y_true` "
                    f"without {argument!r}"
                )
