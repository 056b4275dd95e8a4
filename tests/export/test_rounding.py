"""The default tolerance knows a model's own rounding; a given one is kept to."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import (
    ParityError,
    arguments,
    export,
    parity,
    rounding,
    saved_model,
)
from keras_distill.export.serving import serve

SIGNS = np.resize([1, -1], 32).astype("float32")


def cancelling(size):
    """A model whose large terms cancel each other, and examples.

    Outputs are of about 1, and terms of `size`: rounding is `size` times as large.
    """
    model = keras.Sequential([keras.Input((32,), name="x"), layers.Dense(1)])
    model.set_weights([SIGNS[:, None], np.zeros(1, "float32")])
    noise = np.random.default_rng(0).integers(-2, 3, (4, 32)) / 8
    return model, (size + noise).astype("float32")


def own_rounding(model, batch):
    served = serve(model, batch)
    expected = parity.reference(served, batch)
    return rounding.tolerance(served, expected), expected


@pytest.mark.parametrize("size", [1, 16, 64])
def test_it_is_what_one_unit_in_the_last_place_of_weights_does(size):
    model, batch = cancelling(size)
    own, expected = own_rounding(model, batch)
    # Each term moves by at most one unit in the last place of its weight, which is 1.
    most = np.abs(batch).sum(1).max() * np.spacing(np.float32(1))
    (scale,) = expected.scales.values()
    assert 0.02 < own / (2 * most / scale) <= 1.01


def test_it_is_never_more_than_ten_times_the_usual_tolerance():
    own, _ = own_rounding(*cancelling(4096))
    assert own == 1e-4


def test_integer_outputs_have_no_rounding():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.ops.argmax(layers.Dense(3)(x), -1))
    own, _ = own_rounding(model, np.zeros((2, 4), "float32"))
    assert own == 0


# By how much a file is off, in tolerances of the model's own rounding.
@pytest.mark.parametrize(
    ("off", "tolerance", "passes"),
    [
        (0.5, None, True),
        (0.5, {"int8": 0.3}, True),
        (1.5, None, False),
        (0.5, 1e-5, False),
        (0.5, {"full": 1e-5}, False),
    ],
)
def test_a_file_within_it_passes_by_default(
    off, tolerance, passes, monkeypatch, tmp_path
):
    model, batch = cancelling(24)
    before = model.get_weights()
    own, expected = own_rounding(model, batch)
    assert 2e-5 < own < 1e-4
    (scale,) = expected.scales.values()

    def load(path, threads=None):
        loaded = saved_model.load(path)

        def run(arrays):
            given = loaded.run(arrays).items()
            return {
                name: values + np.float32(off * own * scale) for name, values in given
            }

        return dataclasses.replace(loaded, run=run)

    changed = dataclasses.replace(saved_model.FORMAT, load=load)
    monkeypatch.setattr(arguments, "_FORMATS", (changed,))
    options = {"example_batch": batch, "tolerance": tolerance}
    if passes:
        manifest = export(model, tmp_path / "out", ["saved_model"], **options)
        assert manifest["artefacts"]["saved_model"]["tolerance"] == own
    else:
        limit = 1e-5 if tolerance else own
        with pytest.raises(ParityError, match=rf"`tolerance` {limit:g}, scale"):
            export(model, tmp_path / "out", ["saved_model"], **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_that_rounds_little_keeps_the_usual_tolerance(tmp_path):
    model, batch = cancelling(1)
    manifest = export(model, tmp_path / "out", ["saved_model"], example_batch=batch)
    assert manifest["artefacts"]["saved_model"]["tolerance"] == 1e-5


def in_16_bits(policy):
    """A model whose sums of many products are rounded in another order in files."""
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(64, "relu", dtype=policy) for _ in range(3)]
    model = keras.Sequential(
        [keras.Input((64,), name="x"), *hidden, layers.Dense(4, dtype="float32")]
    )
    return model, np.random.default_rng(0).normal(size=(8, 64)).astype("float32")


def test_a_model_that_computes_in_16_bits_has_their_tolerance(tmp_path):
    model, batch = in_16_bits("mixed_float16")
    manifest = export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    artefact = manifest["artefacts"]["onnx"]
    assert artefact["tolerance"] == 1e-2
    assert artefact["max_relative_difference"] > 1e-4
    message = "no layer or operation is off.*16 bits adds up.*raise `tolerance`"
    with pytest.raises(ParityError, match=f"(?i){message}"):
        export(model, tmp_path / "o", ["onnx"], example_batch=batch, tolerance=2e-4)
