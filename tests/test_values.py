"""Hyperparameters: checked, read by a compiled step, and assigned between steps."""

import math

import keras
import pytest
from keras.optimizers.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

from keras_distill.schedules import LateStart, TeacherAnnealing
from keras_distill.values import Value
from tests.backends import compiled, step_counter


def make(value):
    return Value(
        "alpha", value, requirement="in [0, 1]", accepts=lambda x: 0.0 <= x <= 1.0
    )


def test_an_assignment_acts_in_a_compiled_step():
    parameter = make(0.25)
    traces = []

    def traced():
        traces.append(None)
        return parameter.at(0)

    read = compiled(traced, reads=[parameter.state])
    assert float(read()) == 0.25
    parameter.value = 0.75
    assert float(read()) == 0.75
    assert parameter.value == 0.75
    assert len(traces) == 1


def test_it_follows_its_schedule():
    schedule = TeacherAnnealing(4)
    parameter = make(schedule)
    assert parameter.scheduled
    assert parameter.value is schedule
    assert float(parameter.at(step_counter(1))) == 0.75
    assert keras.backend.standardize_dtype(parameter.at(1).dtype) == "float32"


class OfNumbers(LearningRateSchedule):
    def __call__(self, step):
        return 0.5 + 0.5 * math.cos(step)


def test_a_schedule_must_compute_with_tensors():
    parameter = make(OfNumbers())
    read = compiled(parameter.at)
    message = "The schedule of `alpha` must compute with tensors.*alpha=.*OfNumbers"
    with pytest.raises(TypeError, match=message):
        read(step_counter(1))


def test_it_keeps_its_value_when_it_refuses_another():
    parameter = make(0.25)
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\].*alpha=2"):
        parameter.value = 2
    assert parameter.value == 0.25
    assert float(parameter.at(0)) == 0.25


@pytest.mark.parametrize("value", ["0.5", "a lot", None, [0.5], True])
def test_values_of_another_type(value):
    with pytest.raises(TypeError, match="`alpha` must be a float or a .*Schedule"):
        make(value)


def test_a_schedule_must_start_at_an_accepted_value():
    with pytest.raises(ValueError, match="alpha=a schedule that is"):
        make(ExponentialDecay(3.0, 10, 0.5))


def positive(value):
    return Value("temperature", value, requirement="positive", accepts=lambda x: x > 0)


@pytest.mark.parametrize(
    "schedule",
    [
        TeacherAnnealing(1),
        TeacherAnnealing(3),
        TeacherAnnealing(123_456),
        LateStart(5, 0.5),
        PolynomialDecay(4.0, 1_000, 0.0),
        PolynomialDecay(4.0, 50_000, 0.0, power=3.0),
        CosineDecay(4.0, 700),
        PiecewiseConstantDecay([7, 400], [4.0, 1.0, 0.0]),
    ],
)
def test_a_schedule_must_not_end_at_a_refused_value(schedule):
    with pytest.raises(ValueError, match="be positive.*a schedule that is 0.0 at step"):
        positive(schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        ExponentialDecay(4.0, 1, 0.5),
        ExponentialDecay(4.0, 1, 1e-5),
        ExponentialDecay(4.0, 10, 0.1, staircase=True),
        ExponentialDecay(4.0, 1_000, 0.9),
    ],
)
def test_a_decay_may_underflow(schedule):
    assert float(schedule(10**7)) == 0.0
    assert positive(schedule).scheduled


@pytest.mark.parametrize(
    ("old", "new"),
    [(0.5, TeacherAnnealing(4)), (TeacherAnnealing(4), 0.5)],
)
def test_schedules_are_not_assigned(old, new):
    parameter = make(old)
    with pytest.raises(TypeError, match="`alpha` can be assigned only .*`compile`"):
        parameter.value = new
    assert parameter.value == old


def test_the_log_is_the_last_value_that_was_read():
    parameter = make(TeacherAnnealing(4))
    for step in (1, 3):
        parameter.update_state(parameter.at(step_counter(step)))
    parameter.reset_state()
    assert float(parameter.result()) == 0.25
    assert float(make(0.5).result()) == 0.5


def test_a_float_is_not_rounded_within_a_half_precision_layer():
    parameter = make(0.1)

    class Reads(keras.layers.Layer):
        def call(self, inputs):
            return parameter.at(0)

    read = Reads(dtype="mixed_float16")(keras.ops.zeros(1))
    assert float(read) == pytest.approx(0.1, rel=1e-7)


def test_another_name_shares_the_value():
    parameter = make(0.25)
    other = parameter.named("kind_alpha")
    parameter.value = 0.5
    assert (parameter.name, other.name) == ("alpha", "kind_alpha")
    assert float(other.result()) == 0.5
