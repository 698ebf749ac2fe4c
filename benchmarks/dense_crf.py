"""Times the dense CRF beside pydensecrf2, SimpleCRF, crfseg and our own plain-torch kernels, in one process.

    python benchmarks/dense_crf.py --images FOLDER [--sizes 480x360x21 ...] [--threads 1 2] [--rounds 5] [--output FILE]
    python benchmarks/dense_crf.py --images FOLDER --device cuda [--output FILE]

From an image and scores to marginals, ten iterations, with the usual kernels. Results are compared before anything is
timed; a peer that is not installed is left out, and what differs by more than 1e-4 is marked. "blocks" times
the runs of one engine in a row, "alternating" takes the engines in turns, so that each finds the caches cold. All this
comes in rounds, and engines are compared within each: a machine whose speed drifts is then as slow for both. The setup
is the time of 0 iterations. Peak memory is that of a process of its own, beyond what it had before the call.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.crf import dense_crf

SIZES = (
    *("480x360x2", "480x360x11", "480x360x21", "500x375x21"),
    *("1024x512x19", "1024x512x21", "2048x1024x19"),
)
GPU_CASES = (("480x360x21", 1), ("480x360x21", 32), ("2048x1024x19", 1))
ITERATIONS = 10
TOLERANCE = 1e-4
Engine = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
Timed = dict[str, dict[str, list[list[float]]]]


def ours(image: np.ndarray, scores: np.ndarray, iterations: int, backend: Any = "auto") -> np.ndarray:
    """piecewise-training: marginals (K, H, W)."""
    options = {"iterations": iterations, "backend": backend, "logarithm": False}
    return dense_crf(scores, image.transpose(2, 0, 1), **options)


def plain_torch(image: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
    """The reference kernels of piecewise-training."""
    return ours(image, scores, iterations, "reference")


def pydensecrf2(image: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
    """pydensecrf, by its maintained fork."""
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = scores.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return np.array(crf.inference(iterations)).reshape(scores.shape)


def simple_crf(image: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
    """SimpleCRF's dense CRF, which takes probabilities and gives labels alone."""
    module = importlib.import_module("denseCRF")
    probabilities = np.exp(scores - scores.max(0))
    probabilities = np.ascontiguousarray((probabilities / probabilities.sum(0)).transpose(1, 2, 0))
    return module.densecrf(image, probabilities, (10.0, 80.0, 13.0, 3.0, 3.0, iterations))


def crfseg(image: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
    """The CRF of crfseg, which has a spatial kernel alone, cut off after 5 pixels, and does not see the image."""
    module = importlib.import_module("crfseg")
    del image
    layer = module.CRF(2, n_iter=iterations, returns="proba", smoothness_weight=3, smoothness_theta=3)
    with torch.no_grad():
        return layer(torch.from_numpy(scores)[None])[0].numpy()


ENGINES: dict[str, tuple[str, Engine]] = {
    "piecewise-training": ("numba", ours),
    "pydensecrf2": ("pydensecrf", pydensecrf2),
    "SimpleCRF": ("denseCRF", simple_crf),
    "crfseg": ("crfseg", crfseg),
    "plain torch": ("torch", plain_torch),
}


def make_case(size: str, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first image of a folder, resized, and smooth random scores for it."""
    width, height, classes = (int(number) for number in size.split("x"))
    first = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".png"))[0]
    with Image.open(first) as file:
        image = np.array(file.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(measuring.SEED)
    scores = np.empty((classes, height, width), np.float32)
    for plane in scores:
        smooth = gaussian_filter(rng.standard_normal((height, width)).astype(np.float32), 8)
        plane[:] = 3 * smooth / smooth.std() + rng.standard_normal((height, width))
    return image, scores


def compare(image: np.ndarray, scores: np.ndarray, engines: dict[str, Engine]) -> dict[str, float]:
    """The largest difference of each engine's marginals from pydensecrf2's; of labels alone, the share that differs."""
    expected = engines["pydensecrf2"](image, scores, ITERATIONS)
    differences = {}
    for name, engine in engines.items():
        found = engine(image, scores, ITERATIONS)
        if found.ndim == 2:
            differences[name] = float(np.mean(found != expected.argmax(0)))
        else:
            differences[name] = float(np.abs(found - expected).max())
    return differences


def time_case(case: tuple[np.ndarray, np.ndarray], engines: dict[str, Engine], runs: int, rounds: int) -> Timed:
    """Milliseconds of each engine: of 0 iterations and of all in blocks, and of all in turns; a list for each round."""

    def milliseconds(engine: Engine, iterations: int) -> float:
        start = time.perf_counter()
        engine(*case, iterations)
        return 1e3 * (time.perf_counter() - start)

    timed: Timed = {name: {"setup": [], "blocks": [], "alternating": []} for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            timed[name]["setup"].append([milliseconds(engine, 0) for _ in range(runs)])
            timed[name]["blocks"].append([milliseconds(engine, ITERATIONS) for _ in range(runs)])
            timed[name]["alternating"].append([])
        for _ in range(runs):
            for name, engine in engines.items():
                timed[name]["alternating"][-1].append(milliseconds(engine, ITERATIONS))
    return timed


def summary(timed: Timed) -> dict[str, dict[str, Any]]:
    """Medians of each engine; how many times faster than pydensecrf2 it is: median, least and most of the rounds."""
    found = {}
    for name, times in timed.items():
        setup, total, turns = (statistics.median(chain(*times[order])) for order in ("setup", "blocks", "alternating"))
        ratios = {
            order: [
                statistics.median(peer) / statistics.median(own)
                for peer, own in zip(timed["pydensecrf2"][order], times[order], strict=True)
            ]
            for order in ("blocks", "alternating")
        }
        found[name] = {
            "setup_ms": setup,
            "iteration_ms": (total - setup) / ITERATIONS,
            "total_ms": total,
            "alternating_ms": turns,
            "times_faster": {order: [statistics.median(r), min(r), max(r)] for order, r in ratios.items()},
            "rounds_ms": times,
        }
    return found


def prepared(name: str, size: str, images: Path, threads: int) -> Callable[[], object]:
    """A call whose memory is measured; imports and compilation are not its own."""
    torch.set_num_threads(threads)
    engine = ENGINES[name][1]
    engine(*make_case(f"64x64x{size.rsplit('x', 1)[1]}", images), 1)
    image, scores = make_case(size, images)
    return lambda: engine(image, scores, ITERATIONS)


def installed() -> dict[str, Engine]:
    """The engines that can be imported."""
    found = {}
    for name, (module, engine) in ENGINES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{name} is not installed: left out")
        else:
            found[name] = engine
    return found


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    head = f"{'case':14} {'thr':>3} {'engine':18} {'setup':>8} {'iter.':>7} {'total':>8} {'altern.':>8} {'MB':>6}"
    lines = [head + "  pydensecrf2 / ours"]
    for result in results:
        for name, r in result["engines"].items():
            memory = f"{r['peak_bytes'] / 1e6:6.0f}" if "peak_bytes" in r else ""
            line = (
                f"{result['case']:14} {result['threads']:3} {name:18} {r['setup_ms']:8.1f} {r['iteration_ms']:7.2f} "
                f"{r['total_ms']:8.1f} {r['alternating_ms']:8.1f} {memory:>6}"
            )
            if r["difference"] > TOLERANCE:
                line += f"  another model: differs by {r['difference']:.2f}"
            if name == "piecewise-training":
                blocks, turns = (
                    "{:.1f} ({:.1f} to {:.1f})".format(*r["times_faster"][order]) for order in ("blocks", "alternating")
                )
                line += f"  {blocks} x in blocks, {turns} x alternating"
            lines.append(line)
    return "\n".join(lines)


def case_of_batch(text: str) -> tuple[str, int]:
    """WIDTHxHEIGHTxCLASSESxBATCH as a size and a batch."""
    size, batch = text.rsplit("x", 1)
    return size, int(batch)


def main() -> None:
    """Reads the command line, checks, times, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="WIDTHxHEIGHTxCLASSES")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=3, help="of each order in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=[*ENGINES])
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    parser.add_argument("--device", help="cuda: see dense_crf_gpu.py; takes its own sizes")
    parser.add_argument("--gpu_cases", nargs="+", type=case_of_batch, default=GPU_CASES, help="SIZExBATCH")
    parser.add_argument("--training_case", type=case_of_batch, default=("512x512x21", 8), help="SIZExBATCH")
    arguments = parser.parse_args()
    if arguments.device is not None:
        import dense_crf_gpu

        dense_crf_gpu.main(arguments)
        return

    engines = {name: engine for name, engine in installed().items() if name in arguments.engines}
    if not {"pydensecrf2", "piecewise-training"} <= engines.keys():
        raise SystemExit("there is nothing to compare: pip install pydensecrf2")
    results = []
    for size in arguments.sizes:
        case = make_case(size, arguments.images)
        differences = compare(*case, engines)
        if differences["piecewise-training"] > TOLERANCE:
            raise SystemExit(f"{size}: marginals differ by {differences['piecewise-training']}: nothing is timed.")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            timed = summary(time_case(case, engines, arguments.runs, arguments.rounds))
            for name, result in timed.items():
                result["difference"] = differences[name]
                if arguments.memory:
                    result["peak_bytes"] = measuring.peak_beyond(prepared, name, size, arguments.images, threads)
            results.append({"case": size, "threads": threads, "engines": timed})
            print(table(results[-1:]), flush=True)
    report = {
        **measuring.surroundings(measuring.SEED),
        "iterations": ITERATIONS,
        "runs": arguments.runs,
        "rounds": arguments.rounds,
        "results": results,
    }
    if arguments.output:
        measuring.write_report(arguments.output, report, table(results))


if __name__ == "__main__":
    main()
