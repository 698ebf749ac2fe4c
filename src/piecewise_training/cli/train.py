"""piecewise train: from images and labels to a trained model, its metrics and its pictures."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from jsonargparse import ArgumentParser

from piecewise_training.cli.parsing import plain
from piecewise_training.cli.runs import CONFIG, PATHS, folder_of, run_config, warn_of_trained_images, with_whole_paths
from piecewise_training.config import DataConfig, ModelConfig, TrainConfig
from piecewise_training.writing import atomic_write

logger = logging.getLogger(__name__)

_RECIPE = Path(__file__).with_name("synthetic.yaml")
_LOGS = ("checkpoints", "logs")
_FOLDERS = (*_LOGS, "report_pictures")
_DATA, _MODEL, _TRAINING = DataConfig(), ModelConfig(), TrainConfig()


def run(
    data: DataConfig = _DATA,
    model: ModelConfig = _MODEL,
    training: TrainConfig = _TRAINING,
    output: str = "training_results",
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Trains a CNN and a CRF in stages, and writes the model, its metrics and pictures.

    Without a data set it draws its own scenes and trains on them for a few minutes; the defaults are then those of a
    small network, which --print_config shows. With --resume the configuration is the one in the output folder.

    Args:
        data: what is trained on
        model: the CNN and the CRF
        training: the stages
        output: folder for everything that the run leaves
        seed: of everything random
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
        devices: how many GPUs (on the CPU, processes) train together, each with batches of data.batch_size
        resume: go on with the run that was interrupted in the output folder
        overwrite: replace the run in the output folder
    """
    folder = Path(output)
    resolved = with_whole_paths(
        plain(
            {
                "data": dataclasses.asdict(data),
                "model": dataclasses.asdict(model),
                "training": dataclasses.asdict(training),
                "output": output,
                "seed": seed,
                "device": device,
            }
        )
    )
    from piecewise_training import processes

    if devices < 1:
        raise ValueError(f"`devices` must be at least 1; got {devices}.")
    group = processes.current()
    if group.first:
        _check_output(folder, resolved, resume=resume, overwrite=overwrite)
    else:  # warnings are the first one's
        logging.getLogger("piecewise_training").setLevel(logging.ERROR)
    with _resumable(folder, resolved, resume):
        if devices > 1 and group.size == 1:
            _train_together(resolved, devices, resume=resume, overwrite=overwrite)
            return
        with _alone(folder) if group.first else nullcontext():
            _run(folder, resolved, data, model, training, resume=resume)


def _run(
    folder: Path,
    resolved: dict[str, Any],
    data: DataConfig,
    model: ModelConfig,
    training: TrainConfig,
    *,
    resume: bool,
) -> None:
    """Trains, judges and writes."""
    from rich.console import Console

    from piecewise_training import processes
    from piecewise_training.cli import results as tables
    from piecewise_training.dataset import (
        SPLIT_FILE,
        Split,
        build_datasets,
        crf_loader,
        draws_split,
        joint_loader,
        train_loader,
        val_loader,
        void_is_border,
    )
    from piecewise_training.inference import evaluate
    from piecewise_training.trainer import PiecewiseTrainer, plan

    seed: int = resolved["seed"]
    group = processes.current()
    console = Console(quiet=not group.first)
    train_set, val_set = build_datasets(data, seed, Split.load(folder) if resume else None)
    assert train_set.classes is not None
    console.print(
        f"{len(train_set)} training and {len(val_set)} validation images of {len(train_set.classes)} classes",
        highlight=False,
    )
    if model.start_from and group.first:
        warn_of_trained_images(folder_of(model.start_from), val_set.names)
    network = tables.build_model(model, train_set.classes, seed)
    trainer = PiecewiseTrainer(
        network,
        resolved["device"],
        network.num_classes,
        config=training,
        output_dir=folder,
        seed=seed,
        progress=group.first,
    )
    group.join(trainer.device)
    loaders = {"augmented": train_loader, "whole": crf_loader, "cropped": joint_loader}
    batches = {images: loader(train_set, data, seed) for images, loader in loaders.items()}
    val_batches = val_loader(val_set, data)
    stages = plan(training, network.context is not None)
    if not resume and group.first:
        _start_output(folder, resolved, (*tables.RUN_FILES, SPLIT_FILE))
        if draws_split(data):
            Split(tuple(train_set.names), tuple(val_set.names)).save(folder)
    results: dict[str, Any] = {}
    titles: dict[str, str] = {}
    start_values = tables.crf_values(network)
    if model.start_from and stages[0].name != "stage1":
        if group.first:
            outcome = evaluate(network, val_batches, trainer.device, void_is_border=void_is_border(data))
            results["unary alone"] = outcome.unary
        group.wait()
    for stage in stages:
        plural = "s" if stage.epochs > 1 else ""
        console.print(f"{stage.name}: {stage.title}, {stage.epochs} epoch{plural}", style="bold", highlight=False)
        history = trainer.run_stage(stage, batches[stage.images], val_batches, resume=resume)
        minutes = sum(history["seconds"]) / 60
        assert trainer.best_miou is not None  # there is a validation set
        console.print(f"validation mIoU {100 * trainer.best_miou:.1f} % after {minutes:.1f} min", highlight=False)
        titles[stage.name] = stage.title
        if group.first:
            last = stage is stages[-1]
            results |= tables.evaluate_stage(trainer, stage.name, val_batches, void_is_border(data), last)
        group.wait()
    if not group.first:
        return
    tables.save_model(network, folder)
    moved = tables.parameters(network, start_values)
    notes = tables.notes(moved, trainer.history, trainer.precision, tables.surroundings(network), results)
    tables.write_results(
        folder,
        network,
        val_set,
        results,
        configuration=resolved,
        history=trainer.history,
        titles=titles,
        moved=moved,
        remarks=notes,
    )
    tables.print_summary(console, results, notes, folder)


def with_defaults(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Puts before the arguments of a train command what they build on: the run to resume, or the recipe for scenes."""
    shown = [argument for argument in arguments if not argument.startswith("--print_config")]
    given = parser.parse_args(shown).train
    if given.resume and run_config(Path(given.output)):
        base = Path(given.output) / CONFIG
    elif given.data.name == "synthetic":
        base = _RECIPE
    else:
        return list(arguments)
    command = arguments.index("train") + 1
    return [*arguments[:command], "--config", str(base), *arguments[command:]]


def _train_together(resolved: dict[str, Any], devices: int, *, resume: bool, overwrite: bool) -> None:
    """The same command in as many processes."""
    from piecewise_training import processes

    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / CONFIG
        config.write_text(yaml.safe_dump(resolved))
        switches = [f"--{name}" for name, on in (("resume", resume), ("overwrite", overwrite)) if on]
        traceback = ["--traceback"] if "--traceback" in sys.argv else []
        processes.launch([*traceback, "train", "--config", str(config), *switches], devices)


@contextmanager
def _resumable(folder: Path, resolved: dict[str, Any], resume: bool) -> Iterator[None]:
    """Says of an interruption how to go on, if this run had begun by then."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if resume or run_config(folder) == yaml.safe_load(yaml.safe_dump(resolved)):
            end.args = (*end.args, "--resume goes on with it")
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder as long as this one lasts, however it ends.

    Raises:
        ValueError: another run is writing there.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another run is training into `output` {folder} just now. Give another folder.") from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that no other run writes there", folder, error)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: nobody else can have taken it
        lock.release()
        if new:
            with suppress(OSError):  # not empty: something was done
                folder.rmdir()


def _check_output(folder: Path, resolved: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuses to lose another run or somebody's files, or to resume a run with another configuration."""
    run = run_config(folder)
    if resume and overwrite:
        raise ValueError("`resume` goes on with a run and `overwrite` replaces it: give one of them.")
    if resume:
        if not run:
            raise FileNotFoundError(f"there is no run to resume in {folder}: it holds no {CONFIG} of one.")
        earlier, now = map(_decisive, (with_whole_paths(run), resolved))
        different = sorted(key for key in earlier.keys() | now.keys() if earlier.get(key) != now.get(key))
        moved = {f"{part}.{name}" for part, names in PATHS.items() for name in names}
        for key in moved.intersection(different):
            logger.warning("%s is %s now; the run began with %s", key, now.get(key), earlier.get(key))
        changed = [key for key in different if key not in moved]
        if changed:
            differs = "differ" if changed[1:] else "differs"
            raise ValueError(
                f"`resume` goes on with the run of {folder / CONFIG}, but {' and '.join(changed)} {differs} from it."
            )
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output` {folder} is a file. Give a folder.")
    start = resolved["model"]["start_from"]
    if start and _is_replaced(Path(start).resolve(), folder.resolve()):
        raise ValueError(f"`model.start_from` {start} lies in `output` {folder}, where it would be replaced.")
    if run:
        if not overwrite and _holds_work(folder):
            raise ValueError(
                f"`output` {folder} already holds a run. Pass --overwrite to replace it, --resume to go on with it, "
                "or another --output."
            )
        return
    from piecewise_training.cli.results import RUN_FILES
    from piecewise_training.dataset import SPLIT_FILE

    if taken := [name for name in (CONFIG, SPLIT_FILE, *_FOLDERS, *RUN_FILES) if (folder / name).exists()]:
        raise ValueError(f"`output` {folder} holds {' and '.join(taken)}, but no run. Give a folder of its own.")


def _holds_work(folder: Path) -> bool:
    """Whether anything was trained in a run's folder; one that failed before its first epoch may be begun anew."""
    from piecewise_training.cli.results import RUN_FILES

    return any((folder / "checkpoints").glob("*/*.ckpt")) or any((folder / name).exists() for name in RUN_FILES)


def _is_replaced(weights: Path, folder: Path) -> bool:
    """Whether weights to begin with are those that a new run in the folder removes."""
    final = weights.parent == folder and weights.stem == "piecewise_model_final"
    return weights == folder or final or any(folder / name in weights.parents for name in _FOLDERS)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration the result depends on, with the defaults of what an earlier version did not write."""
    known: dict[str, Any] = {"data": _DATA, "model": _MODEL, "training": _TRAINING}
    defaults = {name: plain(dataclasses.asdict(part)) for name, part in known.items()}
    chosen = {name: config.get(name) or {} for name in known}
    flat = {**_flat(defaults), **_flat(chosen), "seed": config.get("seed", 0)}
    del flat["data.workers"]  # how many processes read the images is free
    return flat


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by the names that options have."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and all(isinstance(name, str) for name in value)  # a map of labels is a value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _start_output(folder: Path, resolved: dict[str, Any], files: Iterable[str]) -> None:
    """Makes the folder this run's: nothing of an earlier one may be resumed or taken for it."""
    from piecewise_training.report import remove_pictures

    if run_config(folder):
        remove_pictures(folder)
        for name in _LOGS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in files:
            (folder / name).unlink(missing_ok=True)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(resolved, sort_keys=False))
