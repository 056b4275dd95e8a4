"""Schedules are exact at their edges, also compiled, and after serialisation."""

import json

import keras
import numpy as np
import pytest

from keras_distill.schedules import LateStart, LinearWarmup, TeacherAnnealing
from tests.backends import compiled, step_counter

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
    in_step = compiled(schedule)
    for step, value in expected.items():
        assert float(schedule(step)) == value
        assert float(in_step(step_counter(step))) == value


def test_late_start_counts_steps_beyond_what_float32_can_count():
    steps = 2**24 + 1
    schedule = LateStart(steps)
    assert float(schedule(step_counter(steps - 1))) == 0.0
    assert float(schedule(step_counter(steps))) == 1.0


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
