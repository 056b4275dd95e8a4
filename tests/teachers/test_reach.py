"""The variables of a teacher are found wherever it keeps them."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill.teachers.reach import reached_variables
from tests.distiller.models import crossentropy, data, mlp

LAYER = keras.layers.Dense(2)
LAYER.build((None, 3))


def reads_a_global(x):
    return LAYER(x)


class Holder:
    def __init__(self, held):
        self.held = held

    def method(self, x):
        return self.held


class Plain(kd.teachers.Teacher):
    """A teacher without a `state` of its own."""

    def __init__(self, *held):
        self.held = held

    def teach(self, batch):
        raise NotImplementedError


def closure(held):
    return lambda x: held


HOLDERS = {
    "itself": lambda held: held,
    "list": lambda held: [held],
    "dict in a tuple": lambda held: ({"key": held},),
    "attribute": Holder,
    "attribute of an attribute": lambda held: Holder(Holder(held)),
    "method": lambda held: Holder(held).method,
    "closure": closure,
    "default": lambda held: lambda x, y=held: y,
    "partial": lambda held: functools.partial(print, held, end=held),
    "teacher": Plain,
    "function of a layer": lambda held: keras.layers.Lambda(closure(held)),
    "adapted": lambda held: kd.teachers.Adapted(LAYER, outputs=closure(held)),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_where_a_seed_is_kept(name):
    seed = keras.random.SeedGenerator(0)
    found = reached_variables(HOLDERS[name](seed))
    assert seed.state in [v for v in found if v is seed.state]
    assert len({id(v) for v in found}) == len(found)


def test_what_is_found():
    metric = keras.metrics.Mean()
    variable = keras.Variable(1.0)
    found = reached_variables(LAYER, metric, variable, [LAYER], reads_a_global)
    expected = [*LAYER.variables, *metric.variables, variable]
    assert sorted(map(id, found)) == sorted(map(id, expected))
    of_global = reached_variables(reads_a_global)
    assert list(map(id, of_global)) == list(map(id, LAYER.variables))
    circle = Holder(None)
    circle.held = circle
    assert not reached_variables(circle, np.ones(3), ops, Holder, "text", None)


class Noisy(kd.teachers.Teacher):
    def __init__(self, model):
        self.model, self.seen = model, keras.Variable(0.0)
        self.seed = keras.random.SeedGenerator(0)

    def teach(self, batch):
        logits = self.model(batch.inputs, training=False)
        noise = keras.random.normal(ops.shape(logits), seed=self.seed)
        self.seen.assign_add(1.0)
        return kd.teachers.Lesson(logits + noise)


class Forgetful(Noisy):
    @property
    def state(self):
        return self.model.variables


def trained(teacher):
    distiller = kd.Distiller(mlp(seed=0), teacher)
    distiller.compile("sgd", crossentropy(), alpha=1.0)
    distiller.fit(*data(24), batch_size=8, verbose=0)
    return distiller


def test_random_numbers_and_counts_go_on():
    teacher = Noisy(mlp(seed=1))
    before = ops.convert_to_numpy(teacher.seed.state.value)
    trained(teacher)
    assert float(teacher.seen) == 3.0
    assert not np.array_equal(before, ops.convert_to_numpy(teacher.seed.state.value))


def test_a_change_that_would_be_dropped_is_refused():
    teacher = Forgetful(mlp(seed=1))
    if keras.backend.backend() != "jax":
        trained(teacher)
        assert float(teacher.seen) == 3.0
        return
    with pytest.raises(TypeError, match=r"`Forgetful.teach` changes .* `state`"):
        trained(teacher)


def test_the_trainer_of_a_callback_is_not_looked_into():
    distiller = trained(Noisy(mlp(seed=1)))
    teacher = distiller.teacher
    teacher.trainer = distiller
    held = [*teacher.model.variables, teacher.seen, teacher.seed.state]
    assert sorted(map(id, teacher.state)) == sorted(map(id, held))
