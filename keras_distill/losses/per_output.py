"""One distillation loss for each output of a model."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_distill.losses.base import TemperedLoss

Tensor = Any
tree = keras.tree


class _FunctionLoss(keras.losses.Loss):
    """A loss function, e.g. what Keras finds under `"mse"`, with Keras' reduction."""

    def __init__(self, function: Any) -> None:
        super().__init__(name=getattr(function, "__name__", None))
        self._function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self._function(y_true, y_pred)


class PerOutputLoss:
    """Sum of the distillation losses of a model's outputs.

    Args:
        losses: A loss for every output, or a list, tuple or dict of losses that
            mirrors the outputs, with None for those that aren't distilled. A loss is
            what `keras.Model.compile` takes: a `keras.losses.Loss`, a function of
            `(teacher_output, student_output)`, or a name that Keras knows.
        output_names: The names of the outputs in order, where the model has any, so
            that a dict of losses may be given for a list of outputs.
    """

    def __init__(self, losses: Any, *, output_names: Sequence[str] | None) -> None:
        self._losses = tree.map_structure(_as_loss, losses)
        self._output_names = output_names
        if all(loss is None for loss in tree.flatten(self._losses)):
            raise ValueError(
                "`distillation_loss` must hold a loss for one output at least. "
                f"Received: distillation_loss={losses}"
            )

    def __call__(
        self,
        teacher_output: Any,
        student_output: Any,
        sample_weight: Any = None,
        *,
        step: Any = 0,
    ) -> Tensor:
        """Return the summed loss at the optimiser's `step`, a scalar."""
        terms = []
        for path, loss in self._by_path(student_output):
            weight = sample_weight
            if tree.is_nested(sample_weight):
                weight = _at(path, sample_weight, "`sample_weight`")
            teacher = _at(path, teacher_output, "the teacher's output")
            student = _at(path, student_output, "the student's output")
            terms.append(_evaluate(loss, teacher, student, weight, step=step))
        return sum(terms[1:], start=terms[0])

    def scheduled(self) -> Iterator[TemperedLoss]:
        """Yield the losses whose temperature is a schedule."""
        for loss in dict.fromkeys(tree.flatten(self._losses)):
            if isinstance(loss, TemperedLoss) and loss.tempering.scheduled:
                yield loss

    def _by_path(self, outputs: Any) -> list[tuple[Any, keras.losses.Loss]]:
        """Return (path, loss) of each output that has a loss."""
        losses = self._losses
        if not tree.is_nested(losses):
            return [(path, losses) for path, _ in tree.flatten_with_path(outputs)]
        if isinstance(losses, dict) and not isinstance(outputs, dict):
            names = list(self._output_names or ())
            if set(losses) != set(names):
                raise ValueError(
                    "The keys of `distillation_loss` must be the names of the "
                    f"student's outputs. Received: keys {sorted(losses)}, outputs "
                    f"named {names}"
                )
            losses = [losses[name] for name in names]
        if not isinstance(losses, dict) and (
            not tree.is_nested(outputs) or len(losses) != len(outputs)
        ):
            raise ValueError(
                "`distillation_loss` must hold one loss or None for each of the "
                f"student's outputs. Received: {len(losses)} losses for outputs of "
                f"shape {describe(outputs)}"
            )
        return [
            (path, loss)
            for path, loss in tree.flatten_with_path(losses)
            if loss is not None
        ]


def describe(outputs: Any) -> str:
    """Return the structure of `outputs` with shapes in the place of tensors."""
    return str(
        tree.map_structure(lambda x: tuple(getattr(x, "shape", ())) or str(x), outputs)
    )


def _at(path: Sequence[Any], structure: Any, what: str) -> Any:
    leaf = structure
    try:
        for key in path:
            # rows of a tensor aren't outputs
            leaf = leaf[key] if tree.is_nested(leaf) else None
        found = leaf is not None and not tree.is_nested(leaf)
    except (KeyError, IndexError, TypeError):
        found = False
    if not found:
        raise ValueError(
            f"There is a distillation loss for output {list(path)}, which {what} "
            "doesn't hold. Give both models the same outputs, or None as the loss of "
            f"those that aren't distilled. Received: {describe(structure)}"
        )
    return leaf


def _as_loss(loss: Any) -> Any:
    found = keras.losses.get(loss)
    if found is None or isinstance(found, keras.losses.Loss):
        return found
    return _FunctionLoss(found)


def _evaluate(
    loss: keras.losses.Loss,
    teacher_output: Tensor,
    student_output: Tensor,
    sample_weight: Tensor,
    *,
    step: Any,
) -> Tensor:
    if isinstance(loss, TemperedLoss):
        loss.step = step
    try:
        return loss(teacher_output, student_output, sample_weight)
    finally:
        if isinstance(loss, TemperedLoss):
            loss.step = 0  # `step` may be a tensor of a graph that ends with this call
