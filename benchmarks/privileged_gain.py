"""The gain of a recommender from privileged features, on logs whose truth is known.

Claims: with a teacher that reads position and dwell time, the student's purchase AUC is
higher than that of the student alone (paired over the seeds). With a teacher that reads
another row's position and dwell time it isn't, nor with one that reads only what the
student reads.

Each seed draws its own log of a million impressions, weights and batches. The script
prints the share of the teacher's lead over the student alone that the student reaches.
It also prints the share of the lead of the known truth, which is the most that a model
of the student's inputs can reach.

    python benchmarks/privileged_gain.py [--seeds 5]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import click_log  # noqa: E402
import privileged_recommender as recommender  # noqa: E402

VARIANTS = ("alone", "self", "privileged", "shuffled")
PUBLISHED = """
Xu et al. 2020 on Taobao, AUC of the student:
  clicks, 1 day        alone .6625   PFD .6712   PFD + a larger teacher .6745
  purchases, 30 days   alone .9040   PFD .9084   privileged features alone .8965"""


def main() -> None:
    """Train every variant on every seed; print means and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        log = click_log.generate(options.impressions, seed)
        train_log, test_log = log.split(0.9)
        for variant in VARIANTS:
            seen, trained_as = train_log, variant
            if variant == "shuffled":
                seen, trained_as = train_log.shuffled(seed), "privileged"
            student, teacher = recommender.train(seen, trained_as, seed)
            scored = {variant: student}
            if variant == "privileged":
                scored["its teacher"] = teacher
            for name, model in scored.items():
                logits = recommender.predict(model, test_log)
                row = recommender.measure(logits, test_log)
                rows.setdefault(name, []).append(row)
                print(
                    f"seed {seed}  {name:12s} buy AUC {row['buy AUC']:.4f}", flush=True
                )
        clicked = test_log.y["click"] == 1
        best = roc_auc_score(test_log.y["buy"][clicked], test_log.truth[clicked])
        rows.setdefault("the truth", []).append({"buy AUC": best})
    for metric in ("click AUC", "buy AUC", "log-loss", "ECE", "pred/obs"):
        print(f"\n{metric:12s}   mean      sd   minus alone     sd       t       p")
        alone = np.array([row[metric] for row in rows["alone"]])
        for name, of_seeds in rows.items():
            if metric not in of_seeds[0]:
                continue
            values = np.array([row[metric] for row in of_seeds])
            line = f"{name:12s} {values.mean():.4f}  {values.std(ddof=1):.4f}"
            if name != "alone":
                gain, test = values - alone, ttest_rel(values, alone)
                line += f"       {gain.mean():+.4f}  {gain.std(ddof=1):.4f}"
                line += f"  {test.statistic:6.2f}  {test.pvalue:.4f}"
            print(line)
    mean = {n: np.mean([r["buy AUC"] for r in of]) for n, of in rows.items()}
    gain = mean["privileged"] - mean["alone"]
    for name in ("its teacher", "the truth"):
        share = 100.0 * gain / (mean[name] - mean["alone"])
        print(f"\nrecovered of the lead of {name}: {share:.0f} %", end="")
    print("\n" + PUBLISHED)


if __name__ == "__main__":
    main()
