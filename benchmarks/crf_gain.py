"""What each step of training brings on one network: without a CRF, with untrained ones, learned, and jointly.

    python benchmarks/crf_gain.py --run RUN [--tuning 40] [--scales 1 1.25 1.5] [--output FILE]

RUN is the folder of a finished `piecewise train` with all three stages, which is judged on its validation images. To
the rows of its own table come a CRF with pydensecrf's usual parameters and one whose parameters were picked from a grid
by the mIoU of training images, and what averaging over scales and mirror images adds at the end.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.cli import build_parser
from piecewise_training.config import InferenceConfig
from piecewise_training.crf import DenseCRF, dense_crf
from piecewise_training.dataset import build_datasets, normalise, val_loader, void_is_border
from piecewise_training.inference import evaluate
from piecewise_training.metrics import SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel

DEFAULT = {"pos_xy_std": 3.0, "pos_w": 3.0, "bilateral_xy_std": 80.0, "bilateral_rgb_std": 13.0, "bilateral_w": 10.0}
GRID = {
    "pos_xy_std": (2.0,),
    "pos_w": (1.0, 3.0),
    "bilateral_xy_std": (30.0, 60.0, 80.0),
    "bilateral_rgb_std": (4.0, 8.0, 13.0),
    "bilateral_w": (1.5, 5.0),
}


def stage(run: Path, name: str) -> PiecewiseTrainedModel:
    """The model as it was after a stage."""
    model = PiecewiseTrainedModel.load(run)
    saved = torch.load(run / "checkpoints" / name / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    own = {key.removeprefix("model."): value for key, value in saved.items() if key.startswith("model.")}
    model.load_state_dict(own)
    return model.eval()


def with_crf(model: PiecewiseTrainedModel, setting: dict[str, float]) -> PiecewiseTrainedModel:
    """The same network under a Potts CRF of these parameters."""
    other = copy.deepcopy(model)
    other.crf = DenseCRF(model.num_classes, **setting, compatibility="potts").eval()
    return other


def tune(model: PiecewiseTrainedModel, images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The parameters of the grid with the best mIoU on images and their true labels."""
    settings = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    tallies = [SegmentationMetrics(model.num_classes) for _ in settings]
    with torch.inference_mode():
        for image, truth in images:
            pixels = torch.from_numpy(image).movedim(-1, 0)[None]
            logits, _ = model(normalise(pixels), apply_crf=False)
            for setting, tally in zip(settings, tallies, strict=True):
                tally.update(dense_crf(logits, pixels, **setting).argmax(1), torch.from_numpy(truth)[None].long())
    return max(zip(settings, tallies, strict=True), key=lambda pair: float(pair[1].compute().miou))[0]


def table(rows: dict[str, Any], classes: list[str]) -> str:
    """The rows as text, in per cent, and below them the IoU of each class."""
    bands = ("trimap_1", "trimap_2", "trimap_4", "trimap_8", "trimap_16")
    head = f"{'':24} {'mIoU':>6} {'accuracy':>8} {'boundary':>8} " + " ".join(f"{b:>9}" for b in bands) + f" {'ms':>6}"
    lines = [head]
    for name, row in rows.items():
        borders = row["borders"]
        shares = f"{100 * row['miou']:6.2f} {100 * row['accuracy']:8.2f} {100 * borders['boundary_iou']:8.2f} "
        near = " ".join(f"{100 * borders[band]:9.2f}" for band in bands)
        lines.append(f"{name:24} {shares}{near} {1e3 * row['seconds_an_image']:6.0f}")
    lines += ["", f"{'IoU':24} " + " ".join(f"{c[:10]:>10}" for c in classes)]
    lines += [f"{name:24} " + " ".join(f"{100 * iou:10.1f}" for iou in row["iou"]) for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, judges, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tuning", type=int, default=40, help="training images on which the grid is tried")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5])
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    configuration = build_parser()
    parsed = configuration.parse_args(["train", "--config", str(arguments.run / "config.yaml")])
    settings = configuration.instantiate(parsed).train
    train_set, val_set = build_datasets(settings.data, settings.seed)
    batches = val_loader(val_set, settings.data)
    first, second, third = (stage(arguments.run, name) for name in ("stage1", "stage2", "stage3"))
    spread = np.linspace(0, len(train_set) - 1, min(arguments.tuning, len(train_set))).astype(int)
    tuned = tune(first, [train_set.read(int(index)) for index in spread])
    rows: dict[str, Any] = {}

    def add(unary: str | None, crf: str, model: PiecewiseTrainedModel, how: InferenceConfig) -> None:
        outcome = evaluate(model, batches, how=how, void_is_border=void_is_border(settings.data))
        assert outcome.crf is not None
        for name, result in ((unary, outcome.unary), (crf, outcome.crf)):
            if name is not None:
                rows[name] = measuring.plain(result)
                print(table({name: rows[name]}, list(model.classes.names)), flush=True)

    plain, averaged = InferenceConfig(), InferenceConfig(scales=tuple(arguments.scales), flip=True)
    add("unary alone", "+ CRF, default", with_crf(first, DEFAULT), plain)
    add(None, "+ CRF, tuned on train", with_crf(first, tuned), plain)
    add(None, "+ CRF, learned", second, plain)
    add("joint, unary", "joint, + CRF", third, plain)
    add("joint, unary, averaged", "joint, + CRF, averaged", third, averaged)
    lines = table(rows, list(first.classes.names))
    print(lines)
    if arguments.output:
        report = {
            **measuring.surroundings(settings.seed),
            "run": (arguments.run / "config.yaml").read_text(),
            "classes": list(first.classes.names),
            "tuned": tuned,
            "scales": arguments.scales,
            "rows": rows,
        }
        measuring.write_report(arguments.output, report, lines)


if __name__ == "__main__":
    main()
