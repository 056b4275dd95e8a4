"""Settings that are wrong or fail on several devices are refused in `compile`."""

from types import SimpleNamespace
from typing import Any

import keras
import pytest

import keras_distill as kd
from keras_distill.devices.refusals import check_compile
from tests.distiller.models import crossentropy, mlp

REFUSED = [
    ({"clipnorm": 0.5}, {}, "clipnorm=0.5"),
    ({"clipvalue": 0.5}, {}, "clipvalue=0.5"),
    ({"global_clipnorm": 0.5}, {}, "global_clipnorm=0.5"),
    ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps=2"),
    ({"use_ema": True, "ema_overwrite_frequency": 3}, {}, "ema_overwrite_frequency=3"),
    ({}, {"steps_per_execution": 2}, "steps_per_execution=2"),
    ({}, {"jit_compile": True}, "jit_compile=True"),
]


def trainer(devices: int) -> Any:
    strategy = SimpleNamespace(num_replicas_in_sync=devices)
    return SimpleNamespace(distribute_strategy=strategy)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("settings", "options", "received"), REFUSED)
def test_refused_on_two_devices(
    settings: dict[str, Any], options: dict[str, Any], received: str, scaled: bool
) -> None:
    optimizer = keras.optimizers.SGD(0.1, **settings)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    given = {"optimizer": optimizer, "teacher_optimizer": None}
    with pytest.raises(ValueError, match=f"Received: {received} on 2 devices"):
        check_compile(trainer(2), given, options)
    check_compile(trainer(1), given, options)


def test_permitted_on_two_devices() -> None:
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1, use_ema=True)
    options = {"jit_compile": "auto", "steps_per_execution": 1, "run_eagerly": True}
    check_compile(trainer(2), {"optimizer": optimizer}, options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: kd.Distiller(mlp(), mlp(seed=1)),
        lambda: kd.online.MutualLearning([mlp(), mlp(seed=1)]),
    ],
)
@pytest.mark.tensorflow_only("strategies are of TensorFlow")
def test_compile_asks(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    strategy = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(type(model), "distribute_strategy", strategy)
    with pytest.raises(ValueError, match="`clipnorm` of `optimizer` would clip"):
        model.compile(keras.optimizers.SGD(0.1, clipnorm=1.0), crossentropy())
    assert not model.compiled
