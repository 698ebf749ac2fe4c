"""What the page computes, without the page: what is dropped on it, scores, and the CRF at the sliders' values."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import VOID, Classes, DataError, SyntheticDataset, files, normalise
from piecewise_training.figures import overlay
from piecewise_training.inference import scores_from_labels
from piecewise_training.model import PiecewiseTrainedModel

LONGEST = 1024  # pixels of an image's longer side: sliders should answer at once
MOST_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_CHANGED = np.array([217, 48, 37], np.uint8)


@dataclass(frozen=True, eq=False)  # compared and hashed as the object that it is
class Scene:
    """An image and the scores that the CRF refines.

    Attributes:
        image: (H, W, 3) uint8.
        scores: (K, H, W) float32.
        before: (H, W) labels without the CRF, void where nothing is known.
    """

    image: np.ndarray
    scores: np.ndarray
    before: np.ndarray


@dataclass(frozen=True)
class Refined:
    """What the CRF made of a scene.

    Attributes:
        before: the image under its labels without the CRF.
        after: the image under the CRF's labels.
        changed: the image in grey, in red where a label became another.
        share: of the pixels with a label that got another.
        void: share of pixels that had no label before.
        seconds: that the CRF took.
    """

    before: np.ndarray
    after: np.ndarray
    changed: np.ndarray
    share: float
    void: float
    seconds: float


def read_image(path: str | Path) -> np.ndarray:
    """An image of a file as (H, W, 3) uint8, upright, and no larger than the page can refine at once.

    Raises:
        ValueError: the file is no image, is cut short, is larger than 50 megapixels, or has more than 8 bits a channel.
    """
    _check(path, "a PNG or JPEG file that is whole")
    try:
        picture = files.read_image(Path(path))
    except DataError as error:
        raise ValueError(str(error).replace(f"image {path}", Path(path).name)) from error
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.array(picture)


def _check(path: str | Path, wanted: str) -> None:
    """Refuses what is no image of a usual format, as EPS, which would run programs, or too large to be worked on."""
    name = Path(path).name
    try:
        with Image.open(path, formats=_FORMATS) as image:
            size = image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be read as an image. Take {wanted}.") from error
    if math.prod(size) > MOST_PIXELS:
        raise ValueError(f"{name} has {size[0]} x {size[1]} pixels: at most 50 megapixels, please.")


def read_mask(path: str | Path, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """A mask of a file as labels (H, W) of an image's size.

    Raises:
        ValueError: the file is no image of class indices, is too large or of another shape, holds a value that is
            neither a class nor void, or no class at all.
    """
    name = Path(path).name
    _check(path, "a PNG of class indices")
    try:
        whole = files.read_label(Path(path))
    except DataError as error:
        raise ValueError(str(error).replace(f"label {path}", name)) from error
    if abs(whole.shape[0] * size[1] - whole.shape[1] * size[0]) > max(*whole.shape, *size):
        raise ValueError(f"{name} is {whole.shape[1]} x {whole.shape[0]}, the image {size[1]} x {size[0]}.")
    wrong = np.unique(whole[(whole >= num_classes) & (whole != VOID)])
    if wrong.size:
        found = ", ".join(map(str, wrong[:5])) + (f" and {wrong.size - 5} more" if wrong.size > 5 else "")
        raise ValueError(
            f"{name} holds the value{'s' if wrong.size > 1 else ''} {found}, but labels go from 0 to "
            f"{num_classes - 1}, and {VOID} is void. Map what is no label to {VOID}."
        )
    labels = np.array(Image.fromarray(whole).resize((size[1], size[0]), Image.Resampling.NEAREST))
    if (labels == VOID).all():
        raise ValueError(f"{name} holds no label from 0 to {num_classes - 1}.")
    return labels


def drawn_image(seed: int) -> np.ndarray:
    """A scene that the package draws itself."""
    return SyntheticDataset(1, (240, 320), seed=seed).read(0)[0]


def strokes(layer: np.ndarray, classes: Classes) -> np.ndarray:
    """Labels (H, W) of painted strokes (H, W, 4): the class of the nearest colour, void where nothing is painted."""
    colours = np.array(classes.colours, np.int32)
    distance = ((layer[..., None, :3].astype(np.int32) - colours) ** 2).sum(-1)
    return np.where(layer[..., 3] > 127, distance.argmin(-1), VOID).astype(np.uint8)


def scene_of_model(model: PiecewiseTrainedModel, image: np.ndarray) -> Scene:
    """An image with a model's scores."""
    pixels = normalise(torch.from_numpy(image).permute(2, 0, 1))[None].to(next(model.parameters()).device)
    with torch.inference_mode():
        nodes = model.score_nodes(pixels)
        contextual = model.contextual(pixels, nodes)
        scores = model.enlarged(nodes.scores, pixels) if contextual is None else contextual
    array = scores[0].float().cpu().numpy()
    return Scene(image, array, array.argmax(0).astype(np.uint8))


def scene_of_labels(image: np.ndarray, labels: np.ndarray, num_classes: int, confidence: float) -> Scene:
    """An image with labels that are trusted so far."""
    return Scene(image, scores_from_labels(labels, num_classes, confidence), labels)


def adjusted(crf: DenseCRF, values: Mapping[str, float], compatibility: float, iterations: int) -> DenseCRF:
    """A copy of a CRF with other bandwidths and weights, costs of labels times a factor, and so many updates.

    Values that are the CRF's own leave it as it is, to the last bit.
    """
    other = copy.deepcopy(crf).cpu().eval()
    other.num_iterations = iterations
    own = {name: float(value.detach()) for name, value in other.kernel_parameters().items()}
    with torch.no_grad():
        for name, value in values.items():
            wanted = max(1e-6, value * (compatibility if name.endswith("_w") else 1.0))
            if wanted != own[name]:
                getattr(other, f"log_{name}").copy_(torch.tensor(wanted).log())
    return other


def refine_scene(scene: Scene, crf: DenseCRF, classes: Classes) -> Refined:
    """Refines a scene and paints what changed."""
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    start = time.perf_counter()
    with torch.inference_mode():
        labels = crf(torch.from_numpy(scene.scores)[None], image)[0].argmax(0).numpy().astype(np.uint8)
    seconds = time.perf_counter() - start
    known = scene.before != VOID
    differs = known & (labels != scene.before)
    grey = scene.image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    return Refined(
        before=overlay(scene.image, scene.before, classes),
        after=overlay(scene.image, labels, classes),
        changed=np.where(differs[..., None], _CHANGED, grey // 2 + 96),
        share=float(differs.sum() / max(1, known.sum())),
        void=float(1 - known.mean()),
        seconds=seconds,
    )


def summary(refined: Refined) -> str:
    """A line of Markdown that tells what changed, and how much was void."""
    whose = "labelled pixels" if refined.void else "pixels"
    line = f"**{100 * refined.share:.1f} %** of the {whose} changed, in **{1000 * refined.seconds:.0f} ms**."
    return line + f" Void, **{100 * refined.void:.1f} %** of the image, was filled in." if refined.void else line


def warm_up(crf: DenseCRF, classes: Classes) -> None:
    """Refines a small scene, so that no answer's time is that of kernels that are compiled or loaded."""
    image = drawn_image(0)[:32, :48]
    labels = np.zeros(image.shape[:2], np.uint8)
    refine_scene(scene_of_labels(image, labels, len(classes), 0.9), adjusted(crf, {}, 1.0, 2), classes)
