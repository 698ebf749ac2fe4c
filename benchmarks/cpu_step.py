"""Times a training step of the network on a CPU with and without what the package does there for its speed.

    python benchmarks/cpu_step.py [--network NAME] [--stride 16] [--size 240x320] [--batch 4] [--classes 11] [--runs 25]
                                  [--output FILE]

The steps are of the trainer's own module, in single precision, of always the same network and batch of noise, and end
in an optimizer's step. "as torch has it" is without both: gradients of dilated depthwise convolutions by a convolution
forwards, and freed memory that the process keeps. Each kind runs in a process of its own, since what the C library does
hangs on what it did before; the processes take turns, a step each, and given are medians. Checked first: the gradient
of a step is the same with the convolutions as they are in torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.config import TrainConfig
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks.depthwise import _Adapted
from piecewise_training.trainer import unary_stage
from piecewise_training.trainer.memory import kept_memory
from piecewise_training.trainer.module import StageModule
from piecewise_training.trainer.schedule import build_optimizer

CPU = torch.device("cpu")
# By name, whether the convolutions are adapted and whether memory is kept.
KINDS = {
    "as torch has it": (False, False),
    "+ gradients forwards": (True, False),
    "+ memory kept": (True, True),
}
MOST_APART = 1e-3  # of the gradients, by their norm: single precision through some hundred layers


class Setup(argparse.Namespace):
    """The command line."""

    network: str
    stride: int
    size: str
    batch: int
    classes: int
    runs: int


def module(setup: Setup, adapted: bool) -> StageModule:
    """The module that trains stage 1, always of the same network."""
    torch.manual_seed(measuring.SEED)
    options = {"unary": setup.network, "output_stride": setup.stride, "pretrained": False, "use_crf": False}
    model = PiecewiseTrainedModel(setup.classes, **options)
    for part in () if adapted else model.modules():
        if isinstance(part, _Adapted):
            part.__class__ = type(part).__bases__[1]
    trained = StageModule(model, unary_stage(1), TrainConfig(loss="lovasz")).train()
    trained.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return trained


def batch(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on."""
    height, width = (int(side) for side in setup.size.split("x"))
    return measuring.batch(setup.batch, (height, width), setup.classes)


def backwards(trained: StageModule, given: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Adds the gradients of a batch; dropout draws the same in every call."""
    torch.manual_seed(measuring.SEED)
    trained.training_step(given, 0).backward()  # type: ignore[no-untyped-call]


def check(setup: Setup) -> float:
    """How far the gradients of the two kinds of convolution are apart, if they are the same."""
    found = []
    for adapted in (False, True):
        trained = module(setup, adapted)
        backwards(trained, batch(setup))
        found.append(torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None]))
    apart = float((found[1] - found[0]).norm() / found[0].norm())
    if not apart < MOST_APART:
        raise SystemExit(f"the gradients of the two kinds are {apart:.2g} of their size apart: nothing is timed.")
    return apart


def take_steps(setup: Setup, kind: str) -> None:
    """Takes a step for each line that comes in, and writes its seconds; the first two are not told."""
    adapted, keeps = KINDS[kind]
    trained, given = module(setup, adapted), batch(setup)
    optimizer = build_optimizer(trained.model, trained.stage, trained.config.optim)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        backwards(trained, given)
        optimizer.step()
        return time.perf_counter() - start

    with kept_memory(CPU) if keeps else nullcontext():
        step()
        step()
        for _ in sys.stdin:
            print(step(), flush=True)


def as_long(seconds: Sequence[float], usual: Sequence[float]) -> float:
    """How many times as long steps take, each beside the other kind's of the same turn: other programs slow both."""
    return statistics.median(own / other for own, other in zip(seconds, usual, strict=True))


class Stepping:
    """A process that takes steps of a kind when asked."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", kind]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        """The seconds of one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """No more will be asked for."""
        self._process.communicate()


def main() -> None:
    """Reads the command line, checks, times, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--stride", type=int, default=16, help="of the network's deepest map")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--runs", type=int, default=25, help="steps of each kind")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    parser.add_argument("--child", choices=[*KINDS], help=argparse.SUPPRESS)
    setup = parser.parse_args(namespace=Setup())
    if setup.child:
        take_steps(setup, setup.child)
        return
    apart = check(setup)
    rows: dict[str, dict[str, list[float]]] = {kind: {"seconds": []} for kind in KINDS}
    processes = {kind: Stepping(kind) for kind in KINDS}
    for process in processes.values():
        process.step()  # all are ready then
    for _ in range(setup.runs):
        for kind, process in processes.items():
            rows[kind]["seconds"].append(process.step())
    for process in processes.values():
        process.end()
    lines = [f"{setup.network} at stride {setup.stride}, {setup.batch} images of {setup.size}, a step"]
    for kind, row in rows.items():
        own, share = statistics.median(row["seconds"]), as_long(row["seconds"], rows["as torch has it"]["seconds"])
        lines.append(f"{kind:22} {own:6.3f} s, {share:5.2f} times as long")
    print("\n".join(lines))
    if setup.output:
        given = {name: value for name, value in vars(setup).items() if name not in ("output", "child")}
        report = {**measuring.surroundings(measuring.SEED), "setup": given, "apart": apart, "rows": rows}
        measuring.write_report(setup.output, report, "\n".join(lines))


if __name__ == "__main__":
    main()
