"""What a run ends in: the rows of its table, the saved model, the report, the summary on the screen."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table

from piecewise_training.cli import machine
from piecewise_training.cli.start import begin_with
from piecewise_training.config import ContextConfig, InferenceConfig, ModelConfig
from piecewise_training.dataset import AnyDataset, Classes
from piecewise_training.inference import Result, evaluate, predict
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks import VGG_NETWORKS, Relation
from piecewise_training.report import RECORD_FILE, Parameter, RunRecord, write_gallery, write_page
from piecewise_training.trainer import PiecewiseTrainer
from piecewise_training.visualization import REPORT_FILES, Sample, summary_rows, write_report
from piecewise_training.writing import atomic_write

MODEL_FILES = ("piecewise_model_final.pth", "piecewise_model_final.safetensors")
PAGE = "report.html"
RUN_FILES = (*MODEL_FILES, *REPORT_FILES, RECORD_FILE, PAGE)
_SAMPLES = 5
_PLAIN = InferenceConfig()
# The columns of the summary that fit a terminal of 80 characters, and what they are called there.
_ON_SCREEN = {
    "mIoU": "mIoU",
    "pixel accuracy": "accuracy",
    "boundary IoU": "border IoU",
    "trimap 4 px": "trimap 4",
    "ms an image": "ms",
}


def build_model(config: ModelConfig, classes: Classes, seed: int) -> PiecewiseTrainedModel:
    """The model of a configuration, with the same random weights for the same seed.

    Raises:
        ValueError: an option does not belong to the network.
    """
    if config.output_stride != ModelConfig.output_stride and (config.featmap or config.unary in VGG_NETWORKS):
        owner = "a FeatMap-Net" if config.featmap else config.unary
        raise ValueError(
            f"`model.output_stride` is for timm backbones without featmap; {owner} has its own stride. Leave it out."
        )
    usual = ("pos_xy_std", "pos_w", "bilateral_xy_std", "bilateral_rgb_std", "bilateral_w")
    _check_kernels(config, (*usual, "crf_compatibility"))
    lightning.seed_everything(seed, verbose=False)
    options = ("compatibility", "learn_bandwidths", "temperature", "class_bias", "spatial")
    crf: dict[str, Any] = {name: getattr(config, name) for name in usual}
    crf |= {name: getattr(config, f"crf_{name}") for name in options}
    if config.crf_kernels is not None:
        crf["kernels"] = [dataclasses.asdict(kernel) for kernel in config.crf_kernels]
    model = PiecewiseTrainedModel(
        len(classes),
        config.crf_iterations,
        unary=config.unary,
        pretrained=False if config.start_from else config.pretrained,
        output_stride=config.output_stride,
        crf={"train_iterations": config.crf_train_iterations, **crf},
        featmap=None if config.featmap is None else dataclasses.asdict(config.featmap),
        context=None if config.context is None else _context(config.context),
        classes=classes,
    )
    if config.start_from:
        trained = Path(config.start_from)
        begin_with(model, trained / MODEL_FILES[1] if trained.is_dir() else trained)
    return model


def _check_kernels(config: ModelConfig, usual: Sequence[str]) -> None:
    """Refuses what is said of the two usual kernels where there are others instead."""
    if config.crf_kernels is None:
        return
    told = [f"`model.{name}`" for name in usual if getattr(config, name) != getattr(ModelConfig, name)]
    if told:
        raise ValueError(
            f"{' and '.join(told)} would change the two usual kernels, and `model.crf_kernels` replaces both. Give "
            "each kernel its own xy_std, rgb_std, weight and compatibility there, or `model.crf_kernels` null."
        )


def _context(config: ContextConfig) -> dict[str, Any]:
    relations = [Relation(**dataclasses.asdict(relation)) for relation in config.relations]
    options = {"iterations": config.iterations, "residual": config.residual, "stride": config.stride}
    return {"relations": relations, **options}


def evaluate_stage(
    trainer: PiecewiseTrainer, stage: str, batches: Any, void_is_border: bool, last: bool = False
) -> dict[str, Result]:
    """The rows of the final table that a stage adds; the last one's end with what the model says after it."""
    outcome = evaluate(trainer.model, batches, trainer.device, void_is_border=void_is_border)
    assert outcome.crf is not None  # a trained model always has one
    context = {} if outcome.context is None else {"+ context": outcome.context}
    if stage == "stage1":
        together = {name: result for name, result in context.items() if trainer.config.context_training == "together"}
        return {"unary alone": outcome.unary, **together, "+ CRF, default": outcome.crf}
    if stage == "stage2_context":
        return context | ({"+ context, + CRF, default": outcome.crf} if last else {})
    if stage == "stage2":
        return {"+ CRF, learned": outcome.crf}
    joint = {f"joint, {name}": result for name, result in context.items()}
    return {"joint, unary": outcome.unary, **joint, "joint, + CRF": outcome.crf}


def save_model(model: PiecewiseTrainedModel, folder: Path) -> None:
    """Writes the weights twice: with the configuration as safetensors, and as a plain state dict."""
    with atomic_write(folder / MODEL_FILES[0]) as temporary:
        torch.save({name: value.cpu() for name, value in model.state_dict().items()}, temporary)
    model.save(folder / MODEL_FILES[1])


def crf_values(model: PiecewiseTrainedModel) -> dict[str, float]:
    """The CRFs' numbers by name: weights, bandwidths in pixels and grey levels, the temperature and class biases.

    A relation's weight is relative.
    """
    assert model.crf is not None
    values = {name: float(value.detach()) for name, value in model.crf.kernel_parameters().items()}
    if model.crf.log_temperature is not None:
        values["temperature"] = float(model.crf.temperature.detach())
    if model.crf.class_bias is not None:
        names = [f"bias of {name}" for name in model.classes.names]
        values |= dict(zip(names, model.crf.class_bias.tolist(), strict=True))
    if model.context is not None:
        factors = model.context.log_factors.detach().exp().tolist()
        kinds = [relation.name for relation in model.context.relations]
        places = [kinds[:place].count(kind) + 1 for place, kind in enumerate(kinds)]
        names = [f"context_{kind}{place if place > 1 else ''}_w" for kind, place in zip(kinds, places, strict=True)]
        values |= dict(zip(names, factors, strict=True))
    return values


def parameters(model: PiecewiseTrainedModel, start: Mapping[str, float]) -> list[Parameter]:
    """How the CRF's parameters moved."""
    units = {"xy_std": "px", "rgb_std": "grey levels"}
    end = crf_values(model)
    return [
        Parameter(name, next((unit for part, unit in units.items() if name.endswith(part)), ""), start[name], end[name])
        for name in start
    ]


def learned_costs(model: PiecewiseTrainedModel) -> dict[str, list[Any]]:
    """The costs of labels beside each other that the dense CRF has learned, by kernel."""
    if model.crf is None:
        return {}
    costs = {name: getattr(model.crf, f"{name}_compatibility") for name in model.crf.kernels}
    return {name: values.tolist() for name, values in costs.items() if values is not None}


def notes(
    moved: Sequence[Parameter],
    history: Mapping[str, Any],
    precision: str,
    surroundings: Mapping[str, str],
    results: Mapping[str, Result],
) -> list[str]:
    """How the CRF's weights and bandwidths moved, how long the stages took, in what precision and on what, in words.

    And a warning where the CRF ends below the network that it refines.
    """
    parts = ", ".join(f"{p.name} {p.before:.2f} -> {p.after:.2f}" for p in moved if not p.name.startswith("bias of "))
    spent = ", ".join(f"{stage} {sum(values['seconds']) / 60:.1f} min" for stage, values in history.items())
    made = ", ".join(surroundings[key] for key in ("package", "torch", "device", "processor", "platform", "date"))
    told = [f"CRF parameters: {parts}", f"Training time: {spent}; precision {precision}", f"Made with {made}"]
    for without, under in (("joint, unary", "joint, + CRF"), ("unary alone", "+ CRF, learned")):
        if without in results and under in results:
            before, after = (100 * results[name].scores.miou for name in (without, under))
            if after < before:
                told.append(
                    f"The CRF takes mIoU from {before:.1f} to {after:.1f} here: the labels of the network alone are "
                    "the better ones (`unary_labels` of a prediction). Train the network for longer before the CRF."
                )
            break
    return told


def surroundings(model: PiecewiseTrainedModel) -> dict[str, str]:
    """Versions, machine and date."""
    device = next(model.parameters()).device
    return machine.surroundings(device) | {"date": datetime.date.today().isoformat()}


def write_results(
    folder: Path,
    model: PiecewiseTrainedModel,
    val_set: AnyDataset,
    results: Mapping[str, Result],
    *,
    configuration: Mapping[str, Any],
    history: Mapping[str, Any] | None = None,
    titles: Mapping[str, str] | None = None,
    moved: Sequence[Parameter] = (),
    remarks: Sequence[str] = (),
    how: InferenceConfig = _PLAIN,
) -> None:
    """Writes tables and pictures of a model, with a few images spread over the validation set, and its page."""
    step = max(1, len(val_set) // _SAMPLES)
    samples = []
    for index in range(0, len(val_set), step)[:_SAMPLES]:
        image, truth = val_set.read(index)
        samples.append(Sample(val_set.names[index], image, truth, predict(model, image, how=how)))
    record = RunRecord(
        name=folder.resolve().name,
        classes=model.classes,
        results=results,
        history=history or {},
        titles=titles or {},
        parameters=moved,
        costs=learned_costs(model),
        configuration=configuration,
        surroundings=surroundings(model),
    )
    _write_page(folder, record)  # no picture of an earlier time is named beside new results, whatever comes now
    write_report(
        folder,
        results=results,
        classes=model.classes,
        samples=samples,
        history=history,
        stage_titles=titles,
        notes=remarks,
    )
    gallery = write_gallery(
        folder,
        val_set.names,
        _before_the_crf(results),
        list(results.values())[-1].images,
        val_set.read,
        lambda image: predict(model, image, how=how),
        model.classes,
    )
    _write_page(folder, dataclasses.replace(record, gallery=gallery))


def _write_page(folder: Path, record: RunRecord) -> None:
    record.save(folder)
    write_page(folder / PAGE, {folder: record})


def _before_the_crf(results: Mapping[str, Result]) -> Sequence[float] | None:
    """Each image's mIoU by the network that the last result refines; None where there is none to compare that with."""
    networks = [results[name] for name in ("joint, unary", "unary alone") if name in results]
    return networks[0].images if networks and len(results) > 1 else None


def summary_table(results: Mapping[str, Result]) -> Table:
    """The measures of each result that fit a terminal."""
    columns, rows = summary_rows(results)
    table = Table("validation, %", *(_ON_SCREEN[c] for c in columns if c in _ON_SCREEN))
    for name, values in rows:
        shown = (f"{value:.1f}" for column, value in zip(columns, values, strict=True) if column in _ON_SCREEN)
        table.add_row(name, *shown)
    return table


def print_summary(console: Console, results: Mapping[str, Result], remarks: Sequence[str], folder: Path) -> None:
    """Prints the table of results, the notes and where everything is."""
    console.print(summary_table(results))
    for remark in remarks:
        console.print(remark, highlight=False, markup=False)
    console.print(f"everything is in {folder}; its page is {folder / PAGE}", highlight=False, markup=False)
