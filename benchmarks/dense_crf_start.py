"""Times how the dense CRF starts: the first call ever on a machine, the first in a later process, further classes.

    python benchmarks/dense_crf_start.py [--size 480x360x21] [--runs 3] [--output FILE]

Every run compiles the kernels in one process, into a folder of its own for machine code, and finds them there in the
next. Given are medians of what a first call takes beyond a third one of the same kind, since the second still gets its
memory from the system; imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.crf import dense_crf

ROWS = {
    "compiling": "the first call ever, which compiles",
    "loading": "the first call in a later process",
    "classes": "another number of classes there",
}


def beyond_a_third_call(width: int, height: int, classes: int) -> float:
    """Seconds."""
    rng = np.random.default_rng(measuring.SEED)
    image = rng.integers(0, 256, (3, height, width), np.uint8)
    scores = rng.standard_normal((classes, height, width), np.float32)
    laps = []
    for _ in range(3):
        start = time.perf_counter()
        dense_crf(scores, image)
        laps.append(time.perf_counter() - start)
    return laps[0] - laps[2]


def in_a_process(size: str, folder: str) -> dict[str, float]:
    """What a new process measures that keeps machine code in a folder."""
    command = [sys.executable, __file__, "--size", size, "--child"]
    done = subprocess.run(
        command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(rows: dict[str, list[float]], size: str) -> str:
    """The rows as text, in seconds."""
    lines = [size]
    for name, laps in rows.items():
        lines.append(f"  {name:38} {statistics.median(laps):6.2f} s  ({min(laps):.2f} to {max(laps):.2f})")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x360x21", help="WIDTHxHEIGHTxCLASSES")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    width, height, classes = map(int, arguments.size.split("x"))
    if arguments.child:
        first = beyond_a_third_call(width, height, classes)
        print(json.dumps({"first": first, "classes": beyond_a_third_call(width, height, classes + 10)}))
        return
    rows: dict[str, list[float]] = {key: [] for key in ROWS}
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            rows["compiling"].append(in_a_process(arguments.size, folder)["first"])
            later = in_a_process(arguments.size, folder)
            rows["loading"].append(later["first"])
            rows["classes"].append(later["classes"])
    named = {ROWS[key]: laps for key, laps in rows.items()}
    lines = table(named, arguments.size)
    print(lines)
    if arguments.output:
        measuring.write_report(
            arguments.output,
            {**measuring.surroundings(measuring.SEED), "size": arguments.size, "seconds": named},
            lines,
        )


if __name__ == "__main__":
    main()
