"""A model that trains another one on the labelled rows of each batch."""

from collections.abc import Collection
from typing import Any

import keras
from keras import ops

from keras_distill import backend, own_training, per_output
from keras_distill.batch import Batch
from keras_distill.labels import structures, units
from keras_distill.labels.masks import LabelMask
from keras_distill.labels.own_loss import OwnLoss
from keras_distill.labels.probabilities import checked_probabilities, raises
from keras_distill.labels.recorded import RecordedLosses
from keras_distill.signatures import like
from keras_distill.types import Nested, Tensor


class LabelledModel(keras.Model):
    """A model that trains another one; its losses and metrics skip unlabelled rows.

    If the other model's class overrides a method of training, such as `compute_loss`,
    that method is called.
    """

    @property
    def _label_mask(self) -> LabelMask:
        raise NotImplementedError

    @property
    def _trained_model(self) -> keras.Model:
        raise NotImplementedError

    @property
    def _logged_names(self) -> Collection[str]:
        """The names that this model logs. No metric of the other model may have one."""
        return ()

    def _read(self, x: Nested) -> Nested:
        """Return the inputs that the other model reads."""
        raise NotImplementedError

    @like(keras.Model.compile)
    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure training, as `keras.Model.compile` does."""
        super().compile(*args, **kwargs)
        object.__setattr__(self, "_recorded", RecordedLosses(self._compile_loss))
        if backend.is_tensorflow():
            # On TensorFlow, the trace of a step must not create variables.
            from keras_distill import building

            building.build_outside(self)

    def compute_loss(
        self,
        x: Nested = None,
        y: Nested = None,
        y_pred: Nested = None,
        sample_weight: Nested = None,
        training: bool = True,
    ) -> Tensor:
        """Return Keras' loss of the labelled rows, or that of the model's own method.

        If XLA or JAX compiles the step and a label of a binary cross-entropy is outside
        of [0, 1], the batch's labels of that output count as 0 in training, and
        evaluation returns NaN.
        """
        return self.own_loss(x, y, y_pred, sample_weight, training).total

    def own_loss(
        self,
        x: Nested,
        y: Nested,
        y_pred: Nested,
        sample_weight: Nested = None,
        training: bool = True,
    ) -> OwnLoss:
        """Return the loss of `compute_loss` with its parts.

        The loss of a batch without labels is that of regularisers and `add_loss` terms.
        The result of a class's own `compute_loss` counts as a label loss as a whole,
        because its parts aren't known.
        """
        y, sample_weight = self._by_output(y, sample_weight, y_pred)
        model = self._trained_model
        has_own = own_training.overrides(model, "compute_loss")
        if not self._learns_from(y) and (training or not has_own):
            terms = map(self._aggregate_additional_loss, self.losses)
            return OwnLoss(sum(terms, start=ops.zeros(())))
        y, all_valid = self._checked_labels(x, y, sample_weight)
        given = self._label_mask.loss_inputs(
            x, y, y_pred, sample_weight, losses=self.loss, names=self._names
        )
        if has_own:
            with own_training.compiled_as(model, self):
                loss = model._compute_loss(self._read(x), *given, training)
            labels, by_output = loss, {}
        else:
            loss = super().compute_loss(x, *given, training)
            labels, by_output = self._recorded.taken(y_pred, self._names)
        if raises(xla=self.jit_compile):
            return OwnLoss(loss, labels, by_output)
        if not training:
            # Evaluation doesn't read the flag.
            loss = ops.where(all_valid, loss, float("nan"))
        return OwnLoss(loss, labels, by_output, all_valid)

    def _learns_from(self, y: Nested) -> bool:
        """Return whether a batch with these labels, or None, has a label loss."""
        if own_training.overrides(self._trained_model, "compute_loss"):
            return True
        return self.loss is not None and y is not None

    @property
    def _names(self) -> list[str] | None:
        """The names of the outputs in order, None where the model has none."""
        names: list[str] | None = getattr(self, "output_names", None)
        return names

    def _checked_labels(
        self, x: Nested, y: Nested, sample_weight: Nested
    ) -> tuple[Nested, Tensor]:
        """Return the labels with unlabelled rows filled, and whether all are valid."""
        if y is None:
            # A model's own loss may need no labels.
            return None, ops.convert_to_tensor(True)
        return checked_probabilities(
            self.loss,
            self._label_mask.mask_labels(x, y),
            sample_weight,
            output_names=self._names,
            xla=self.jit_compile,
        )

    def _record(
        self, x: Nested, y: Nested, y_pred: Nested, sample_weight: Nested, step: Any
    ) -> Batch:
        """Return the record of a step.

        Args:
            x: The inputs, with all keys if they are a dict.
            y: The labels by output; None without labels.
            y_pred: The other model's outputs.
            sample_weight: The sample weights by output.
            step: The number of the optimiser's updates so far.
        """
        mask = self._label_mask
        labels = mask.mask_labels(x, y)
        if backend.compiles(self) and self._has_label_loss:
            # Replaces invalid labels. A step that isn't compiled has raised an error.
            labels, _ = self._checked_labels(x, y, sample_weight)
        return Batch(
            inputs=x,
            labels=per_output.as_structured(labels, y_pred, self._names),
            labelled=mask.by_path(x, y_pred),
            sample_weight=sample_weight,
            output=y_pred,
            step=step,
        )

    @property
    def _has_label_loss(self) -> bool:
        own = own_training.overrides(self._trained_model, "compute_loss")
        return own or self.loss is not None

    def _by_output(
        self, y: Nested, sample_weight: Nested, y_pred: Nested
    ) -> tuple[Nested, Nested]:
        """Return labels and weights in the structure of the outputs."""
        return (
            structures.labels_by_output(y, y_pred, names=self._names, losses=self.loss),
            structures.weights_by_output(sample_weight, y_pred, names=self._names),
        )

    def compute_metrics(
        self, x: Nested, y: Nested, y_pred: Nested, sample_weight: Nested = None
    ) -> dict[str, Tensor]:
        """Update the metrics with the rows that have a label."""
        y, sample_weight = self._by_output(y, sample_weight, y_pred)
        weights = self._label_mask.mask_weights(x, y, sample_weight, y_pred)
        y = self._label_mask.mask_labels(x, y)
        by_unit = self._label_mask.masked_by_unit(x, y_pred)
        y, y_pred = (units.with_unit_axis(each, by_unit) for each in (y, y_pred))
        model = self._trained_model
        if not own_training.overrides(model, "compute_metrics"):
            logs: dict[str, Tensor] = super().compute_metrics(x, y, y_pred, weights)
            return logs
        with own_training.compiled_as(model, self):
            own = model.compute_metrics(self._read(x), y, y_pred, weights)
        return self._with_own(self.get_metrics_result(), own)

    def get_metrics_result(self) -> dict[str, Tensor]:
        """Return the values of the metrics, and those of the model's own method."""
        logs: dict[str, Tensor] = {}
        for metric in self.metrics:
            result = metric.result()
            named = result if isinstance(result, dict) else {metric.name: result}
            # Keras would log only the last of two metrics of one name.
            twice = logs.keys() & named.keys()
            if twice:
                own_training.check_names(twice, self._logged_names)
            logs.update(named)
        model = self._trained_model
        if not own_training.overrides(model, "get_metrics_result"):
            return logs
        with own_training.compiled_as(model, self):
            return self._with_own(logs, model.get_metrics_result())

    def _with_own(
        self, logs: dict[str, Tensor], own: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return logs, updated with those of the model's own method.

        `loss` remains the total.
        """
        own_training.check_names(own, self._logged_names)
        return {**logs, **own, "loss": logs["loss"]}

    def reset_metrics(self) -> None:
        """Reset the metrics. The other model's own method resets its metrics."""
        model = self._trained_model
        if not own_training.overrides(model, "reset_metrics"):
            super().reset_metrics()
            return
        with own_training.compiled_as(model, self):
            model.reset_metrics()
            of_model = {id(m) for m in own_training.all_metrics(model)}
        for metric in self.metrics:
            if id(metric) not in of_model:
                metric.reset_state()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of Keras; compiled ones are left out until labels built them."""
        # A compiled metric that isn't built has no result.
        metrics = [m for m in super().metrics if getattr(m, "built", True)]
        names = {metric.name for metric in metrics}
        own = own_training.own_metrics(self._trained_model)
        return metrics + [metric for metric in own if metric.name not in names]
