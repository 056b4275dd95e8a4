"""A callback that compares the student with its teacher."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill import backend, per_output
from keras_distill.callbacks.held_out import HeldOut, digest
from keras_distill.distiller import Distiller
from keras_distill.guards.kinds import Kind
from keras_distill.metrics import distributions
from keras_distill.metrics.distributions import Array
from keras_distill.types import Nested

_LOGGED = ("agreement", "teacher_kl", "teacher_entropy", "student_entropy")


class _Kept(NamedTuple):
    """The teacher's log-probabilities for a batch, and a hash of the batch."""

    digest: bytes
    log_probs: Mapping[str, Array]


class TeacherAgreement(keras.callbacks.Callback):
    r"""A callback that logs how well the student matches its teacher.

    At the end of each epoch, it adds means over all rows of the validation data to the
    logs:

    - `val_agreement`, the share of rows for which both models have the same likeliest
      class,
    - `val_teacher_kl`, `KL(t || s) = sum_c t_c * log(t_c / s_c)` at temperature 1,
    - `val_teacher_entropy`, `-sum_c t_c * log(t_c)`, and `val_student_entropy`.

    `t` and `s` are the probabilities of both models. Divergences and entropies are in
    nats. If the models have several outputs, each output has its own values, such as
    `val_<output>_agreement`. Each unit of a sigmoid output counts as a row, and so does
    each position of a sequence, including padding. Outputs that aren't class scores are
    left out. Labels are needed only for teachers that read them.

    Callbacks run in the order of their list. Put this one before those that read its
    values, such as `EarlyStopping`, `ModelCheckpoint`, `CSVLogger` and `TensorBoard`.

    The outputs of a fixed teacher are computed in the first epoch only. Main memory
    keeps them as log-probabilities: 4 bytes for each row and class, 8 bytes for each
    row and unit of a sigmoid. They are computed again if the rows of a batch change, as
    in a data set that shuffles, or if the teacher's outputs for the first batch change.

    Args:
        validation_data: Inputs as arrays of shape `(rows, ...)`, a tuple of inputs and
            labels, or a `tf.data.Dataset` of batches of either form. Inputs may be a
            dict with all keys of the inputs of `fit`, such as privileged features and
            recorded outputs of a teacher.
        batch_size: The number of rows of a batch of arrays, by default 32. Must be None
            for a data set.

    Raises:
        TypeError: If the data are neither arrays nor a data set. In `fit`, before the
            first step, if the model isn't a `Distiller`.
        ValueError: If the data have no rows or have sample weights; if `batch_size`
            isn't positive or is given for a data set. In `fit`, if no output has
            classes or the teacher returns no outputs. `fit` raises this error before
            the first step if the student is built, otherwise at the end of the first
            epoch.

    Example:
        >>> from keras_distill.callbacks import TeacherAgreement
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> teacher, student = (
        ...     keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        ...     for _ in range(2))
        >>> distiller = Distiller(student, teacher)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss)
        >>> agreement = TeacherAgreement((x, y))
        >>> stop = keras.callbacks.EarlyStopping("val_teacher_kl", mode="min")
        >>> history = distiller.fit(
        ...     x, y, epochs=2, verbose=0, callbacks=[agreement, stop])
        >>> 0.0 <= history.history["val_agreement"][0] <= 1.0
        True

    Reference:
        Stanton et al. 2021, "Does Knowledge Distillation Really Work?",
        https://arxiv.org/abs/2106.05945.
    """

    def __init__(self, validation_data: Any, batch_size: int | None = None) -> None:
        super().__init__()
        self.validation_data, self.batch_size = validation_data, batch_size
        self._data = HeldOut(validation_data, batch_size)
        self._kept: list[_Kept] = []

    def set_model(self, model: keras.Model) -> None:
        """Set the model that `fit` trains."""
        if not isinstance(model, Distiller):
            raise TypeError(
                "`TeacherAgreement` compares the student of a `Distiller` with its "
                f"teacher. Received: '{model.name}' of type {type(model).__name__}"
            )
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Compare the models on the first batch, so that errors are raised early."""
        self._kept = []
        model, teacher = self.model, self.model.adapted_teacher
        of_teacher = SimpleNamespace(variables=teacher.state)
        self._both = backend.compiled(
            lambda *given: model.outputs_of_both(*given),
            lambda: [model.student, of_teacher],
        )
        self._student = backend.compiled(
            lambda x: model(x, training=False), lambda: [model.student]
        )
        # Outputs aren't kept if the teacher changes while the student trains.
        trained = {id(variable) for variable in model.student.variables}
        self._keeps = not (
            teacher.changes
            or model.teacher_in_training
            or any(id(variable) in trained for variable in teacher.state)
        )
        if model.student.built:
            self._compared(next(self._data.batches()))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the comparison to the logs of the epoch."""
        # On JAX, variables don't have their current values while `fit` runs.
        getattr(self.model, "jax_state_sync", lambda: None)()
        sums: dict[str, Array] = {}
        for number, given in enumerate(self._data.batches()):
            for name, pair in self._log_probs(number, given).items():
                sums[name] = sums.get(name, 0.0) + _sums(*pair)
        for name, found in sums.items():
            prefix = f"val_{name}_" if name else "val_"
            names = [prefix + key for key in _LOGGED]
            if logs is not None:
                logs |= zip(names, (found[:-1] / found[-1]).tolist(), strict=True)

    def _log_probs(self, number: int, given: list[Any]) -> dict[str, tuple[Array, ...]]:
        """Return the log-probabilities of the teacher and the student for a batch.

        Args:
            number: The number of the batch in the data.
            given: The inputs, and the labels if there are any.
        """
        if not self._keeps:
            return self._compared(given)
        hashed = digest(given)
        kept = self._kept[number] if number < len(self._kept) else None
        # The first batch shows whether the teacher is still the same.
        if number and kept is not None and kept.digest == hashed:
            student = self._of_student(self._student(given[0]))
            return {name: (kept.log_probs[name], log) for name, log in student.items()}
        compared = self._compared(given)
        of_teacher = {name: pair[0] for name, pair in compared.items()}
        if (
            number == 0
            and kept is not None
            and not _are_equal(kept.log_probs, of_teacher)
        ):
            self._kept = []
        self._kept[number:] = [_Kept(hashed, of_teacher), *self._kept[number + 1 :]]
        return compared

    def _compared(self, given: list[Any]) -> dict[str, tuple[Array, ...]]:
        """Return the log-probabilities of both models."""
        student, teacher = self._both(*given)
        if teacher is None:
            raise ValueError(
                "`TeacherAgreement` compares the outputs of both models, but the "
                "teacher returned none for this batch. Received: None from "
                f"{type(self.model.teacher).__name__}"
            )
        found: dict[str, tuple[Array, ...]] = {}
        for name, scores in self.model.outputs_of_classes(student).items():
            log = _log_probabilities(
                per_output.found(scores.path, student), scores.student
            )
            output = per_output.at(scores.path, teacher, "the teacher's output")
            of_teacher = _log_probabilities(output, scores.teacher)
            found[name] = _shaped(of_teacher, log), log
        return found

    def _of_student(self, outputs: Nested) -> dict[str, Array]:
        """Return the log-probabilities of the student."""
        return {
            name: _log_probabilities(per_output.found(path, outputs), kind)
            for name, (path, _, kind) in self.model.outputs_of_classes(outputs).items()
        }


def _are_equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _shaped(of_teacher: Array, of_student: Array) -> Array:
    """Return the teacher's values, reshaped to the shape of the student's values.

    Raises:
        ValueError: If the models' numbers of rows or classes differ.
    """
    if of_teacher.size != of_student.size or len(of_teacher) != len(of_student):
        raise ValueError(
            "Both models must return as many rows and classes. Received: "
            f"log-probabilities of shape {of_teacher.shape} from the teacher, "
            f"{of_student.shape} from the student"
        )
    return of_teacher.reshape(of_student.shape)


def _log_probabilities(output: Any, kind: Kind) -> Array:
    """Return the log-probabilities of an output, in float32."""
    values, logits = ops.convert_to_numpy(output), kind.values == "logits"
    if kind.per_unit:
        log_probs = distributions.log_of_units(values, from_logits=logits)
    else:
        log_probs = distributions.log_of_classes(
            values, from_logits=logits, axis=kind.axis
        )
    return log_probs.astype("float32")


def _sums(log_p: Array, log_q: Array) -> Array:
    """Return a vector of 5: the sums of the logged values, and the number of rows."""
    log_p, log_q = log_p.astype("float64"), log_q.astype("float64")
    values = (
        distributions.agreement(log_p, log_q),
        distributions.forward_kl(log_p, log_q),
        distributions.entropy(log_p),
        distributions.entropy(log_q),
    )
    return np.array([*(each.sum() for each in values), values[0].size], "float64")
