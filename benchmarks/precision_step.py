"""Times a training step of the network in bfloat16 beside one in single precision.

    python benchmarks/precision_step.py [--network NAME] [--size 240x320] [--batch 4] [--classes 11] [--output FILE]

Which of the two is faster hangs on the processor. The steps are of the trainer's own module, with the same network and
batch of noise, in bfloat16 as Lightning's `bf16-mixed` has it, and end in an optimizer's step. The precisions take
turns; given are medians. A processor with instructions for bfloat16 is measured without them as well, which oneDNN can
leave alone (ONEDNN_MAX_CPU_ISA). Checked first: the gradient of a step in bfloat16 must be as large as the other's, and
point its way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.config import TrainConfig
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import unary_stage
from piecewise_training.trainer.module import StageModule
from piecewise_training.trainer.schedule import build_optimizer

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}
WITHOUT = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}  # whose next steps are VNNI, and then BF16
# Noise has a cosine of 0 to three digits; rounding to 8 bits in a hundred layers of random weights leaves 0.4.
LEAST_COSINE, MOST_CHANGE = 0.2, 0.1


class Setup(argparse.Namespace):
    """The command line."""

    network: str
    size: str
    batch: int
    classes: int
    runs: int


def module(setup: Setup) -> StageModule:
    """The module that trains stage 1, always of the same network."""
    torch.manual_seed(measuring.SEED)
    model = PiecewiseTrainedModel(setup.classes, unary=setup.network, pretrained=False, use_crf=False)
    trained = StageModule(model, unary_stage(1), TrainConfig()).train()
    trained.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return trained


def batch(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on."""
    height, width = (int(side) for side in setup.size.split("x"))
    return measuring.batch(setup.batch, (height, width), setup.classes)


def backwards(trained: StageModule, precision: str, given: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Adds the gradients of a batch."""
    dtype = PRECISIONS[precision]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = trained.training_step(given, 0)
    loss.backward()  # type: ignore[no-untyped-call]


def stepping(precision: str, setup: Setup) -> Callable[[], object]:
    """A training step in a precision, after a first one."""
    trained, given = module(setup), batch(setup)
    optimizer = build_optimizer(trained.model, trained.stage, trained.config.optim)

    def step() -> None:
        optimizer.zero_grad()
        backwards(trained, precision, given)
        optimizer.step()

    step()
    return step


def check(setup: Setup) -> float:
    """The cosine between the gradients of the two precisions, if they are alike."""
    found = []
    for precision in PRECISIONS:
        trained = module(setup)
        backwards(trained, precision, batch(setup))
        found.append(torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None]))
    cosine = float(torch.nn.functional.cosine_similarity(*found, dim=0))
    size = float(found[1].norm() / found[0].norm())
    if not (cosine > LEAST_COSINE and abs(size - 1) < MOST_CHANGE):
        raise SystemExit(
            f"the gradients of the two precisions have a cosine of {cosine:.3f}, and bfloat16's is {size:.3g} times as "
            "large: nothing is timed."
        )
    return cosine


def measure(setup: Setup) -> dict[str, object]:
    """The seconds of the steps in each precision, on the instructions that this process may use."""
    cosine = check(setup)
    steps = {precision: stepping(precision, setup) for precision in PRECISIONS}
    times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(setup.runs):
        for precision, step in steps.items():
            start = time.perf_counter()
            step()
            times[precision].append(time.perf_counter() - start)
    return {"cosine": cosine, "seconds": times}


def in_a_process(limits: dict[str, str]) -> dict[str, object]:
    """What a new process measures, with oneDNN limited."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    done = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def instructions() -> str:
    """What of this processor bfloat16 hangs on."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in every torch
    for name, what in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512_BF16")):
        if known.get(name):
            return what
    return torch.backends.cpu.get_cpu_capability()


def main() -> None:
    """Reads the command line, checks, times, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    setup = parser.parse_args(namespace=Setup())
    if setup.child:
        print(json.dumps(measure(setup)))
        return
    own = instructions()
    rows = {own: in_a_process({})}
    if own in ("AMX", "AVX512_BF16"):
        rows[f"{own}, unused"] = in_a_process(WITHOUT)
    lines = [f"{setup.network}, {setup.batch} images of {setup.size}, {setup.classes} classes, a step"]
    for name, row in rows.items():
        single, half = (statistics.median(row["seconds"][precision]) for precision in PRECISIONS)  # type: ignore[index]
        lines.append(f"{name:20} 32 {single:6.2f} s, bf16 {half:6.2f} s, {half / single:5.2f} times as long")
    print("\n".join(lines))
    if setup.output:
        given = {name: value for name, value in vars(setup).items() if name not in ("output", "child")}
        measuring.write_report(
            setup.output, {**measuring.surroundings(measuring.SEED), "setup": given, "rows": rows}, "\n".join(lines)
        )


if __name__ == "__main__":
    main()
