"""Piecewise, independent and joint training side by side, at equal epochs and at equal time, over several seeds.

    python benchmarks/why_piecewise.py --config src/piecewise_training/cli/synthetic.yaml [--seeds 5] [--output FILE]

The configuration is that of a piecewise run; this one is that of `piecewise train` without arguments. With as many
epochs as that has in all, the network and the CRF are also trained one after the other and never together, and
together from the first step. An epoch with a CRF takes longer than one without; so both are trained once more for as
many epochs as fit the time that the piecewise run of that seed took. Every run starts from the same weights and ends
with those of its last stage's best epoch. A run has diverged when its loss is not finite, its mIoU is below that of the
most frequent class everywhere, or the trainer gave it up, which leaves no result and no time for others to be given.
Seeds of which the output file has all rows are not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import build_model
from piecewise_training.config import Strategy, TrainConfig
from piecewise_training.dataset import build_datasets, crf_loader, joint_loader, train_loader, val_loader
from piecewise_training.inference import evaluate
from piecewise_training.trainer import PiecewiseTrainer, plan

WHOLE, JOINT, LAST = "piecewise", "joint, equal epochs", "joint, equal time"  # a seed ends with one of the last two


class Clocked:
    """Validation batches that write down when each pass over them began: what came before was training."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches = batches
        self.dataset = batches.dataset  # the trainer asks what it judged on before
        self.begun: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        self.begun.append(time.perf_counter())
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Comparison:
    """Runs one strategy after the other from the same start.

    Args:
        settings: a configuration of `piecewise train`, of a piecewise run.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.rows: list[dict[str, Any]] = []

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """All strategies with one seed, each as it ends."""
        training: TrainConfig = self.settings.training
        first, second, third = training.stage1_epochs, training.stage2_epochs, training.stage3_epochs
        yield (whole := self.one("piecewise", (first, second, third), seed, WHOLE))
        yield (apart := self.one("independent", (first + third, second, 0), seed, "independent, equal epochs"))
        if whole["crf"] and apart["crf"]:
            alone = apart["stage_seconds"][0] / (first + third)
            left = whole["seconds"] - apart["stage_seconds"][1]
            yield self.one("independent", (max(1, round(left / alone)), second, 0), seed, "independent, equal time")
        yield (joint := self.one("joint", (first + second + third, 0, 0), seed, JOINT))
        if whole["crf"] and joint["crf"]:
            together = joint["seconds"] / (first + second + third)
            yield self.one("joint", (max(1, round(whole["seconds"] / together)), 0, 0), seed, LAST)

    def one(self, strategy: Strategy, epochs: tuple[int, int, int], seed: int, name: str) -> dict[str, Any]:
        """Trains and judges; the time of validation is not counted."""
        first, second, third = epochs
        config = dataclasses.replace(
            self.settings.training,
            strategy=strategy,
            stage1_epochs=first,
            stage2_epochs=second,
            stage3_epochs=third,
        )
        train_set, val_set = build_datasets(self.settings.data, seed)
        assert train_set.classes is not None
        model = build_model(self.settings.model, train_set.classes, seed)
        data = self.settings.data
        loaders = {"augmented": train_loader, "whole": crf_loader, "cropped": joint_loader}
        batches = {images: loader(train_set, data, seed) for images, loader in loaders.items()}
        held_out = val_loader(val_set, data)
        trainer = PiecewiseTrainer(model, "cpu", model.num_classes, config=config, seed=seed, progress=False)
        curve: list[tuple[float, float]] = []
        stage_seconds: list[float] = []
        spent, finite = 0.0, True
        row: dict[str, Any] = {"name": name, "seed": seed, "epochs": epochs}
        for stage in plan(config):
            clocked: Any = Clocked(held_out)
            begin = time.perf_counter()
            try:
                history = trainer.run_stage(stage, batches[stage.images], clocked)
            except FloatingPointError as error:
                print(f"{name:28} seed {seed}: {error}", flush=True)
                spent += time.perf_counter() - begin
                row |= {"seconds": spent, "stage_seconds": stage_seconds, "unary": None, "crf": None, "curve": curve}
                self.rows.append(row | {"diverged": True, **measuring.when()})
                return self.rows[-1]
            whole = time.perf_counter() - begin
            judging = (whole - (clocked.begun[-1] - begin)) * len(clocked.begun)  # all passes take as long as the last
            stage_seconds.append(whole - judging)
            share = (whole - judging) / stage.epochs
            curve += [(spent + (epoch + 1) * share, miou) for epoch, miou in enumerate(history["val_miou"])]
            spent += stage_seconds[-1]
            finite &= all(math.isfinite(loss) for loss in history["train_loss"])
        outcome = evaluate(model, held_out)
        assert outcome.crf is not None
        support = outcome.crf.scores.support.double()
        trivial = float(support.max() / support.sum()) / int((support > 0).sum())
        row |= {
            "seconds": spent,
            "stage_seconds": stage_seconds,
            "unary": measuring.plain(outcome.unary),
            "crf": measuring.plain(outcome.crf),
            "curve": curve,
            "diverged": not finite or outcome.crf.scores.miou <= trivial,
            **measuring.when(),
        }
        self.rows.append(row)
        print(f"{name:28} seed {seed}: {100 * row['crf']['miou']:.2f} in {spent:.0f} s", flush=True)
        return row


def finished(rows: list[dict[str, Any]]) -> set[int]:
    """The seeds of which there are all rows."""
    given_up = {row["seed"] for row in rows if row["name"] in (WHOLE, JOINT) and not row["crf"]}
    return {row["seed"] for row in rows if row["name"] == LAST or (row["name"] == JOINT and row["seed"] in given_up)}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and spread over the seeds, in per cent, of the runs that came to an end."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"{'':28} {'mIoU':>6} {'from':>6} {'to':>6} {'unary':>6} {'trimap 4':>8} {'s':>6} {'diverged':>8}"]
    for name in names:
        own = [row for row in rows if row["name"] == name]
        diverged = f"{sum(row['diverged'] for row in own):5d}/{len(own)}"
        ended = [row for row in own if row["crf"]]
        if not ended:
            lines.append(f"{name:28} {diverged:>51}")
            continue
        final = [100 * row["crf"]["miou"] for row in ended]
        unary = fmean(100 * row["unary"]["miou"] for row in ended)
        trimap = fmean(100 * row["crf"]["borders"]["trimap_4"] for row in ended)
        lines.append(
            f"{name:28} {fmean(final):6.2f} {min(final):6.2f} {max(final):6.2f} {unary:6.2f} {trimap:8.2f} "
            f"{fmean(row['seconds'] for row in ended):6.0f} {diverged}"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, trains, judges, and writes after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="as of piecewise train")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    configuration = build_parser()
    parsed = configuration.parse_args(["train", "--config", str(arguments.config)])
    comparison = Comparison(configuration.instantiate(parsed).train)
    base = {"config": arguments.config.read_text()}
    before = measuring.kept(arguments.output, base)
    done = finished(before)
    comparison.rows = [row for row in before if row["seed"] in done]
    seeds = [seed for seed in range(arguments.seeds) if seed not in done]
    for _ in (row for seed in seeds for row in comparison.run(seed)):
        if arguments.output:
            report = {**measuring.surroundings(), **base, "rows": comparison.rows}
            measuring.write_report(arguments.output, report, table(comparison.rows))
    print(table(comparison.rows))


if __name__ == "__main__":
    main()
