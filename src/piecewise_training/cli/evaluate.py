"""piecewise evaluate: metrics and pictures of a trained model on a validation set."""

from __future__ import annotations

from pathlib import Path

from piecewise_training.config import DataConfig


def run(
    model: str = "training_results",
    data: DataConfig | None = None,
    output: str = "evaluation_results",
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Evaluates a trained model, before and after its CRF, and writes metrics and pictures.

    Args:
        model: folder of a run, or a .safetensors file
        data: what to evaluate on; without it the validation set that the run was trained with
        output: folder for the metrics and pictures
        seed: of the drawn scenes and of the share that is held out; a run's own is taken with its data
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
    """
    if data is None:
        data, seed = _data_of_run(Path(model))

    from rich.console import Console

    from piecewise_training.cli.results import print_summary, write_results
    from piecewise_training.dataset import build_datasets, val_loader
    from piecewise_training.inference import evaluate
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.trainer import best_device

    network = PiecewiseTrainedModel.load(model)
    _, val_set = build_datasets(data, seed)
    if val_set.num_classes != network.num_classes:
        raise ValueError(f"the model has {network.num_classes} classes, the data {val_set.num_classes}.")
    outcome = evaluate(network, val_loader(val_set, data), best_device(device))
    results = {"unary alone": outcome.unary}
    if outcome.crf is not None:
        results["+ CRF"] = outcome.crf
    write_results(Path(output), network, val_set, results)
    print_summary(Console(), results, [], Path(output))


def _data_of_run(folder: Path) -> tuple[DataConfig, int]:
    from piecewise_training.cli.parsing import command_parser
    from piecewise_training.cli.train import run as train

    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml that names its data: give --data.name and the rest.")
    parser = command_parser(train)
    values = parser.instantiate(parser.parse_path(str(path)))
    return values.data, values.seed
