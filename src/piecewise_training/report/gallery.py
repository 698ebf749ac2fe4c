"""The images that a report shows: the best, the median and the worst, with what was made of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from piecewise_training.dataset import VOID, Classes
from piecewise_training.figures import paint
from piecewise_training.inference import Prediction
from piecewise_training.writing import atomic_write

FOLDER = "report_pictures"
_LONGEST = 560  # pixels of a picture's longer side: nine rows of them fit a page that can be sent by mail
_BYTES = 3 << 20  # of all pictures, which the page holds as text, a third longer
_OURS = re.compile(r"\d+_(best|median|worst)_(image|truth|unary|crf|prediction|errors)\.(jpg|png)")
# Right before and after, mended by the CRF, spoilt by it, wrong before and after, void.
_ERRORS = np.array([(232, 236, 240), (46, 125, 50), (217, 115, 13), (160, 32, 40), (255, 255, 255)], np.uint8)


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        name: of the image.
        rank: "best", "median" or "worst", by mIoU after the CRF.
        before: mIoU of the network alone on it; None where that is the last prediction.
        after: mIoU of the last prediction on it.
        pictures: by title, the files in the run's folder.
    """

    name: str
    rank: str
    before: float | None
    after: float
    pictures: dict[str, str]

    def __post_init__(self) -> None:
        """Refuses other files than a gallery's: the page holds what it shows, and may be sent to somebody."""
        for file in self.pictures.values():
            folder, _, name = file.partition("/")
            if folder != FOLDER or not _OURS.fullmatch(name):
                raise ValueError(f"{file} is no picture that a run has drawn")


def choose(scores: Sequence[float], each: int = 3) -> list[tuple[str, int]]:
    """Ranks and places of the best, the median and the worst images; each image at most once.

    Example:
        >>> choose([0.5, 0.9, 0.1], each=1)
        [('best', 1), ('median', 0), ('worst', 2)]
    """
    order = sorted((place for place, score in enumerate(scores) if score == score), key=lambda place: -scores[place])
    each = max(1, min(each, len(order) // 3))
    middle = max(0, (len(order) + 1) // 2 - (each + 1) // 2)
    groups = {"best": order[:each], "worst": order[-each:], "median": order[middle : middle + each]}
    taken: dict[int, str] = {}
    for rank, places in groups.items():
        for place in places:
            taken.setdefault(place, rank)
    by_rank = {rank: [place for place in order if taken.get(place) == rank] for rank in ("best", "median", "worst")}
    return [(rank, place) for rank, places in by_rank.items() for place in places]


def write_gallery(
    folder: Path,
    names: Sequence[str],
    before: Sequence[float] | None,
    after: Sequence[float],
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    predict: Callable[[np.ndarray], Prediction],
    classes: Classes,
) -> list[Shown]:
    """Writes the pictures of the best, the median and the worst images into the run's folder.

    All of them are there before the first is written: what fails or is interrupted leaves those of an earlier time.

    Args:
        folder: of the run; the pictures of an earlier time are replaced, and other files beside them are left alone.
        names: of all images.
        before: mIoU of the network alone on each; None where that is the last prediction, and nothing is compared.
        after: mIoU of the last prediction on each.
        read: gives an image (H, W, 3) uint8 and its true labels (H, W) by its place.
        predict: gives what a model says of an image.
        classes: names and colours.
    """
    gallery = []
    drawn: dict[str, np.ndarray] = {}
    for number, (rank, place) in enumerate(choose(after), 1):
        image, truth = read(place)
        files = {}
        for title, picture in _pictures(image, truth, predict(image), classes, before is not None).items():
            files[title] = f"{FOLDER}/{number}_{rank}_{title.lower()}.{'jpg' if title == 'image' else 'png'}"
            drawn[files[title]] = picture
        gallery.append(Shown(names[place], rank, None if before is None else before[place], after[place], files))
    _replace(folder, _encoded(drawn))
    return gallery


def remove_pictures(folder: Path) -> None:
    """Removes what a gallery has left in a run's folder, which is known by its names; others' files stay."""
    target = folder / FOLDER
    if target.is_symlink():
        target.unlink()  # the link alone: what it leads to is somebody's
    if not target.is_dir():
        return
    for picture in target.iterdir():
        if _OURS.fullmatch(picture.name):
            picture.unlink()
    with suppress(OSError):  # not empty
        target.rmdir()


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts pictures in the place of those of an earlier time."""
    remove_pictures(folder)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def _pictures(
    image: np.ndarray, truth: np.ndarray, prediction: Prediction, classes: Classes, compared: bool
) -> dict[str, np.ndarray]:
    """What is shown of an image, by title; compared, also what the network alone makes of it."""
    last = prediction.labels
    first = prediction.unary_labels if compared else last
    labels = {"unary": first, "CRF": last} if compared else {"prediction": last}
    painted = {title: paint(picture, classes) for title, picture in {"truth": truth, **labels}.items()}
    return {"image": image, **painted, "errors": error_map(truth, first, last)}


def error_map(truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where labels are wrong, as RGB (H, W, 3): mended green, spoilt orange, wrong before and after red.

    Example:
        >>> truth = np.array([[0, 0, 0, 0, 255]], np.uint8)
        >>> before, after = np.array([[0, 1, 0, 1, 0]]), np.array([[0, 0, 1, 1, 0]])
        >>> error_map(truth, before, after)[0, 1].tolist()
        [46, 125, 50]
    """
    kind = 2 * (after != truth) + (before != truth)  # 0 right, 1 mended, 2 spoilt, 3 wrong
    return _ERRORS[np.where(truth == VOID, 4, kind)]


def _encoded(pictures: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Pictures as files, which are made smaller until all of them together fit into a page."""
    longest = _LONGEST
    while True:
        files = {name: _encode(picture, longest, smooth=name.endswith("jpg")) for name, picture in pictures.items()}
        if sum(map(len, files.values())) <= _BYTES or longest < 100:
            return files
        longest = longest * 4 // 5


def _encode(picture: np.ndarray, longest: int, *, smooth: bool) -> bytes:
    image = Image.fromarray(picture)
    factor = min(1.0, longest / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if smooth:
        image.save(buffer, "JPEG", quality=82)
    else:
        _with_palette(np.array(image)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _with_palette(picture: np.ndarray) -> Image.Image:
    """A picture of at most 256 colours as numbers of colours, a third as large."""
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, numbers = np.unique(packed, return_inverse=True)
    image = Image.fromarray(numbers.reshape(packed.shape).astype(np.uint8), "P")
    image.putpalette([int(c) >> shift & 255 for c in colours for shift in (16, 8, 0)])
    return image
