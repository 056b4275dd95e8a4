import keras
import numpy as np
import pytest

from keras_distill.demo.data import Digits
from keras_distill.demo.measuring import Scores, compare, score, spread


def _constant(logits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, kernel_initializer="zeros"))
    model.layers[-1].bias.assign(logits)
    return model


def test_score_by_hand():
    test = Digits(np.zeros((4, 8, 8, 1), "float32"), np.array([0, 0, 1, 2], "int32"))
    model, teacher = _constant([np.log(2.0), 0.0, 0.0]), _constant([0.0, 1.0, 0.0])
    # probabilities 1/2, 1/4, 1/4: nll of the labels log 2, log 2, log 4, log 4
    expected = Scores(accuracy=0.5, nll=1.5 * np.log(2.0), agreement=0.0)
    assert score(model, teacher, test) == pytest.approx(expected, rel=1e-6)
    assert score(model, model, test).agreement == 1.0


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 3.0]) == pytest.approx((2.0, np.sqrt(2.0)))
    assert spread([0.7]) == (0.7, 0.0)


def test_compare_is_seed_by_seed_and_a_draw_is_no_win():
    alone = [Scores(value, 0.0, 0.0) for value in (0.5, 0.6, 0.7)]
    distilled = [Scores(value, 0.0, 0.0) for value in (0.75, 0.6, 0.6)]
    gain = compare(alone, distilled)
    assert gain.differences == pytest.approx([0.25, 0.0, -0.1])
    assert gain.spread.mean == pytest.approx(0.05)
    assert gain.wins == 1


def test_compare_refuses_other_numbers_of_seeds():
    with pytest.raises(ValueError, match="zip"):
        compare([Scores(0.5, 0.0, 0.0)], [])
