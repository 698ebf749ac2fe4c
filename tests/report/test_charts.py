"""The page's charts."""

from __future__ import annotations

import re

from piecewise_training.report.charts import stages_chart

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
