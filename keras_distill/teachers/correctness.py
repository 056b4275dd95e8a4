"""An ensemble in which members weigh less where they are wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import per_output
from keras_distill.batch import Batch
from keras_distill.losses import checks
from keras_distill.losses.class_labels import target_ids
from keras_distill.per_output import of_rank
from keras_distill.teachers.base import TeacherLike
from keras_distill.teachers.ensemble import Ensemble
from keras_distill.types import Nested, Path, Tensor

tree = keras.tree


@keras.saving.register_keras_serializable(package="keras_distill")
class CorrectnessWeighted(Ensemble):
    r"""The mean of several models' outputs, in which wrong models weigh less.

    `t = 1/M sum_m w_m t_m` for each example, with the outputs `t_m` of `M` members. A
    member is wrong if its largest logit isn't that of the label. Then `w_m = W`. A
    member that is right has `w_m = 1 + wrong (1 - W) / right`, where `wrong` and
    `right` are the numbers of wrong and right members. The weights sum to `M`, so that
    logits keep their scale. If all members are right or all are wrong, and for rows
    without a label, the result is the plain mean.

    The teacher reads labels. `Distiller` passes them to it; elsewhere, call it as
    `teacher(x, labels=y)`. Labels are class ids, in the outputs' shape without the
    class axis or with a last axis of size 1. Or they have one number for each class, as
    in one-hot labels: the largest marks the label. With `activation="sigmoid"`, labels
    have one number for each unit. A member is right about a unit if its logit is
    positive and the label is above 0.5, or if neither is so. Labels of several outputs
    have the outputs' structure.

    Args:
        models: As in `Ensemble`.
        wrong_weight: The weight of a wrong member, `W` in [0, 1]. Defaults to 0.75. 1
            gives the plain mean, 0 the mean of the members that are right.
        combine: As in `Ensemble`.
        activation: As in `Ensemble`.
        axis: As in `Ensemble`.
        log_losses: As in `Ensemble`.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: As `Ensemble` does, and if `wrong_weight` isn't in [0, 1]. When
            called, if there are no labels, if they don't fit the outputs, or if a label
            isn't a class. In steps that XLA compiles, such a label isn't an error: all
            members count as wrong about it.

    Example:
        >>> import numpy as np
        >>> teacher = CorrectnessWeighted([lambda x: x, lambda x: -x], 0.5)
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0]], "float32")
        >>> mean = teacher(logits, labels=[0, 1])
        >>> keras.ops.convert_to_numpy(mean).tolist()
        [[2.0, 0.0], [-2.0, 0.0]]
    """

    def __init__(
        self,
        models: Sequence[TeacherLike],
        wrong_weight: float = 0.75,
        *,
        combine: str = "logits",
        activation: str = "softmax",
        axis: int = -1,
        log_losses: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= wrong_weight <= 1.0:
            raise ValueError(
                "`wrong_weight` must be in [0, 1]. Received: "
                f"wrong_weight={wrong_weight}"
            )
        super().__init__(
            models,
            combine=combine,
            activation=activation,
            axis=axis,
            log_losses=log_losses,
            name=name,
            **kwargs,
        )
        self.wrong_weight = float(wrong_weight)

    def call(
        self,
        inputs: Nested,
        training: bool | None = None,
        labels: Nested = None,
        labelled: Nested = None,
    ) -> Nested:
        """Return the weighted mean of the members' outputs.

        Args:
            inputs: The inputs of the batch.
            training: As in `keras.Model.call`.
            labels: The labels, as described in the class.
            labelled: A boolean mask of the rows that have a label, of shape `(batch,)`,
                `(batch, 1)` or the labels' shape. For several outputs, one mask for all
                or a structure of masks. None (default) if all rows have a label.
        """
        outputs = self.member_outputs(inputs, training)
        if labels is not None and not tree.is_nested(outputs[0]):
            # Otherwise a list of ids would be taken for a structure of outputs.
            labels = ops.convert_to_tensor(labels)
        masks = {
            tuple(path): labelled
            if not tree.is_nested(labelled)
            else per_output.found(tuple(path), labelled)
            for path, _ in tree.flatten_with_path(outputs[0])
        }
        return self._weighted(outputs, labels, masks)

    def combined(self, outputs: Sequence[Nested], batch: Batch) -> Nested:
        """Return the mean of the outputs, with weights that depend on the labels."""
        return self._weighted(outputs, batch.labels, batch.labelled or {})

    def plain(self) -> Ensemble:
        """Return the plain ensemble of the same models, which needs no labels."""
        return Ensemble(
            self.models,
            combine=self.combine,
            activation=self.activation,
            axis=self.axis,
            log_losses=self.log_losses,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = {**super().get_config(), "wrong_weight": self.wrong_weight}
        del config["weights"]
        return config

    def _weighted(
        self, outputs: Sequence[Nested], labels: Nested, masks: Mapping[Path, Tensor]
    ) -> Nested:
        shares = []
        for path, _ in tree.flatten_with_path(outputs[0]):
            path = tuple(path)
            logits = [
                ops.convert_to_tensor(per_output.at(path, output, "a member's output"))
                for output in outputs
            ]
            of_output = per_output.found(path, labels)
            if of_output is None:
                raise ValueError(self._no_labels(path, labels))
            shares.append(self._shares(logits, of_output, masks.get(path)))
        of_member = [
            tree.pack_sequence_as(outputs[0], list(parts))
            for parts in zip(*shares, strict=True)
        ]
        return self.mean(outputs, of_member)

    def _shares(
        self, logits: Sequence[Tensor], labels: Tensor, labelled: Tensor | None
    ) -> list[Tensor]:
        """Return each member's share of one output, of the same rank as its logits."""
        right = ops.stack(self._right(logits, labels, labelled))
        if labelled is not None:
            right |= ~ops.cast(of_rank(labelled, right[0]), "bool")
        count, right_count = len(logits), ops.sum(ops.cast(right, "float32"), axis=0)
        freed = (count - right_count) * (1.0 - self.wrong_weight)
        of_right = 1.0 + freed / ops.maximum(right_count, 1.0)
        weights = ops.where(right, of_right, self.wrong_weight)
        weights = ops.where(right_count == 0.0, 1.0, weights) / count
        if self.activation == "softmax":
            # The weights have one axis more: the first, of the members.
            axis = self.axis if self.axis < 0 else self.axis + 1
            weights = ops.expand_dims(weights, axis)
        return list(ops.unstack(weights, count, axis=0))

    def _right(
        self, logits: Sequence[Tensor], labels: Tensor, labelled: Tensor | None
    ) -> list[Tensor]:
        """Return a mask for each member: where it is right about one output."""
        if self.activation == "sigmoid":
            positive = ops.cast(self._of_units(labels, logits[0]), "float32") > 0.5
            return [ops.equal(x > 0, positive) for x in logits]
        if logits[0].shape[self.axis] == 1:
            raise ValueError(
                f"`{self.name}` can't tell who is right of one unit, whose largest "
                'logit it always is. Pass `activation="sigmoid"`. Received: outputs of '
                f"shape {tuple(logits[0].shape)}, axis={self.axis}"
            )
        ids = target_ids(
            labels, logits[0], self.axis, labelled=labelled, reader=self.name
        )
        ids = ops.cast(ids, "int32")
        return [
            ops.equal(ops.cast(ops.argmax(x, axis=self.axis), "int32"), ids)
            for x in logits
        ]

    def _of_units(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the labels of sigmoid units in the shape of their logits."""
        labels = ops.convert_to_tensor(labels)
        if len(labels.shape) == len(logits.shape) - 1 and logits.shape[-1] == 1:
            labels = ops.expand_dims(labels, -1)
        if not checks.may_have_shape(labels, logits.shape):
            raise ValueError(
                f"The labels that `{self.name}` reads must have the shape of the "
                "outputs, a number for each sigmoid unit. Received: labels of shape "
                f"{tuple(labels.shape)} for outputs of shape {tuple(logits.shape)}"
            )
        return labels

    def _no_labels(self, path: Path, labels: Nested) -> str:
        """Return the message of the error for an output without labels."""
        received = "None" if labels is None else per_output.describe(labels)
        output = f" of output {list(path)}" if path else ""
        return (
            f"`{self.name}` needs the label of each example{output}. Give `fit` "
            "labels; elsewhere call it as `teacher(x, labels=y)`. To predict, evaluate "
            "or serve without labels, take `teacher.plain()`, the ensemble of the same "
            "models. "
            f"Received: labels={received}"
        )
