"""Alpha and temperature that change while a compiled step runs."""

from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.distiller.models import (
    StepLogs,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    mlp,
)

X, Y = data()


class EachStep(keras.callbacks.Callback):
    """Calls `action(step)` before each step, as a callback of a user would."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.action(batch)


def fit(model: keras.Model, **kwargs: Any) -> list[list[np.ndarray]]:
    """Weights of the student, or of a plain model, after each of six steps."""
    student = getattr(model, "student", model)
    weights = StepLogs(student.get_weights)
    callbacks = [weights, *kwargs.pop("callbacks", [])]
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
    return weights.seen


def sgd(**kwargs: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.2, momentum=0.5, **kwargs)


def compiled(alpha: Any, optimizer: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(mlp(seed=0), mlp(seed=1))
    distiller.compile(optimizer or sgd(), crossentropy(), alpha=alpha, **kwargs)
    return distiller


def test_late_start_trains_plainly_and_then_listens() -> None:
    plain = mlp(seed=0)
    plain.compile(sgd(), crossentropy())
    without, late = fit(plain), fit(compiled(kd.schedules.LateStart(3, value=0.9)))
    for step, (expected, weights) in enumerate(zip(without, late, strict=True)):
        same = [np.array_equal(w, e) for w, e in zip(weights, expected, strict=True)]
        assert all(same) if step < 3 else not any(same), step


def test_a_schedule_acts_within_one_execution_of_several_steps() -> None:
    schedule = kd.schedules.TeacherAnnealing(5)
    one, many = compiled(schedule), compiled(schedule, steps_per_execution=6)
    fit(one)
    fit(many)
    assert_same_weights(many.student, one.student, atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_assigned_alpha_acts_in_the_compiled_step(jit_compile: bool) -> None:
    scheduled = compiled(kd.schedules.LateStart(3, value=0.9))
    assigned = compiled(0.0, jit_compile=jit_compile)

    def assign(step: int) -> None:
        assigned.alpha = 0.0 if step < 3 else 0.9

    fit(scheduled)
    fit(assigned, callbacks=[EachStep(assign)])
    assert assigned.alpha == 0.9
    assert_same_weights(assigned.student, scheduled.student, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_assigned_temperature_acts_in_the_compiled_step(jit_compile: bool) -> None:
    loss = kd.losses.ForwardKL(temperature=1.0)
    distiller = compiled(
        1.0,
        keras.optimizers.SGD(0.0),
        distillation_loss=loss,
        jit_compile=jit_compile,
    )
    s, t = distiller.student(X).numpy(), distiller.teacher(X).numpy()
    for temperature in (1.0, 8.0):
        loss.temperature = temperature
        logs = distiller.train_on_batch(X, Y, return_dict=True)
        np.testing.assert_allclose(
            logs["loss"], forward_kl(t, s, temperature).mean(), rtol=1e-5
        )


def test_schedules_go_on_through_a_second_fit() -> None:
    distiller = compiled(kd.schedules.LinearWarmup(12))
    alphas = StepLogs(lambda: float(distiller.get_metrics_result()["alpha"]))
    fit(distiller, callbacks=[alphas])
    fit(distiller, callbacks=[alphas])
    np.testing.assert_allclose(alphas.seen, np.arange(12) / 12, rtol=1e-6)


def test_a_validation_leaves_what_an_epoch_logs_of_a_schedule() -> None:
    loss = kd.losses.ForwardKL(keras.optimizers.schedules.PolynomialDecay(4.0, 12, 1.0))
    distiller = compiled(kd.schedules.LinearWarmup(12), distillation_loss=loss)
    history = distiller.fit(
        X, Y, batch_size=4, epochs=2, validation_data=(X, Y), verbose=0
    ).history
    np.testing.assert_allclose(history["alpha"], [5 / 12, 11 / 12], rtol=1e-6)
    np.testing.assert_allclose(history["temperature"], [2.75, 1.25], rtol=1e-6)


def test_steps_are_updates_where_gradients_are_accumulated() -> None:
    distiller = compiled(
        kd.schedules.LinearWarmup(3), sgd(gradient_accumulation_steps=2)
    )
    alphas = StepLogs(lambda: float(distiller.get_metrics_result()["alpha"]))
    fit(distiller, callbacks=[alphas])
    np.testing.assert_allclose(
        alphas.seen, [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3], rtol=1e-6
    )


def test_a_schedule_cannot_be_assigned_away() -> None:
    distiller = compiled(kd.schedules.LateStart(3))
    with pytest.raises(TypeError, match="a schedule is part of the compiled step"):
        distiller.alpha = 0.5
    distiller = compiled(0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: alpha=1.5"):
        distiller.alpha = 1.5
    assert distiller.alpha == 0.5
