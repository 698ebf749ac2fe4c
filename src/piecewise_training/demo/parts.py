"""What the page consists of: sliders, pictures, the legend, and how all of it looks."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import Classes
from piecewise_training.dataset.classes import Colour

MOST_SWATCHES = 40  # more would be a wall of names

# On a phone one column: what is given, then the pictures, then the sliders.
STYLE = """
#legend .html-container {padding: 0}
.swatches {display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 14px}
.swatches span {display: inline-flex; align-items: center; gap: 6px}
.swatches i {width: 14px; height: 14px; border: 1px solid #8888; border-radius: 3px}
@media (max-width: 700px) {
  #left {display: contents}
  #right {order: 1}
  #sliders {order: 2}
}
"""


def sliders(crf: DenseCRF) -> tuple[dict[str, Any], list[Any]]:
    """A slider for each bandwidth and weight, and those for the costs and the updates."""
    kernels = {}
    for name, value in crf.kernel_parameters().items():
        start = float(value.detach())
        label, lowest, highest, step = _range(name)
        bounds = min(lowest, start), max(highest, round(2 * start))
        kernels[name] = slider(*bounds, start, step, label, f"slider_{name}")
    most = max(20, crf.num_iterations)
    others = [
        slider(0, 3, 1, 0.05, "compatibility, times", "compatibility"),
        slider(0, most, crf.num_iterations, 1, "iterations", "iterations"),
    ]
    return kernels, others


def slider(lowest: float, highest: float, start: float, step: float, label: str, name: str) -> Any:
    """A slider that shows `start` to two decimals and means all of it until it is moved, or its number box emptied.

    A number out of range is cut.
    """
    shown = round(start, 2)
    made = gr.Slider(lowest, highest, shown, step=step, label=label, elem_id=name)
    # Gradio's own fails on such numbers, with a traceback in the terminal. A subclass would be the usual way, but
    # Gradio writes a .pyi file beside the source of each.
    made.preprocess = lambda number: start if number in (None, shown) else min(max(number, lowest), highest)
    return made


def picture(label: str, name: str) -> Any:
    """A picture, wide enough for its label beside its buttons."""
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, interactive=False, format="png", buttons=buttons, min_width=240, elem_id=name)


def legend(classes: Classes, numbered: bool) -> Any:
    """Which colour is which label, for at most 40 labels, with their indices if they are wanted."""
    pairs = list(zip(classes.colours, classes.names, strict=True))[:MOST_SWATCHES]
    swatches = [
        f'<span><i style="background: {hexadecimal(colour)}"></i>{f"{index} " if numbered else ""}{escape(name)}</span>'
        for index, (colour, name) in enumerate(pairs)
    ]
    if len(classes) > MOST_SWATCHES:
        swatches.append(f"<span>and {len(classes) - MOST_SWATCHES} more</span>")
    return gr.HTML(f'<div class="swatches">{"".join(swatches)}</div>', elem_id="legend")


def theme() -> Any:
    """Gradio's own without fonts that would be fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def hexadecimal(colour: Colour) -> str:
    """A colour as browsers write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _range(name: str) -> tuple[str, float, float, float]:
    """Of a parameter: what the slider is called, from where to where it goes, and in what steps."""
    kernel, _, part = name.partition("_")
    if part == "w":
        return f"{kernel}: weight", 0.0, 20.0, 0.05
    if part == "xy_std":
        return f"{kernel}: px", 0.5, 120.0, 0.5
    return f"{kernel}: grey levels", 1.0, 60.0, 0.5
