"""What the benchmarks share: peak memory in a process of its own, and what a result was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from piecewise_training import __version__
from piecewise_training.cli.machine import processor
from piecewise_training.inference import Result
from piecewise_training.metrics import BorderMetrics, SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel

SEED = 0  # of what a benchmark draws by itself
PACKAGES = ("torch", "numpy", "numba", "timm", "pydensecrf2", "crfseg")  # whose version a figure may hang on


def peak_beyond(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """Bytes that a call needs beyond what its process had before, measured in a fresh one.

    Args:
        prepare: gives the call; a function of a module, so that another process can import it.
        *arguments: of `prepare`.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_measure_peak, args=(send, prepare, *arguments))
    worker.start()
    peak = receive.recv()
    worker.join()
    return float(peak)


def _measure_peak(send: Any, prepare: Callable[..., Callable[[], object]], *arguments: Any) -> None:
    call = prepare(*arguments)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    status = Path("/proc/self/status").read_text()
    send.send(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 - before)


def take_weights(model: PiecewiseTrainedModel, checkpoint: Path) -> int:
    """Gives the network the weights of a checkpoint of stage 1, and tells after how many epochs they were."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "model.unary."
    own = {name.removeprefix(prefix): w for name, w in saved["state_dict"].items() if name.startswith(prefix)}
    model.unary.load_state_dict(own)
    return int(saved["epoch"]) + 1


def batch(images: int, size: tuple[int, int], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and labels in blocks of 16 pixels, always the same."""
    height, width = size
    generator = torch.Generator().manual_seed(SEED)
    blocks = torch.randint(0, classes, (images, -(-height // 16), -(-width // 16)), generator=generator)
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]
    return torch.randn(images, 3, height, width, generator=generator), labels


class Tally:
    """The measures of one kind of prediction over all images."""

    def __init__(self, classes: int) -> None:
        self.metrics, self.borders = SegmentationMetrics(classes), BorderMetrics(classes)
        self.seconds = 0.0

    def add(self, labels: np.ndarray, truth: np.ndarray, seconds: float) -> None:
        """One image."""
        prediction, target = torch.from_numpy(labels)[None].long(), torch.from_numpy(truth)[None].long()
        self.metrics.update(prediction, target)
        self.borders.update(prediction, target)
        self.seconds += seconds

    def found(self, images: int) -> dict[str, Any]:
        """The measures as numbers."""
        return plain(
            Result(self.metrics.compute(), self.metrics.confusion, self.borders.compute(), self.seconds / images)
        )


def plain(result: Result) -> dict[str, Any]:
    """A result as numbers."""
    return {
        "miou": result.scores.miou,
        "accuracy": result.scores.pixel_accuracy,
        "iou": result.scores.iou.tolist(),
        "borders": result.borders,
        "seconds_an_image": result.seconds,
    }


def surroundings(seed: int | None = None) -> dict[str, Any]:
    """Machine, versions, commit and day of a measurement, and the seed if its rows have none of their own."""
    machine = {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": multiprocessing.cpu_count(),
        "platform": platform.platform(),
    }
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
    return {
        "machine": machine,
        "versions": {"piecewise-training": __version__, **versions, "torch": torch.__version__},
        "command": shlex.join(["python", *sys.argv]),
        **({} if seed is None else {"seed": seed}),
        **when(),
    }


def when() -> dict[str, str]:
    """Commit and day of a measurement."""
    return {"commit": subprocess.getoutput("git rev-parse HEAD"), "date": date.today().isoformat()}


def kept(path: Path | None, settings: Mapping[str, Any]) -> Any:
    """The rows that an earlier call has left in its file, to be added to; empty if there is none.

    Raises:
        SystemExit: they are of other settings, so that one table must not hold them with those of this call.
    """
    if path is None or not path.is_file():
        return {}
    report = json.loads(path.read_text())
    other = [name for name, value in settings.items() if _meaning(report.get(name)) != _meaning(value)]
    if other:
        sys.exit(f"{path} holds rows of another {', '.join(other)}: give another --output.")
    return report["rows"]


def _meaning(value: Any) -> Any:
    """What a configuration says, whose comments may have changed."""
    return yaml.safe_load(value) if isinstance(value, str) else value


def write_report(path: Path, report: dict[str, Any], table: str) -> None:
    """Writes the numbers as JSON, and the table beside them as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".txt").write_text(table + "\n")
