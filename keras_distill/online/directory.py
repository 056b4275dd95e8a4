"""Codistillation of processes, which read each other's students from a directory."""

import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_distill import atomic
from keras_distill.distiller import Distiller
from keras_distill.inputs import select
from keras_distill.scopes import scopes_kept
from keras_distill.teachers.combining import check_combination, mean_outputs

tree = keras.tree


class _Published(NamedTuple):
    """Another process' student as it was last read."""

    version: tuple[int, ...]  # of the file
    architecture: str
    model: keras.Model


class SharedPeers(keras.callbacks.Callback):
    r"""The mean of what other processes' students say, and the way to become one.

    Every `every` steps the process publishes its student in the directory, a whole
    `.keras` file in the place of the earlier one, and reads the others' latest files.
    Nobody waits for anybody: processes may run at different speeds, on machines that
    share the directory, join late, and die. Give it to a `Distiller` as the teacher,
    and to its `fit` as a callback.

    As long as no other process has published, it says nothing and the student learns
    from labels alone. A process that has died goes on teaching by its last file, until
    someone removes the file or by `forget_after`. Started again under its name, a
    process reads its peers at once and publishes over its own earlier file; what it
    had trained itself is for `kd.online.Backup` to bring back.

    A file that can't be read, or doesn't fit, is left out with a warning. Reading runs
    no code from files: Keras' `safe_mode` stays on, and a student with layers of your
    own needs these registered, or given as `custom_objects`.

    Args:
        directory: Where the students lie, `<name>.keras` each. Made where it isn't.
        name: This process' name; another one than any process beside it.
        every: After how many steps it publishes and reads. Defaults to 100.
        combine: What the mean is taken of, `"logits"` (default) or `"probabilities"`.
        activation: What makes probabilities of the outputs, `"softmax"` (default) or
            `"sigmoid"` of each unit.
        forget_after: How many seconds after its last file a peer no longer teaches, by
            the clock of the file system. Defaults to None, never.
        custom_objects: As in `keras.saving.load_model`.

    Raises:
        ValueError: If `name` can't be a file's, or `every` isn't positive.
        RuntimeError: In `fit`, if it isn't among the callbacks, or another process that
            is alive has the same name.
        TypeError: In `fit`, if the model isn't a `Distiller` that it teaches.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> def run(name):  # in a process of its own
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
        self._left_out: set[tuple[str, tuple[int, ...]]] = set()
        self._lock: int | None = None
        self._in_fit = False
        self._steps = self._batch = 0

    @property
    def teaching(self) -> list[str]:
        """The names of the peers that teach, as last read."""
        return sorted(
            name
            for name, peer in self._read.items()
            if (name, peer.version) not in self._left_out
        )

    def __call__(self, x: Any) -> Any:
        """Return the mean of the others' outputs, None where there are no others."""
        if not self._in_fit:
            raise RuntimeError(
                "`SharedPeers` is a teacher and a callback: without the callback it "
                "neither publishes nor reads. Pass it to `fit` too, "
                f"`callbacks=[peers]`. Received: peers '{self.name}'"
            )
        fitting = _shapes(self.model.compute_output_spec(x, training=False))
        outputs = []
        for name in self.teaching:
            peer = self._read[name]
            try:
                seen = select(peer.model, x)
                with scopes_kept():
                    said = peer.model(seen, training=False)
                if _shapes(said) != fitting:
                    raise ValueError(
                        f"outputs of shapes {_shapes(said)} where the student's are "
                        f"{fitting}"
                    )
            except Exception as error:  # whatever a foreign model may raise
                self._leave_out(name, peer.version, error)
                continue
            outputs.append(said)
        if not outputs:
            return None
        return mean_outputs(outputs, combine=self.combine, activation=self.activation)

    def on_train_begin(self, logs: Any = None) -> None:
        """Take the name, and read who is there."""
        taught: Any = getattr(self.model, "teacher", None)
        if not isinstance(self.model, Distiller) or taught is not self:
            raise TypeError(
                "`SharedPeers` must be a callback of the `Distiller` that it teaches. "
                f"Received: a fit of {self.model!r}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._lock is None:  # a fit that was stopped by an error has it still
            self._lock = _lock(self.directory / f".{self.name}.lock", self.name)
        self._in_fit = True
        self._steps = 0
        self._read_others()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count the batches of an epoch from its beginning."""
        self._batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Publish and read where it is time; steps may come several at once."""
        self._steps += batch - self._batch
        self._batch = batch
        if self._steps >= self.every:
            self._steps = 0
            self._publish()
            self._read_others()

    def on_train_end(self, logs: Any = None) -> None:
        """Publish what the student has become, and give the name back."""
        self._publish()
        self._in_fit = False
        # a later `fit` without the callback is to find out by asking for targets
        self.model.train_function = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _publish(self) -> None:
        path = self.directory / f"{self.name}.keras"
        try:
            atomic.replace(path, lambda scratch: self.model.student.save(scratch))
        except OSError as error:  # a full or a distant disk is no reason to die
            warnings.warn(f"The student wasn't published: {error}", stacklevel=2)

    def _read_others(self) -> None:
        """Read what has changed; where others teach than before, trace anew."""
        earlier = {name: self._read[name].model for name in self.teaching}
        found = {}
        for name, (path, version) in self._others().items():
            published = self._read.get(name)
            if published is None or published.version != version:
                published = self._read_file(name, path, version) or published
            if published is not None:
                found[name] = published
        self._read = found
        if {name: self._read[name].model for name in self.teaching} != earlier:
            self.model.train_function = None
            self.model.make_train_function()

    def _others(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """Return the files of the other processes with what tells versions apart."""
        others: dict[str, tuple[Path, tuple[int, ...]]] = {}
        try:
            for path in sorted(self.directory.glob("*.keras")):
                if path.name.startswith(".") or path.stem == self.name:
                    continue
                stat = path.stat()
                age = time.time() - stat.st_mtime
                if self.forget_after is None or age <= self.forget_after:
                    version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    others[path.stem] = path, version
        except OSError as error:
            warnings.warn(f"Not all peers could be read: {error}", stacklevel=2)
        return others

    def _read_file(
        self, name: str, path: Path, version: tuple[int, ...]
    ) -> _Published | None:
        """Return a peer with the weights of its file, None where that can't be read.

        A peer of the same architecture as before stays the same model, which the
        training step was traced with.
        """
        if (name, version) in self._left_out:
            return None
        try:
            with self.model.distribute_strategy.scope():
                model = keras.saving.load_model(
                    path, custom_objects=self.custom_objects, compile=False
                )
            architecture = model.to_json()
            earlier = self._read.get(name)
            if earlier is not None and earlier.architecture == architecture:
                earlier.model.set_weights(model.get_weights())
                model = earlier.model
                if (name, earlier.version) in self._left_out:  # it fits no better
                    self._left_out.add((name, version))
        except Exception as error:  # whatever a foreign file may hold
            self._leave_out(name, version, error)
            return None
        return _Published(version, architecture, model)

    def _leave_out(self, name: str, version: tuple[int, ...], error: Exception) -> None:
        self._left_out.add((name, version))
        warnings.warn(
            f"{self.directory / name}.keras is left out, and the student isn't taught "
            f"by it: {error}",
            stacklevel=2,
        )


def _shapes(outputs: Any) -> Any:
    """Return the shapes of outputs but for the batch's dimension."""
    return tree.map_structure(lambda output: str(tuple(output.shape[1:])), outputs)


def _lock(path: Path, name: str) -> int:
    """Take a name for as long as this process lives, and return what holds it.

    Raises:
        RuntimeError: If a process that is alive has it.
    """
    import fcntl  # absent on Windows, where the rest of the package works

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RuntimeError(
                "`name` must be this process' own: one that is alive has it in this "
                f"directory. Received: name={name!r}, locked by {path}"
            ) from None
    return descriptor
