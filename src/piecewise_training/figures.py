"""Arrays in, matplotlib figures out; nothing here opens a window or a file."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np
from matplotlib import font_manager, rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from piecewise_training.dataset.classes import Classes, Colour
from piecewise_training.writing import readable

_INK, _BLUE, _ORANGE, _GREY = "#22262b", "#1f6feb", "#d9730d", "#9aa4af"
_VOID_COLOUR = (255, 255, 255)
_STYLE: dict[str, Any] = {"fontsize": 9, "color": _INK}
_TALLEST = 3.0  # of a picture's place in a gallery, for each unit of width: a strip is drawn small, not the figure huge

_LEGEND, _LETTER, _PATCH = 8, 0.62, 5.0  # points; of these a letter's width, and that of a patch with its margins
_WIDEST = 20.0  # of a confusion matrix, in inches: its pixels are kept in memory
_MOST_NUMBERS, _MOST_NAMES = 90, 130  # classes with numbers or names in it: more would lie one upon the other


# Fonts of systems and distributions for scripts that matplotlib's own has not; each fills in what those before lack.
_FONTS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Noto Sans CJK KR",
        "WenQuanYi Zen Hei",
        "Microsoft YaHei",
        "PingFang SC",
    ),
    *("Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Nirmala UI", "Noto Sans Devanagari"),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Sans Ethiopic", "Arial Unicode MS"),
)
Arguments = ParamSpec("Arguments")


def _in_any_script(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draws names in whatever script, as far as this machine has fonts for it."""

    @functools.wraps(draw)
    def drawn(*arguments: Arguments.args, **options: Arguments.kwargs) -> Figure:
        known = {font.name for font in font_manager.fontManager.ttflist}
        with rc_context({"font.family": [*rcParams["font.family"], *(name for name in _FONTS if name in known)]}):
            return draw(*arguments, **options)

    return drawn


def paint(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """Labels (H, W) as RGB (H, W, 3) uint8 in the colours of the data set; void is white.

    Example:
        >>> paint(np.array([[1, 255]], np.uint8), Classes.numbered(2)).tolist()
        [[[128, 0, 0], [255, 255, 255]]]
    """
    table = np.full((256, 3), _VOID_COLOUR, np.uint8)
    table[: len(classes)] = classes.colours
    return table[labels]


def overlay(image: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float = 0.55) -> np.ndarray:
    """The image (H, W, 3) uint8 with its labels painted over; void leaves it bare."""
    painted = (1 - opacity) * image + opacity * paint(labels, classes)
    known = ((labels >= 0) & (labels < len(classes)))[..., None]
    return np.where(known, painted, image).round().astype(np.uint8)


@_in_any_script
def training_curves(history: Mapping[str, Mapping[str, Sequence[float]]], titles: Mapping[str, str]) -> Figure:
    """Loss, validation scores and learning rate over the epochs, a column for each stage.

    Args:
        history: by stage and quantity, as `PiecewiseTrainer` returns it; stages without an epoch are left out.
        titles: what each stage trained.

    Raises:
        ValueError: no stage has an epoch.
    """
    places = {stage: place for place, stage in enumerate(history, 1)}
    history = {stage: values for stage, values in history.items() if len(values["train_loss"])}
    if not history:
        raise ValueError("`history` has no stage with an epoch: there is no curve to draw.")
    epochs = [len(values["train_loss"]) for values in history.values()]
    widths = [max(count, 0.22 * sum(epochs)) for count in epochs]  # a short stage still needs room for its title
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    grid: Any = figure.subplots(3, len(history), sharey="row", sharex="col", squeeze=False, width_ratios=widths)
    for column, (stage, values) in enumerate(history.items()):
        numbers = np.arange(epochs[column]) + sum(epochs[:column]) + 1
        for row, (ylabel, lines, scale) in enumerate(_CURVES):
            axis = grid[row, column]
            for name, label, colour in lines:
                shown = scale * np.array(values.get(name, ()))
                known = ~np.isnan(shown)  # not every epoch need be validated
                if known.any():
                    points = numbers[: len(shown)][known], shown[known]
                    axis.plot(*points, ".-", color=colour, label=label, markersize=5)
            if column == 0:
                axis.set_ylabel(ylabel, **_STYLE)
                if len(axis.lines) > 1:
                    axis.legend(loc="best", fontsize=8, frameon=False)
            axis.xaxis.set_major_locator(FixedLocator(list(numbers)) if len(numbers) < 4 else MaxNLocator(integer=True))
            axis.margins(x=0.06 if len(numbers) > 1 else 0.5)
            _plain(axis)
        title = f"{places[stage]}. {titles[stage]}" if titles[stage] else stage
        grid[0, column].set_title(literal(title), **_STYLE)
        grid[2, column].set_yscale("log")
        grid[2, column].set_xlabel("epoch", **_STYLE)
    return figure


# What the rows of the training curves show: the axis, and for each line its quantity, name and colour; and a factor.
_CURVES = (
    ("loss", (("train_loss", "training", _BLUE), ("val_loss", "validation", _ORANGE)), 1.0),
    ("validation, %", (("val_miou", "mean IoU", _BLUE), ("val_accuracy", "pixel accuracy", _ORANGE)), 100.0),
    ("learning rate", (("lr", "", _BLUE),), 1.0),
)


@_in_any_script
def confusion_matrix(confusion: np.ndarray, classes: Classes) -> Figure:
    """Each true class's pixels by predicted class, in per cent of the true class.

    Of more classes than a figure has room for there are colours alone, and the names of every second.
    """
    count = len(classes)
    share = 100 * confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    side = min(max(5.0, 0.45 * count + 2), _WIDEST)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if count <= _MOST_NUMBERS:
        _write_shares(axis, share)
    named = range(0, count, math.ceil(count / _MOST_NAMES))
    names = _all_literal([classes.names[k] for k in named])
    axis.set_xticks(named, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(named, names, fontsize=8)
    axis.set_xlabel("predicted", **_STYLE)
    axis.set_ylabel("true", **_STYLE)
    axis.set_title("Where each class's pixels go, % of the true class", **_STYLE)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def _write_shares(axis: Axes, share: np.ndarray) -> None:
    size = 8 if len(share) <= 12 else 6.5
    for row, column in np.argwhere(share >= 0.5).tolist():
        value = share[row, column]
        colour = "white" if value > 55 else _INK
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)


@_in_any_script
def per_class_iou(ious: Mapping[str, np.ndarray], classes: Classes) -> Figure:
    """Bars of each class's IoU, one bar for each of one to three named results."""
    count, kinds = len(classes), len(ious)
    figure = Figure(figsize=(8, 0.22 * kinds * count + 0.12 * count + 1.4), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / kinds
    colours = (_GREY, _BLUE) if kinds == 2 else (_GREY, _ORANGE, _BLUE)
    for index, (name, iou) in enumerate(ious.items()):
        values = 100 * np.nan_to_num(iou)
        position = np.arange(count) + (index - (kinds - 1) / 2) * height
        mean = 100 * np.nanmean(iou)
        axis.barh(position, values, height * 0.92, color=colours[index], label=literal(f"{name} (mean {mean:.1f})"))
        for y, value, exists in zip(position, values, ~np.isnan(iou), strict=True):
            axis.text(value + 0.7, y, f"{value:.1f}" if exists else "absent", va="center", fontsize=7, color=_INK)
    axis.set_yticks(range(count), _all_literal(classes.names), fontsize=8)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_xlim(0, 108)
    axis.set_xlabel("IoU, %", **_STYLE)
    axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=kinds)
    _plain(axis)
    axis.grid(axis="y", visible=False)
    return figure


@_in_any_script
def label_gallery(columns: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], classes: Classes) -> Figure:
    """A row for each image and a column for each kind of picture, with the legend of the classes that occur.

    Args:
        columns: by title, a list of RGB images (H, W, 3) or label maps (H, W), one a row.
        names: of the rows, of which there is at least one.
        classes: names and colours for the label maps.
    """
    rows, kinds = len(names), len(columns)
    aspect = _aspect(next(iter(columns.values()))[0])
    present = sorted({int(k) for maps in columns.values() for m in maps if m.ndim == 2 for k in np.unique(m)})
    shown = [k for k in present if k < len(classes)]
    width = 2.9 * kinds
    longest = max((len(classes.names[k]) for k in shown), default=0)
    beside = max(1, min(7, int(72 * width / (_LEGEND * (_LETTER * longest + _PATCH)))))
    legend_rows = math.ceil(len(shown) / beside)
    figure = Figure(figsize=(width, rows * 2.9 * aspect + 0.5 + 0.25 * legend_rows), layout="constrained")
    grid: Any = figure.subplots(rows, kinds, squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axis = grid[row, column]
            axis.imshow(picture if picture.ndim == 3 else paint(picture, classes), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, **_STYLE)
            if column == 0:
                axis.set_ylabel(literal(names[row]), fontsize=7, color=_INK)
    patches = [
        Patch(facecolor=_unit(classes.colours[k]), edgecolor=_GREY, linewidth=0.5, label=literal(classes.names[k]))
        for k in shown
    ]
    columns_of_legend = min(beside, len(patches))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns_of_legend, fontsize=_LEGEND, frameon=False)
    return figure


def literal(name: str) -> str:
    r"""Somebody's name as matplotlib shows it to the letter: no mathematics, and no line left out of a legend.

    Example:
        >>> print(literal("from $0.1$"))
        from \$0.1\$
    """
    text = readable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _all_literal(names: Sequence[str]) -> list[str]:
    return [literal(name) for name in names]


def _unit(colour: Colour) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _aspect(picture: np.ndarray) -> float:
    return min(picture.shape[0] / picture.shape[1], _TALLEST)


def _plain(axis: Axes) -> None:
    axis.grid(color="#e3e7eb", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
