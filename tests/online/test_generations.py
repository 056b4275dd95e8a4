"""Born-again generations: who teaches whom, and that a kill loses nothing finished."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)
from tests.online import born

ROOT = Path(__file__).parents[2]
KILLS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> kd.online.Generations:
    return born.run(tmp_path_factory.mktemp("whole"))


def test_each_generation_is_taught_by_the_one_before(tmp_path: Path) -> None:
    first = mlp(seed=9)
    pairs: list[tuple[keras.Model, keras.Model]] = []

    def fit(distiller: kd.Distiller, callbacks: Any) -> None:
        pairs.append((distiller.teacher, distiller.student))
        distiller.compile("sgd", crossentropy(), alpha=1.0)
        distiller.fit(*data(8), verbose=0, callbacks=callbacks)

    made: list[keras.Model] = []

    def make_student() -> keras.Model:
        made.append(mlp(seed=len(made)))
        return made[-1]

    result = kd.online.born_again(make_student, first, 3, fit=fit, directory=tmp_path)
    assert result.students == made
    assert pairs == list(zip([first, *made], made, strict=False))
    x, _ = data(8)
    np.testing.assert_allclose(
        result.ensemble(last=2)(x), (made[1](x) + made[2](x)) / 2, atol=1e-6
    )
    assert result.ensemble().models == made
    for number in (0, 4):
        with pytest.raises(ValueError, match="`last` must be"):
            result.ensemble(last=number)
    names = {path.name for path in tmp_path.iterdir()}
    files = {f"generation_{number}.keras" for number in (1, 2, 3)}
    assert names == {"students.json"} | files
    saved = keras.saving.load_model(tmp_path / "generation_2.keras")
    assert_same_weights(saved, made[1])


def killed_after(seconds: float, directory: Path) -> bool:
    """Kill a run, and tell whether it had ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.online.born", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.kill()
        return process.stdout.read() == "done\n"


@pytest.mark.slow("kills three runs, and trains each again")
def test_killed_at_random_moments(tmp_path: Path, whole: kd.online.Generations) -> None:
    moments = np.random.default_rng()
    finished: dict[str, float] = {}
    for _ in range(KILLS):
        done = killed_after(moments.uniform(1.0, 6.0), tmp_path)
        stamps = {path.name: path.stat().st_mtime for path in tmp_path.glob("g*.keras")}
        assert finished.items() <= stamps.items()  # none is trained again
        finished = stamps
        if done:
            break
    resumed = born.run(tmp_path)
    for student, expected in zip(resumed.students, whole.students, strict=True):
        assert_same_weights(student, expected)
    names = {path.name for path in tmp_path.iterdir()}
    assert not any(name.endswith("running") for name in names)


class Stop(Exception):
    pass


@pytest.mark.slow("trains each run again")
def test_stopped_around_the_backup_of_the_last_epoch(
    tmp_path: Path, whole: kd.online.Generations
) -> None:
    """Before it is written, and after it with nothing left to train."""
    stops = iter(["before", "after"])

    def fit(distiller: kd.Distiller, callbacks: Any) -> None:
        when = next(stops, None)

        class Stopping(keras.callbacks.Callback):
            def on_epoch_end(self, number: int, logs: Any = None) -> None:
                if number == born.EPOCHS - 1 and when:
                    raise Stop

        stopping = [Stopping()]
        ordered = stopping + callbacks if when == "before" else callbacks + stopping
        born.fit(distiller, ordered)

    def run() -> kd.online.Generations:
        teacher = mlp(seed=1)
        keras.utils.set_random_seed(3)
        return kd.online.born_again(
            born.make_student, teacher, 1, fit=fit, directory=tmp_path
        )

    for _ in range(2):
        with pytest.raises(Stop):
            run()
    result = run()
    assert_same_weights(result.students[0], whole.students[0])
    more = born.run(tmp_path, generations=2)
    assert_same_weights(more.students[1], whole.students[1])


class TestWhatIsRefused:
    def test_other_students(self, tmp_path: Path) -> None:
        def run(units: int) -> None:
            kd.online.born_again(
                lambda: mlp(units=units), mlp(), 1, fit=born.fit, directory=tmp_path
            )

        run(5)
        with pytest.raises(ValueError, match="a run of other students"):
            run(6)

    def test_callbacks_that_are_not_passed_on(self, tmp_path: Path) -> None:
        def fit(distiller: kd.Distiller, callbacks: Any) -> None:
            born.fit(distiller, [])

        with pytest.raises(ValueError, match="must pass the callbacks"):
            kd.online.born_again(mlp, mlp(), 1, fit=fit, directory=tmp_path)

    @pytest.mark.parametrize("generations", [0, 1.5, True])
    def test_generations(self, tmp_path: Path, generations: Any) -> None:
        with pytest.raises(ValueError, match="`generations` must be"):
            kd.online.born_again(
                mlp, mlp(), generations, fit=born.fit, directory=tmp_path
            )

    def test_unbuilt_students(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="must return a built"):
            kd.online.born_again(
                lambda: keras.Sequential([layers.Dense(CLASSES)]),
                mlp(),
                1,
                fit=born.fit,
                directory=tmp_path,
            )

    def test_a_backup_of_an_unbuilt_model(self, tmp_path: Path) -> None:
        model = keras.Sequential([layers.Dense(CLASSES)])
        model.compile("sgd", crossentropy())
        with pytest.raises(ValueError, match="built before `fit`"):
            model.fit(
                np.ones((8, FEATURES)),
                np.ones(8),
                verbose=0,
                callbacks=[kd.online.Backup(tmp_path)],
            )


def test_a_backup_outlives_a_write_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data(8)

    def fit(model: keras.Model, epochs: int) -> list[int]:
        model.compile("adam", crossentropy())
        callbacks = [kd.online.Backup(tmp_path)]
        return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks).epoch

    model = mlp()
    assert fit(model, 2) == [0, 1]
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise Stop

    broken = mlp()
    monkeypatch.setattr(broken, "save_weights", half)
    with pytest.raises(Stop):
        fit(broken, 3)
    for path, content in kept.items():
        assert path.read_bytes() == content
    resumed = mlp()
    assert fit(resumed, 3) == [2]
    straight = mlp()
    straight.compile("adam", crossentropy())
    straight.fit(x, y, epochs=3, verbose=0)
    assert_same_weights(resumed, straight)
    assert sorted(path.name[:8] for path in tmp_path.iterdir()) == [
        "epoch_2.",
        "epoch_3.",
    ]
