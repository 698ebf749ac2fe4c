"""When a dense CRF pays: its gain over the network's output stride and over how long the network was trained.

    python benchmarks/weak_nets.py --config benchmarks/weak_nets.yaml [--strides 8 16 32] [--epochs 2 6 18]

Every network of the configuration is trained for its own number of epochs with a schedule of that length, and judged
alone, under the CRF with pydensecrf's usual parameters, and under one that is learned on the fixed network. Rows are
kept in the output file: a network that is in it is not trained again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import build_model
from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import build_datasets, crf_loader, train_loader, val_loader
from piecewise_training.inference import evaluate
from piecewise_training.trainer import PiecewiseTrainer


def judge(settings: Any, stride: int, epochs: int) -> dict[str, Any]:
    """Trains one network and its CRF, and judges it alone, under the usual CRF and under its own."""
    train_set, val_set = build_datasets(settings.data, settings.seed)
    assert train_set.classes is not None
    config = dataclasses.replace(settings.model, output_stride=stride)
    model = build_model(config, train_set.classes, settings.seed)
    options = {"config": settings.training, "seed": settings.seed, "progress": False}
    trainer = PiecewiseTrainer(model, "cpu", model.num_classes, **options)
    batches, held_out = train_loader(train_set, settings.data, settings.seed), val_loader(val_set, settings.data)
    trainer.train_unary(batches, epochs)
    usual = copy.deepcopy(model)
    usual.crf = DenseCRF(model.num_classes, compatibility="potts")
    trainer.train_crf(crf_loader(train_set, settings.data, settings.seed), settings.training.stage2_epochs)
    learned, default = evaluate(model, held_out), evaluate(usual, held_out)
    assert learned.crf is not None
    assert default.crf is not None
    return {
        "name": f"stride {stride}, {epochs} epochs",
        "output_stride": stride,
        "epochs": epochs,
        "unary": measuring.plain(learned.unary),
        "default": measuring.plain(default.crf),
        "learned": measuring.plain(learned.crf),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, in per cent: mIoU, and the trimap's within 4 pixels."""
    kinds = ("unary", "default", "learned")
    lines = [f"{'stride':>6} {'epochs':>6} " + " ".join(f"{kind:>8}" for kind in kinds) + "   trimap 4 of the same"]
    for row in rows:
        shares = " ".join(f"{100 * row[kind]['miou']:8.2f}" for kind in kinds)
        borders = " ".join(f"{100 * row[kind]['borders']['trimap_4']:8.2f}" for kind in kinds)
        lines.append(f"{row['output_stride']:6} {row['epochs']:6} {shares}   {borders}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, trains, judges, and writes after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="as of piecewise train")
    parser.add_argument("--strides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 6, 18])
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    configuration = build_parser()
    parsed = configuration.parse_args(["train", "--config", str(arguments.config)])
    settings = configuration.instantiate(parsed).train
    base = {"config": arguments.config.read_text()}
    rows: list[dict[str, Any]] = [*measuring.kept(arguments.output, base)]
    done = {(row["output_stride"], row["epochs"]) for row in rows}
    for epochs in arguments.epochs:
        for stride in arguments.strides:
            if (stride, epochs) in done:
                continue
            row = judge(settings, stride, epochs) | measuring.when()
            print(table([row]), flush=True)
            rows = sorted([*rows, row], key=lambda row: (row["epochs"], row["output_stride"]))
            if arguments.output:
                report = {**measuring.surroundings(settings.seed), **base, "rows": rows}
                measuring.write_report(arguments.output, report, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
