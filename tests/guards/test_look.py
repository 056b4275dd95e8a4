"""A look inside of a step that Keras' own trainers run, on each of its backends."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.batch import Batch
from keras_distill.cautions import TeacherWarning
from keras_distill.guards.kinds import of_combination
from keras_distill.guards.look import Look
from keras_distill.losses import ForwardKL
from tests.guards.setups import classes, inputs, linear, sparse, student, warned_of

X = inputs()
TEACHER = linear(4)
LOGITS = ops.convert_to_numpy(TEACHER(X))
Y = classes(LOGITS)
CHANCE = "The teacher is no better than chance"


class Watched(keras.Model):
    """A student whose step has a look at it and at a teacher."""

    def __init__(self, pupil: keras.Model, teacher: Any, look: Look) -> None:
        super().__init__()
        self.pupil = pupil
        self.untracked = [lambda x: teacher(x)]
        self.lent = lambda: [*look.state, *getattr(teacher, "variables", ())]
        self.look = lambda: look
        self.labelled: Any = None

    def call(self, x: Any) -> Any:
        return self.pupil(x)

    @property
    def non_trainable_variables(self) -> Any:
        return [*super().non_trainable_variables, *self.lent()]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        labelled = None if self.labelled is None else self.labelled(x)
        batch = Batch(x, y, labelled, sample_weight, y_pred)
        targets = self.untracked[0](x)
        if targets is not None:
            targets = keras.tree.map_structure(ops.stop_gradient, targets)
        self.look().at(batch, targets)
        return loss


class AfterSteps(keras.callbacks.Callback):
    def __init__(self, look: Look) -> None:
        super().__init__()
        self.look = look

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.look.after_step()


def fitted(
    look: Look,
    teacher: Any = TEACHER,
    *,
    pupil: keras.Model | None = None,
    x: Any = X,
    y: Any = Y,
    labelled: Any = None,
    loss: Any = None,
    **kwargs: Any,
) -> Watched:
    model = Watched(pupil or student(4), teacher, look)
    model.labelled = labelled
    engine = {
        name: kwargs.pop(name)
        for name in ("jit_compile", "run_eagerly", "steps_per_execution")
        if name in kwargs
    }
    model.compile("sgd", loss or sparse(), **engine)
    look._sync = getattr(model, "jax_state_sync", lambda: None)
    model.fit(
        x,
        y,
        **{"batch_size": 64, "shuffle": False, "verbose": 0, **kwargs},
        callbacks=[AfterSteps(look)],
    )
    look.conclude()
    return model


UNTRAINED = linear(4, seed=7)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "logits for probabilities": (
        lambda: fitted(Look("kl_divergence", sparse())),
        "The teacher's output looks like logits, but `kl_divergence` takes prob.* of "
        "256 values",
    ),
    "probabilities for logits": (
        lambda: fitted(Look(ForwardKL(), sparse()), lambda x: ops.softmax(TEACHER(x))),
        "The teacher's output looks like probabilities",
    ),
    "a label loss of probabilities": (
        lambda: fitted(
            Look(ForwardKL(), "sparse_categorical_crossentropy"),
            loss="sparse_categorical_crossentropy",
        ),
        "The student's output looks like logits.*from_logits=True",
    ),
    "a teacher that knows nothing": (
        lambda: fitted(Look(ForwardKL(), sparse()), UNTRAINED, epochs=2),
        CHANCE,
    ),
    "one that says the same of all": (
        lambda: fitted(Look(ForwardKL(), sparse()), lambda x: 0.0 * TEACHER(x)),
        CHANCE + ".*outputs that are all equal have 1.39",
    ),
    "several steps at once": (
        lambda: fitted(
            Look(ForwardKL(), sparse()), UNTRAINED, epochs=2, steps_per_execution=3
        ),
        CHANCE,
    ),
    "XLA": (
        lambda: fitted(
            Look(ForwardKL(), sparse()), UNTRAINED, epochs=2, jit_compile=True
        ),
        CHANCE,
    ),
    "one of two outputs": (
        lambda: fitted(
            Look({"a": ForwardKL(), "b": "kl_divergence"}, None),
            lambda x: {"a": TEACHER(x), "b": TEACHER(x)},
            pupil=two_outputs(),
            y={"a": Y, "b": Y},
            loss={"a": sparse(), "b": sparse()},
        ),
        "looks like logits, but `kl_divergence`",
    ),
    "a peer": (
        lambda: fitted(
            Look(
                ForwardKL(),
                sparse(),
                judges_teacher=False,
                peer="one",
                takers=of_combination("probabilities", "softmax"),
            ),
            pupil=ending_in_softmax(),
            loss="sparse_categorical_crossentropy",
        ),
        "The peer one's output looks like probabilities|The student's output looks",
    ),
}


def two_outputs() -> keras.Model:
    given = keras.Input((6,))
    return keras.Model(given, {name: student(4)(given) for name in "ab"})


def ending_in_softmax() -> keras.Model:
    """Its softmax isn't the last operation, so that a graph doesn't show it."""
    layers = keras.layers.Dense(4, "softmax"), keras.layers.Reshape((4,))
    return keras.Sequential([keras.Input((6,)), *layers])


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_warned_of_once(name: str) -> None:
    run, message = WRONG[name]
    with pytest.warns(UserWarning, match=message) as caught:
        run()
    of_ours = [str(each.message) for each in caught]
    of_ours = [text for text in of_ours if text.startswith(("The teacher", "The stu"))]
    assert len(of_ours) <= 1, of_ours


SOUND: dict[str, Callable[[], Any]] = {
    "logits": lambda: fitted(Look(ForwardKL(), sparse())),
    "XLA": lambda: fitted(Look(ForwardKL(), sparse()), jit_compile=True),
    "no labels": lambda: fitted(Look(ForwardKL(), None)),
    "a teacher without an output": lambda: fitted(
        Look("kl_divergence", sparse()), lambda x: None
    ),
    "another number of rows": lambda: fitted(
        Look(ForwardKL(), sparse()), lambda x: UNTRAINED(x)[::2]
    ),
    "another number of units": lambda: fitted(
        Look("mse", sparse()), lambda x: UNTRAINED(x)[:, :2]
    ),
    "ids of classes": lambda: fitted(
        Look("kl_divergence", "sparse_categorical_crossentropy"),
        lambda x: ops.argmax(TEACHER(x), axis=-1),
        pupil=ending_in_softmax(),
        loss="sparse_categorical_crossentropy",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_not_warned_of(name: str) -> None:
    assert warned_of(SOUND[name]) == []


@pytest.mark.parametrize("by", ["weight", "mask"])
def test_rows_without_weight_or_label_do_not_count(by: str) -> None:
    """Their labels are wrong here."""
    counts = np.arange(len(X)) % 2 == 0
    y = np.where(counts, Y, (Y + 1) % 4)
    look = Look(ForwardKL(), sparse())
    given: dict[str, Any] = {"sample_weight": counts.astype("float32")}
    if by == "mask":
        given = {
            "teacher": lambda x: TEACHER(x[:, :6]),
            "pupil": keras.Sequential([keras.Input((7,)), keras.layers.Dense(4)]),
            "x": np.concatenate([X, counts[:, None].astype("float32")], axis=1),
            "labelled": lambda x: {(): x[:, 6] > 0.0},
        }
    assert warned_of(lambda: fitted(look, y=y, **given)) == []
    rows = look.sums[:, 5]
    assert rows[1] == len(X)  # of values of the student's output
    assert look.sums[-1].sum() == 0.0
    of_chance = next(row for row, check in look._checks.values() if check[2])
    assert rows[of_chance] == counts.sum()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_is_what_it_is_without_a_look(jit_compile: bool) -> None:
    alone, watched = student(4), student(4)
    alone.compile("sgd", sparse(), jit_compile=jit_compile)
    alone.fit(X, Y, batch_size=64, shuffle=False, verbose=0)
    fitted(Look(ForwardKL(), sparse()), pupil=watched, jit_compile=jit_compile)
    for one, other in zip(watched.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_only_the_first_rows_are_summed() -> None:
    look = Look(ForwardKL(), sparse())
    model = fitted(look, epochs=4)
    found = look.sums
    assert 1024 <= found[:, 5].max() < 4 * 640
    assert [float(v) for v in look.state[1:]] == [1.0]
    model.fit(X, Y, batch_size=64, verbose=0)
    np.testing.assert_array_equal(look.sums, found)


def test_when_the_sums_are_read() -> None:
    read: list[int] = []
    look = Look("kl_divergence", None, sync=lambda: read.append(look._executions))
    batch = Batch(output=ops.zeros((2, 4)))
    for _ in range(1, 10):
        look.after_step()
        look.at(batch, ops.ones((2, 4)) / 4.0)
    # Nothing was summed before the first step.
    assert read == [2, 4, 8]
    np.testing.assert_array_equal(look.sums[0, :6], [72.0, 0.0, 0.0, 18.0, 4.5, 18.0])


def test_afterwards_is_called_once() -> None:
    calls: list[int] = []
    look = Look(ForwardKL(), afterwards=lambda: calls.append(1))
    for _ in range(4):
        look.after_step()
    assert calls == [1]


def test_a_warning_as_an_error_is_raised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TeacherWarning)
        with pytest.raises(TeacherWarning, match=CHANCE):
            fitted(Look(ForwardKL(), sparse()), UNTRAINED, epochs=2)
