"""The page itself, in Gradio: what lies where, and what follows from what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import VOID, Classes
from piecewise_training.demo import parts, refining
from piecewise_training.demo.refining import Scene
from piecewise_training.model import PiecewiseTrainedModel

LARGEST_FILE = "20mb"
_STROKES = Classes(
    ("blue", "orange", "green", "purple", "red", "yellow"),
    ((31, 111, 235), (217, 115, 13), (46, 125, 50), (154, 63, 181), (200, 40, 40), (240, 200, 40)),
)
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
    refining.warm_up(crf, classes)
    forgotten = (600, 3600)  # every ten minutes the files of the last hour but one
    with gr.Blocks(title="piecewise-training", analytics_enabled=False, delete_cache=forgotten) as page:
        gr.Markdown("## A dense CRF at work\n" + (_WITHOUT_MODEL if model is None else _WITH_MODEL))
        scene = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="left"):
                upload = gr.File(label="An image: drop it here", file_count="single", height=150, elem_id="upload")
                example = gr.Button("Draw an example")
                with gr.Column(elem_id="sliders"):
                    sliders, others = parts.sliders(crf)
            with gr.Column(scale=2, elem_id="right"):
                if model is None:
                    _labels_source(scene, upload, example)
                else:
                    _image_source(model, scene, upload, example)
                pictures, told = _pictures(classes, with_image=model is not None)
        controls = [*sliders.values(), *others]

        def show(current: Scene | None, *values: float) -> tuple[Any, ...]:
            if current is None:
                return *(None for _ in pictures), ""
            named = dict(zip(sliders, values, strict=False))
            compatibility, iterations = values[len(sliders) :]
            refined = refining.refine_scene(
                current, refining.adjusted(crf, named, compatibility, int(iterations)), classes
            )
            shown = {"image": current.image, "before": refined.before, "after": refined.after}
            shown["changed"] = refined.changed
            return *(shown[name] for name in pictures), refining.summary(refined)

        outputs = [*pictures.values(), told]
        for control in controls:
            control.change(show, [scene, *controls], outputs, trigger_mode="always_last", show_progress="hidden")
        scene.change(show, [scene, *controls], outputs, show_progress="hidden")
    return page


_WITH_MODEL = "Drop an image, or have one drawn, and move the sliders."
_WITHOUT_MODEL = (
    "Drop an image, or have one drawn; paint a few strokes in the colours of the labels, or drop a mask of class "
    "indices; and move the sliders."
)


def _image_source(model: PiecewiseTrainedModel, scene: Any, upload: Any, example: Any) -> None:
    """With a model an image is all that it takes."""

    def start(picture: np.ndarray | None, file: Any = None) -> tuple[Any, ...]:
        return (None, None) if picture is None else (file, refining.scene_of_model(model, picture))

    _starts(start, upload, example, [upload, scene])


def _labels_source(scene: Any, upload: Any, example: Any) -> None:
    """Where labels come from without a model: strokes on the image, or a mask."""
    image = gr.State()
    colours = [parts.hexadecimal(colour) for colour in _STROKES.colours]
    editor = gr.ImageEditor(
        label="strokes",
        type="numpy",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=8, colors=colours, color_mode="fixed"),
        elem_id="strokes",
    )
    parts.legend(_STROKES, numbered=True)
    with gr.Row():
        indices = f"or a mask: 0 to {len(_STROKES) - 1}, and {VOID} for void"
        mask = gr.File(label=indices, file_count="single", type="filepath", height=150, min_width=240, elem_id="mask")
        with gr.Column(min_width=240):
            confidence = parts.slider(0.5, 0.99, 0.9, 0.01, "how far strokes or mask are trusted", "confidence")

    def start(picture: np.ndarray | None, file: Any = None) -> tuple[Any, ...]:
        if picture is None:
            return None, None, None, None, None
        opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        return file, picture, {"background": opaque, "layers": [], "composite": opaque}, None, None

    def label(path: str | None, drawn: dict[str, Any] | None, *rest: Any) -> tuple[Any, Scene | None]:
        """The mask's scene if there is a mask that can be read, else that of the strokes."""
        labels = None if path is None else _told(_mask, path, rest[0])
        if labels is None:
            return None, _scene(_painted(drawn, rest[0]), *rest)
        return gr.skip(), _scene(labels, *rest)

    def paint(path: str | None, drawn: dict[str, Any] | None, *rest: Any) -> tuple[Any, Any]:
        """The strokes' scene, which takes a mask's place; the canvas also changes when there is none."""
        labels = _painted(drawn, rest[0])
        return (gr.skip(), gr.skip()) if labels is None and path is not None else (None, _scene(labels, *rest))

    _starts(start, upload, example, [upload, image, editor, mask, scene])
    given = [mask, editor, image, confidence]
    editor.change(paint, given, [mask, scene], show_progress="hidden")
    mask.upload(label, given, [mask, scene])
    mask.clear(label, given, [mask, scene])
    confidence.change(label, given, [mask, scene], trigger_mode="always_last", show_progress="hidden")


def _mask(path: str, picture: np.ndarray | None) -> np.ndarray:
    if picture is None:
        raise ValueError("An image first, then its mask.")
    return refining.read_mask(path, picture.shape[:2], len(_STROKES))


def _painted(drawn: dict[str, Any] | None, picture: np.ndarray | None) -> np.ndarray | None:
    """The labels (H, W) of the canvas's strokes, if there are any."""
    if picture is None or not drawn or not drawn.get("layers"):
        return None
    labels = refining.strokes(drawn["layers"][0], _STROKES)
    return None if labels.shape != picture.shape[:2] or (labels == VOID).all() else labels


def _scene(labels: np.ndarray | None, picture: np.ndarray, trust: float) -> Scene | None:
    return None if labels is None else refining.scene_of_labels(picture, labels, len(_STROKES), trust)


def _pictures(classes: Classes, with_image: bool) -> tuple[dict[str, Any], Any]:
    """The pictures by name, and the line that tells what changed: strokes already lie on their image."""
    before, after, changed = "without the CRF", "with the CRF", "changed pixels"
    if with_image:
        with gr.Row():
            pictures = {"image": parts.picture("the image", "image"), "changed": parts.picture(changed, "changed")}
        with gr.Row():
            pictures |= {"before": parts.picture(before, "before"), "after": parts.picture(after, "after")}
        told = gr.Markdown("", elem_id="told")
        parts.legend(classes, numbered=False)
    else:
        with gr.Row():
            pictures = {"before": parts.picture(before, "before"), "after": parts.picture(after, "after")}
        with gr.Row():
            pictures["changed"] = parts.picture(changed, "changed")
            with gr.Column(min_width=240):
                told = gr.Markdown("", elem_id="told")
    return pictures, told


def _gentle(num_classes: int) -> DenseCRF:
    """The CRF that strokes begin with: the usual default would wash thin things away."""
    return DenseCRF(num_classes, 10, 2.0, 2.0, 40.0, 8.0, 8.0, compatibility="potts")


def _starts(start: Callable[..., tuple[Any, ...]], upload: Any, example: Any, outputs: list[Any]) -> None:
    """What begins anew: an image that is dropped or drawn, and one that is taken away or cannot be read.

    Args:
        start: from an image, or None, and from what the file box becomes, to the outputs, of which it is the first.
        upload: the file box.
        example: the button that draws.
        outputs: what an image changes.
    """
    upload.upload(lambda path: start(_told(refining.read_image, path), gr.skip()), upload, outputs)
    upload.clear(lambda: start(None), None, outputs)
    example.click(lambda: start(refining.drawn_image(next(_SEEDS))), None, outputs)


def _told(read: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray | None:
    """What is read, or None after a message on the page: an error would also leave a badge on every output."""
    try:
        return read(*arguments)
    except ValueError as error:
        gr.Warning(escape(str(error), quote=False), duration=20)
        return None
