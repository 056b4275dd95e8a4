"""What a process reads from the directory, and what it publishes there."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.online import SharedPeers
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)


class Does(keras.callbacks.Callback):
    """Does something after a step, counted from 1; the steps of an epoch."""

    def __init__(self, **actions: Any) -> None:
        super().__init__()
        self.actions = {
            int(name.removeprefix("after")): f for name, f in actions.items()
        }

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch + 1 in self.actions:
            self.actions[batch + 1](self.model, logs)


def distiller(peers: Any, student: keras.Model, **kwargs: Any) -> kd.Distiller:
    taught = kd.Distiller(student, peers)
    defaults = {"distillation_loss": kd.losses.ForwardKL(), "alpha": 0.7}
    taught.compile("sgd", crossentropy(), **{**defaults, **kwargs})
    return taught


def fit(model: keras.Model, *callbacks: Any, count: int = 64, **kwargs: Any) -> Any:
    x, y = data(count)
    defaults = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **{**defaults, **kwargs}).history


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_those_who_are_there_teach_as_an_ensemble(tmp_path: Path, combine: str) -> None:
    others = {"first": mlp(1), "second": mlp(2, units=7)}
    for name, other in others.items():
        other.save(tmp_path / f"{name}.keras")
    peers = SharedPeers(tmp_path, "third", combine=combine)
    student, expected = mlp(3), mlp(3)
    history = fit(distiller(peers, student), peers)
    assert peers.teaching == ["first", "second"]
    ensemble = kd.teachers.Ensemble(list(others.values()), combine=combine)
    assert history == fit(distiller(ensemble, expected))
    assert_same_weights(student, expected)


def test_alone_it_learns_from_labels(tmp_path: Path) -> None:
    peers = SharedPeers(tmp_path / "peers", "one")
    student, expected = mlp(3), mlp(3)
    history = fit(distiller(peers, student), peers)
    assert "distillation_loss" not in history
    expected.compile("sgd", crossentropy())
    fit(expected)
    assert_same_weights(student, expected)
    published = keras.saving.load_model(tmp_path / "peers" / "one.keras")
    assert_same_weights(published, student)


@pytest.mark.parametrize("at_once", [1, 2])
def test_publishes_and_reads_every_so_many_steps(tmp_path: Path, at_once: int) -> None:
    peers = SharedPeers(tmp_path, "me", every=4)
    other = mlp(1)
    published, seen = [], []

    def look(model: Any, logs: Any) -> None:
        path = tmp_path / "me.keras"
        published.append(path.stat().st_mtime_ns if path.exists() else None)
        seen.append((peers.teaching, "distillation_loss" in logs))

    steps = {f"after{step}": look for step in (2, 4, 6, 8)}
    joins = Does(after2=lambda *_: other.save(tmp_path / "other.keras"))
    model = distiller(peers, mlp(), steps_per_execution=at_once)
    fit(model, joins, peers, Does(**steps), shuffle=False)
    assert published[0] is None
    assert published[1] is not None and published[1] == published[2]
    assert published[3] > published[2]
    nobody, there = ([], False), (["other"], True)
    assert seen == [nobody, (["other"], False), there, there]


def test_another_version_of_a_peer_teaches_without_tracing_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.keras"
    mlp(1).save(path)
    peers = SharedPeers(tmp_path, "me", every=2)
    functions, said = [], []
    x, _ = data(4)

    def look(model: Any, logs: Any) -> None:
        functions.append(model.train_function)
        said.append(np.asarray(peers(x)))

    other = keras.saving.load_model(path)
    other.layers[-1].bias.assign([1.0, 2.0, 3.0])
    replaced = Does(after3=lambda *_: other.save(path))
    fit(distiller(peers, mlp()), replaced, peers, Does(after1=look, after5=look))
    assert functions[0] is functions[1]
    np.testing.assert_allclose(said[0], mlp(1)(x), atol=1e-6)
    np.testing.assert_allclose(said[1], other(x), atol=1e-6)


def test_a_peer_may_change_its_architecture_or_go(tmp_path: Path) -> None:
    path = tmp_path / "other.keras"
    mlp(1).save(path)
    peers = SharedPeers(tmp_path, "me", every=2)
    x, _ = data(4)
    larger = mlp(2, units=9)
    said = []

    def look(model: Any, logs: Any) -> None:
        said.append(peers(x))

    fit(
        distiller(peers, mlp()),
        Does(after1=lambda *_: larger.save(path), after5=lambda *_: path.unlink()),
        peers,
        Does(after4=look, after7=look),
    )
    np.testing.assert_allclose(said[0], larger(x), atol=1e-6)
    assert said[1] is None


def test_a_peer_is_forgotten_after_a_time(tmp_path: Path) -> None:
    for name, age in (("dead", 100.0), ("alive", 1.0)):
        path = tmp_path / f"{name}.keras"
        mlp(1).save(path)
        os.utime(path, times=(time.time() - age,) * 2)
    peers = SharedPeers(tmp_path, "me", forget_after=50.0)
    fit(distiller(peers, mlp()), peers)
    assert peers.teaching == ["alive"]
    peers = SharedPeers(tmp_path, "I")
    fit(distiller(peers, mlp()), peers)
    assert peers.teaching == ["alive", "dead", "me"]


@keras.saving.register_keras_serializable(package="tests")
class Known(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


class Unknown(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


def with_layer(layer: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((FEATURES,)), layer, layers.Dense(CLASSES)])


def foreign_files(directory: Path) -> dict[str, str]:
    """Files that can't teach, with what the warning says of each."""
    (directory / "text.keras").write_text("hello")
    mlp(1).save(directory / "half.keras")
    whole = (directory / "half.keras").read_bytes()
    (directory / "half.keras").write_bytes(whole[: len(whole) // 2])
    (directory / "empty.keras").touch()
    with_layer(layers.Lambda(lambda x: 2.0 * x)).save(directory / "code.keras")
    with_layer(Unknown()).save(directory / "unknown.keras")
    wide = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES + 1)])
    wide.save(directory / "wide.keras")
    more = keras.Sequential([keras.Input((FEATURES + 1,)), layers.Dense(CLASSES)])
    more.save(directory / "inputs.keras")
    return {"code": "unsafe", "unknown": "Unknown", "wide": "outputs of shapes"}


def test_what_cannot_teach_is_left_out_with_a_warning(tmp_path: Path) -> None:
    said = foreign_files(tmp_path)
    with_layer(Known()).save(tmp_path / "known.keras")
    (tmp_path / "notes.txt").write_text("not a student")
    mlp(1).save(tmp_path / ".writing.other.keras")
    names = sorted(
        path.stem for path in tmp_path.glob("[!.]*.keras") if path.stem != "known"
    )
    assert len(names) == 7
    peers = SharedPeers(tmp_path, "me", every=2)
    model = distiller(peers, mlp())
    with pytest.warns(UserWarning, match="left out") as warned:
        history = fit(model, peers)
    assert "distillation_loss" in history
    assert peers.teaching == ["known"]
    messages = [str(w.message) for w in warned if "left out" in str(w.message)]
    assert len(messages) == len(names)  # each once
    for name in names:
        found = [text for text in messages if f"{name}.keras is left out" in text]
        assert len(found) == 1, (name, messages)
        assert said.get(name, "") in found[0]
    unknown = {"Unknown": Unknown}
    peers = SharedPeers(tmp_path, "me", custom_objects=unknown)
    with pytest.warns(UserWarning, match="left out"):
        fit(distiller(peers, mlp()), peers)
    assert peers.teaching == ["known", "unknown"]


def test_a_directory_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    directory = tmp_path / "peers"
    peers = SharedPeers(directory, "me", every=2)

    def go(*_: Any) -> None:
        shutil.rmtree(directory)
        directory.write_text("a file in its place")

    def come(*_: Any) -> None:
        directory.unlink()

    with pytest.warns(UserWarning, match="wasn't published"):
        fit(distiller(peers, mlp()), Does(after3=go, after5=come), peers)
    assert keras.saving.load_model(directory / "me.keras").name


def test_resumes_under_its_name(tmp_path: Path) -> None:
    one, other = (SharedPeers(tmp_path, name) for name in ("one", "other"))
    fit(distiller(one, mlp(1)), one)
    fit(distiller(other, mlp(2)), other)
    again = SharedPeers(tmp_path, "one")
    student = mlp(3)
    model = distiller(again, student)
    fit(model, again)
    fit(model, again)  # the same object twice
    assert again.teaching == ["other"]
    assert_same_weights(keras.saving.load_model(tmp_path / "one.keras"), student)


def test_xla(tmp_path: Path) -> None:
    mlp(1).save(tmp_path / "other.keras")
    weights = []
    for jit_compile in (False, True):
        peers, student = SharedPeers(tmp_path, "me"), mlp(0)
        fit(distiller(peers, student, jit_compile=jit_compile), peers)
        weights.append(student)
    assert_same_weights(*weights, atol=1e-6)


def test_reads_inputs_by_name(tmp_path: Path) -> None:
    def reader(*names: str) -> keras.Model:
        inputs = {name: keras.Input((2,), name=name) for name in names}
        joined = layers.Concatenate()([*inputs.values(), *inputs.values()])
        return keras.Model(inputs, layers.Dense(CLASSES)(joined))

    reader("b").save(tmp_path / "other.keras")
    peers = SharedPeers(tmp_path, "me")
    model = distiller(peers, reader("a"))
    x, y = data(8)
    inputs = {"a": x[:, :2], "b": x[:, 2:]}
    history = model.fit(inputs, y, verbose=0, callbacks=[peers]).history
    assert "distillation_loss" in history


class TestWhatIsRefused:
    def test_a_fit_without_the_callback(self, tmp_path: Path) -> None:
        peers = SharedPeers(tmp_path, "me")
        model = distiller(peers, mlp())
        with pytest.raises(RuntimeError, match="Pass it to `fit` too"):
            fit(model)
        if keras.backend.backend() == "jax":
            # There, Keras loses the values of a model whose first step raises.
            model = distiller(peers, mlp())
        fit(model, peers)
        with pytest.raises(RuntimeError, match="Pass it to `fit` too"):
            fit(model)

    def test_a_fit_of_another_model(self, tmp_path: Path) -> None:
        peers = SharedPeers(tmp_path, "me")
        with pytest.raises(TypeError, match="that it teaches"):
            fit(distiller(mlp(1), mlp(0)), peers)
        student = mlp()
        student.compile("sgd", crossentropy())
        with pytest.raises(TypeError, match="that it teaches"):
            fit(student, peers)

    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        one, same = SharedPeers(tmp_path, "me"), SharedPeers(tmp_path, "me")

        def start(*_: Any) -> None:
            with pytest.raises(RuntimeError, match="`name` must be this process' own"):
                fit(distiller(same, mlp()), same)

        fit(distiller(one, mlp()), one, Does(after1=start))
        fit(distiller(same, mlp()), same)

    @pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
    def test_names(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="`name` must be"):
            SharedPeers(tmp_path, name)

    @pytest.mark.parametrize("every", [0, 2.5, True])
    def test_every(self, tmp_path: Path, every: Any) -> None:
        with pytest.raises(ValueError, match="`every` must be"):
            SharedPeers(tmp_path, "me", every=every)

    def test_forget_after(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="`forget_after` must be"):
            SharedPeers(tmp_path, "me", forget_after=0.0)
