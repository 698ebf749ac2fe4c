"""The page's charts: matplotlib's SVG with colours that the page chooses, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from piecewise_training.figures import literal

# What is drawn in these colours has the page's own of these names.
_THEME = {
    "#101010": "--ink",
    "#202020": "--muted",
    "#303030": "--line",
    "#1f6feb": "--blue",
    "#d9730d": "--orange",
    "#2e7d32": "--green",
    "#9a3fb5": "--purple",
    "#0f8a8a": "--teal",
    "#b3261e": "--red",
    "#7a7a0f": "--olive",
    "#c2408a": "--pink",
}
_INK, _MUTED, _LINE, *SERIES = _THEME
_BLUE, _ORANGE = SERIES[:2]
_LETTER = 0.0088  # the mean width of a letter in shares of the chart's
History = Mapping[str, Mapping[str, Sequence[float]]]


def stages_chart(history: History, titles: Mapping[str, str], prefix: str = "stages") -> str:
    """Loss, validation scores and learning rate of all stages over the epochs, with the stages' boundaries.

    Names in the drawing begin with the prefix, which is another for each chart of a page.
    """
    figure = Figure(figsize=(8.6, 6.4), layout="constrained")
    rows: Any = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.25, 0.7))
    start = 0
    total = sum(len(values["train_loss"]) for values in history.values())
    ends: list[float] = []  # of the last title on each line, in shares of the chart's width
    for place, (stage, values) in enumerate(history.items()):
        epochs = np.arange(len(values["train_loss"])) + start + 1
        for axis, name, label, colour, scale in (
            (rows[0], "train_loss", "training", _BLUE, 1),
            (rows[0], "val_loss", "validation", _ORANGE, 1),
            (rows[1], "val_miou", "mean IoU", _BLUE, 100),
            (rows[1], "val_accuracy", "pixel accuracy", _ORANGE, 100),
            (rows[2], "lr", "", _BLUE, 1),
        ):
            if values.get(name):
                shown = label if place == 0 else None
                points = _known(epochs, scale * np.array(values[name]))
                axis.plot(*points, ".-", color=colour, label=shown, markersize=4)
        for axis in rows:
            if place:
                axis.axvline(start + 0.5, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        middle, title = start + (len(epochs) + 1) / 2, titles.get(stage) or stage
        line = _free_line(ends, (middle - 0.5) / total, _LETTER * (len(title) + 1))
        rows[0].text(
            middle, 1.04 + 0.09 * line, literal(title), color=_INK, fontsize=8, ha="center", va="bottom",
            transform=rows[0].get_xaxis_transform(),
        )  # fmt: skip
        start += len(epochs)
    for axis, label in zip(rows, ("loss", "validation, %", "learning rate"), strict=True):
        axis.set_ylabel(label, color=_INK, fontsize=9)
        _dress(axis)
    rows[2].set_yscale("log")
    rows[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    rows[2].set_xlabel("epoch", color=_INK, fontsize=9)
    return svg(figure, prefix)


def runs_chart(histories: Mapping[str, History]) -> str:
    """Validation mIoU of several runs over the epochs of all their stages."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (name, history) in enumerate(histories.items()):
        stages = [[100 * value for value in values.get("val_miou", ())] for values in history.values()]
        miou = [value for stage in stages for value in stage]
        style = _style(place)
        points = _known(np.arange(len(miou)) + 1, np.array(miou))
        axis.plot(*points, marker=".", label=literal(name), markersize=4, **style)
        ends = np.cumsum([len(stage) for stage in stages])
        ends = ends[(ends > 0) & (ends < len(miou))]
        axis.plot(ends, [miou[end - 1] for end in ends], "|", color=style["color"], markersize=14)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axis, "epoch", "validation mIoU, %", "runs")


def bands_chart(borders: Mapping[str, Mapping[str, float]], prefix: str = "bands") -> str:
    """The trimap's mIoU over the width of the band, a line for each result; of the prefix see `stages_chart`."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (name, scores) in enumerate(borders.items()):
        widths = (key.removeprefix("trimap_") for key in scores)
        bands = {int(width): 100 * scores[f"trimap_{width}"] for width in widths if width.isdigit()}
        style = _style(place)
        axis.plot([*bands], [*bands.values()], marker="o", label=literal(name), markersize=4, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks([*bands], [str(band) for band in bands])
    return _finished(figure, axis, "distance from a true border, pixels", "mIoU within it, %", prefix)


def _known(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line: not every epoch need be validated."""
    known = ~np.isnan(values)
    return epochs[known], values[known]


def svg(figure: Figure, prefix: str) -> str:
    """A figure as SVG to stand in a page: text as text, the theme's colours, names that no other chart has."""
    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", drawing)
    for colour, name in _THEME.items():
        drawing = drawing.replace(colour, f"var({name})")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="chart" role="img"', drawing, count=1)


def _free_line(ends: list[float], middle: float, width: float) -> int:
    """The lowest line with room for a title, which it takes: short stages are narrower than theirs."""
    left, right = middle - width / 2, middle + width / 2
    line = next((line for line, end in enumerate(ends) if end < left), len(ends))
    ends[line : line + 1] = [right]
    return line


def _style(place: int) -> dict[str, Any]:
    """The look of a line: where there are more of them than colours, dashes tell them apart."""
    dashes = ("-", "--", ":", "-.")[place // len(SERIES) % 4]
    return {"color": SERIES[place % len(SERIES)], "linestyle": dashes}


def _finished(figure: Figure, axis: Axes, x: str, y: str, prefix: str) -> str:
    axis.set_xlabel(x, color=_INK, fontsize=9)
    axis.set_ylabel(y, color=_INK, fontsize=9)
    _dress(axis)
    return svg(figure, prefix)


def _dress(axis: Axes) -> None:
    axis.patch.set_alpha(0)
    axis.grid(color=_LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=8, colors=_MUTED, length=0)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
    if len(axis.lines) > 1 and axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=8, labelcolor=_INK)
