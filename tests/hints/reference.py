"""A second implementation of the losses between layers: float64 NumPy, loops.

Every function takes the teacher's and the student's features and the weights of the
examples, and returns the loss per example.
"""

import itertools

import numpy as np


def flat(features):
    return features.reshape(len(features), -1).astype("float64")


def huber(error, delta):
    size = abs(error)
    return 0.5 * size**2 if size <= delta else delta * (size - 0.5 * delta)


def weighted_mean(values, weights):
    return np.dot(values, weights) / sum(weights) if sum(weights) > 0.0 else 0.0


def feature_mse(t, s, weight=None):
    return np.square(flat(t) - flat(s)).mean(-1)


def attention_transfer(t, s, weight=None, *, power=2.0):
    def attention(features):
        maps = flat((np.abs(features.astype("float64")) ** power).sum(-1))
        length = np.linalg.norm(maps, axis=-1, keepdims=True)
        return maps / np.where(length > 0.0, length, 1.0)

    return np.square(attention(t) - attention(s)).sum(-1)


def relational_distance(t, s, weight=None, *, delta=1.0):
    n = len(t)
    weight = np.ones(n) if weight is None else weight
    pairs = list(itertools.permutations(range(n), 2))

    def relative(features):
        x = flat(features)
        distances = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in pairs}
        mean = weighted_mean(
            list(distances.values()), [weight[i] * weight[j] for i, j in pairs]
        )
        return {pair: d / mean if mean else 0.0 for pair, d in distances.items()}

    of_teacher, of_student = relative(t), relative(s)
    spread = any(of_teacher.values())
    return np.array(
        [
            weighted_mean(
                [
                    spread * huber(of_teacher[i, j] - of_student[i, j], delta)
                    for j in range(n)
                    if j != i
                ],
                [weight[j] for j in range(n) if j != i],
            )
            for i in range(n)
        ]
    )


def relational_angle(t, s, weight=None, *, delta=1.0):
    n = len(t)
    weight = np.ones(n) if weight is None else weight
    t, s = flat(t), flat(s)

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths > 0.0 else None

    values = []
    for j in range(n):
        at_j, weights = [], []
        for i, k in itertools.permutations([x for x in range(n) if x != j], 2):
            right, got = cosine(t, i, j, k), cosine(s, i, j, k)
            at_j.append(0.0 if right is None else huber(right - (got or 0.0), delta))
            weights.append(weight[i] * weight[k])
        values.append(weighted_mean(at_j, weights))
    return np.array(values)


def similarity_preserving(t, s, weight=None):
    weight = np.ones(len(t)) if weight is None else np.asarray(weight, "float64")
    weight = weight * (weight > 0.0).sum() / max(weight.sum(), 1e-300)

    def rows(features):
        gram = flat(features) @ flat(features).T
        length = np.sqrt((weight * gram**2).sum(-1, keepdims=True))
        return gram / np.where(length > 0.0, length, 1.0)

    squares = np.square(rows(t) - rows(s))
    return np.array([weighted_mean(row, weight) for row in squares])
