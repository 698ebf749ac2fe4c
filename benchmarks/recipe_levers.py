"""What single changes of a recipe bring to the network alone: one row for each, all with the same seed and epochs.

    python benchmarks/recipe_levers.py --config benchmarks/recipe_levers.yaml --output FILE [--variants NAME ...]

A variant changes options of the configuration of `piecewise train`. Rows are kept in the output file: a variant that is
there already is not trained again. Judged are the weights of the last epoch, so that nothing is chosen by what it is
judged on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import build_model
from piecewise_training.dataset import build_datasets, train_loader, val_loader
from piecewise_training.inference import evaluate
from piecewise_training.trainer import PiecewiseTrainer

_CROSS_ENTROPY = ["--training.loss", "cross_entropy"]
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "twice the epochs": ["--training.stage1_epochs", "8"],
    "cross-entropy": _CROSS_ENTROPY,
    "cross-entropy, median class weights": [*_CROSS_ENTROPY, "--training.class_weights", "median"],
    "focal, which mines hard pixels": ["--training.loss", "focal"],
    "mean of the weights": ["--training.ema", "0.98"],
    "whole images, two a batch": ["--data.crop", "[360,480]", "--data.batch_size", "2"],
    "batches of 8": ["--data.batch_size", "8"],
    "scales 0.75 to 2.25": ["--data.scale", "[0.75,2.25]"],
    "twice the rate": ["--training.optim.learning_rate", "0.002"],
    "half the rate": ["--training.optim.learning_rate", "0.0005"],
    "output stride 8": ["--model.output_stride", "8"],
}


def train_and_judge(config: Path, options: list[str]) -> dict[str, Any]:
    """Trains the network of a configuration with some options changed, and judges it on the validation images."""
    parser = build_parser()
    settings = parser.instantiate(parser.parse_args(["train", "--config", str(config), *options])).train
    train_set, val_set = build_datasets(settings.data, settings.seed)
    assert train_set.classes is not None
    model = build_model(settings.model, train_set.classes, settings.seed)
    trainer = PiecewiseTrainer(
        model, "cpu", model.num_classes, config=settings.training, seed=settings.seed, progress=False
    )
    loader = train_loader(train_set, settings.data, settings.seed)
    trainer.train_unary(loader, settings.training.stage1_epochs)
    model.crf = None  # it is not looked at
    result = evaluate(model, val_loader(val_set, settings.data)).unary
    return {
        "options": options,
        "epochs": settings.training.stage1_epochs,
        "steps": settings.training.stage1_epochs * len(loader),
        "seed": settings.seed,
        "classes": list(train_set.classes.names),
        **measuring.plain(result),
    }


def table(rows: dict[str, Any]) -> str:
    """The rows as text, in per cent."""
    lines = [f"{'recipe':42} {'steps':>5} {'mIoU':>6} {'accuracy':>8} {'trimap 4':>8}  IoU of each class"]
    for name, row in rows.items():
        shares = f"{100 * row['miou']:6.2f} {100 * row['accuracy']:8.2f} {100 * row['borders']['trimap_4']:8.2f}"
        classes = " ".join(f"{100 * iou:3.0f}" for iou in row["iou"])
        lines.append(f"{name:42} {row['steps']:5} {shares}  {classes}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, trains what is missing, and writes after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="as of piecewise train")
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS], default=[*VARIANTS], metavar="NAME")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    base = {"config": arguments.config.read_text()}
    rows = measuring.kept(arguments.output, base)
    for name in arguments.variants:
        if name not in rows:
            rows[name] = train_and_judge(arguments.config, VARIANTS[name]) | measuring.when()
            report = {**measuring.surroundings(), **base, "rows": rows}
            measuring.write_report(arguments.output, report, table(rows))
            print(table({name: rows[name]}), flush=True)


if __name__ == "__main__":
    main()
