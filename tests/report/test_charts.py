"""The page's charts."""

from __future__ import annotations

import math
import re

from piecewise_training.report.charts import bands_chart, runs_chart, stages_chart

TITLES = {"stage1": "unary CNN", "stage2": "CRF, CNN fixed", "stage3": "CNN and CRF"}


def heights_of_titles(epochs: tuple[int, int, int]) -> dict[str, float]:
    """Where the titles of stages of so many epochs stand; downwards."""
    history = {stage: {"train_loss": [1.0] * count} for stage, count in zip(TITLES, epochs, strict=True)}
    found = re.findall(r'y="([\d.]+)"[^>]*>([^<]+)</text>', stages_chart(history, TITLES))
    return {title: float(y) for y, title in found if title in TITLES.values()}


def test_titles_stand_side_by_side_where_there_is_room() -> None:
    assert len(set(heights_of_titles((8, 8, 8)).values())) == 1


def test_titles_of_short_stages_stand_above_each_other() -> None:
    heights = heights_of_titles((45, 2, 6))
    assert heights["unary CNN"] == heights["CRF, CNN fixed"]
    assert heights["CNN and CRF"] < heights["CRF, CNN fixed"] - 8  # as high as a letter


def looks(drawing: str) -> set[tuple[str, ...]]:
    """The colours and dashes of a chart's marked lines."""
    lines = re.findall(
        r"fill: none;( stroke-dasharray: [^;]+;)?(?: stroke-dashoffset: [^;]+;)? stroke: (var[^;]+);", drawing
    )
    return {look for look in lines if look[1] not in ("var(--line)", "var(--muted)")}


def test_many_lines_are_told_apart() -> None:
    assert len(looks(bands_chart({f"run {n}": {"trimap_1": 0.1 * n, "trimap_2": 0.2} for n in range(1, 13)}))) == 12
    assert len(looks(runs_chart({f"run {n}": {"stage1": {"val_miou": [0.1, 0.2]}} for n in range(12)}))) == 12


def test_a_stroke_marks_the_end_of_a_stage() -> None:
    """Of all but the last."""
    stages = {"stage1": {"val_miou": [0.1, 0.2]}, "stage2": {"val_miou": [0.3]}}
    whole, alone = runs_chart({"run": stages}), runs_chart({"run": {"stage1": stages["stage1"]}})
    assert whole.count("<use ") - alone.count("<use ") == 2  # a point and the stroke


def test_lines_pass_over_epochs_that_were_not_validated() -> None:
    scores = [math.nan, 0.1, math.nan, 0.3]
    values = {"train_loss": [1.0] * 4, "val_miou": scores, "val_loss": scores, "val_accuracy": scores}
    for drawing, lines in ((runs_chart({"run": {"stage1": values}}), 1), (stages_chart({"stage1": values}, TITLES), 3)):
        paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\((--\w+)\)', drawing)
        validated = [path for path, colour in paths if colour not in ("--line", "--muted") and path.count("L") == 1]
        assert len(validated) == lines
