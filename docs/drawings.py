"""The drawn figures of the documentation: `python docs/drawings.py` writes them into docs/images."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, BLUE, ORANGE, GREY, PALE = "#22262b", "#1f6feb", "#d9730d", "#9aa4af", "#eef1f4"


def write(folder: Path) -> None:
    """Writes all of them into a folder, with the same bytes each time."""
    matplotlib.rcParams["svg.hashsalt"] = "piecewise-training"
    for name, figure in (("potentials", potentials()), ("stages", stages())):
        figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


def _card(width: float, height: float) -> Figure:
    """A light card with a thin border, which can be read on light and on dark pages, as narrow as a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    corners = "round,pad=0,rounding_size=0.12"
    inches = figure.dpi_scale_trans
    figure.add_artist(
        FancyBboxPatch(
            (0.02, 0.02),
            width - 0.04,
            height - 0.04,
            corners,
            facecolor="white",
            edgecolor=GREY,
            transform=inches,
            zorder=-1,
        )
    )
    return figure


def potentials() -> Figure:
    """Which places the two CRFs couple: all pixels, and a place of the feature map with those around and above it."""
    figure = _card(5.2, 2.1)
    titles = ("dense CRF:\nevery two pixels", "contextual CRF:\nsurrounding", "contextual CRF:\nabove / below")
    node = (-1, -1)
    for axis, title in zip(figure.subplots(1, 3), titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_aspect("equal")
        axis.axis("off")
        axis.set_xlim(-0.7, 6.7)
        axis.set_ylim(6.7, -0.7)
        places = list(itertools.product(range(0, 7, 2 if title.startswith("dense") else 1), repeat=2))
        if title.startswith("dense"):
            for (x, y), (u, v) in itertools.combinations(places, 2):
                near = ((x - u) ** 2 + (y - v) ** 2) ** 0.5
                axis.plot([x, u], [y, v], color=BLUE, linewidth=0.8, alpha=0.6 * 0.6**near + 0.03)
        else:
            node, top = ((3, 3), 1) if title.endswith("surrounding") else ((3, 5), 0)
            axis.add_patch(Rectangle((0.6, top - 0.4), 4.8, 4.8, facecolor=PALE, edgecolor=GREY))
            for x, y in places:
                if 1 <= x <= 5 and top <= y <= top + 4 and (x, y) != node:
                    axis.plot([node[0], x], [node[1], y], color=ORANGE, linewidth=0.9)
        for x, y in places:
            middle = (x, y) == node
            colour = ORANGE if middle else BLUE if title.startswith("dense") else GREY
            axis.plot(x, y, "o", color=colour, markersize=7 if middle else 5)
    return figure


def stages() -> Figure:
    """What each stage trains, what it keeps fixed, and what it minimises."""
    figure = _card(4.6, 3.2)
    axis = figure.subplots()
    axis.axis("off")
    axis.set_xlim(0, 4.3)
    axis.set_ylim(-0.1, 2.9)
    rows = (
        ("1. unary CNN", True, False, "softmax of each pixel"),
        ("2. CRF, CNN fixed", False, True, "marginals of the CRF"),
        ("3. CNN and CRF", True, True, "both, at a tenth\nof the rates"),
    )
    for row, (title, trains_cnn, trains_crf, loss) in enumerate(rows):
        y = 2.2 - row
        axis.text(0, y + 0.5, title, fontsize=10, color=INK, va="center", weight="bold")
        _box(axis, 0.05, y, "CNN", BLUE if trains_cnn else GREY)
        _arrow(axis, 0.85, y)
        _box(axis, 1.35, y, "CRF", (BLUE if trains_crf else GREY) if row else PALE)
        _arrow(axis, 2.15, y)
        axis.text(2.65, y, loss, fontsize=10, color=INK, va="center")
    return figure


def _box(axis: Axes, x: float, y: float, text: str, colour: str) -> None:
    shape = "round,pad=0,rounding_size=0.08"
    axis.add_patch(FancyBboxPatch((x, y - 0.22), 0.72, 0.44, shape, facecolor=colour, edgecolor=GREY))
    axis.text(x + 0.36, y, text, color=INK if colour == PALE else "white", fontsize=10, ha="center", va="center")


def _arrow(axis: Axes, x: float, y: float) -> None:
    axis.add_patch(FancyArrowPatch((x, y), (x + 0.42, y), arrowstyle="-|>", mutation_scale=12, color=INK))


if __name__ == "__main__":
    write(Path(__file__).parent / "images")
