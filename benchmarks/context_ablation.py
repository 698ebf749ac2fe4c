"""What each part of the contextual CRF brings: one table from one run, on CamVid or any other data set.

    python benchmarks/context_ablation.py --config benchmarks/context_ablation.yaml [--output FILE]
    python benchmarks/context_ablation.py --run RUN [--output FILE]

The steps are the paper's: a plain network; with sliding pyramid pooling; on several scales, too; with a dense CRF; and
the pairwise networks of either relation and of both before the dense CRF. All have the same seed and number of epochs,
and those from the dense CRF on have the very same network, trained once: what is added is trained with it fixed. Every
row keeps the weights of its last epoch, so that nothing is chosen by what it is judged on.

With a folder of `piecewise train`, the network is that of its first stage, whose epoch was chosen by its validation
mIoU, and no other is trained.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import build_model
from piecewise_training.config import ContextConfig, FeatMapConfig, ModelConfig
from piecewise_training.dataset import build_datasets, crf_loader, train_loader, val_loader
from piecewise_training.inference import evaluate
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer

NETWORKS = {
    "base": FeatMapConfig(scales=(1.0,), pooling=()),
    "+ pyramid pooling": FeatMapConfig(scales=(1.0,)),
    "+ multi-scale": FeatMapConfig(),
}
CONTEXTS: dict[str, ContextConfig | None] = {
    "+ dense CRF": None,
    "+ surrounding": ContextConfig(relations=ContextConfig().relations[:1]),
    "+ above/below": ContextConfig(relations=ContextConfig().relations[1:]),
    "all": ContextConfig(),
}


class Ablation:
    """Trains and judges one variant after the other.

    Args:
        settings: a configuration of `piecewise train`; its context is the variants' own, and so is its featmap
            unless there is a run.
        run: the folder of the run whose network is taken.
    """

    def __init__(self, settings: Any, run: Path | None = None) -> None:
        self.settings, self.run = settings, run
        train_set, val_set = build_datasets(settings.data, settings.seed)
        assert train_set.classes is not None
        self.classes, self.train_set = train_set.classes, train_set
        self.val: DataLoader[Any] = val_loader(val_set, settings.data)
        self.rows: list[dict[str, Any]] = []

    def model(self, featmap: FeatMapConfig, context: ContextConfig | None) -> PiecewiseTrainedModel:
        """A variant of the configuration's model."""
        config: ModelConfig = dataclasses.replace(self.settings.model, featmap=featmap, context=context)
        if self.run is not None:  # whose weights are all there
            config = dataclasses.replace(config, pretrained=False, start_from=None)
        return build_model(config, self.classes, self.settings.seed)

    def trainer(self, model: PiecewiseTrainedModel) -> PiecewiseTrainer:
        """The configuration's trainer of a variant."""
        options = {"config": self.settings.training, "seed": self.settings.seed, "progress": False}
        return PiecewiseTrainer(model, "cpu", model.num_classes, **options)

    def batches(self, loader: Callable[..., DataLoader[Any]]) -> DataLoader[Any]:
        """Training batches that begin with the same ones for every variant."""
        return loader(self.train_set, self.settings.data, self.settings.seed)

    def judge(self, name: str, model: PiecewiseTrainedModel, seconds: float, kinds: tuple[str, ...]) -> None:
        """Adds a row: the kinds of predictions of a variant."""
        outcome = evaluate(model, self.val)
        results = {kind: getattr(outcome, kind) for kind in kinds if getattr(outcome, kind) is not None}
        row = {
            "name": name,
            "training_seconds": seconds,
            "results": {k: measuring.plain(r) for k, r in results.items()},
        }
        if model.context is not None:
            row["relation_factors"] = model.context.log_factors.detach().exp().tolist()
        self.rows.append(row)
        print(table(self.rows[-1:]), flush=True)

    def network(self) -> PiecewiseTrainedModel:
        """That of the run, or the last of those that are trained."""
        if self.run is not None:
            model = self.model(self.settings.model.featmap, None)
            measuring.take_weights(model, self.run / "checkpoints/stage1/best.ckpt")
            self.judge("the network alone", model, 0.0, ("unary",))
            return model
        for name, featmap in NETWORKS.items():
            start = time.perf_counter()
            model = self.model(featmap, None)
            self.trainer(model).train_unary(self.batches(train_loader), self.settings.training.stage1_epochs)
            self.judge(name, model, time.perf_counter() - start, ("unary",))
        return model

    def measure(self) -> None:
        """All variants."""
        training = self.settings.training
        network = self.network()
        featmap = FeatMapConfig() if self.run is None else self.settings.model.featmap
        for name, context in CONTEXTS.items():
            start = time.perf_counter()
            model = self.model(featmap, context)
            model.unary = copy.deepcopy(network.unary)
            trainer = self.trainer(model)
            if context is not None:
                trainer.train_context(self.batches(train_loader), training.context_epochs)
            trainer.train_crf(self.batches(crf_loader), training.stage2_epochs)
            self.judge(name, model, time.perf_counter() - start, ("context", "crf"))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, in per cent: what the last part of a variant predicts, and what it has without dense CRF."""
    lines = []
    for row in rows:
        for kind, r in row["results"].items():
            name = row["name"] + (", no dense CRF" if kind == "context" else "")
            lines.append(
                f"{name:30} {100 * r['miou']:6.2f} {100 * r['accuracy']:8.2f} {100 * r['borders']['trimap_4']:8.2f} "
                f"{1e3 * r['seconds_an_image']:8.0f} {row['training_seconds'] / 60:8.1f}"
            )
    return "\n".join(lines)


HEAD = f"{'model':30} {'mIoU':>6} {'accuracy':>8} {'trimap 4':>8} {'ms/image':>8} {'min':>8}"


def main() -> None:
    """Reads the command line, trains, judges, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--config", type=Path, help="as of piecewise train")
    origin.add_argument("--run", type=Path, help="folder of piecewise train whose network is taken")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    configuration = build_parser()
    parsed = configuration.parse_args(["train", "--config", str(arguments.config or arguments.run / "config.yaml")])
    settings = configuration.instantiate(parsed).train
    ablation = Ablation(settings, arguments.run)
    print(HEAD, flush=True)
    ablation.measure()
    if arguments.output:
        used = {name: dataclasses.asdict(getattr(settings, name)) for name in ("data", "model", "training")}
        used["model"]["context"] = dataclasses.asdict(ContextConfig())  # of which the variants take the relations
        report = {
            **measuring.surroundings(),
            "settings": used | {"seed": settings.seed},
            "classes": list(ablation.classes.names),
            "rows": ablation.rows,
        }
        measuring.write_report(arguments.output, report, f"{HEAD}\n{table(ablation.rows)}")


if __name__ == "__main__":
    main()
