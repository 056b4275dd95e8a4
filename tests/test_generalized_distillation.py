"""The example on privileged features measures what the paper reports."""

import numpy as np
import pytest

from tests.scripts import imported

# It is what the paper does.
pytestmark = pytest.mark.filterwarnings("ignore:The teacher reads privileged features")

TRAINS = pytest.mark.slow("trains 160 models")


@pytest.fixture(scope="module")
def example():
    with imported("examples/generalized_distillation.py") as module:
        yield module


@pytest.fixture(scope="module")
def accuracies(example):
    return {name: example.run(name, trials=8, seed=0) for name in example.CASES}


@TRAINS
@pytest.mark.parametrize("name", ["1 clean labels", "3 relevant features"])
def test_the_papers_numbers_where_there_is_something_to_teach(
    name, example, accuracies
):
    means = accuracies[name].mean(axis=0)
    paper = example.CASES[name][1]
    np.testing.assert_allclose(means[:3], paper, rtol=0.0, atol=2.0)
    regular, distilled = accuracies[name][:, 1:3].T
    assert np.all(distilled > regular)  # in each trial


@TRAINS
@pytest.mark.parametrize(
    "name", ["2 clean features", "4 relevant by point", "4 largest by point"]
)
def test_no_gain_where_x_does_not_show_what_the_teacher_knows(name, accuracies):
    privileged, regular, distilled, _ = accuracies[name].mean(axis=0)
    assert privileged > regular + 15.0
    assert abs(distilled - regular) < 2.0


@TRAINS
def test_a_student_gains_nothing_from_its_like(accuracies):
    for runs in accuracies.values():
        _, regular, _, control = runs.mean(axis=0)
        assert abs(control - regular) < 0.5


@pytest.fixture
def told(example):
    """Draw a case's unscaled points."""

    def draw(name):
        rng = np.random.default_rng(1)
        alpha = rng.standard_normal(example.DIM)
        points = rng.standard_normal((example.TRAIN + example.TEST, example.DIM))
        return alpha, *example.CASES[name][0](rng, alpha, points)

    return draw


def test_clean_labels_tell_the_distance(told):
    alpha, x, privileged, y = told("1 clean labels")
    np.testing.assert_array_equal(privileged[:, 0], x @ alpha)
    assert 0.9 < np.mean(y == (privileged[:, 0] > 0)) < 1.0


def test_clean_features_have_no_part_in_the_noise(told):
    alpha, x, privileged, y = told("2 clean features")
    noise = x - privileged
    assert abs(np.mean(noise * privileged)) < 0.01 and abs(noise.std() - 1.0) < 0.01
    np.testing.assert_array_equal(y, privileged @ alpha > 0)


def test_relevant_features_are_the_same_three_of_all(told):
    alpha, x, privileged, y = told("3 relevant features")
    chosen = [np.flatnonzero(x[0] == value).item() for value in privileged[0]]
    np.testing.assert_array_equal(x[:, chosen], privileged)
    np.testing.assert_array_equal(y, privileged @ alpha[chosen] > 0)


def test_relevant_features_by_point_are_three_of_its_own(told):
    alpha, x, privileged, y = told("4 relevant by point")
    chosen = privileged != 0.0
    assert np.all(chosen.sum(axis=1) == 3)
    assert np.ptp(chosen.mean(axis=0)) < 0.05  # each feature as often as any other
    np.testing.assert_array_equal(privileged[chosen], x[chosen])
    np.testing.assert_array_equal(y, privileged @ alpha > 0)


def test_training_points_scale_all_points(example):
    train, test = example.draw("4 relevant by point", np.random.default_rng(0))
    for points in train[:2]:
        np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(points.std(axis=0), 1.0, atol=1e-5)
    assert len(test[0]) == len(test[1]) == len(test[2]) == example.TEST
    assert 0.001 < abs(test[0].mean(axis=0)).max() < 0.5
