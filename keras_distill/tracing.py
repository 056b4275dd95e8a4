"""Steps that can be traced again after an error in their first trace."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill import backend
from keras_distill.building import compiled_parts, is_empty
from keras_distill.devices.workers import AcrossWorkers
from keras_distill.scopes import scopes_kept


class Retraceable(AcrossWorkers):
    """A model whose `fit`, `evaluate` and `predict` work after an error.

    TensorFlow lets a function create variables in its first trace only. If that trace
    fails, they have no values. So a step that failed before it ever ran is traced
    again, and the parts that it built are built again. JAX's trainer removes the values
    of all variables before a step. If the step fails, they get their values back.
    """

    @property
    def _compiled_within(self) -> Sequence[keras.Model]:
        """The models that this one's step trains with losses of their own."""
        return ()

    def make_train_function(self, force: bool = False) -> None:
        """Build the function that `fit` calls."""
        self._make("train_function", super().make_train_function, force)

    def make_test_function(self, force: bool = False) -> None:
        """Build the function that `evaluate` calls."""
        self._make("test_function", super().make_test_function, force)

    def make_predict_function(self, force: bool = False) -> None:
        """Build the function that `predict` calls."""
        self._make("predict_function", super().make_predict_function, force)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        with scopes_kept():
            super()._symbolic_build(iterator, data_batch)

    def _make(self, name: str, make: Callable[..., None], force: bool) -> None:
        earlier = getattr(self, name)
        make(force=force)
        step = getattr(self, name)
        if step is earlier:
            return
        if not backend.is_tensorflow():
            setattr(self, name, backend.giving_back(step, self))
            return
        models = [self, *self._compiled_within]
        unbuilt = [part for part in compiled_parts(models) if not part.built]
        has_run = False

        def checked_step(data: Any) -> Any:
            nonlocal has_run
            try:
                with scopes_kept():
                    outputs = step(data)
            except BaseException as error:
                if not (has_run or backend.ends_data(error)):
                    setattr(self, name, None)
                    _unbuild(unbuilt)
                    _initialize(models)
                raise
            has_run = True
            return outputs

        setattr(self, name, checked_step)


def _unbuild(parts: Sequence[Any]) -> None:
    for part in parts:
        part.built = False
        if isinstance(part, keras.losses.Loss):
            del part.metrics[:]  # building appends to it


def _initialize(models: Sequence[keras.Model]) -> None:
    """Give a value to the variables that the failed trace left without one."""
    for model in models:
        for metric in model.metrics:
            if any(is_empty(variable) for variable in metric.variables):
                metric.reset_state()
        optimizer = model.optimizer
        if optimizer is not None and any(map(is_empty, optimizer.variables)):
            fresh = type(optimizer).from_config(optimizer.get_config())
            fresh.build(model.trainable_variables)
            for variable, initial in zip(
                optimizer.variables, fresh.variables, strict=True
            ):
                if is_empty(variable):
                    variable.assign(initial)
