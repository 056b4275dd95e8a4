"""A small model learns to sort digits: from whose texts, and by which divergence?

Models of characters read "40721398>" and write "01234789.", where "." is the end. A
teacher and a small student learn this from such texts ("start"). Then the student is
trained in each of these ways, with the same number of updates and order of prompts:

- on the given texts, by their characters ("labels") or by the teacher's predictions of
  them ("off-policy");
- on texts that the teacher writes ("sequence-level", Kim, Rush 2016);
- on its own texts ("on-policy", Agarwal et al. 2024, https://arxiv.org/abs/2306.13649),
  or on its own texts with corrections by the teacher ("speculative", Xu et al. 2024,
  https://arxiv.org/abs/2410.11325);
- on its own texts, with a teacher of its size that also reads the answer. The teacher
  of the control reads the answer to another prompt, in its own training too.

"greedy" is the share of right answers to test prompts if the student writes its
likeliest characters, "sampled" is the share if it samples. The reverse KL of answers is
`E_q[log q - log p]` over these samples, in nats. p is the large teacher in each row.
"""

import argparse
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from sorting import BATCH, WRITES, Texts, adam, build, draw, learn, measure

import keras_distill as kd

TEACHER, STUDENT = (48, 2), (8, 1)  # width, blocks
TEACHER_UPDATES, START_UPDATES = 600, 200
TEACHER_RATE, RATE = 3e-3, 1e-2  # that of students is the best one for "labels"
LOSSES = {
    "forward KL": kd.losses.ForwardKL(),
    "reverse KL": kd.losses.ReverseKL(),
    "JSD": kd.losses.GeneralizedJSD(),
}
WAYS = [
    "labels",
    "sequence-level",
    *(f"{whose}-policy, {loss}" for whose in ("off", "on") for loss in LOSSES),
    "speculative, JSD",
    "reads the answer, JSD",
    "control, JSD",
]
COLUMNS = ("greedy, %", "sampled, %", "reverse KL, nats")
Rows = dict[str, list[float]]


def train(way: str, student: keras.Model, teacher: keras.Model, texts: Texts) -> None:
    """Train the student in one of the ways, in one pass over the prompts."""
    prompts, answers = texts["prompts"], texts["completions"]
    if way == "sequence-level":
        texts = kd.sequence.sample(teacher, prompts, batch_size=1_024, **WRITES)
    if way in ("labels", "sequence-level"):
        learn(student, RATE, texts)
        return
    make, options = kd.sequence.OnPolicyDistiller, {}
    if way.startswith("off"):
        options = {"student_fraction": 0.0}
    elif way.startswith("speculative"):
        make, options = kd.sequence.SpeculativeDistiller, {"teacher_top_k": 2}
    elif not way.startswith("on"):
        read = np.roll(answers, int(way.startswith("control")), axis=0)
        after = {**texts, "prompts": np.concatenate([read, prompts], axis=1)}
        teacher = learn(build(*STUDENT), RATE, after)
        texts, options = {**texts, "answer": read}, {"privileged_context": "answer"}
    distiller = make(student, teacher, **WRITES, **options)
    loss = kd.sequence.TokenLoss(LOSSES[way.split(", ")[1]])
    distiller.compile(adam(RATE, texts), distillation_loss=loss, steps_per_execution=10)
    distiller.fit(texts, batch_size=BATCH, shuffle=False, verbose=0)


def run(
    teacher: keras.Model, test: Texts, before: int, updates: int, ways: list[str]
) -> Rows:
    """Train a student in each way from the same weights, and measure it."""
    student = learn(build(*STUDENT), RATE, draw(before * BATCH))
    start, texts = student.get_weights(), draw(updates * BATCH)
    rows = {"start": measure(student, teacher, test)}
    for way in ways:
        student.set_weights(start)
        train(way, student, teacher, texts)
        rows[way] = measure(student, teacher, test)
        print(f"{way:24}" + "".join(f"{x:17.2f}" for x in rows[way]), flush=True)
    return rows


def summed_up(runs: list[Rows]) -> dict[str, np.ndarray]:
    """Return the scores of each way, and differences between ways, by seed."""
    rows = {way: np.array([row[way] for row in runs]) for way in runs[0]}
    pairs = [(f"on-policy, {loss}", f"off-policy, {loss}") for loss in LOSSES]
    for way, other in [*pairs, ("reads the answer, JSD", "control, JSD")]:
        if {way, other} <= set(rows):
            rows[f"{way}, minus {other.split(',')[0]}"] = rows[way] - rows[other]
    return rows


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of a mean over seeds, NaN for a single one."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(values.var(axis=0) / np.float64(len(values) - 1))


def plot(rows: dict[str, np.ndarray], path: Path) -> None:
    """Plot means with one standard error on either side."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    names = [name for name in rows if "minus" not in name]
    for axis, column, title in zip(axes, (1, 2), COLUMNS[1:], strict=True):
        values = np.stack([rows[name][:, column] for name in names], axis=1)
        axis.barh(names, values.mean(axis=0), xerr=standard_error(values))
        axis.set(title=title)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train everything, print the table, and write the plot where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--updates", type=int, default=300, help="of each student")
    parser.add_argument("--plot", type=Path, help="a file to write a plot to")
    arguments = parser.parse_args()
    ways, seeds, updates = WAYS, arguments.seeds, arguments.updates
    of_teacher, before = TEACHER_UPDATES, START_UPDATES
    if arguments.smoke:
        ways, seeds, updates, of_teacher, before = WAYS[-3::2], 1, 10, 10, 10
    keras.utils.set_random_seed(0)
    test = draw(2_000)
    teacher = learn(build(*TEACHER), TEACHER_RATE, draw(of_teacher * BATCH))
    runs = []
    for seed in range(1, seeds + 1):
        keras.utils.set_random_seed(seed)
        runs.append(run(teacher, test, before, updates, ways))
    rows = summed_up(runs)
    print(f"\n{'mean ± standard error':36}" + "".join(f"{x:>17}" for x in COLUMNS))
    for name, values in rows.items():
        cells = zip(values.mean(0), standard_error(values), strict=True)
        printed = [f"{mean:.2f} ± {error:.2f}" for mean, error in cells]
        print(f"{name:36}" + "".join(f"{cell:>17}" for cell in printed))
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()
