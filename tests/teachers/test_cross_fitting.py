"""No row is taught by a teacher that has seen its label."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.teachers import Recorded, cross_fit

ROWS = 23
RNG = np.random.default_rng(0)
IDS = np.arange(ROWS)[:, None]  # as inputs: they tell the rows apart
LABELLED = RNG.permutation(ROWS) < 16
Y = RNG.integers(0, 2, ROWS).astype("float32")
GROUPS = RNG.integers(0, 6, ROWS)


class Memory:
    """Makes teachers that know which rows they were trained on."""

    def __init__(self, says: Callable[[int, np.ndarray, np.ndarray], Any]) -> None:
        self.says = says
        self.training: list[np.ndarray] = []
        self.asked: list[int] = []

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Callable[..., Any]:
        number, seen = len(self.training), x[:, 0]
        np.testing.assert_array_equal(y, Y[seen])
        self.training.append(seen)

        def teacher(batch: np.ndarray) -> Any:
            self.asked.append(len(batch))
            return self.says(number, seen, batch)

        return teacher


def knows(number: int, seen: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """1 where the row was trained on."""
    return np.isin(batch, seen).astype("float32")


def number(number: int, seen: np.ndarray, batch: np.ndarray) -> np.ndarray:
    return np.full((len(batch), 1), number, "float32")


def repeats(number: int, seen: np.ndarray, batch: np.ndarray) -> np.ndarray:
    return batch.astype("float32")


@pytest.mark.parametrize("folds", [2, 5, ROWS])
def test_no_teacher_speaks_of_a_row_that_it_was_trained_on(folds: int) -> None:
    memory = Memory(knows)
    assert (cross_fit(memory, (IDS, Y), folds=folds) == 0.0).all()
    assert len(memory.training) == folds
    times = np.bincount(np.concatenate(memory.training), minlength=ROWS)
    assert (times == folds - 1).all()
    # as large as can be
    assert {ROWS - len(seen) for seen in memory.training} <= {
        ROWS // folds,
        -(-ROWS // folds),
    }


def test_each_row_is_spoken_of_by_the_teacher_that_it_was_held_out_from() -> None:
    memory = Memory(number)
    said = cross_fit(memory, (IDS, Y), folds=4)
    for row in range(ROWS):
        without = [i for i, seen in enumerate(memory.training) if row not in seen]
        assert without == [said[row, 0]]


def test_rows_without_a_label_train_nobody_and_get_the_mean_of_all() -> None:
    memory = Memory(number)
    said = cross_fit(memory, (IDS, Y), folds=4, labelled=LABELLED)
    assert not any(np.isin(seen, IDS[~LABELLED]).any() for seen in memory.training)
    np.testing.assert_allclose(said[~LABELLED], 1.5)
    assert set(said[LABELLED, 0]) == {0.0, 1.0, 2.0, 3.0}
    memory = Memory(knows)
    assert (cross_fit(memory, (IDS, Y), folds=4, labelled=LABELLED) == 0.0).all()


@pytest.mark.parametrize("labelled", [None, LABELLED, LABELLED.astype(int).tolist()])
@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_the_order_of_rows_is_kept(labelled: Any, batch_size: int) -> None:
    memory = Memory(repeats)
    said = cross_fit(
        memory, (IDS, Y), folds=3, labelled=labelled, batch_size=batch_size
    )
    np.testing.assert_allclose(said, IDS)
    assert said.dtype == "float32"
    assert max(memory.asked) <= batch_size


def test_the_seed_deals_out_the_rows() -> None:
    said = [cross_fit(Memory(number), (IDS, Y), seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(said[0], said[1])
    assert (said[0] != said[2]).any()


@pytest.mark.parametrize("folds", [3, np.int64(3)], ids=["int", "numpy"])
def test_the_number_of_folds_may_be_numpys(folds: Any) -> None:
    memory = Memory(number)
    cross_fit(memory, (IDS, Y), folds=folds)
    assert len(memory.training) == 3


def test_votes_are_averaged_as_numbers() -> None:
    def votes(number: int, seen: np.ndarray, batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch),), number % 2)  # integers

    said = cross_fit(Memory(votes), (IDS, Y), folds=4, labelled=LABELLED)
    assert said.shape == (ROWS,)
    np.testing.assert_allclose(said[~LABELLED], 0.5)


# Folds of others.


def test_scikit_learns_splitters_give_the_folds() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    memory = Memory(knows)
    x, y = IDS[LABELLED], Y[LABELLED]
    by_group = selection.GroupKFold(3).split(x, y, GROUPS[LABELLED])
    said = cross_fit(memory, (IDS, Y), folds=by_group, labelled=LABELLED)
    assert (said == 0.0).all()
    for seen in memory.training:
        held_out = np.setdiff1d(np.flatnonzero(LABELLED), seen)
        assert not np.isin(GROUPS[held_out], GROUPS[seen]).any()

    memory = Memory(knows)
    stratified = selection.StratifiedKFold(3, shuffle=True, random_state=0)
    said = cross_fit(memory, (IDS, Y), folds=stratified.split(IDS, Y))
    assert (said == 0.0).all()
    shares = [Y[seen].mean() for seen in memory.training]
    np.testing.assert_allclose(shares, Y.mean(), atol=0.06)


@pytest.mark.parametrize(
    "folds, message",
    [
        (1, "at least 2.*folds=1 for 16 labelled rows"),
        (0, "at least 2.*folds=0"),
        (True, "at least 2.*folds=True"),
        (17, "at most the number of labelled rows.*folds=17 for 16"),
        ([([0, 1, 2], [2, 3])], r"must not be trained.*rows \[2\] in both"),
        ([([8, 9], range(8)), ([0], range(8, 15))], "row 15 of 16 held out 0 times"),
        ([([8], range(8)), ([0], range(7, 16))], "row 7 of 16 held out 2 times"),
        ([], "row 0 of 16 held out 0 times"),
    ],
    ids=str,
)
def test_folds_hold_out_each_labelled_row_once(folds: Any, message: str) -> None:
    assert LABELLED.sum() == 16
    with pytest.raises(ValueError, match=message):
        cross_fit(Memory(knows), (IDS, Y), folds=folds, labelled=LABELLED)


@pytest.mark.parametrize(
    "data, labelled, message",
    [
        ((IDS, Y[:-1]), None, r"same number of rows.*\[22, 23\]"),
        (({"a": IDS, "b": IDS[1:]}, Y), None, r"same number of rows.*\[22, 23\]"),
        ((IDS, Y), LABELLED[:-1], r"shape \(22,\) for 23 rows"),
        ((IDS, Y), np.flatnonzero(LABELLED), r"shape \(16,\) for 23 rows"),
        ((IDS, Y), LABELLED[:, None], r"shape \(23, 1\) for 23 rows"),
    ],
)
def test_arrays_have_the_same_rows(data: Any, labelled: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_fit(Memory(knows), data, labelled=labelled)


# Data and outputs of any structure.


def test_weights_and_dicts_are_cut_as_rows_are() -> None:
    seen = []

    def make(x: Any, y: Any, sample_weight: Any) -> Any:
        rows = x["id"][:, 0]
        np.testing.assert_array_equal(x["twice"], 2 * x["id"])
        np.testing.assert_array_equal(y["click"], Y[rows])
        np.testing.assert_array_equal(sample_weight, 0.5 * rows)
        seen.append(rows)
        return lambda batch: batch["twice"]

    x = {"id": IDS, "twice": 2 * IDS}
    said = cross_fit(make, (x, {"click": Y}, 0.5 * IDS[:, 0]), folds=3)
    np.testing.assert_array_equal(said, 2 * IDS)
    assert len(seen) == 3


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_several_outputs_keep_their_structure(structure: Any) -> None:
    def says(number: int, seen: np.ndarray, batch: np.ndarray) -> Any:
        pair = {"id": batch, "knows": knows(number, seen, batch)}
        return pair if structure is dict else structure(pair.values())

    said = cross_fit(Memory(says), (IDS, Y), folds=3, batch_size=4)
    assert isinstance(said, structure)
    ids, known = said.values() if isinstance(said, dict) else said
    np.testing.assert_array_equal(ids, IDS)
    assert (known == 0.0).all()


FEATURES = RNG.normal(size=(ROWS, 3)).astype("float32")
DWELL = RNG.normal(size=(ROWS, 1)).astype("float32")


def linear(names: list[str], structure: Any = None) -> keras.Model:
    inputs = {
        "x": keras.Input((3,), name="x"),
        "dwell": keras.Input((1,), name="dwell"),
    }
    inputs = {name: inputs[name] for name in names}
    seen = list(inputs.values())
    joined = layers.Concatenate()(seen) if len(seen) > 1 else seen[0]
    outputs = {name: layers.Dense(1)(joined) for name in ("click", "buy")}
    return keras.Model(inputs, outputs if structure else outputs["click"])


@pytest.mark.parametrize("structure", [None, dict])
def test_keras_models_read_the_keys_that_they_declare(structure: Any) -> None:
    keras.utils.set_random_seed(0)
    teachers = []

    def make(x: Any, y: Any) -> keras.Model:
        teachers.append(linear(["x", "dwell"], structure))
        return teachers[-1]

    batch = {"x": FEATURES, "dwell": DWELL, "session": GROUPS}
    said = cross_fit(make, (batch, Y), folds=3, labelled=LABELLED, batch_size=5)
    inputs = {"x": FEATURES, "dwell": DWELL}
    of_each = [teacher.predict(inputs, verbose=0) for teacher in teachers]
    if structure is dict:
        assert said.keys() == {"click", "buy"}
        said, of_each = said["buy"], [of_one["buy"] for of_one in of_each]
    mean = np.mean(of_each, axis=0)
    np.testing.assert_allclose(said[~LABELLED], mean[~LABELLED], atol=1e-6)
    for row in np.flatnonzero(LABELLED):
        assert min(abs(of_one[row] - said[row]) for of_one in of_each) < 1e-6


# What it is for.


def nearest(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A teacher that says of a row the label of the nearest that it has seen."""

    def teacher(batch: np.ndarray) -> np.ndarray:
        distances = np.square(batch[:, None] - x[None]).sum(-1)
        return y[distances.argmin(1)][:, None]

    return teacher


def test_a_teacher_repeats_what_it_has_seen_and_can_only_guess_the_rest() -> None:
    x = RNG.normal(size=(400, 3)).astype("float32")
    y = RNG.integers(0, 2, 400).astype("float32")  # there is nothing to learn
    in_fold = nearest(x, y)(x)[:, 0]
    out_of_fold = cross_fit(nearest, (x, y))[:, 0]
    assert (in_fold == y).all()
    assert abs((out_of_fold == y).mean() - 0.5) < 0.08  # three standard deviations


def test_what_was_said_out_of_fold_teaches_a_student() -> None:
    keras.utils.set_random_seed(0)

    def make(x: Any, y: Any) -> keras.Model:
        teacher = linear(["x", "dwell"])
        teacher.compile(
            "adam", keras.losses.BinaryCrossentropy(from_logits=True), run_eagerly=True
        )
        teacher.fit({"x": x["x"], "dwell": x["dwell"]}, y, verbose=0)
        return teacher

    x = {"x": FEATURES, "dwell": DWELL}
    said = cross_fit(make, (x, Y[:, None]), folds=2, labelled=LABELLED)
    student = linear(["x"])
    distiller = kd.Distiller(
        student, Recorded("said"), privileged_features=["dwell", "said"]
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.BinaryCrossentropy(from_logits=True),
        distillation_loss=kd.losses.BinarySoftTargets(),
        label_mask="labelled",
        run_eagerly=True,
    )
    s = np.asarray(student({"x": FEATURES}))
    history = distiller.fit(
        {**x, "said": said, "labelled": LABELLED},
        np.where(LABELLED, Y, np.nan)[:, None],
        batch_size=ROWS,
        epochs=2,
        verbose=0,
    ).history
    soft = np.logaddexp(0.0, s) - s / (1.0 + np.exp(-said))
    np.testing.assert_allclose(history["distillation_loss"][0], soft.mean(), rtol=1e-5)
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.parametrize(
    "pair",
    [([0, 1], [2, 9]), (np.array([True, True, False]), np.array([False, False, True]))],
    ids=["of all rows", "boolean"],
)
def test_folds_are_indices_of_the_labelled_rows(pair: Any) -> None:
    x, y = np.zeros((4, 1)), np.zeros(4)
    with pytest.raises(ValueError, match="indices of the labelled rows.* 3"):
        cross_fit(
            lambda x, y: lambda batch: batch,
            (x, y),
            folds=[pair],
            labelled=np.array([True, True, True, False]),
        )


def test_what_is_made_must_be_a_teacher() -> None:
    x, y = np.zeros((4, 1)), np.zeros(4)
    with pytest.raises(TypeError, match="must return a trained .*Received: None"):
        cross_fit(lambda x, y: None, (x, y), folds=2)
