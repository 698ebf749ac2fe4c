"""One self-contained HTML page from the records of one or several runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from piecewise_training.inference import Result
from piecewise_training.report import charts
from piecewise_training.report.gallery import Shown
from piecewise_training.report.record import RunRecord
from piecewise_training.writing import atomic_write, readable

_COLUMNS = ("mIoU", "accuracy", "boundary IoU", "trimap 4 px", "ms an image")
_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


@dataclass(frozen=True)
class Cell:
    """A place of the confusion matrix: the share of the true class's pixels, their number, and both in words."""

    share: float
    count: int
    told: str


_MOST_CLASSES = 60  # in the confusion matrix: with all of ADE20K's the page could not be sent by mail


def write_page(path: Path, runs: Mapping[Path, RunRecord]) -> None:
    """Writes the report of one run, or of several side by side.

    Of several, the runs' last results are compared, and each run's own tables and curves follow, without galleries.

    Args:
        path: of the page, one HTML file that needs no other.
        runs: by folder, of which they have their names; pictures of the gallery are there.

    Raises:
        FileNotFoundError: a picture of the gallery is missing.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    names = _names(list(runs))
    single = len(runs) == 1
    numbered = enumerate(zip(names, runs.items(), strict=True), 1)
    shown = [_run(name, folder, run, number, single) for number, (name, (folder, run)) in numbered]
    page = template.render(
        title=names[0] if single else f"{len(runs)} runs compared",
        runs=shown,
        columns=_COLUMNS,
        colours=[f"s{place + 1}" for place in range(len(charts.SERIES))],
        comparison=None if single else _comparison(names, list(runs.values())),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _run(name: str, folder: Path, run: RunRecord, number: int, single: bool) -> dict[str, Any]:
    """What the template wants of a run."""
    first, last = list(run.results)[0], list(run.results)[-1]
    ends = {first: run.results[first], last: run.results[last]}
    confused = _most_confused(run.results[last])
    return {
        "name": name,
        "number": number,
        "summary": summary(run.results),
        "stages": charts.stages_chart(run.history, run.titles, f"stages-{number}") if run.history else "",
        "classes": _classes(run, ends),
        "ends": list(ends),
        "bands": charts.bands_chart({t: result.borders for t, result in run.results.items()}, f"bands-{number}"),
        "confusion": _confusion(run.results[last], confused, run.classes.names),
        "class_names": [run.classes.names[k] for k in confused],
        "left_out": len(run.classes) - len(confused),
        "last": last,
        "gallery": _gallery(folder, run) if single else [],
        "compared": any(shown.before is not None for shown in run.gallery),
        "parameters": run.parameters,
        "stage_costs": _costs(run),
        "configuration": _as_yaml(run.configuration) if run.configuration else "",
        "surroundings": list(run.surroundings.items()),
        "costs": {kernel: _learned(values, confused, run.classes.names) for kernel, values in run.costs.items()},
    }


def summary(results: Mapping[str, Result]) -> list[tuple[str, list[str]]]:
    """The rows of the summary: shares in per cent."""
    return [
        (
            name,
            [
                f"{100 * result.scores.miou:.2f}",
                f"{100 * result.scores.pixel_accuracy:.2f}",
                f"{100 * result.borders['boundary_iou']:.2f}",
                f"{100 * result.borders['trimap_4']:.2f}",
                f"{1000 * result.seconds:.0f}",
            ],
        )
        for name, result in results.items()
    ]


def _classes(run: RunRecord, ends: Mapping[str, Result]) -> list[dict[str, Any]]:
    rows = []
    for k, (name, colour) in enumerate(zip(run.classes.names, run.classes.colours, strict=True)):
        ious = [100 * float(result.scores.iou[k]) for result in ends.values()]
        rows.append({"name": name, "colour": f"rgb{colour}", "ious": [iou if iou == iou else None for iou in ious]})
    return rows


def _most_confused(result: Result) -> list[int]:
    """The classes that the confusion matrix shows, in order: where there are many, those with most wrong pixels."""
    wrong = result.confusion.sum(0) + result.confusion.sum(1) - 2 * result.confusion.diagonal()
    return sorted(wrong.argsort(descending=True, stable=True)[:_MOST_CLASSES].tolist())


def _confusion(result: Result, shown: Sequence[int], names: Sequence[str]) -> list[list[Cell]]:
    rows = []
    for true in shown:
        counts = result.confusion[true].tolist()
        whole = sum(counts)
        told = f"of {whole:,} pixels of {names[true]} are called"
        shares = [100 * count / max(1, whole) for count in counts]
        rows.append([Cell(shares[k], counts[k], f"{counts[k]:,} {told} {names[k]}") for k in shown])
    return rows


def _as_yaml(configuration: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
    return text


def _learned(values: Sequence[Any], shown: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """A kernel's costs of labels as a table: of pairs (K, K), or what each class gains beside itself (K,)."""
    pairs = isinstance(values[0], Sequence)
    rows = [[values[a][b] for b in shown] if pairs else [values[a]] for a in shown]
    largest = max(abs(value) for row in rows for value in row) or 1.0
    cells = [[(value, 100 * abs(value) / largest) for value in row] for row in rows]
    told = "What a label at a pixel costs beside another label; at the start 1, and 0 beside itself. Orange is a gain."
    return {
        "told": told if pairs else "What a class gains beside itself; at the start 1.",
        "corner": "label \\ beside" if pairs else "label",
        "heads": [names[k] for k in shown] if pairs else ["gain"],
        "rows": [(names[k], row) for k, row in zip(shown, cells, strict=True)],
    }


def _gallery(folder: Path, run: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": readable(shown.name),
            "rank": shown.rank,
            "told": _told(shown),
            "pictures": {title: _embedded(folder / file) for title, file in shown.pictures.items()},
        }
        for shown in run.gallery
    ]


def _told(shown: Shown) -> str:
    after = f"{100 * shown.after:.1f} %"
    return after if shown.before is None else f"{100 * shown.before:.1f} % before the CRF, {after} after it"


def _embedded(path: Path) -> str:
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _costs(run: RunRecord) -> list[tuple[str, list[str]]]:
    """Of each stage: what it trained; epochs, minutes and memory."""
    rows = []
    for stage, values in run.history.items():
        seconds, peaks = values.get("seconds", ()), values.get("peak_bytes", ())
        rows.append(
            (
                run.titles.get(stage) or stage,
                [
                    str(len(values["train_loss"])),
                    f"{sum(seconds) / 60:.1f}" if seconds else "not known",
                    f"{max(peaks) / 2**30:.2f}" if peaks else "not known",
                ],
            )
        )
    return rows


def _comparison(names: Sequence[str], runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the runs' results and training have side by side, and what their configurations differ in."""
    named = list(zip(names, runs, strict=True))
    last = {name: list(run.results.values())[-1] for name, run in named}
    trained = {name: run.history for name, run in named if run.history}
    steps = list(dict.fromkeys(step for run in runs for step in run.results))
    stages = list(dict.fromkeys(stage for run in runs for stage in run.history))
    flat = [dict(_flattened(run.configuration)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    same = len({run.classes.names for run in runs}) == 1
    learned = [{p.name: f"{p.after:.3g} {p.unit}".strip() for p in run.parameters} for run in runs]
    parameters = list(dict.fromkeys(name for one in learned for name in one))
    return {
        "summary": summary(last),
        "steps": steps,
        "step_rows": [(name, [_miou(run.results.get(step)) for step in steps]) for name, run in named],
        "runs": charts.runs_chart(trained) if trained else "",
        "stages": stages,
        "costs": [(name, [_spent(run.history.get(stage)) for stage in stages]) for name, run in named if run.history],
        "bands": charts.bands_chart({name: result.borders for name, result in last.items()}),
        "classes": _classes(runs[0], last) if same else [],
        "parameters": [(name, [one.get(name, "") for one in learned]) for name in parameters],
        "differences": [(key, [readable(str(one.get(key, ""))) for one in flat]) for key in differing],
        "names": list(names),
    }


def _miou(result: Result | None) -> str:
    return "" if result is None else f"{100 * result.scores.miou:.2f}"


def _spent(values: Mapping[str, Sequence[float]] | None) -> str:
    """The minutes and the memory of a stage."""
    if values is None or not values.get("seconds"):
        return ""
    memory = f", {max(values['peak_bytes']) / 2**30:.2f}" if values.get("peak_bytes") else ""
    return f"{sum(values['seconds']) / 60:.1f}{memory}"


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many of its parents as tell it from the others."""
    paths = [folder.resolve().parts for folder in folders]
    names = [_told_apart(path, [other for other in paths if other is not path]) for path in paths]
    if len({*names}) == len(names):
        return names
    return [f"{place}. {name}" for place, name in enumerate(names, 1)]  # bytes that are no text look the same


def _told_apart(path: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    parts = next((n for n in range(1, len(path)) if path[-n:] not in [other[-n:] for other in others]), len(path))
    return readable(str(Path(*path[-parts:])))
