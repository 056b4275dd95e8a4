"""Click logs for `privileged_recommender.py`: generated ones, and MovieLens as one.

The generated log follows a stated model, so that the truth is known. Users and items
have tastes `u, v` that decide clicks and others, `a, b`, that decide how long a user
stays:

    shown   10 items a visit; position 1 is seen for sure, position k less: k**-0.5
    click   if seen, with probability sigmoid(2 u.v + popularity - 1.5)
    dwell   log-seconds on the page of a clicked item:
            N(3 + 0.6 (patience + quality + a.b), 1)
    buys    given a click, with probability sigmoid(dwell - 6.5): dwell mediates
            all that user and item have to do with it

Position and dwell stand in the log only: nothing knows them when items are scored.
"""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from scipy.special import expit

USERS, ITEMS, CATEGORIES, TASTES = 2_000, 500, 20, 3
VISIT, HISTORY = 10, 10
PRIVILEGED = ("position", "dwell")


class Log(NamedTuple):
    """Impressions in the order of time; ids begin with 1, 0 is padding.

    `x` holds int32 `user`, `item`, `category` of shape (rows, 1), `history` (rows, 10),
    and the privileged float32 `position`, `dwell` (rows, 1); `y` float32 `click`, `buy`
    (rows, 1); `truth` the probability of a purchase given a click and what a student
    may read, (rows, 1), where it is known.
    """

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    truth: np.ndarray | None

    def split(self, share: float) -> tuple["Log", "Log"]:
        """Return the first `share` of the impressions, and those that came later."""
        first = int(share * len(self.x["user"]))
        return self._part(slice(first)), self._part(slice(first, None))

    def _part(self, rows: slice) -> "Log":
        x, y = ({k: v[rows] for k, v in d.items()} for d in (self.x, self.y))
        return Log(x, y, None if self.truth is None else self.truth[rows])


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
        "position": position,
        "dwell": np.where(click, dwell, 0.0),
    }
    return _log(x, {"click": click, "buy": buy}, truth)


def movielens(name: str = "100k", data_dir: str | Path | None = None) -> Log:
    """Read MovieLens ratings as a log, downloading them where they're missing.

    A rating of 4 or 5 is the click, a 5 the purchase, and the time until the user's
    next rating the dwell, which isn't known when a film is recommended.
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
    return _log(x, {"click": click, "buy": stars == 5}, None)


def _until_next(user: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the seconds until the same user's next row, an hour at most."""
    order = np.lexsort((np.arange(len(user)), user))
    gaps = np.full(len(user), 3600.0)
    same = user[order][1:] == user[order][:-1]
    gaps[order[:-1][same]] = np.diff(seconds[order])[same]
    return np.minimum(gaps, 3600.0)


def history(user: np.ndarray, item: np.ndarray, click: np.ndarray) -> np.ndarray:
    """Return the last items that a user clicked before each row, the latest first."""
    recent: dict[int, list[int]] = {}
    rows = []
    for one, shown, clicked in zip(user, item, click, strict=True):
        seen = recent.setdefault(int(one), [])
        rows.append(list(seen))
        if clicked:
            seen.insert(0, int(shown))
            del seen[HISTORY:]
    return keras.utils.pad_sequences(rows, HISTORY, padding="post")


def _log(
    x: dict[str, np.ndarray], y: dict[str, np.ndarray], truth: np.ndarray | None
) -> Log:
    dtypes = {"position": "float32", "dwell": "float32"}
    return Log(
        {
            name: values.reshape(len(values), -1).astype(dtypes.get(name, "int32"))
            for name, values in x.items()
        },
        {name: values.astype("float32")[:, None] for name, values in y.items()},
        None if truth is None else truth.astype("float32")[:, None],
    )
