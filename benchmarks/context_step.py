"""Times one training step of a FeatMap-Net alone, with its pairwise networks piecewise, and jointly through mean field.

    python benchmarks/context_step.py [--trunk NAME] [--size 240x320] [--batch 4] [--classes 11] [--output FILE]

The paper's claim: piecewise training of the pairwise networks needs no inference, and so costs little beside the
network's own. All steps are of the trainer's own module with the same network and batch of noise, and end in an
optimizer's step: (a) the network alone; (b) piecewise, with both relations; (c) jointly, through five iterations of
mean field over the nodes; (d) as (c), and through five of the dense CRF over the pixels. (b) is checked first: its
gradients must be those of a loop over images and relations. The cases take turns; given are medians. Memory is the
peak of a process of its own beyond what it had before the step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.config import TrainConfig
from piecewise_training.losses import cross_entropy, edge_nll, node_labels
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import Stage, joint_stage, together, unary_stage
from piecewise_training.trainer.module import StageModule
from piecewise_training.trainer.schedule import build_optimizer

ITERATIONS = 5
Setup = tuple[str, tuple[int, int], int, int]


def module(case: str, setup: Setup) -> StageModule:
    """The module that trains a case's stage, always of the same network."""
    trunk, _, _, classes = setup
    torch.manual_seed(measuring.SEED)
    dense = case.startswith("(d)")
    model = PiecewiseTrainedModel(
        classes,
        unary=trunk,
        pretrained=False,
        featmap={},
        context=None if case.startswith("(a)") else {"iterations": ITERATIONS},
        use_crf=dense,
        crf={"train_iterations": ITERATIONS},
    )
    return StageModule(model, CASES[case], TrainConfig())


CASES: dict[str, Stage] = {
    "(a) network alone": unary_stage(1),
    "(b) piecewise": together(unary_stage(1)),
    "(c) jointly, nodes": joint_stage(1, 1.0),
    "(d) jointly, nodes and pixels": joint_stage(1, 1.0),
}


def batch(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on."""
    _, size, images, classes = setup
    return measuring.batch(images, size, classes)


def stepping(case: str, setup: Setup) -> Callable[[], object]:
    """A training step of a case, after a first one."""
    trained = module(case, setup).train()
    optimizer = build_optimizer(trained.model, trained.stage, trained.config.optim)
    trained.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    image, target = batch(setup)

    def step() -> None:
        optimizer.zero_grad()
        trained.training_step((image, target), 0).backward()
        optimizer.step()

    step()
    return step


def check(setup: Setup) -> None:
    """Compares the gradients of a piecewise step with those of a literal sum, in double precision."""
    trained = module("(b) piecewise", setup).double().eval()
    trained.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    image, target = batch(setup)
    image = image.double()
    model: Any = trained.model
    parameters = [*model.context.nets.parameters(), *model.unary.score.parameters()]
    found = torch.autograd.grad(trained.training_step((image, target), 0), parameters)
    features = model.unary.feature_map(image)
    scores = torch.nn.functional.interpolate(model.unary.score(features), image.shape[2:], mode="bilinear")
    loss = cross_entropy(scores, target)
    labels = node_labels(target, tuple(features.shape[2:])).flatten(1)
    own = model.unary.score(features).detach().flatten(2).mT
    for net, edges in zip(model.context.nets, model.context.edges(features), strict=True):
        pairs = net(features, edges) + own[:, edges[0], :, None] + own[:, edges[1], None, :]
        parts = [edge_nll(pairs[i : i + 1], edges, labels[i : i + 1]) for i in range(len(image))]
        loss = loss + torch.stack(parts).mean()
    expected = torch.autograd.grad(loss, parameters)
    for one, other in zip(found, expected, strict=True):  # losses are taken in single precision
        if (one - other).norm() > 1e-4 * other.norm():
            raise SystemExit("the gradients of the piecewise step are not those of the literal sum: nothing is timed.")


def main() -> None:
    """Reads the command line, checks, times, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="tf_efficientnet_lite0")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split("x"))
    setup: Setup = (arguments.trunk, (height, width), arguments.batch, arguments.classes)

    check(setup)
    memory = {case: measuring.peak_beyond(stepping, case, setup) for case in CASES}
    steps = {case: stepping(case, setup) for case in CASES}
    times: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(arguments.runs):
        for case, step in steps.items():
            start = time.perf_counter()
            step()
            times[case].append(time.perf_counter() - start)
    lines = [f"{arguments.trunk}, {arguments.batch} images of {arguments.size}, {arguments.classes} classes, a step"]
    base, base_memory = next(iter(times)), next(iter(memory.values()))
    for case, found in times.items():
        seconds = statistics.median(found)
        lines.append(
            f"{case:32} {seconds:6.2f} s {seconds / statistics.median(times[base]):5.2f} x (a) "
            f"{memory[case] / 1e6:7.0f} MB {memory[case] / base_memory:5.2f} x (a)"
        )
    print("\n".join(lines))
    if arguments.output:
        report = {**measuring.surroundings(measuring.SEED), "setup": vars(arguments) | {"output": None}}
        report |= {"seconds": times, "peak_bytes": memory}
        measuring.write_report(arguments.output, report, "\n".join(lines))


if __name__ == "__main__":
    main()
