"""The time, memory and errors of exports of well-known architectures.

Claim: each of these models of `keras.applications`, at 96x96 pixels and 10 classes, is
exported to each format in float32 in less than 180 seconds and 3 GB. Every export is a
process of its own. Its peak resident memory is the value that the kernel reports at its
end, and its seconds are those of `export` alone. No weights are downloaded: kernels are
random, and batch normalisation has the statistics of the examples, so that signals
reach the output. "Difference" is the largest difference from Keras' output, divided by
the largest value of the output.

    python benchmarks/export_applications.py [names ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = (
    "ConvNeXtTiny",
    "ResNet50V2",
    "DenseNet121",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetV2B0",
)
FORMATS = ("saved_model", "onnx", "litert")
SECONDS, GIGABYTES = 180, 3.0
CHILD = Path(__file__).with_name("exporting_application.py")


def run(*arguments: str, errors: Path) -> float:
    """Run the other script; return its peak memory in GB."""
    with errors.open("w") as file:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(CHILD), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)}: {errors.read_text()[-2000:]}")
    return usage.ru_maxrss * 1024 / 1e9


def measure(path: Path, form: str, folder: Path) -> dict:
    """Export one model to one format in a process; return what was measured."""
    result, errors = folder / "result.json", folder / "errors.txt"
    result.unlink(missing_ok=True)
    gigabytes = run("export", str(path), form, str(result), errors=errors)
    return {**json.loads(result.read_text()), "gigabytes": gigabytes}


def main() -> None:
    """Measure every model in every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    names = parser.parse_args().names
    print("| | parameters | format | seconds | peak GB | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, f"{name}.keras")
            run("build", name, str(path), errors=Path(folder, "errors.txt"))
            for form in FORMATS:
                row = measure(path, form, Path(folder))
                print(
                    f"| {name} | {row['parameters']:,} | {form} | {row['seconds']:.0f} "
                    f"| {row['gigabytes']:.2f} | {row['difference']:.1e} |",
                    flush=True,
                )
                if row["seconds"] > SECONDS or row["gigabytes"] > GIGABYTES:
                    broken.append(f"{name} to {form}")
    print(f"\nbeyond {SECONDS} s or {GIGABYTES} GB: {', '.join(broken) or 'none'}")


if __name__ == "__main__":
    main()
