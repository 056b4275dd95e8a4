"""The origin of the demo's gain: the images on which the teacher teaches the student.

Claim of the README: if it is distilled on the labelled images alone, the demo's student
is no better than the student alone. If it is distilled on labelled and unlabelled
images, it is better. Data, models, steps and seeds are those of `keras-distill demo`.

    python benchmarks/transfer_set.py [--seeds 5]
"""

import argparse
import statistics

from keras_distill.demo import data, measuring
from keras_distill.demo.training import (
    FULL,
    train_alone,
    train_distilled,
    train_teacher,
)


def main() -> None:
    """Train the teacher and three students a seed; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    digits = data.load()
    accuracies: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        split = data.split(digits, seed)
        labelled_only = split._replace(unlabelled=split.unlabelled[:0])
        teacher = train_teacher(split, FULL, seed).model
        models = {
            "student alone": train_alone(split, FULL, seed).model,
            "distilled, labelled images": train_distilled(
                teacher, labelled_only, FULL, seed
            ).model,
            "distilled, all images": train_distilled(teacher, split, FULL, seed).model,
        }
        for name, model in models.items():
            accuracy = measuring.score(model, teacher, split.test).accuracy
            accuracies.setdefault(name, []).append(accuracy)
            print(f"seed {seed}  {name:28s} {accuracy:.3f}", flush=True)
    print(f"\n{'':28s} mean   sd     minus alone, mean and sd")
    alone = accuracies["student alone"]
    for name, values in accuracies.items():
        gains = [a - b for a, b in zip(values, alone, strict=True)]
        print(
            f"{name:28s} {statistics.mean(values):.3f}  {statistics.stdev(values):.3f}"
            f"  {statistics.mean(gains):+.3f}  {statistics.stdev(gains):.3f}"
        )


if __name__ == "__main__":
    main()
