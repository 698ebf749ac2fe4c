"""The pages on what each step of training brings: of one run, and of the same recipe from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import yaml
from tables import MEASURES, Report, data_name, markdown, origin, percent

STARTS = ("crf_gain", "crf_gain_seed1", "crf_gain_seed2")  # with more epochs than the recipe's, in the order of seeds
ALONE = "unary alone"
SHORT = {"mIoU": 0, "pixel accuracy": 1, "boundary IoU": 2, "trimap, 4 px": MEASURES.index("trimap 4 px")}
RANGED = ("mIoU", "trimap, 4 px")


def crf_gain(report: Report, title: str = "What each step of training brings") -> str:
    """One run."""
    rows = report["rows"]
    steps = [(name, *percent(row), 1e3 * row["seconds_an_image"]) for name, row in rows.items()]
    classes = [(name, *(100 * iou for iou in row["iou"])) for name, row in rows.items()]
    tuned = ", ".join(f"{name} {value:g}" for name, value in report["tuned"].items())
    return "\n\n".join(
        [
            f"# {title}: {data_name(report)}",
            "The network, the CRF and both together, on the validation images: none was trained on, but their mIoU "
            "chose the epoch of each stage. In per cent, the last column in milliseconds an image.",
            markdown(["", *MEASURES, "ms"], steps),
            "The IoU of each class:",
            markdown(["", *report["classes"]], classes),
            f"The CRF tuned on training images has {tuned}. Averaged are the scales "
            f"{', '.join(f'{scale:g}' for scale in report['scales'])} and mirror images.",
            origin(report),
            f"The configuration of the run:\n\n```yaml\n{report['run'].strip()}\n```",
        ]
    )


def in_short(report: Report) -> str:
    """The steps of one run by four measures."""
    cells = []
    for name, row in report["rows"].items():
        shares = percent(row)
        cells.append((name, *(shares[place] for place in SHORT.values())))
    return markdown(["", *SHORT], cells)


def starts(*reports: Report) -> str:
    """The same recipe from several starts."""
    seeds = [yaml.safe_load(report["run"])["seed"] for report in reports]
    runs = ", ".join(f"[{seed}]({name}.md)" for seed, name in zip(seeds, STARTS, strict=True))
    names = reports[0]["rows"]
    steps = [(n, *_means(reports, n, lambda row: [*percent(row), 1e3 * row["seconds_an_image"]])) for n in names]
    classes = [(n, *_means(reports, n, lambda row: [100 * iou for iou in row["iou"]])) for n in names]
    return "\n\n".join(
        [
            f"# What each step brings from {len(reports)} starts: {data_name(reports[0])}",
            f"Means over the seeds {runs}, whose pages say how they were measured; validation in per cent, the last "
            "column in milliseconds an image.",
            markdown(["", *MEASURES, "ms"], steps),
            "How far they reach:",
            starts_in_short(*reports),
            f"What is gained over the same seed's network alone ({ALONE}), in points:",
            _spread([_gains(report) for report in reports]),
            "The IoU of each class:",
            markdown(["", *reports[0]["classes"]], classes),
        ]
    )


def _means(reports: Sequence[Report], name: str, measures: Callable[[Any], Sequence[float]]) -> list[float]:
    """The means of a row's measures over several runs."""
    return [fmean(values) for values in zip(*(measures(report["rows"][name]) for report in reports), strict=True)]


def starts_in_short(*reports: Report) -> str:
    """Mean and range of the steps over several starts."""
    return _spread([{name: percent(row) for name, row in report["rows"].items()} for report in reports])


def _gains(report: Report) -> dict[str, list[float]]:
    alone = percent(report["rows"][ALONE])
    return {
        name: [share - own for share, own in zip(percent(row), alone, strict=True)]
        for name, row in report["rows"].items()
        if name != ALONE
    }


def _spread(runs: list[dict[str, list[float]]]) -> str:
    """A table of the means of rows, and behind those of mIoU and trimap how far they reach."""
    cells: list[list[Any]] = []
    for name in runs[0]:
        cells.append([name])
        for measure, place in SHORT.items():
            values = [run[name][place] for run in runs]
            cells[-1].append(fmean(values))
            if measure in RANGED:
                cells[-1].append(f"{min(values):.1f} to {max(values):.1f}")
    head = [title for measure in SHORT for title in ([measure, "range"] if measure in RANGED else [measure])]
    return markdown(["", *head], cells)
