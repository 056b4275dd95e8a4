"""Click logs for the examples: generated logs, MovieLens ratings, and KuaiRand.

The generated log follows a stated model, so the true probabilities are known. Tastes
`u, v` of users and items decide clicks. Other tastes `a, b` decide how long a user
stays:

    shown   10 items a visit; the user sees position k with probability k**-0.5
    click   if seen, with probability sigmoid(2 u.v + popularity - 1.5)
    dwell   log-seconds on the page of a clicked item:
            N(3 + 0.6 (patience + quality + a.b), 1)
    buys    given a click, with probability sigmoid(dwell - 6.5): user and item
            influence purchases only through dwell

Position and dwell are in the log only. They aren't known when items are scored.
"""

import csv
import gzip
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from logs import UNKNOWN, Log, ids, make
from scipy.special import expit

USERS, ITEMS, CATEGORIES, TASTES = 2_000, 500, 20, 3
VISIT, HISTORY = 10, 10
POSITION_AND_DWELL = {"click": ("position",), "buy": ("dwell",)}

KUAIRAND = "processed_standard_kcore_15.tsv.gz"
KUAIRAND_TEST = 20220418  # the first day to test on
AFTERWARDS = ("is_follow", "is_comment", "is_forward", "is_profile_enter")


def generate(impressions: int, seed: int) -> Log:
    """Draw a log of visits of ten impressions each."""
    rng = np.random.default_rng(seed)
    u, a = rng.normal(size=(2, USERS, TASTES)) / TASTES**0.25
    centres_v, centres_b = rng.normal(size=(2, CATEGORIES, TASTES)) / TASTES**0.25
    category = rng.integers(0, CATEGORIES, ITEMS)
    v, b = (
        0.8 * centres[category] + 0.6 * rng.normal(size=(ITEMS, TASTES)) / TASTES**0.25
        for centres in (centres_v, centres_b)
    )
    popularity = rng.normal(size=ITEMS)
    visits = impressions // VISIT
    user = np.repeat(rng.integers(0, USERS, visits), VISIT)
    item = rng.integers(0, ITEMS, visits * VISIT)
    position = np.tile(np.arange(1, VISIT + 1), visits)
    likes = 2.0 * (u[user] * v[item]).sum(1) + popularity[item] - 1.5
    click = rng.random(len(user)) < position**-0.5 * expit(likes)
    patience, quality = rng.normal(size=USERS), rng.normal(size=ITEMS)
    taste = (a[user] * b[item]).sum(1)
    stays = 3.0 + 0.6 * (patience[user] + quality[item] + taste)
    dwell = rng.normal(stays, 1.0)
    buy = click & (rng.random(len(user)) < expit(dwell - 6.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    truth = expit(stays[:, None] + nodes - 6.5) @ (weights / weights.sum())
    x = {
        "user": user + 1,
        "item": item + 1,
        "category": category[item] + 1,
        "history": history(user, item + 1, click),
        "position": position.astype("float32"),
        "dwell": np.where(click, dwell, 0.0),
    }
    y = {"click": click, "buy": buy}
    return make(x, y, POSITION_AND_DWELL)._replace(
        truth=truth.astype("float32")[:, None]
    )


def movielens(name: str = "100k", data_dir: str | Path | None = None) -> Log:
    """Read MovieLens ratings as a log, downloading them if they're missing.

    A rating of 4 or 5 is a click, and a rating of 5 is a purchase. The dwell is the
    time until the user's next rating, which isn't known when a film is recommended.
    """
    ratings = tfds.load(f"movielens/{name}-ratings", split="train", data_dir=data_dir)

    def columns(rating: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        genres = rating["movie_genres"]
        kept = ("user_id", "movie_id", "timestamp", "user_rating")
        return {
            "category": tf.concat([genres, [0]], 0)[0],
            **{key: rating[key] for key in kept},
        }

    rows = tfds.as_numpy(ratings.map(columns).batch(2**30).get_single_element())
    in_time = np.argsort(rows["timestamp"], kind="stable")
    rows = {key: values[in_time] for key, values in rows.items()}
    user, item = (
        np.unique(rows[key], return_inverse=True)[1] + 1
        for key in ("user_id", "movie_id")
    )
    stars = rows["user_rating"]
    click = stars >= 4
    dwell = np.log1p(_until_next(user, rows["timestamp"]))
    x = {
        "user": user,
        "item": item,
        "category": rows["category"] + 1,
        "history": history(user, item, click),
        "position": np.ones(len(user)),
        "dwell": np.where(click, dwell, 0.0),
    }
    return make(x, {"click": click, "buy": stars == 5}, POSITION_AND_DWELL)


def kuairand(
    directory: str | Path,
    *,
    test_from: int = KUAIRAND_TEST,
    leak: bool = False,
    withheld: float = 0.3,
) -> Log:
    """Read KuaiRand's impressions of short videos (Gao et al. 2022) as a log.

    `is_click` is the click. `long_view` given a click is the purchase. A student reads
    what is known before an impression: `user`, `item`, `hour`, the videos that the user
    clicked last, and `category`, the bucket of the video's length, which is 1 for
    unknown lengths. A teacher also reads what the user did afterwards. No model reads
    the column `label`, because the selection of the rows reveals it.

    Args:
        directory: The folder of `processed_standard_kcore_15.tsv.gz`.
        test_from: The first day (yyyymmdd) to test on. Ids and buckets are those of
            earlier rows. Defaults to 20220418.
        leak: Whether a teacher also reads `play_time_ms`, which almost defines a click.
            It is a control for leaks.
        withheld: The share of random training rows whose `item` becomes the unknown
            one. Most videos of later days are new. Without such rows, a model learns
            about unknown videos only from those that were shown once.
    """
    rows = _read(Path(directory) / KUAIRAND)
    training = rows["date"] < test_from
    user, item = (ids(rows[key], training) for key in ("user_id", "video_id"))
    length = rows["duration_ms"]
    edges = np.quantile(length[training & (length > 0)], np.linspace(0, 1, 21)[1:-1])
    click = rows["is_click"] == 1
    hidden_item = training & (np.random.default_rng(0).random(len(item)) < withheld)
    x = {
        "user": user,
        "item": np.where(hidden_item, UNKNOWN, item),
        "category": np.where(length > 0, 2 + np.searchsorted(edges, length), UNKNOWN),
        "hour": rows["hourmin"] // 100 + 1,
        # Videos that were shown together have the same time.
        "history": history(user, item, click, rows["time_ms"]),
        **{key: rows[key].astype("float32") for key in AFTERWARDS},
    }
    for key in ("comment_stay_time", *(("play_time_ms",) if leak else ())):
        x[key] = np.log1p(rows[key]).astype("float32")
    y = {"click": click, "buy": click & (rows["long_view"] == 1)}
    hidden = tuple(name for name in x if name in rows)
    return make(x, y, dict.fromkeys(y, hidden))._replace(day=rows["date"])


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the whole numbers of a table of tab-separated values, in order of time."""
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path.name} in {path.parent}. It is in `processed_data` of "
            "github.com/alessandrosocc/predict_explicit_negative_feedback_kuairand"
            ", which has it as a `.tsv`: compress it with gzip."
        )
    with gzip.open(path, "rt", newline="") as file:
        head, *lines = csv.reader(file, delimiter="\t")
    columns = dict(zip(head, zip(*lines, strict=True), strict=True))
    del columns["timestamp"]
    numbers = {name: np.array(it, "int64") for name, it in columns.items()}
    order = np.argsort(numbers["time_ms"], kind="stable")
    return {name: column[order] for name, column in numbers.items()}


def _until_next(user: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the seconds until the same user's next row, an hour at most."""
    order = np.lexsort((np.arange(len(user)), user))
    gaps = np.full(len(user), 3600.0)
    same = user[order][1:] == user[order][:-1]
    gaps[order[:-1][same]] = np.diff(seconds[order])[same]
    return np.minimum(gaps, 3600.0)


def history(
    user: np.ndarray,
    item: np.ndarray,
    click: np.ndarray,
    moment: np.ndarray | None = None,
) -> np.ndarray:
    """Return the last items that a user clicked before each row, the latest first.

    Args:
        user: The user of each row, in the order of time.
        item: The item of each row.
        click: Whether it was clicked.
        moment: The time at which each row was shown. The history of a row has no clicks
            of the same time. By default, all times differ.
    """
    recent: dict[int, list[int]] = {}
    at_once: dict[int, tuple[int, list[int]]] = {}  # the moment, and its clicks
    moments = range(len(user)) if moment is None else moment
    rows = []
    for one, shown, clicked, now in zip(user, item, click, moments, strict=True):
        seen = recent.setdefault(int(one), [])
        then, clicks = at_once.get(int(one), (None, []))
        if then != now:
            seen[:] = [*reversed(clicks), *seen][:HISTORY]
            clicks = []
            at_once[int(one)] = (now, clicks)
        rows.append(list(seen))
        if clicked:
            clicks.append(int(shown))
    return keras.utils.pad_sequences(rows, HISTORY, padding="post")
