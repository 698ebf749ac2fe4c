"""What single changes of stage 2 bring: a CRF is learned for each on the scores of one network, which stays as it is.

    python benchmarks/crf_levers.py --run RUN --output FILE [--every 3] [--epochs 2] [--variants NAME ...]

RUN is a folder of `piecewise train` whose stage 1 is trained. The network's scores are taken once, of every so many
training images as they are and of all validation images. A variant is learned on them as stage 2 does it, an image or
its mirror image a step, and judged as it stands after its last epoch: nothing is chosen by what it is judged on. Two
variants are no CRFs to use but limits: learned on the validation images themselves, and on each half of them for the
other, in as many steps.
Rows are kept in the output file: a variant that is in it is not learned again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import measuring
import torch
from torch import Tensor

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import build_model
from piecewise_training.dataset import build_datasets
from piecewise_training.dataset.transforms import augmentation
from piecewise_training.losses import class_weights, unary_loss
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.counting import count_classes
from piecewise_training.trainer.schedule import build_optimizer, rate_schedule
from piecewise_training.trainer.stages import crf_stage

_CROSS_ENTROPY = ("--training.crf_loss", "cross_entropy")
_FIRST_TWO = "{xy_std: 2, weight: 1.0}, {xy_std: 30, rgb_std: 4, weight: 1.0}"
_KERNELS = f"{_FIRST_TWO}, {{xy_std: 60, rgb_std: 12, weight: 1.0}}"
_FOURTH = ("--model.crf_kernels", f"[{_KERNELS}, {{xy_std: 10, rgb_std: 30, weight: 1.0}}]")
_NARROW = "{xy_std: 6, rgb_std: 8, weight: 1.0}"


@dataclass(frozen=True)
class Variant:
    """A change of stage 2.

    Attributes:
        options: of `piecewise train`.
        iterations: mean-field updates when judged, if other than the configuration's.
        augmented: whether training images are scaled, cropped and coloured as for the network.
        together: images a step.
        judged: whether it is learned on the validation images.
        halves: whether it is learned on either half of the validation images, in their order, and judged on the other.
    """

    options: tuple[str, ...] = ()
    iterations: int | None = None
    augmented: bool = False
    together: int = 1
    judged: bool = False
    halves: bool = False


VARIANTS = {
    "as configured": Variant(),
    "judged after 3 updates": Variant(iterations=3),
    "5 updates in training": Variant(("--model.crf_train_iterations", "5")),
    "augmented images": Variant(augmented=True),
    "4 images a step": Variant(together=4),
    "bandwidths learned": Variant(("--model.crf_learn_bandwidths", "true")),
    "a fourth kernel, 10 px and 30 grey levels": Variant(_FOURTH),
    "a fourth kernel, 6 px and 8 grey levels": Variant(("--model.crf_kernels", f"[{_KERNELS}, {_NARROW}]")),
    "this kernel instead of the widest": Variant(("--model.crf_kernels", f"[{_FIRST_TWO}, {_NARROW}]")),
    "60 px and 12 grey levels for the widest": Variant(("--model.crf_kernels", f"[{_KERNELS}]")),
    "Lovász": Variant(("--training.crf_loss", "lovasz")),
    "cross-entropy": Variant(_CROSS_ENTROPY),
    "cross-entropy, median class weights": Variant((*_CROSS_ENTROPY, "--training.class_weights", "median")),
    "cross-entropy, a fourth kernel": Variant((*_CROSS_ENTROPY, *_FOURTH)),
    "cross-entropy, twice the rate": Variant((*_CROSS_ENTROPY, "--training.optim.crf_learning_rate", "0.04")),
    "a limit: learned on what it is judged on": Variant(judged=True),
    "a limit: on the other half of what it is judged on": Variant(halves=True),
}


class Scored(NamedTuple):
    """An image in grey levels, what the network makes of it, and the truth; with a batch of one."""

    scores: Tensor
    image: Tensor
    target: Tensor


def settings_of(run: Path, options: tuple[str, ...] = ()) -> Any:
    """The configuration of a run, with some options changed."""
    parser = build_parser()
    return parser.instantiate(parser.parse_args(["train", "--config", str(run / "config.yaml"), *options])).train


@torch.no_grad()
def score(model: PiecewiseTrainedModel, dataset: Any, every: int) -> list[Scored]:
    """The network's scores of every so many images, in half precision."""
    found = []
    for index in range(0, len(dataset), every):
        image, target = dataset[index]
        image = image[None]
        logits = model.enlarged(model.score_nodes(image).scores, image)
        grey = model.to_grey_levels(image).round().clamp(0, 255).byte()
        found.append(Scored(logits.half(), grey, target[None].long()))
    return found


def learn(model: PiecewiseTrainedModel, images: list[Scored], settings: Any, together: int, epochs: int) -> None:
    """Stage 2 on saved scores."""
    assert model.crf is not None
    torch.manual_seed(settings.seed)
    steps = epochs * (len(images) // together)
    optimizer = build_optimizer(model, crf_stage(epochs), settings.training.optim)
    schedule = rate_schedule(settings.training.optim, steps, steps // epochs)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    counts = count_classes((scored.target for scored in images), model.num_classes)
    loss_of = unary_loss(settings.training.crf_loss, class_weights(*counts, settings.training.class_weights))
    model.crf.train()
    for _ in range(epochs):
        order = torch.randperm(len(images)).tolist()
        for first in range(0, len(images) - together + 1, together):
            parts = []
            for place in order[first : first + together]:
                mirrored = float(torch.rand(())) < settings.data.flip
                parts.append([part.flip(-1) if mirrored else part for part in images[place]])
            scores, image, target = (torch.cat(part) for part in zip(*parts, strict=True))
            loss = loss_of(model.crf(scores.float(), image), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    model.crf.eval()


@torch.no_grad()
def judge(parts: list[tuple[torch.nn.Module | None, list[Scored]]], classes: int) -> dict[str, Any]:
    """The measures of a CRF, or of the scores as they are, each part of the images by its own."""
    tally = measuring.Tally(classes)
    for crf, images in parts:
        for scores, image, target in images:
            start = time.perf_counter()
            refined = scores.float() if crf is None else crf(scores.float(), image)
            tally.add(refined[0].argmax(0).numpy(), target[0].numpy(), time.perf_counter() - start)
    return tally.found(sum(len(images) for _, images in parts))


def table(rows: dict[str, Any]) -> str:
    """The rows as text, in per cent."""
    lines = [f"{'stage 2':42} {'mIoU':>6} {'trimap 4':>8} {'boundary':>8} {'min':>5}  IoU of each class"]
    for name, row in rows.items():
        borders = row["borders"]
        shares = f"{100 * row['miou']:6.2f} {100 * borders['trimap_4']:8.2f} {100 * borders['boundary_iou']:8.2f}"
        classes = " ".join(f"{100 * iou:3.0f}" for iou in row["iou"])
        lines.append(f"{name:42} {shares} {row['training_seconds'] / 60:5.1f}  {classes}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, learns what is missing, and writes after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of piecewise train")
    parser.add_argument("--every", type=int, default=3, help="learns on every so many training images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS], default=[*VARIANTS], metavar="NAME")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()

    settings = settings_of(arguments.run)
    train_set, val_set = build_datasets(settings.data, settings.seed)
    assert train_set.classes is not None
    model = build_model(settings.model, train_set.classes, settings.seed).eval()
    measuring.take_weights(model, arguments.run / "checkpoints/stage1/best.ckpt")
    plain = copy.copy(train_set)
    plain.transform = None
    train_set.transform = augmentation(
        train_set.read(0)[1].shape[:2], settings.data.scale, settings.data.flip, settings.data.jitter
    )
    sets = {False: score(model, plain, arguments.every)}
    held_out = score(model, val_set, 1)
    if any(VARIANTS[name].augmented for name in arguments.variants):
        sets[True] = score(model, train_set, arguments.every)

    learned_on = {
        "run": (arguments.run / "config.yaml").read_text(),
        "images": len(sets[False]),
        "epochs": arguments.epochs,
        "classes": list(train_set.classes.names),
    }
    rows = measuring.kept(arguments.output, learned_on)

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row | measuring.when()
        report = {**measuring.surroundings(settings.seed), **learned_on, "rows": rows}
        measuring.write_report(arguments.output, report, table(rows))
        print(table({name: row}), flush=True)

    if "the network alone" not in rows:
        keep("the network alone", {"training_seconds": 0.0, **judge([(None, held_out)], len(train_set.classes))})
    for name in arguments.variants:
        if name in rows:
            continue
        variant = VARIANTS[name]
        own = settings_of(arguments.run, variant.options)
        half = len(held_out) // 2
        halves = [(held_out[:half], held_out[half:]), (held_out[half:], held_out[:half])]
        whole = held_out if variant.judged else sets[variant.augmented]
        parts: list[tuple[torch.nn.Module | None, list[Scored]]] = []
        start = time.perf_counter()
        for images, others in halves if variant.halves else [(whole, held_out)]:
            model.crf = build_model(own.model, train_set.classes, own.seed).crf
            assert model.crf is not None
            epochs = max(1, round(arguments.epochs * len(sets[False]) / len(images)))  # as many steps for each
            learn(model, images, own, variant.together, epochs)
            if variant.iterations is not None:
                model.crf.num_iterations = variant.iterations
            parts.append((model.crf, others))
        keep(name, {"training_seconds": time.perf_counter() - start, **judge(parts, len(train_set.classes))})


if __name__ == "__main__":
    main()
