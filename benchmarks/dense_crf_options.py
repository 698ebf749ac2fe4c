"""Times what the dense CRF can do beside its usual kernels, as ratios to them, in one process.

    python benchmarks/dense_crf_options.py --images FOLDER [--size 480x360x21] [--threads 1 2] [--output FILE]

Costs of labels, further kernels, batches, gradients, and pydensecrf's interface. Every case is first compared with the
plain-torch kernels on a part of the image. The cases take turns in each run; of two calls of each the second is timed,
of pydensecrf2 and of its interface here the only one, and given are medians. Memory is the peak of a process of its own
beyond what it had before the call, in score maps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import measuring
from dense_crf import TOLERANCE, make_case, pydensecrf2

from piecewise_training.crf import Convergence, PairwiseTerm, bilateral_kernel, dense_crf

Case = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
STDS = {"bilateral_xy_std": 30.0, "bilateral_rgb_std": 4.0}


def costs(classes: int) -> torch.Tensor:
    """Costs (K, K) that are not symmetric."""
    generator = torch.Generator().manual_seed(measuring.SEED)
    return 1 - torch.eye(classes) + 0.1 * torch.rand(classes, classes, generator=generator)


def two_bilateral(scores: torch.Tensor, image: torch.Tensor, backend: Any) -> torch.Tensor:
    """A second bilateral kernel beside the usual one."""
    kernel = bilateral_kernel(image, 30.0, 4.0, like=scores, backend=backend)
    return dense_crf(scores, image, terms=[PairwiseTerm(kernel)], backend=backend)


def one_by_one(scores: torch.Tensor, image: torch.Tensor, backend: Any) -> torch.Tensor:
    """The images of a batch one after the other."""
    return torch.cat([dense_crf(*own, backend=backend) for own in zip(scores.split(1), image.split(1), strict=True)])


def learned(bandwidths: bool, backwards: bool = True) -> Case:
    """Five iterations forwards, with what gradients need, and backwards: to scores, weights, costs, and bandwidths."""

    def run(scores: torch.Tensor, image: torch.Tensor, backend: Any) -> torch.Tensor:
        start = {
            "pos_xy_std": 3.0,
            "bilateral_xy_std": 80.0,
            "bilateral_rgb_std": 13.0,
            "pos_w": 3.0,
            "bilateral_w": 10.0,
        }
        values = {name: torch.tensor(v, requires_grad=bandwidths or name.endswith("w")) for name, v in start.items()}
        matrices = (1 - torch.eye(scores.shape[1])).repeat(2, 1, 1).requires_grad_()
        work = scores.detach().requires_grad_()
        with torch.enable_grad():
            log_q = dense_crf(work, image, compatibility=matrices, iterations=5, backend=backend, **values)
            if backwards:
                log_q.backward(scores)  # any gradient, and this one takes neither time nor memory
        return log_q.detach()

    return run


CASES: dict[str, tuple[str, Case]] = {
    "Potts": ("", lambda s, i, b: dense_crf(s, i, backend=b)),
    "a number a class": ("Potts", lambda s, i, b: dense_crf(s, i, compatibility=torch.ones(s.shape[1]), backend=b)),
    "K x K costs": ("Potts", lambda s, i, b: dense_crf(s, i, compatibility=costs(s.shape[1]), backend=b)),
    "one fine bilateral": ("", lambda s, i, b: dense_crf(s, i, backend=b, **STDS)),
    "and a second one": ("one fine bilateral", two_bilateral),
    "8 images one by one": ("", one_by_one),
    "8 images at once": ("8 images one by one", lambda s, i, b: dense_crf(s, i, backend=b)),
    "stops at 0.01": ("Potts", lambda s, i, b: dense_crf(s, i, tolerance=0.01, backend=b)),
    "watched": ("Potts", lambda s, i, b: dense_crf(s, i, convergence=Convergence(), backend=b)),
    "exact spatial": ("Potts", lambda s, i, b: dense_crf(s, i, spatial="exact", backend=b)),
    "5 iterations": ("", lambda s, i, b: dense_crf(s, i, iterations=5, compatibility=costs(s.shape[1]), backend=b)),
    "and backwards": ("5 iterations", learned(bandwidths=False)),
    "5 iterations, bandwidths learned": ("5 iterations", learned(bandwidths=True, backwards=False)),
    "and backwards, bandwidths too": ("5 iterations, bandwidths learned", learned(bandwidths=True)),
}


def check(scores: torch.Tensor, image: torch.Tensor) -> None:
    """Compares the cases with the plain-torch kernels on a part of the image."""
    part = scores[..., :90, :120], image[..., :90, :120]
    for name, (_, case) in CASES.items():
        worst = float((case(*part, "auto").exp() - case(*part, "reference").exp()).abs().max())
        if worst > TOLERANCE:
            raise SystemExit(f"{name}: marginals differ by {worst}: nothing is timed.")


def time_cases(scores: torch.Tensor, image: torch.Tensor, runs: int) -> dict[str, list[float]]:
    """Milliseconds an image of each case."""
    found: dict[str, list[float]] = {name: [] for name in (*CASES, "pydensecrf2", "its interface, ours")}
    batch = scores.repeat(8, 1, 1, 1), image.repeat(8, 1, 1, 1)
    arrays = image[0].permute(1, 2, 0).contiguous().numpy(), scores[0].numpy()
    others = {"pydensecrf2": pydensecrf2, "its interface, ours": dropped_in}
    for run in range(runs + 1):
        for name, (_, case) in CASES.items():
            part = slice(None) if "images" in name else slice(run % 8, run % 8 + 1)  # none is cached
            arguments = tuple(t[part] for t in batch)
            case(*arguments, "auto")  # after the case before this one memory and torch's threads are not at rest
            start = time.perf_counter()
            case(*arguments, "auto")
            found[name].append(1e3 * (time.perf_counter() - start) / len(arguments[0]))
        for name, engine in others.items():
            start = time.perf_counter()
            engine(*arrays, 10)
            found[name].append(1e3 * (time.perf_counter() - start))
    return {name: times[1:] for name, times in found.items()}


def dropped_in(image: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
    """The script for pydensecrf with the import changed."""
    from piecewise_training.pydensecrf.densecrf import DenseCRF2D

    classes, height, width = scores.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return np.array(crf.inference(iterations)).reshape(scores.shape)


def prepared(name: str, size: str, images: Path) -> Callable[[], object]:
    """A call whose memory is measured."""
    scores, image = tensors(size, images)
    case = CASES[name][1]
    case(scores[..., :64, :64], image[..., :64, :64], "auto")
    return lambda: case(scores, image, "auto")


def tensors(size: str, images: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (1, K, H, W) and an image (1, 3, H, W)."""
    image, scores = make_case(size, images)
    return torch.from_numpy(scores)[None], torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


def main() -> None:
    """Reads the command line, checks, times, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--size", default="480x360x21", help="WIDTHxHEIGHTxCLASSES")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()

    scores, image = tensors(arguments.size, arguments.images)
    check(scores, image)
    memory = {
        name: measuring.peak_beyond(prepared, name, arguments.size, arguments.images)
        for name in ("5 iterations", *list(CASES)[-3:])
    }
    beside = {name: base for name, (base, _) in CASES.items() if base} | {"its interface, ours": "pydensecrf2"}
    results, lines = [], []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        with torch.no_grad():
            times = time_cases(scores, image, arguments.runs)
        medians = {name: statistics.median(found) for name, found in times.items()}
        results.append({"threads": threads, "ms": times})
        lines.append(f"{arguments.size}, {threads} thread{'s' if threads > 1 else ''}")
        for name, value in medians.items():
            base = beside.get(name)
            line = f"  {name:32} {value:7.1f} ms"
            line += f"  {value / medians[base]:5.2f} x {base}" if base else ""
            if name in memory:
                line += f", {memory[name] / scores.nbytes:.1f} score maps of memory"
            lines.append(line)
    print("\n".join(lines))
    report = {
        **measuring.surroundings(measuring.SEED),
        "size": arguments.size,
        "runs": arguments.runs,
        "beside": beside,
        "score_bytes": scores.nbytes,
        "peak_bytes": memory,
        "results": results,
    }
    if arguments.output:
        measuring.write_report(arguments.output, report, "\n".join(lines))


if __name__ == "__main__":
    main()
