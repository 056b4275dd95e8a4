"""The parts of a distiller's `fit` outside of its steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_distill import backend
from keras_distill.fitting import WatchedFit
from keras_distill.guards.look import Look
from keras_distill.guards.validation import unlabelled_inputs
from keras_distill.setup import Setup
from keras_distill.signatures import like
from keras_distill.teaching import Taught
from keras_distill.types import Tensor
from keras_distill.values import Value


class DistilledFit(WatchedFit, Taught):
    """A distiller's `fit`, which also checks, builds and finishes its teacher."""

    @like(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train. The arguments and the result are those of `keras.Model.fit`."""
        with self._fitting():
            return super().fit(*args, **kwargs)

    @like(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, as `keras.Model.train_on_batch` does."""
        with self._fitting():
            return super().train_on_batch(*args, **kwargs)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Mark that steps train: only then is a teacher that trains built."""
        self._lent.fits = True
        try:
            yield
        finally:
            self._lent.fits = False

    @property
    def _looks(self) -> Sequence[Look]:
        return [self._lent.setup.look] if self._lent.setup else []

    @property
    def _flag_messages(self) -> Mapping[str, str]:
        setup = self._lent.setup
        return setup.flag_messages if setup and backend.compiles(self) else {}

    @property
    def _scheduled(self) -> Mapping[str, Value]:
        setup: Setup | None = self._lent.setup
        of_objective = setup.objective.values if setup else {}
        return {**of_objective, **self._lent.hints.weights}

    @property
    def _compiled_within(self) -> Sequence[keras.Model]:
        joint = self.teacher_in_training
        return [] if joint is None else [joint]

    def _check_data(self, given: Mapping[str, Any]) -> None:
        super()._check_data(given)
        x = unlabelled_inputs(given.get("validation_data"))
        if x is None or not self.compiled or not self.built:
            return
        specs = keras.tree.map_structure(_spec, x)
        try:
            backend.traced(self._evaluated_without_labels, specs)
        except Exception as error:
            raise ValueError(
                "Evaluation without labels measures the distillation loss, which can't "
                "be computed on `validation_data`. Pass labels with it, or none. "
                f"Received: {type(error).__name__}: {error}"
            ) from error

    def _evaluated_without_labels(self, x: Any) -> Tensor:
        return self.compute_loss(x, None, self(x, training=False), training=False)

    @property
    def _built_with_steps(self) -> Sequence[keras.Model]:
        # Data of an evaluation may lack what the teacher needs.
        return self._compiled_within if self._lent.fits else []

    def _before_steps(self) -> None:
        """Set the count of batches to the optimiser's count, e.g. after a resume."""
        count = backend.batches_seen(self.optimizer)
        self._lent.batches.assign(count)

    def _end_fit(self) -> None:
        """Give a teacher that trains its final weights, as Keras does for a student."""
        joint = self.teacher_in_training
        if joint is not None:
            joint.optimizer.finalize_variable_values(joint.trainable_weights)


def _spec(x: Any) -> keras.KerasTensor:
    """Return the shape and dtype of a batch of rows like these."""
    x = x if hasattr(x, "shape") else keras.ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    return keras.KerasTensor((None, *tuple(x.shape)[1:]), dtype)
