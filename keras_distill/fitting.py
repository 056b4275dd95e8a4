"""`fit` and `evaluate` with checks before the first epoch and after each step."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill import arguments, backend
from keras_distill.building import compiled_parts
from keras_distill.devices.workers import first_batch
from keras_distill.guard import raise_if_flagged
from keras_distill.guards.look import Look
from keras_distill.guards.planned_steps import updates_of, warn_of_idle
from keras_distill.guards.validation import check_validation_data, labels_of
from keras_distill.labels.structures import check_weights_are_read
from keras_distill.signatures import like
from keras_distill.tracing import Retraceable
from keras_distill.types import Tensor
from keras_distill.values import Value


class WatchedFit(Retraceable):
    """A model that finds mistakes before, during and after `fit`.

    Before the first epoch, it checks the arguments. After each step, it checks the
    flags of a compiled step and the sums of the guards. At the end, it warns of
    schedules that never started.
    """

    warned_of_idle_schedules = False

    @property
    def _looks(self) -> Sequence[Look]:
        """The guards' looks at the values of the first batches."""
        return ()

    @property
    def _flag_messages(self) -> Mapping[str, str]:
        """Error messages by the name of the loss that a compiled step flags."""
        return {}

    @property
    def _scheduled(self) -> Mapping[str, Value]:
        """Weights and temperatures that `fit` logs, by name."""
        return {}

    @property
    def _evaluated(self) -> Sequence[keras.Model]:
        """The models that validation data must fit."""
        return ()

    @property
    def _evaluates_without_labels(self) -> bool:
        """Whether validation data may have no labels."""
        return False

    @like(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train. The arguments and the result are those of `keras.Model.fit`.

        Raises:
            ValueError: If validation data don't fit, sample weights have no labels, or
                the data hold no batch.
        """
        arguments.check_known("fit", kwargs, arguments.parameters(keras.Model.fit))
        given = inspect.signature(super().fit).bind(*args, **kwargs)
        self._check_data(given.arguments)
        # On TensorFlow, `make_train_function` adds a look to each step.
        of_steps = not backend.is_tensorflow()
        ours = _AfterEachStep() if of_steps else _BeforeEachEpoch()
        _with_callback(given, ours, self)
        begin = updates_of(self.optimizer) if self.compiled else 0
        history = super().fit(*given.args, **given.kwargs)
        for look in self._looks:
            look.conclude()
        if not self.warned_of_idle_schedules:
            self.warned_of_idle_schedules = warn_of_idle(
                self._scheduled, begin, updates_of(self.optimizer)
            )
        if history.epoch:
            self._end_fit()
        if history.epoch and "loss" not in history.history:
            raise ValueError(
                "`fit` needs data, but none of its epochs saw a batch. Received: an "
                "empty data set, or an iterator that was read to its end before"
            )
        return history

    @like(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, with the arguments and the result of `keras.Model.evaluate`.

        Raises:
            ValueError: If there are sample weights, but no labels.
        """
        given = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        received = "`sample_weight` without `y`"
        check_weights_are_read(given.get("y"), given.get("sample_weight"), received)
        return super().evaluate(*args, **kwargs)

    @like(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, as `keras.Model.train_on_batch` does."""
        if backend.is_tensorflow():
            return super().train_on_batch(*args, **kwargs)
        given = inspect.signature(super().train_on_batch).bind(*args, **kwargs)
        as_dict = given.arguments.pop("return_dict", False)
        self._before_steps()
        logs = super().train_on_batch(**given.arguments, return_dict=True)
        self._after_step(logs)
        return logs if as_dict else self._flatten_metrics_in_order(logs)

    def make_train_function(self, force: bool = False) -> None:
        """Build the function that `fit` calls for each step."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force=force)
        if backend.is_tensorflow():
            step: Any = self.train_function

            def watched_step(iterator: Any) -> Any:
                logs = step(iterator)
                self._after_step(logs)
                return logs

            self.train_function: Any = watched_step

    @property
    def _built_with_steps(self) -> Sequence[keras.Model]:
        """The models within that are built before the first step."""
        return self._compiled_within

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras calls this on JAX and on several devices.
        within = self._built_with_steps
        if all(part.built for part in compiled_parts(within)):
            super()._symbolic_build(iterator, data_batch)
            return
        if data_batch is None:
            # For all models: some data can be read only once.
            data_batch = first_batch(iterator)
        super()._symbolic_build(iterator, data_batch)
        for model in within:
            model._symbolic_build(data_batch=data_batch)

    def _before_epoch(self) -> None:
        """Notify the guards that another epoch of `fit` begins."""
        for look in self._looks:
            look.before_epoch()

    def _before_steps(self) -> None:
        """Prepare for steps on JAX, before the trainer removes variables' values."""

    def _end_fit(self) -> None:
        """Finish after all epochs."""

    def _after_step(self, logs: Mapping[str, Any]) -> None:
        """Check the flags and the sums of a step."""
        raise_if_flagged(logs, self._flag_messages)
        for look in self._looks:
            look.after_step()

    def _get_metrics_result_or_logs(self, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Keras would return the logs of the last step where a step doesn't log every
        # metric. On several devices, they are only one device's.
        results = self.get_metrics_result()
        return {name: results.get(name, log) for name, log in logs.items()}

    def _check_data(self, given: Mapping[str, Any]) -> None:
        """Raise an error that `fit` would raise after its first epoch, or never."""
        received = "`sample_weight` without `y`"
        check_weights_are_read(given.get("y"), given.get("sample_weight"), received)
        data = given.get("validation_data")
        if isinstance(data, tuple | list):
            _, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            received = "`validation_data` of `(x, None, weights)`"
            check_weights_are_read(y, weight, received)
        if data is not None:
            labels = labels_of(given.get("x"), given.get("y"))
            for model in self._evaluated:
                check_validation_data(
                    model, data, labels, unlabelled=self._evaluates_without_labels
                )


class _BeforeEachEpoch(keras.callbacks.Callback):
    """Lets the model prepare, after other callbacks have restored its state."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notify the guards of the epoch."""
        self.model._before_epoch()


class _AfterEachStep(_BeforeEachEpoch):
    """Checks a step after the trainer has stored the state that the step returned."""

    def __init__(self) -> None:
        super().__init__()
        # The logs of a step that may still run: reading them would wait for it.
        self._logs: Mapping[str, Any] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Let the model and the guards prepare."""
        super().on_epoch_begin(epoch, logs)
        self.model._before_steps()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the previous step, which has ended."""
        self._logs, ended = logs or {}, self._logs
        self.model._after_step(ended)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Check the last step."""
        self.model._after_step(self._logs)
        self._logs = {}


def _with_callback(
    given: inspect.BoundArguments,
    callback: keras.callbacks.Callback,
    model: keras.Model,
) -> None:
    """Add a callback of a model to the arguments of its `fit`."""
    callbacks = given.arguments.get("callbacks")
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # Keras uses such a list as it is. It may have been given to an earlier `fit`.
        others = [
            each for each in callbacks.callbacks if type(each) is not type(callback)
        ]
        callback.set_model(model)
        callbacks.callbacks = [*others, callback]
        callbacks._configure_async_dispatch(callbacks.callbacks)
        return
    earlier = [] if callbacks is None else keras.tree.flatten(callbacks)
    given.arguments["callbacks"] = [*earlier, callback]
