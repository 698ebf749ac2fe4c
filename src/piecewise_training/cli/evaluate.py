"""piecewise evaluate: metrics and pictures of a trained model on a validation set."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from piecewise_training.cli.parsing import plain
from piecewise_training.cli.runs import CONFIG, folder_of, run_config, warn_of_trained_images
from piecewise_training.config import DataConfig, InferenceConfig

_DATA = DataConfig()
_HELD_OUT = {"val_images", "val_labels", "val_list", "val_fraction"}  # any of them says which images are held out
# What of the run's data an option puts out of force.
_REPLACED = {
    "root": ("images", "labels"),
    "images": ("root",),
    "labels": ("root",),
    "val_images": ("val_list",),
    "val_fraction": ("val_images", "val_labels", "val_list"),
}
_INFERENCE = InferenceConfig()


def run(
    model: str = "training_results",
    data: DataConfig = _DATA,
    output: str = "evaluation_results",
    seed: int = 0,
    inference: InferenceConfig = _INFERENCE,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Evaluates a trained model, before and after its CRF, and writes metrics and pictures.

    Args:
        model: folder of a run, or a .safetensors file in one
        data: what to evaluate on; the run's own validation set, save for what is given here, unless data.name is;
            of another folder all images, unless data.val_images, data.val_list or data.val_fraction names some; of
            the run's own folder what was held out, however it is named
        output: folder for the metrics and pictures
        seed: of the drawn scenes and of the share that is held out; the run's own with the run's data
        inference: how to look at an image
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
        overwrite: replace the evaluation of another model in the output folder
    """
    from rich.console import Console

    from piecewise_training.cli.results import print_summary, write_results
    from piecewise_training.dataset import Split, val_loader, validation_set, void_is_border, whole_folder
    from piecewise_training.inference import evaluate
    from piecewise_training.model import PiecewiseTrainedModel, model_file
    from piecewise_training.trainer import best_device

    if (Path(output) / CONFIG).is_file():
        raise ValueError(f"`output` {output} holds a run, whose own results would be lost. Give a folder of its own.")
    if Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"`output` {output} is a file. Give a folder.")
    own = str(model_file(Path(model)).resolve())
    if not overwrite:
        _refuse_another(Path(output), own)
    network = PiecewiseTrainedModel.load(model)
    if data.class_names is not None and tuple(data.class_names) != network.classes.names:
        raise ValueError(
            f"`data.class_names` are {', '.join(data.class_names)}, but those of the model "
            f"{', '.join(network.classes.names)}. If the labels are the same classes, give data.num_classes instead."
        )
    held_out = data.val_images or data.val_list or data.val_fraction is not None
    earlier = run_config(folder_of(model))
    foreign = data.name == "folder" and not held_out and not _is_own(data, earlier.get("data", {}))
    split = Split.load(folder_of(model)) if _is_split_alike(data, seed, earlier) else None
    val_set = whole_folder(data) if foreign else validation_set(data, seed, split)
    if split is None:
        warn_of_trained_images(folder_of(model), val_set.names)
    if val_set.num_classes != network.num_classes:
        raise ValueError(f"the model has {network.num_classes} classes, the data {val_set.num_classes}.")
    console = Console()
    console.print(f"{len(val_set)} images of {len(network.classes)} classes", highlight=False)
    batches = val_loader(val_set, data)
    Path(output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):  # what cannot be written there is said now, not with all figures lost
        pass
    outcome = evaluate(network, batches, best_device(device), inference, void_is_border(data))
    results = {"unary alone": outcome.unary}
    if outcome.context is not None:
        results["+ context"] = outcome.context
    if outcome.crf is not None:
        results["+ CRF"] = outcome.crf
    used = {"model": own, "data": dataclasses.asdict(data), "inference": dataclasses.asdict(inference), "seed": seed}
    write_results(Path(output), network, val_set, results, configuration=plain(used), how=inference)
    print_summary(console, results, [], Path(output))


def _refuse_another(folder: Path, model: str) -> None:
    """Raises a ValueError where a folder holds the evaluation of another model, which would be lost."""
    from piecewise_training.report import RECORD_FILE, RunRecord

    if not (folder / RECORD_FILE).is_file():
        return
    try:
        earlier = RunRecord.load(folder).configuration.get("model")
    except ValueError as error:
        raise ValueError(f"{error} To replace it, pass --overwrite.") from error
    if isinstance(earlier, str) and str(Path(earlier).resolve()) != model:
        raise ValueError(
            f"`output` {folder} holds the evaluation of {earlier}. Give another folder, or pass --overwrite."
        )


def _is_own(data: Any, trained: Mapping[str, Any]) -> bool:
    """Whether the images are those that the model's run was trained on, of which some were held out."""
    return bool(trained) and _images_of(vars(data)) == _images_of(trained)


def _is_split_alike(data: DataConfig, seed: int, run: Mapping[str, Any]) -> bool:
    """Whether what is held out is asked for as the model's run did, so that it is what the run held out."""
    if not run or not _is_own(data, run["data"]):
        return False
    earlier = DataConfig(**{key: run["data"].get(key) for key in (*_HELD_OUT, "image_list")})
    return _split_asked_for(data) == _split_asked_for(earlier) and seed == run["seed"]


def _split_asked_for(data: DataConfig) -> tuple[Any, ...]:
    from piecewise_training.dataset.build import VAL_FRACTION

    files = (data.val_images, data.val_labels, data.val_list, data.image_list)
    fraction = VAL_FRACTION if data.val_fraction is None else data.val_fraction
    return fraction, *(None if file is None else Path(file).resolve() for file in files)


def _images_of(data: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """The kind of a data set and where its images lie, whichever way that is written."""
    root, images = data.get("root"), data.get("images")
    if data.get("name") == "folder" and root and not images:
        images = Path(root) / "images"
    place = images or root
    return data.get("name"), Path(place).resolve() if place else None


def with_data_of_run(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Completes the arguments by the data and seed of the model's run.

    Unless they name other data they stand on the whole of the run's. Of the run's own images, however they are named,
    what it held out is what is held out here; of others nothing of that is of use.
    """
    parsed = _parsed(parser, arguments)
    given = {found[1] for argument in arguments if (found := re.match(r"--(?:data\.)?(\w+)", argument))}
    given |= _data_options_of(parsed.config)
    named = bool(given & {"name", "data"})
    model = parsed.model
    run = run_config(folder_of(model))
    if not run:
        if named:
            return list(arguments)
        parser.error(f"{folder_of(model)} holds no {CONFIG} that names the data: give --data.name and the rest")
    trained = run["data"]
    seed = ["--seed", str(run["seed"])]  # which a seed in the arguments replaces
    if named:
        data = _parsed(parser, arguments).data
        if not _is_own(data, trained):
            return list(arguments)
        own_split = given & _HELD_OUT or any(data[key] != getattr(_DATA, key) for key in _HELD_OUT)
        taken = [] if own_split else [key for key in sorted(_HELD_OUT) if trained.get(key) is not None]
        if "image_list" not in given and trained.get("image_list"):
            taken.append("image_list")
        return [*_before(arguments, seed), *(f"--data.{key}={trained[key]}" for key in taken)]
    replaced = {key for given_key, keys in _REPLACED.items() if given_key in given for key in keys}
    inherited = {key: value for key, value in trained.items() if key not in replaced - given}
    completed = _before(arguments, ["--data", json.dumps(inherited), *seed])
    if not _is_own(_parsed(parser, completed).data, trained):
        inherited = {key: value for key, value in inherited.items() if key not in {*_HELD_OUT, "image_list"}}
        completed = _before(arguments, ["--data", json.dumps(inherited), *seed])
    return completed


def _data_options_of(configurations: Sequence[Any] | None) -> set[str]:
    """What the files of --config, which the parser has read, say of the data; "data" for a file of their own."""
    contents = [yaml.safe_load(Path(str(path)).read_text(encoding="utf-8")) for path in configurations or () if path]
    said = [content["data"] for content in contents if "data" in content]
    return {name for data in said for name in (data if isinstance(data, dict) else ("data",))}


def _parsed(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    return parser.parse_args([part for part in arguments if not part.startswith("--print_config")]).evaluate


def _before(arguments: Sequence[str], more: Sequence[str]) -> list[str]:
    command = arguments.index("evaluate") + 1
    return [*arguments[:command], *more, *arguments[command:]]
