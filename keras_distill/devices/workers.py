"""Training on several TensorFlow workers, which Keras' own trainer doesn't support.

To build a model, Keras averages the workers' first batches. It also averages their logs
along an axis, although logs are scalars (keras-team/keras issue 20585).
`tests/devices/test_workers.py` fails once Keras trains on several workers itself.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_distill import backend
from keras_distill.signatures import like

tree = keras.tree


class AcrossWorkers(keras.Model):
    """A model that trains under `tf.distribute.MultiWorkerMirroredStrategy`.

    Each worker is a process that runs the same program. It reads its part of each
    batch. All workers have the same weights.
    """

    _distribute_strategy: Any
    predict_function: Any

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        if iterator is None or not _has_workers(self):
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        strategy = self.distribute_strategy
        # Only the shapes and dtypes of this batch are read.
        batch = tree.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], first_batch(iterator)
        )
        with strategy.scope():
            self._symbolic_build(data_batch=batch)

    def _make_function(self, step_function: Callable[..., Any], **kwargs: Any) -> Any:
        if not _has_workers(self):
            return super()._make_function(step_function, **kwargs)
        import tensorflow as tf

        strategy = self.distribute_strategy
        step_function = self._autoconvert_optionals(step_function)

        def on_all_workers(data: Any) -> Any:
            logs = strategy.run(step_function, args=(data,))
            # Metrics are summed over all workers, so the workers' logs are equal.
            return tree.map_structure(
                lambda log: strategy.experimental_local_results(log)[0], logs
            )

        def step(iterator: Any) -> Any:
            return on_all_workers(next(iterator))

        if not self.run_eagerly:
            step = tf.function(step, reduce_retracing=True, autograph=False)

        def function(iterator: Any) -> Any:
            if isinstance(iterator, tf.distribute.DistributedIterator):
                return step(iterator)
            return on_all_workers(next(iterator))  # `train_on_batch`

        return function

    @like(keras.Model.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of all rows, as in `keras.Model.predict`.

        With several workers, each worker computes all rows of its own inputs.
        """
        if not _has_workers(self):
            return super().predict(*args, **kwargs)
        strategy = self._distribute_strategy
        self._distribute_strategy, self.predict_function = None, None
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._distribute_strategy, self.predict_function = strategy, None


def writes(model: keras.Model) -> bool:
    """Return whether this process writes files. Of several workers, the first does."""
    if not _has_workers(model):
        return True
    resolver = model.distribute_strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_id == 0)


def check_equal(model: keras.Model, number: int, what: str) -> None:
    """Raise RuntimeError unless all workers pass the same number.

    Args:
        model: The trainer.
        number: A whole number from 0 on.
        what: The meaning of the number, for the error.
    """
    if not _has_workers(model):
        return
    import tensorflow as tf

    strategy = model.distribute_strategy
    count = strategy.num_replicas_in_sync
    per_replica = strategy.run(lambda: tf.constant(number, "int64"))
    total = int(strategy.reduce("SUM", per_replica, axis=None))
    if total != number * count:
        raise RuntimeError(
            f"{what} must be the same. Do all read the same directory? Received: "
            f"{number} here, and a mean of {total / count:g}"
        )


def _has_workers(model: keras.Model) -> bool:
    """Return whether a model was made for several workers."""
    if not backend.is_tensorflow():
        return False
    return bool(model.distribute_strategy.extended._in_multi_worker_mode())


def first_batch(iterator: Any) -> Any:
    """Return the first batch of one of Keras' iterators over an epoch."""
    _, _, batches = next(iter(iterator))
    return batches[0] if isinstance(batches, list | tuple) else next(batches)
