"""Schedules: exact at their edges, in a graph too, and after serialisation."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import ExponentialDecay

from keras_distill.schedules import (
    LateStart,
    LinearWarmup,
    TeacherAnnealing,
    Value,
)

EDGES = [
    (LateStart(3, 0.75), {0: 0.0, 2: 0.0, 3: 0.75, 4: 0.75, 10**6: 0.75}),
    (LateStart(0, 0.5), {0: 0.5, 1: 0.5}),
    (LateStart(1), {0: 0.0, 1: 1.0}),
    (LinearWarmup(8, 0.5), {0: 0.0, 1: 0.0625, 4: 0.25, 8: 0.5, 9: 0.5, 10**6: 0.5}),
    (LinearWarmup(1), {0: 0.0, 1: 1.0, 2: 1.0}),
    (TeacherAnnealing(4), {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25, 4: 0.0, 5: 0.0}),
    (TeacherAnnealing(1), {0: 1.0, 1: 0.0, 10**6: 0.0}),
]


@pytest.mark.parametrize(("schedule", "expected"), EDGES)
def test_exact_at_the_edges(schedule, expected):
    in_graph = tf.function(schedule)
    for step, value in expected.items():
        assert float(schedule(step)) == value
        assert float(in_graph(tf.constant(step, tf.int64))) == value


def test_late_start_counts_steps_beyond_what_float32_can_count():
    steps = 2**24 + 1
    schedule = LateStart(steps)
    assert float(schedule(tf.constant(steps - 1, tf.int64))) == 0.0
    assert float(schedule(tf.constant(steps, tf.int64))) == 1.0


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in EDGES])
def test_round_trip(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert type(schedule).from_config(schedule.get_config())(2) == schedule(2)


@pytest.mark.parametrize(
    "steps", [-1, 2.5, float("nan"), float("inf"), "3", None, True]
)
@pytest.mark.parametrize("schedule_class", [LateStart, LinearWarmup, TeacherAnnealing])
def test_bad_steps(schedule_class, steps):
    minimum = 0 if schedule_class is LateStart else 1
    with pytest.raises(
        ValueError,
        match=f"`steps` must be an integer >= {minimum}. Received: steps={steps!r}",
    ):
        schedule_class(steps)


@pytest.mark.parametrize("schedule_class", [LinearWarmup, TeacherAnnealing])
def test_a_ramp_has_a_step_at_least(schedule_class):
    with pytest.raises(ValueError, match="integer >= 1. Received: steps=0"):
        schedule_class(0)


@pytest.mark.parametrize("steps", [4.0, np.int64(4)])
def test_whole_numbers_of_other_types_are_steps(steps):
    schedule = TeacherAnnealing(steps)
    assert float(schedule(2)) == 0.5
    assert json.dumps(schedule.get_config())


def make(value):
    return Value(
        "alpha", value, requirement="in [0, 1]", accepts=lambda x: 0.0 <= x <= 1.0
    )


def test_hyperparameter_assignment_acts_in_a_traced_function():
    parameter = make(0.25)
    traces = []

    @tf.function
    def read():
        traces.append(None)
        return parameter.at(0)

    assert float(read()) == 0.25
    parameter.value = 0.75
    assert float(read()) == 0.75
    assert parameter.value == 0.75
    assert len(traces) == 1


def test_hyperparameter_follows_its_schedule():
    schedule = TeacherAnnealing(4)
    parameter = make(schedule)
    assert parameter.scheduled
    assert parameter.value is schedule
    assert float(parameter.at(tf.constant(1, tf.int64))) == 0.75
    assert parameter.at(1).dtype == tf.float32


def test_hyperparameter_keeps_its_value_when_refusing_another():
    parameter = make(0.25)
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\].*alpha=2"):
        parameter.value = 2
    assert parameter.value == 0.25
    assert float(parameter.at(0)) == 0.25


@pytest.mark.parametrize("value", ["0.5", "a lot", None, [0.5], True])
def test_hyperparameter_of_another_type(value):
    with pytest.raises(TypeError, match="`alpha` must be a float or a .*Schedule"):
        make(value)


def test_a_schedule_must_start_at_an_accepted_value():
    with pytest.raises(ValueError, match="alpha=a schedule that is"):
        make(ExponentialDecay(3.0, 10, 0.5))


@pytest.mark.parametrize(
    ("old", "new"),
    [(0.5, TeacherAnnealing(4)), (TeacherAnnealing(4), 0.5)],
)
def test_schedules_are_not_assigned(old, new):
    parameter = make(old)
    with pytest.raises(TypeError, match="`alpha` can be assigned only .*`compile`"):
        parameter.value = new
    assert parameter.value == old
