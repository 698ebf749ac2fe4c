"""Reading image and label files, with an error that names the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VOID = 255
"""The label of pixels that count in no loss and no measure."""
MOST_PIXELS = 1 << 29
"""Of an image that is read; one that claims to have more may be broken."""

# Grey PNG files of fewer than 8 bits: Pillow stretches their values to 0..255, which would scramble class indices.
_STRETCH = {"L;2": 85, "L;2R": 85, "L;4": 17, "L;4R": 17}


class DataError(ValueError):
    """A file or folder that cannot be trained on, with its name and what to do about it."""


def read_image(path: Path) -> Image.Image:
    """Reads an image as 8-bit RGB, turned upright as its EXIF orientation says.

    Raises:
        DataError: the file is unreadable, truncated or has 16 bits a channel.
    """
    image, rawmode = _open(path, "image")
    if _is_deep(image, rawmode):
        raise DataError(f"image {path} has more than 8 bits a channel ({image.mode}). Convert it to 8-bit RGB.")
    return image.convert("RGB")


def read_label(path: Path) -> np.ndarray:
    """Reads a label image of one class index a pixel (H, W) uint8, from a palette or grey image.

    Raises:
        DataError: the file is unreadable, truncated, a JPEG, in colour, has more than 8 bits a pixel, or they are
            stored in reverse.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"label {path} is a JPEG, which blurs class indices. Make it again as PNG from its source.")
    label, rawmode = _open(path, "label")
    if _is_deep(label, rawmode):
        raise DataError(
            f"label {path} has more than 8 bits a pixel ({label.mode}). Convert it to an 8-bit image of class indices."
        )
    if label.mode in ("LA", "PA"):
        raise DataError(f"label {path} has an alpha channel ({label.mode}). Convert it to grey or palette alone.")
    if label.mode not in ("1", "L", "P"):
        if path.suffix.lower() == ".webp":
            raise DataError(f"label {path} is a WebP, which holds colours only. Make it again as PNG from its source.")
        raise DataError(
            f"label {path} is a colour image ({label.mode}), not one of class indices. Convert it once with "
            "piecewise_training.dataset.labels_from_colours(array, colours), where colours lists the RGB of each "
            "class in order, and save the result as an 8-bit PNG."
        )
    if label.mode == "L" and "I" in rawmode.partition(";")[2]:
        raise DataError(
            f"label {path} stores its values reversed ({rawmode}), as TIFF files may whose white is zero. Convert it "
            "to an 8-bit PNG of class indices."
        )
    array = np.asarray(label, dtype=np.uint8)
    return array // _STRETCH[rawmode] if rawmode in _STRETCH else array


def check_label(path: Path, label: np.ndarray, size: tuple[int, int], num_classes: int | None) -> None:
    """Raises a DataError unless a label has its image's (height, width) and holds only classes and void."""
    if label.shape != size:
        raise DataError(
            f"label {path} is {label.shape[1]} x {label.shape[0]} pixels, its image {size[1]} x {size[0]}. "
            "Both must have the same size."
        )
    if num_classes is None:
        return
    wrong = np.unique(label[(label >= num_classes) & (label != VOID)])
    if wrong.size:
        raise DataError(
            f"label {path} holds the value {wrong[0]}{and_more(wrong)}, but classes go from 0 to {num_classes - 1}, "
            f"and {VOID} is void. Set num_classes to the number of classes, or map the value."
        )


def labels_from_colours(image: np.ndarray, colours: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Turns a colour-coded label image into class indices; colours that are not listed become void.

    Args:
        image: (H, W, 3) uint8.
        colours: the RGB of each class, 0 to 255, in the order of the classes; at most 255, each another.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, a colour is none or stands there twice, or there are over 255.

    Example:
        >>> labels_from_colours(np.array([[[0, 0, 0], [128, 0, 0], [9, 9, 9]]], np.uint8), [(0, 0, 0), (128, 0, 0)])
        array([[  0,   1, 255]], dtype=uint8)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"`image` must be (H, W, 3) uint8; got {image.shape} {image.dtype}.")
    if len(colours) > VOID:
        raise ValueError(f"`colours` must list at most {VOID} classes; got {len(colours)}.")
    try:
        table = np.asarray(colours)
    except ValueError:  # rows of unequal lengths
        table = np.empty(0)
    rows = table.ndim == 2 and table.shape[1] == 3 and len(table) > 0 and table.dtype.kind in "iu"
    if not rows or table.min() < 0 or table.max() > 255:
        raise ValueError(f"`colours` must be rows of red, green and blue, integers from 0 to 255; got {colours!r}.")
    places = np.array([1 << 16, 1 << 8, 1], np.uint32)
    packed, keys = image.astype(np.uint32) @ places, table.astype(np.uint32) @ places
    if len(np.unique(keys)) < len(keys):
        raise ValueError("`colours` lists a colour twice, which could be either class.")
    index = np.full(packed.shape, VOID, np.uint8)
    for k, key in enumerate(keys):
        index[packed == key] = k
    return index


def _open(path: Path, what: str) -> tuple[Image.Image, str]:
    """The decoded, upright image, and how the file stores a pixel, which Pillow forgets on decoding; "" if unknown.

    Pillow loses the orientation of TIFF files that it maps into memory, so it is given the bytes.
    """
    try:
        with _as_large_as_these(), Image.open(io.BytesIO(path.read_bytes())) as image:
            arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
            image.load()
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{what} {path} is no image that Pillow can read. Replace or remove it.") from error
    except Image.DecompressionBombError as error:
        most = f"{MOST_PIXELS / 1e6:.0f} megapixels"
        raise DataError(f"{what} {path} is broken, or larger than {most}. Replace it, or cut it into tiles.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{what} {path} is broken or cut short ({error}). Replace or remove it.") from error
    return upright, str(arguments[0] if isinstance(arguments, tuple) else arguments)


@contextmanager
def _as_large_as_these() -> Iterator[None]:
    """Pillow doubts images of 90 megapixels, and refuses larger ones; aerial images have more."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # it refuses those that have twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_deep(image: Image.Image, rawmode: str) -> bool:
    sixteen = ";16" in rawmode and not rawmode.startswith("BGR")  # BGR;16 is a BMP of 5 or 6 bits a channel
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or sixteen


def and_more(items: Sequence[object] | np.ndarray) -> str:
    """What follows the first of several in a sentence: how many there are besides."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
