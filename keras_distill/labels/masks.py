"""Which rows of a batch have a label."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import building, own_training, per_output
from keras_distill.labels import structures, units
from keras_distill.labels.probabilities import checked_probabilities
from keras_distill.labels.row_values import RowValues
from keras_distill.per_output import of_rank
from keras_distill.signatures import like
from keras_distill.types import Tensor

tree = keras.tree


class LabelMask:
    """Leaves rows without a label out of the label losses and their metrics.

    It acts as Keras' own masks do: a loss is averaged over the rows that have a
    label, and is 0 where none has.

    Args:
        keys: The key of the batch's inputs under which the mask stands, True or
            nonzero where a row has a label; a dict of keys by output, None for those
            that are labelled throughout; None where every row is labelled.
        output_names: The names of the outputs in order, where the model has any.
    """

    def __init__(self, keys: Any, *, output_names: Sequence[str] | None) -> None:
        flat = list(keys.values()) if isinstance(keys, Mapping) else [keys]
        if not all(key is None or isinstance(key, str) for key in flat):
            raise TypeError(
                "`label_mask` must be the name of an input, or a dict of such names, "
                "with None for outputs that are labelled throughout. Received: "
                f"label_mask={keys!r}"
            )
        self._per_output = keys
        self._output_names = output_names
        self.row_values = RowValues()
        self.keys = tuple(dict.fromkeys(key for key in flat if key is not None))

    def mask_predictions(self, x: Any, predictions: Any) -> Any:
        """Return predictions that Keras' losses take as masked."""

        def masked(output: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return output
            if len(output.shape) == 1 or units.are_units(mask, output):
                output = ops.expand_dims(output, -1)  # or Keras would average them
            mask = _for_values(mask, output)
            earlier = getattr(output, "_keras_mask", None)
            output = ops.copy(output)  # whoever else holds it is to see no mask
            output._keras_mask = mask if earlier is None else mask & earlier
            return output

        self._check_names(predictions)
        return self._map(masked, predictions, x)

    def mask_labels(self, x: Any, labels: Any) -> Any:
        """Return labels with that of another row where there is none.

        So what is computed of it is finite, and can be weighed by 0. Where no row has
        a label, it is 0.
        """
        if labels is None:
            return None

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None or label is None:
                return label
            label = ops.convert_to_tensor(label)
            if len(label.shape) == 1 and label.dtype.is_floating:
                label = ops.expand_dims(label, -1)  # as the predictions
            return _filled(label, of_rank(mask, label))

        return self._map(masked, labels, x)

    def mask_weights(
        self, x: Any, labels: Any, sample_weight: Any, predictions: Any
    ) -> Any:
        """Return the weights of a metric: 0 where there is no label."""
        if not self._found(x):
            return sample_weight

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if label is None:
                return None
            if mask is None:
                return ops.ones(ops.shape(label)[:1])
            return ops.cast(of_rank(mask, label), keras.config.floatx())

        masks = self._map(masked, labels, x)
        flat = [
            _of_rows(mask, per_output.found(tuple(path), predictions))
            for path, mask in tree.flatten_with_path(masks)
        ]
        masks = tree.pack_sequence_as(masks, flat)
        if sample_weight is None:
            return masks
        weights = sample_weight
        if not tree.is_nested(weights):
            weights = tree.map_structure(lambda _: sample_weight, labels)
        return tree.map_structure(_product, weights, masks)

    def by_path(self, x: Any, structure: Any) -> dict[per_output.Path, Tensor]:
        """Return the boolean masks of a batch by the paths of their outputs.

        A batch without the mask's key, as evaluation may have, is labelled throughout.
        """
        masks: dict[per_output.Path, Tensor] = {}
        keys = self._by_path(structure) if self._found(x) else {}
        for path, tensor in tree.flatten_with_path(structure):
            key = keys.get(tuple(path))
            mask = _held(x, key)
            if mask is not None and tensor is not None:
                masks[tuple(path)] = ops.cast(mask, "bool")
                _check_rows(masks[tuple(path)], tensor, key)
        return masks

    def _found(self, x: Any) -> bool:
        return any(_held(x, key) is not None for key in self.keys)

    def _check_names(self, predictions: Any) -> None:
        if not isinstance(self._per_output, Mapping):
            return
        keys = self._by_path(predictions)
        paths = {tuple(path) for path, _ in tree.flatten_with_path(predictions)}
        if not paths.issuperset(keys):
            raise ValueError(
                "The keys of `label_mask` must be the names of the student's outputs. "
                f"Received: keys {sorted(self._per_output)} for outputs of shape "
                f"{per_output.describe(predictions)}"
            )

    def _by_path(self, structure: Any) -> dict[per_output.Path, str]:
        return per_output.by_path(
            self._per_output,
            structure,
            names=self._output_names,
            what="`label_mask`",
            partial=True,
        )

    def _map(self, function: Any, structure: Any, x: Any) -> Any:
        """Return `function(tensor, mask)` of each output's tensor, mask None for some.

        Of a batch without masks, the structure itself.
        """
        if not self._found(x):
            return structure
        masks = self.by_path(x, structure)
        mapped = [
            function(tensor, masks.get(tuple(path)))
            for path, tensor in tree.flatten_with_path(structure)
        ]
        return tree.pack_sequence_as(structure, mapped)


class LabelledModel(keras.Model):
    """A model around another, whose label losses and metrics see labels only.

    Methods of training that the class of the other model overrides are called.
    """

    @property
    def _label_mask(self) -> LabelMask:
        raise NotImplementedError

    @property
    def _trained_model(self) -> keras.Model:
        raise NotImplementedError

    @property
    def _logged_names(self) -> Collection[str]:
        """The names that what the model around logs, which no metric may have."""
        return ()

    def _read(self, x: Any) -> Any:
        """Return the inputs that the model reads."""
        raise NotImplementedError

    @like(keras.Model.compile)
    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure training, as `keras.Model.compile` does."""
        super().compile(*args, **kwargs)
        building.build_outside(self)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return Keras' loss of the rows that have a label, or the model's own."""
        y, sample_weight = self._by_output(y, sample_weight, y_pred)
        y, _ = self._checked_labels(x, y, sample_weight)
        by_unit = self._masked_by_unit(x, y_pred)
        names = getattr(self, "output_names", None)
        units.check_losses(self.loss, y_pred, by_unit, names=names)
        y = units.with_unit_axis(y, by_unit)
        sample_weight = units.weights_of_units(sample_weight, y_pred, by_unit)
        masks = self._label_mask.by_path(x, y_pred)
        y_pred = self._label_mask.mask_predictions(x, y_pred)
        self._label_mask.row_values.check(self.loss, y, y_pred, masks, names=names)
        model = self._trained_model
        if not own_training.overrides(model, "compute_loss"):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        with own_training.compiled_as(model, self):
            return model._compute_loss(
                self._read(x), y, y_pred, sample_weight, training
            )

    def _checked_labels(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Tensor]:
        """Return the labels, 0 where there is none, and whether all can be labels."""
        if y is None:  # a model's own loss may need none
            return None, ops.convert_to_tensor(True)
        return checked_probabilities(
            self.loss,
            self._label_mask.mask_labels(x, y),
            sample_weight,
            output_names=getattr(self, "output_names", None),
            xla=self.jit_compile,
        )

    def _masked_by_unit(self, x: Any, y_pred: Any) -> list[per_output.Path]:
        masks = self._label_mask.by_path(x, y_pred)
        return units.masked_by_unit(masks, y_pred)

    def _by_output(self, y: Any, sample_weight: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return labels and weights in the structure of the outputs."""
        names = getattr(self, "output_names", None)
        return (
            structures.labels_by_output(y, y_pred, names=names, losses=self.loss),
            structures.weights_by_output(sample_weight, y_pred, names=names),
        )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        """Update the metrics with the rows that have a label."""
        y, sample_weight = self._by_output(y, sample_weight, y_pred)
        weights = self._label_mask.mask_weights(x, y, sample_weight, y_pred)
        y = self._label_mask.mask_labels(x, y)
        by_unit = self._masked_by_unit(x, y_pred)
        y, y_pred = (units.with_unit_axis(each, by_unit) for each in (y, y_pred))
        model = self._trained_model
        if not own_training.overrides(model, "compute_metrics"):
            logs: dict[str, Tensor] = super().compute_metrics(x, y, y_pred, weights)
            return logs
        with own_training.compiled_as(model, self):
            own = model.compute_metrics(self._read(x), y, y_pred, weights)
        return self._with_own(self.get_metrics_result(), own)

    def get_metrics_result(self) -> dict[str, Tensor]:
        """Return the values of the metrics, as the model's own method has them."""
        logs: dict[str, Tensor] = {}
        for metric in self.metrics:  # as Keras, which lets one of two names vanish
            result = metric.result()
            named = result if isinstance(result, dict) else {metric.name: result}
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
        """Return logs with what a method of the model's own returned.

        `loss` stays the total.
        """
        own_training.check_names(own, self._logged_names)
        return {**logs, **own, "loss": logs["loss"]}

    def reset_metrics(self) -> None:
        """Begin a new epoch; the model's own method decides on its own metrics."""
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
        """Keras' metrics; compiled ones have no result before labels have come."""
        metrics = [m for m in super().metrics if getattr(m, "built", True)]
        names = {metric.name for metric in metrics}
        own = own_training.own_metrics(self._trained_model)
        return metrics + [metric for metric in own if metric.name not in names]


def _filled(label: Tensor, mask: Tensor) -> Tensor:
    """Return a label with its first valid row in place of what a mask rules out."""
    mask = ops.broadcast_to(mask, ops.shape(label))
    # a row of zeros at the end is taken where no other can be
    below = [[0, 1], *([[0, 0]] * (len(label.shape) - 1))]
    order = ops.pad(2 * ops.cast(mask, "int32"), below, constant_values=1)
    first = ops.expand_dims(ops.argmax(order, axis=0), 0)
    filling = ops.take_along_axis(ops.pad(label, below), first, axis=0)
    return ops.where(mask, label, filling)


def _of_rows(weight: Tensor | None, prediction: Tensor | None) -> Tensor | None:
    """Return weights of rows in the one shape that `F1Score` and its like take."""
    if weight is None or prediction is None or len(prediction.shape) > 2:
        return weight
    is_column = len(weight.shape) == 2 and weight.shape[-1] == 1
    return ops.squeeze(weight, -1) if is_column else weight


def _held(x: Any, key: str | None) -> Any:
    """Return what a dict, or a dict in it, holds under a key; None where none does."""
    if not isinstance(x, Mapping):
        return None
    if key in x:
        return x[key]
    found = (_held(item, key) for item in x.values())
    return next((item for item in found if item is not None), None)


def _product(weight: Any, mask: Tensor | None) -> Tensor | None:
    """Return the weight of each label, 0 where there is none."""
    if weight is None or mask is None:
        return mask
    return ops.cast(of_rank(weight, mask), mask.dtype) * mask


def _check_rows(mask: Tensor, tensor: Tensor, key: str | None) -> None:
    """Raise ValueError unless a mask says something of each row, or each element."""
    shape, rows = tuple(mask.shape), tuple(tensor.shape)
    pairs = zip(shape, rows, strict=False)
    fits = all(size in (1, None, of) or of is None for size, of in pairs)
    if not fits or (len(shape) > len(rows) and shape[len(rows) :] != (1,)):
        raise ValueError(
            f"The label mask '{key}' must be of shape (batch,) or (batch, 1), or hold "
            f"a value for each label. Received: a mask of shape {shape} for labels or "
            f"outputs of shape {rows}"
        )


def _for_values(mask: Tensor, output: Tensor) -> Tensor:
    """Return the rows' mask in the shape of a loss's values of `output`."""
    values = output[..., 0] if len(output.shape) > 1 else output
    return ops.broadcast_to(of_rank(mask, values), ops.shape(values))
