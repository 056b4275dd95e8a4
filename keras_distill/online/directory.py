"""Codistillation of processes that read each other's students from a directory."""

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_distill import atomic
from keras_distill.batch import Batch
from keras_distill.distiller import Distiller
from keras_distill.inputs import select
from keras_distill.online.files import Version, lock, others
from keras_distill.scopes import scopes_kept
from keras_distill.teachers import base
from keras_distill.teachers.base import Lesson, Teacher
from keras_distill.teachers.combining import check_combination, mean_outputs
from keras_distill.types import Nested

tree = keras.tree


class _Published(NamedTuple):
    """Another process' student as it was last read.

    Args:
        version: The modification time, size and inode number of its file.
        architecture: The model's config, as JSON.
        model: The model.
    """

    version: Version
    architecture: str
    model: keras.Model


class SharedPeers(keras.callbacks.Callback, Teacher):
    r"""Codistillation: the teacher is the mean of other processes' students.

    Every `every` steps, the process publishes its student as a `.keras` file in the
    directory, and reads the latest files of the others. A file is replaced as a whole.
    No process waits for another. Processes may run on several machines that share the
    directory, run at different speeds, start late and be killed. Pass this object to a
    `Distiller` as the teacher, and to its `fit` as a callback.

    Until another process has published, there are no targets, and the student learns
    from the labels only. After a process was killed, its last file continues to teach,
    until the file is removed, or for `forget_after` seconds. A process that is started
    again under the same name reads its peers at once, and replaces its earlier file.
    To continue its own training, use `kd.online.Backup`.

    A file that can't be read, or whose model doesn't fit, is left out with a warning.
    Reading runs no code from files: Keras' `safe_mode` stays on. Custom layers of
    students must be registered, or given in `custom_objects`.

    Args:
        directory: The directory of the students' files, `<name>.keras` each. It is
            created if it doesn't exist.
        name: The name of this process. No other running process may have it.
        every: The number of steps after which the process publishes and reads. Defaults
            to 100.
        combine: The quantity to average: `"logits"` (default) or `"probabilities"`.
        activation: The function that turns outputs into probabilities, `"softmax"`
            (default) or, unit by unit, `"sigmoid"`.
        forget_after: The number of seconds for which a file teaches, counted from the
            time at which the file system records its last change. Defaults to None:
            files teach without a limit.
        custom_objects: As in `keras.saving.load_model`.

    Raises:
        ValueError: If `name` can't be the name of a file, or `every` isn't positive.
        RuntimeError: In `fit`, if this object isn't among the callbacks, or if another
            running process has the same name.
        TypeError: In `fit`, if the model isn't a `Distiller` with this object as its
            teacher.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> def run(name):  # each in another process
        ...     student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        ...     peers = SharedPeers("peers", name, every=2)
        ...     distiller = Distiller(student, peers)
        ...     distiller.compile(
        ...         "adam",
        ...         keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ...     distiller.fit(x, y, verbose=0, callbacks=[peers])
        ...     return peers.teaching
        >>> run("first"), run("second"), run("third")
        ([], ['first'], ['first', 'second'])

    Reference:
        Anil et al. 2018, "Large scale distributed neural network training through
        online distillation", https://arxiv.org/abs/1804.03235.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str,
        *,
        every: int = 100,
        combine: str = "logits",
        activation: str = "softmax",
        forget_after: float | None = None,
        custom_objects: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_combination(combine, activation)
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(
                "`name` must be one that a file can have, not hidden and without a "
                f"path. Received: name={name!r}"
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                "`every` must be a whole number of steps from 1 on. Received: "
                f"every={every!r}"
            )
        if forget_after is not None and not forget_after > 0:
            raise ValueError(
                "`forget_after` must be a positive number of seconds, or None. "
                f"Received: forget_after={forget_after!r}"
            )
        self.directory = Path(directory)
        self.name = name
        self.every = every
        self.combine = combine
        self.activation = activation
        self.forget_after = forget_after
        self.custom_objects = custom_objects
        self._read: dict[str, _Published] = {}
        self._left_out: set[tuple[str, Version]] = set()
        self._lock: int | None = None
        self._in_fit = False
        self._steps = self._batch = 0

    @property
    def teaching(self) -> list[str]:
        """The names of the peers that teach, whose last read model fits."""
        return sorted(
            name
            for name, peer in self._read.items()
            if (name, peer.version) not in self._left_out
        )

    @property
    def changes(self) -> bool:
        """Whether it changes while it teaches."""
        return True

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables of the models that were read."""
        # Models that are left out are included. A model may be left out while a step is
        # traced, and these variables must be the same in the whole trace.
        return [v for peer in self._read.values() for v in peer.model.variables]

    def teach(self, batch: Batch) -> Lesson:
        """Return the mean of the others' outputs, or None if there are no others."""
        x = select(self, batch.inputs, withheld=batch.withheld)
        return Lesson(self._mean(x, batch.output))

    def __call__(self, x: Nested) -> Nested:
        """Return the mean of the others' outputs, or None if there are no others."""
        return self._mean(x)

    def _mean(self, x: Nested, student_output: Nested = None) -> Nested:
        if not self._in_fit:
            raise RuntimeError(
                "`SharedPeers` is a teacher and a callback: without the callback it "
                "neither publishes nor reads. Pass it to `fit` too, "
                f"`callbacks=[peers]`. Received: peers '{self.name}'"
            )
        if student_output is None:
            # Not `self.model`, which on JAX assigns variables before it returns.
            student_output = self._model.compute_output_spec(x, training=False)
        fitting = _shapes(student_output)
        outputs = []
        for name in self.teaching:
            peer = self._read[name]
            # A model from a file may raise anything.
            try:
                with scopes_kept():
                    output = base.call(peer.model, x)
                if _shapes(output) != fitting:
                    raise ValueError(
                        f"outputs of shapes {_shapes(output)} where the student's are "
                        f"{fitting}"
                    )
            except Exception as error:
                self._leave_out(name, peer.version, error)
                continue
            outputs.append(output)
        if not outputs:
            return None
        return mean_outputs(outputs, combine=self.combine, activation=self.activation)

    def on_train_begin(self, logs: Any = None) -> None:
        """Lock the name, and read the others' files."""
        taught: Any = getattr(self.model, "teacher", None)
        if not isinstance(self.model, Distiller) or taught is not self:
            raise TypeError(
                "`SharedPeers` must be a callback of the `Distiller` that it teaches. "
                f"Received: a fit of {self.model!r}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        # After a `fit` that an error has stopped, the name is still locked.
        if self._lock is None:
            self._lock = lock(self.directory, self.name)
        self._in_fit = True
        self._steps = 0
        self._read_others()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the count of an epoch's batches."""
        self._batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Publish and read every `every` steps."""
        # With `steps_per_execution`, several batches end at once.
        self._steps += batch - self._batch
        self._batch = batch
        if self._steps >= self.every:
            self._steps = 0
            self._publish()
            self._read_others()

    def on_train_end(self, logs: Any = None) -> None:
        """Publish the trained student, and unlock the name."""
        self._publish()
        self._in_fit = False
        # A later `fit` traces anew, and so raises if the callback is missing.
        self.model.train_function = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _publish(self) -> None:
        path = self.directory / f"{self.name}.keras"
        try:
            atomic.replace(path, lambda scratch: self.model.student.save(scratch))
        except OSError as error:
            # A full or unreachable disk doesn't end the training.
            warnings.warn(f"The student wasn't published: {error}", stacklevel=2)

    def _read_others(self) -> None:
        """Read files that have changed. Trace the step again if other models teach."""
        # On JAX, this assigns the results of the last step to its variables, which are
        # those of `state` until `_read` changes.
        distiller = self.model
        earlier = {name: self._read[name].model for name in self.teaching}
        found = {}
        files = others(self.directory, self.name, forget_after=self.forget_after)
        for name, (path, version) in files.items():
            published = self._read.get(name)
            if published is None or published.version != version:
                published = self._read_file(name, path, version) or published
            if published is not None:
                found[name] = published
        self._read = found
        if {name: self._read[name].model for name in self.teaching} != earlier:
            distiller.train_function = None
            distiller.make_train_function()

    def _read_file(self, name: str, path: Path, version: Version) -> _Published | None:
        """Return a peer with the weights of its file, or None if it can't be read.

        A peer of the same architecture as before remains the same model, so that the
        training step isn't traced anew.
        """
        if (name, version) in self._left_out:
            return None
        # Only models on TensorFlow have a strategy.
        strategy = getattr(self.model, "distribute_strategy", None)
        # A file may hold anything.
        try:
            with strategy.scope() if strategy else nullcontext():
                model = keras.saving.load_model(
                    path, custom_objects=self.custom_objects, compile=False
                )
            architecture = model.to_json()
            earlier = self._read.get(name)
            if earlier is not None and earlier.architecture == architecture:
                earlier.model.set_weights(model.get_weights())
                model = earlier.model
                # The same architecture doesn't fit with other weights either.
                if (name, earlier.version) in self._left_out:
                    self._left_out.add((name, version))
        except Exception as error:
            self._leave_out(name, version, error)
            return None
        return _Published(version, architecture, model)

    def _leave_out(self, name: str, version: Version, error: Exception) -> None:
        self._left_out.add((name, version))
        warnings.warn(
            f"{self.directory / name}.keras is left out, and the student isn't taught "
            f"by it: {error}",
            stacklevel=2,
        )


def _shapes(outputs: Nested) -> Any:
    """Return the shapes of outputs without the batch dimension."""
    return tree.map_structure(lambda output: str(tuple(output.shape[1:])), outputs)
