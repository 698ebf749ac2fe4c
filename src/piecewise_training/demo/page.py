"""The page itself, in Gradio: what lies where, and what follows from what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import VOID, Classes
from piecewise_training.demo import refining
from piecewise_training.demo.refining import Scene
from piecewise_training.model import PiecewiseTrainedModel

LARGEST_FILE = "20mb"
_STROKES = Classes(
    ("blue", "orange", "green", "purple", "red", "yellow"),
    ((31, 111, 235), (217, 115, 13), (46, 125, 50), (154, 63, 181), (200, 40, 40), (240, 200, 40)),
)
_FONT = ["system-ui", "sans-serif"]  # not the theme's, which would be fetched
_SEEDS = itertools.count()


def build_page(model: PiecewiseTrainedModel | None = None) -> Any:
    """The page for a model, or without one for strokes and masks; a `gradio.Blocks` to be launched.

    Args:
        model: with a dense CRF, whose parameters are where the sliders start.

    Raises:
        ValueError: the model has no dense CRF.
    """
    if model is not None and model.crf is None:
        raise ValueError("the model has no dense CRF whose sliders could be moved.")
    crf = _gentle(len(_STROKES)) if model is None or model.crf is None else model.crf
    classes = _STROKES if model is None else model.classes
    forgotten = (600, 3600)  # every ten minutes the files of the last hour but one
    with gr.Blocks(title="piecewise-training", analytics_enabled=False, delete_cache=forgotten) as page:
        gr.Markdown("## A dense CRF at work\n" + (_WITHOUT_MODEL if model is None else _WITH_MODEL))
        scene = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="An image: drop it here", file_count="single", type="filepath", height=150)
                example = gr.Button("Draw an example")
                sliders, others = _sliders(crf)
            with gr.Column(scale=2):
                if model is None:
                    _labels_source(scene, upload, example)
                with gr.Row():
                    before, after = _picture("without the CRF", "before"), _picture("with the CRF", "after")
                with gr.Row():
                    changed = _picture("changed pixels", "changed")
                    told = gr.Markdown("", elem_id="told")
        controls = [*sliders.values(), *others]

        def show(current: Scene | None, *values: float) -> tuple[Any, ...]:
            if current is None:
                return None, None, None, ""
            named = dict(zip(sliders, values, strict=False))
            compatibility, iterations = values[len(sliders) :]
            refined = refining.refine_scene(
                current, refining.adjusted(crf, named, compatibility, int(iterations)), classes
            )
            text = f"**{100 * refined.share:.1f} %** of the pixels changed, in **{1000 * refined.seconds:.0f} ms**."
            return refined.before, refined.after, refined.changed, text

        outputs = [before, after, changed, told]
        for control in controls:
            control.change(show, [scene, *controls], outputs, trigger_mode="always_last", show_progress="hidden")
        scene.change(show, [scene, *controls], outputs, show_progress="hidden")
        if model is not None:

            def score(image: np.ndarray) -> Scene:
                return refining.scene_of_model(model, image)

            upload.upload(_told(lambda path: score(refining.read_image(path))), upload, scene)
            example.click(lambda: score(refining.drawn_image(next(_SEEDS))), None, scene)
    return page


_WITH_MODEL = "Drop an image, or have one drawn, and move the sliders."
_WITHOUT_MODEL = (
    "Drop an image, or have one drawn; paint a few strokes in the colours of the labels, or drop a mask of class "
    "indices; and move the sliders."
)


def _labels_source(scene: Any, upload: Any, example: Any) -> None:
    """Where labels come from without a model: strokes on the image, or a mask."""
    image = gr.State()
    editor = gr.ImageEditor(
        label="strokes",
        type="numpy",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=8, colors=[_hex(colour) for colour in _STROKES.colours], color_mode="fixed"),
        elem_id="strokes",
    )
    with gr.Row():
        mask = gr.File(label="or a mask: drop it here", file_count="single", type="filepath", height=150)
        confidence = gr.Slider(0.5, 0.99, 0.9, step=0.01, label="how far strokes or mask are trusted")

    def start(picture: np.ndarray) -> tuple[Any, ...]:
        opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        return picture, {"background": opaque, "layers": [], "composite": opaque}, None, None

    def paint(drawn: dict[str, Any] | None, picture: np.ndarray | None, trust: float) -> Scene | None:
        if picture is None or not drawn or not drawn.get("layers"):
            return None
        labels = refining.strokes(drawn["layers"][0], _STROKES)
        if labels.shape != picture.shape[:2] or (labels == VOID).all():
            return None
        return refining.scene_of_labels(picture, labels, len(_STROKES), trust)

    def drop(path: str, picture: np.ndarray | None, trust: float) -> Scene:
        if picture is None:
            raise ValueError("An image first, then its mask.")
        labels = refining.read_mask(path, picture.shape[:2], len(_STROKES))
        return refining.scene_of_labels(picture, labels, len(_STROKES), trust)

    started = [image, editor, mask, scene]
    upload.upload(_told(lambda path: start(refining.read_image(path))), upload, started)
    example.click(lambda: start(refining.drawn_image(next(_SEEDS))), None, started)
    editor.change(paint, [editor, image, confidence], scene, show_progress="hidden")
    mask.upload(_told(drop), [mask, image, confidence], scene)

    def trust_anew(path: str | None, drawn: dict[str, Any] | None, *rest: Any) -> Scene | None:
        return drop(path, *rest) if path else paint(drawn, *rest)

    given = [mask, editor, image, confidence]
    confidence.change(_told(trust_anew), given, scene, trigger_mode="always_last", show_progress="hidden")


def _sliders(crf: DenseCRF) -> tuple[dict[str, Any], list[Any]]:
    """A slider for each bandwidth and weight, and those for the costs and the updates."""
    sliders = {}
    for name, value in crf.kernel_parameters().items():
        start = float(value.detach())
        label, lowest, highest, step = _range(name)
        bounds = min(lowest, start), max(highest, round(2 * start))
        sliders[name] = gr.Slider(*bounds, round(start, 2), step=step, label=label, elem_id=f"slider_{name}")
    compatibility = gr.Slider(0, 3, 1, step=0.05, label="compatibility, times", elem_id="compatibility")
    iterations = gr.Slider(
        0, max(20, crf.num_iterations), crf.num_iterations, step=1, label="iterations", elem_id="iterations"
    )
    return sliders, [compatibility, iterations]


def _picture(label: str, name: str) -> Any:
    return gr.Image(label=label, interactive=False, format="png", buttons=["download", "fullscreen"], elem_id=name)


def _range(name: str) -> tuple[str, float, float, float]:
    """Of a parameter: what the slider is called, from where to where it goes, and in what steps."""
    kernel, _, part = name.partition("_")
    if part == "w":
        return f"{kernel}: weight", 0.0, 20.0, 0.05
    if part == "xy_std":
        return f"{kernel}: px", 0.5, 120.0, 0.5
    return f"{kernel}: grey levels", 1.0, 60.0, 0.5


def _gentle(num_classes: int) -> DenseCRF:
    """The CRF that strokes begin with: the usual default would wash thin things away."""
    return DenseCRF(num_classes, 10, 2.0, 2.0, 40.0, 8.0, 8.0, compatibility="potts")


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows the page's user what is wrong with what they gave."""

    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), duration=10, print_exception=False) from error

    return wrapped


def theme() -> Any:
    """Gradio's own without fonts that would be fetched."""
    return gr.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"])


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
