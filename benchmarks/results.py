"""Results that a long benchmark keeps in a file, from which a stopped run resumes."""

import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import keras


class Results:
    """Values by method and seed, in a file of JSON lines, of one size of run.

    Args:
        path: The file.
        size: What results must share to be compared.
        measure: What the values are. Defaults to "accuracy".
    """

    def __init__(
        self, path: pathlib.Path, size: dict[str, int], measure: str = "accuracy"
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.size = size
        self.measure = measure
        self.found: dict[tuple[str, int], float] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            entry = json.loads(line)
            if entry["size"] == size:
                self.found[entry["method"], entry["seed"]] = entry[measure]

    def add(self, method: str, seed: int, measure: Callable[[], float]) -> float:
        """Return what was measured earlier, or measure, print and write it."""
        begin = time.perf_counter()
        known = (method, seed) in self.found
        value = self.found[method, seed] if known else measure()
        self.found[method, seed] = value
        seconds = round(time.perf_counter() - begin, 1)
        if not known:
            entry = {"size": self.size, "method": method, "seed": seed}
            with self.path.open("a") as file:
                entry |= {self.measure: value, "seconds": seconds}
                file.write(json.dumps(entry) + "\n")
        took = "from the file" if known else f"{seconds:.0f} s"
        print(f"seed {seed}  {method:18s} {value:6.2f}  {took}", flush=True)
        return value


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard deviation; without the latter for one value."""
    if not values:
        return " " * 14
    text = f"{statistics.mean(values):{sign}6.2f}"
    return text + (
        f" ± {statistics.stdev(values):5.2f}" if len(values) > 1 else " " * 8
    )


def quick(steps: int) -> dict[str, object]:
    """Return how a small net compiles, so that many fits take little time.

    On CPUs, XLA compiles for long, and its convolutions are slower than TensorFlow's.
    JAX has nothing but XLA, which compiles all of `steps_per_execution` one by one.

    Args:
        steps: The steps of an epoch.
    """
    if keras.backend.backend() == "tensorflow":
        return {"jit_compile": False, "steps_per_execution": min(20, steps)}
    return {}
