"""A test whether `tuning.search` finds the gain that `keras-distill demo` shows.

Claim: the verdict of the search is "helps". The digits, networks, views and steps are
those of the demo's first seed. Half of each batch are views of the 100 labelled images.
The other half are views of all training images, without labels, from which the student
learns through the teacher only. So the student alone (alpha 0) reads 32 labelled views
a step, as with each other setting.

    python benchmarks/search_demo.py [--seed 0] [--directory DIR]
"""

import argparse

import keras
import numpy as np

import keras_distill as kd
from keras_distill.demo import data, models
from keras_distill.demo.training import FULL, STUDENT_LEARNING_RATE, train_teacher

HALF = data.BATCH_SIZE // 2


def drawn(split: data.Split, steps: int, seed: int) -> tuple[dict, np.ndarray]:
    """Return the rows of all steps: labelled views, and views without a label."""
    none = np.full(len(split.transfer), -1, "int32")
    both = [
        data.views(images, labels, seed=seed).unbatch().batch(HALF).take(steps)
        for images, labels in (tuple(split.labelled), (split.transfer, none))
    ]
    parts = [batch for views in both for batch in views.as_numpy_iterator()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {"image": images, "labelled": labels >= 0}, np.maximum(labels, 0)


def settings() -> dict:
    """Return fresh arguments of `compile` for one fit."""
    schedule = keras.optimizers.schedules.CosineDecay(STUDENT_LEARNING_RATE, FULL.steps)
    return {
        "optimizer": keras.optimizers.Adam(schedule),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "weighted_metrics": ["accuracy"],
        "label_mask": "labelled",
        "steps_per_execution": FULL.steps_per_epoch,
    }


def main() -> None:
    """Train the teacher, search, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the demo")
    parser.add_argument("--directory", help="where a stopped search goes on")
    options = parser.parse_args()
    split = data.split(data.load(), options.seed)
    teacher = train_teacher(split, FULL, options.seed)
    print(f"teacher: {teacher.curve[-1]:.4f}", flush=True)
    test = {"image": split.test.images, "labelled": np.ones(data.TEST, bool)}
    answer = kd.tuning.search(
        lambda: models.student(np.random.randint(2**31)),
        teacher.model,
        drawn(split, FULL.steps, options.seed),
        (test, split.test.labels),
        compile=settings,
        batch_size=data.BATCH_SIZE,
        directory=options.directory,
    )
    print(answer)


if __name__ == "__main__":
    main()
