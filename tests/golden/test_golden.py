"""The trainer gives the numbers that it gave before its code took another shape."""

import keras
import numpy as np
import pytest

from tests.golden.cases import CASES, OF_TENSORFLOW, WITH_RANDOM_NUMBERS
from tests.golden.running import FILE, results

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# Half precision rounds at every operation, whose order a compiler chooses.
ROUNDING = {"mixed_bfloat16": 5e-3, "mixed_float16": 1e-3}


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, np.ndarray]]:
    """The committed results, by case."""
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in CASES}
    for key, value in np.load(FILE).items():
        name, _, what = key.partition("/")
        found[name][what] = value
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_the_same(
    name: str, golden: dict[str, dict[str, np.ndarray]]
) -> None:
    if not ON_TENSORFLOW and name in WITH_RANDOM_NUMBERS | OF_TENSORFLOW:
        pytest.skip("random numbers or a compiler of TensorFlow's")
    got, expected = results(CASES[name]()), golden[name]
    assert set(got) == set(expected)
    rounding = ROUNDING.get(name, 1e-5)
    for what, value in expected.items():
        np.testing.assert_allclose(
            got[what], value, rtol=rounding, atol=rounding, err_msg=what
        )
