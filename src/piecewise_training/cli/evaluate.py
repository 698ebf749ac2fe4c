"""piecewise evaluate: metrics and pictures of a trained model on a validation set."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from piecewise_training.cli.parsing import plain
from piecewise_training.config import DataConfig, InferenceConfig

_DATA = DataConfig()
_INFERENCE = InferenceConfig()


def run(
    model: str = "training_results",
    data: DataConfig = _DATA,
    output: str = "evaluation_results",
    seed: int = 0,
    inference: InferenceConfig = _INFERENCE,
    device: str = "auto",
) -> None:
    """Evaluates a trained model, before and after its CRF, and writes metrics and pictures.

    Args:
        model: folder of a run, or a .safetensors file in one
        data: what to evaluate on; the run's own validation set, save for what is given here, unless data.name is;
            of another folder all images, unless data.val_images, data.val_list or data.val_fraction names some
        output: folder for the metrics and pictures
        seed: of the drawn scenes and of the share that is held out; the run's own with the run's data
        inference: how to look at an image
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
    """
    from rich.console import Console

    from piecewise_training.cli.results import print_summary, write_results
    from piecewise_training.dataset import build_datasets, val_loader, void_is_border, whole_folder
    from piecewise_training.inference import evaluate
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.trainer import best_device

    if (Path(output) / "config.yaml").is_file():
        raise ValueError(f"`output` {output} holds a run, whose own results would be lost. Give a folder of its own.")
    network = PiecewiseTrainedModel.load(model)
    held_out = data.val_images or data.val_list or data.val_fraction != _DATA.val_fraction
    foreign = data.name == "folder" and not held_out and not _is_own(data, model)
    val_set = whole_folder(data) if foreign else build_datasets(data, seed)[1]
    if val_set.num_classes != network.num_classes:
        raise ValueError(f"the model has {network.num_classes} classes, the data {val_set.num_classes}.")
    console = Console()
    console.print(f"{len(val_set)} images of {len(network.classes)} classes", highlight=False)
    batches = val_loader(val_set, data)
    outcome = evaluate(network, batches, best_device(device), inference, void_is_border(data))
    results = {"unary alone": outcome.unary}
    if outcome.context is not None:
        results["+ context"] = outcome.context
    if outcome.crf is not None:
        results["+ CRF"] = outcome.crf
    used = {"model": model, "data": dataclasses.asdict(data), "inference": dataclasses.asdict(inference), "seed": seed}
    write_results(Path(output), network, val_set, results, configuration=plain(used), how=inference)
    print_summary(console, results, [], Path(output))


def _is_own(data: DataConfig, model: str) -> bool:
    """Whether the images are those that the model's run was trained on, of which some were held out."""
    path = _config_of(model)
    trained = yaml.safe_load(path.read_text())["data"] if path.is_file() else {}
    given = plain(dataclasses.asdict(data))
    return all(given[key] == trained.get(key) for key in ("name", "root", "images", "labels"))


def _config_of(model: str) -> Path:
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    return folder / "config.yaml"


def with_data_of_run(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Puts the data and seed of the model's run before the arguments, unless they name other data."""
    if any(re.match(r"--(data\.name|data$|data=|config)", argument) for argument in arguments):
        return list(arguments)
    shown = [argument for argument in arguments if not argument.startswith("--print_config")]
    path = _config_of(parser.parse_args(shown).evaluate.model)
    if not path.is_file():
        parser.error(f"{path.parent} holds no config.yaml that names the data: give --data.name and the rest")
    run_config = yaml.safe_load(path.read_text())
    own = ["--data", json.dumps(run_config["data"]), "--seed", str(run_config["seed"])]
    command = arguments.index("evaluate") + 1
    return [*arguments[:command], *own, *arguments[command:]]
