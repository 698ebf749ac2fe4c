"""Reading image and label files, with an error that names the file."""

from __future__ import annotations

import errno
import io
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VOID = 255
"""The label of pixels that count in no loss and no measure."""
MOST_PIXELS = 1 << 29
"""Of an image that is read; one that claims to have more may be broken."""

# Grey PNG files of fewer than 8 bits: Pillow stretches their values to 0..255, which would scramble class indices.
_STRETCH = {"L;2": 85, "L;2R": 85, "L;4": 17, "L;4R": 17}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (
    "If the image's EXIF data turn it on its side, and the label's do not, turn the label as well, or save the image "
    "again without them as it is stored."
)
_PILLOWS_LIMIT = threading.Lock()
_FILES = "Raise the limit (`ulimit -n`) or lower the number of workers."
_REMEDIES = {
    errno.EACCES: "Give yourself the right to read it.",
    errno.EPERM: "Give yourself the right to read it.",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
}


class DataError(ValueError):
    """A file or folder that cannot be trained on, with its name and what to do about it."""


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file, upright, and what Pillow forgets of how the file stores them.

    Attributes:
        path: of the file.
        image: turned as the file's EXIF orientation says.
        rawmode: how the file stores a pixel; "" if unknown.
        unfit: why the file cannot hold class indices, whatever its name: "is a JPEG, which ..."; "" if it can.
        orientation: the file's EXIF orientation, 1 for upright.
    """

    path: Path
    image: Image.Image
    rawmode: str
    unfit: str
    orientation: int


def read_image(path: Path) -> Image.Image:
    """Reads an image as 8-bit RGB, turned upright as its EXIF orientation says.

    Raises:
        DataError: the file is unreadable, truncated or has 16 bits a channel.
    """
    return rgb(decode(path, "image"))


def read_label(path: Path) -> np.ndarray:
    """Reads a label image of one class index a pixel (H, W) uint8, from a palette or grey image.

    Raises:
        DataError: the file is unreadable, truncated, a JPEG whatever its name, in colour, has more than 8 bits a
            pixel, or they are stored in reverse.
    """
    return indices(decode(path, "label"))


def rgb(decoded: Decoded) -> Image.Image:
    """An image's pixels as 8-bit RGB.

    Raises:
        DataError: it has 16 bits a channel.
    """
    image = decoded.image
    if _is_deep(image, decoded.rawmode):
        raise DataError(f"image {decoded.path} has more than 8 bits a channel ({image.mode}). Convert it to 8-bit RGB.")
    return image.convert("RGB")


def indices(decoded: Decoded) -> np.ndarray:
    """A label's class indices (H, W) uint8.

    Raises:
        DataError: it is a JPEG, in colour, has more than 8 bits a pixel, or they are stored in reverse.
    """
    path, label, rawmode = decoded.path, decoded.image, decoded.rawmode
    if _is_deep(label, rawmode):
        raise DataError(
            f"label {path} has more than 8 bits a pixel ({label.mode}). Convert it to an 8-bit image of class indices."
        )
    if decoded.unfit:
        raise DataError(f"label {path} {decoded.unfit}. Make it again as PNG from its source.")
    if label.mode in ("LA", "PA"):
        raise DataError(f"label {path} has an alpha channel ({label.mode}). Convert it to grey or palette alone.")
    if label.mode not in ("1", "L", "P"):
        raise DataError(
            f"label {path} is a colour image ({label.mode}), not one of class indices. Convert it once with "
            "piecewise_training.dataset.labels_from_colours(array, colours), where colours lists the RGB of each "
            "class in order, and save the result as an 8-bit PNG."
        )
    if label.mode in ("1", "L") and "I" in rawmode.partition(";")[2]:
        raise DataError(
            f"label {path} stores its values reversed ({rawmode}), as TIFF files may whose white is zero. Convert it "
            "to an 8-bit PNG of class indices."
        )
    array = np.asarray(label, dtype=np.uint8)
    return array // _STRETCH[rawmode] if rawmode in _STRETCH else array


def decode(path: Path, what: str) -> Decoded:
    """Reads a file's pixels.

    Args:
        path: of the file.
        what: errors call it: "image" or "label".

    Raises:
        DataError: the file is missing, cannot be read, is no image, or broken.
    """
    data = io.BytesIO(_bytes(path, what))  # Pillow loses the orientation of TIFF files that it maps into memory
    try:
        with _large_images() as limit:
            image = Image.open(data)
        with image, _large_images() if limit and image.width * image.height > limit else nullcontext():
            arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
            rawmode = str(arguments[0] if isinstance(arguments, tuple) else arguments)
            unfit, orientation = _unfit(image), _orientation(image)
            image.load()  # which turns a TIFF, and looks at its size again
            turn = _TURNS.get(_orientation(image))
            return Decoded(path, image.copy() if turn is None else image.transpose(turn), rawmode, unfit, orientation)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{what} {path} is no image that Pillow can read. Replace or remove it.") from error
    except Image.DecompressionBombError as error:
        most = f"{MOST_PIXELS / 1e6:.0f} megapixels"
        raise DataError(f"{what} {path} is broken, or larger than {most}. Replace it, or cut it into tiles.") from error
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        raise DataError(f"{what} {path} is broken or cut short ({error}). Replace or remove it.") from error


def check_label(path: Path, label: np.ndarray, size: tuple[int, int], num_classes: int | None) -> None:
    """Raises a DataError unless a label has its image's (height, width) and holds only classes and void."""
    if label.shape != size:
        turned = label.shape == size[::-1]
        raise DataError(
            f"label {path} is {label.shape[1]} x {label.shape[0]} pixels, its image {size[1]} x {size[0]}. "
            + (_TURNED if turned else "Both must have the same size.")
        )
    if num_classes is None:
        return
    wrong = np.unique(label[(label >= num_classes) & (label != VOID)])
    if wrong.size:
        raise DataError(
            f"label {path} holds the value {wrong[0]}{and_more(wrong)}, but classes go from 0 to {num_classes - 1}, "
            f"and {VOID} is void. Set num_classes to the number of classes, or write {VOID} where the value means void."
        )


def label_table(label_map: Mapping[int, int] | np.ndarray) -> np.ndarray:
    """A class for each of the 256 values of a label image; values that a mapping lacks stay as they are.

    Raises:
        ValueError: a value or class is not from 0 to 255, or an array does not have 256 of them.

    Example:
        >>> label_table({0: 255, 1: 0})[:4]
        array([255,   0,   2,   3], dtype=uint8)
    """
    wanted = "`label_map` must give values from 0 to 255 such classes, {0: 255, 1: 0} say"
    if not isinstance(label_map, Mapping) and np.shape(label_map) != (256,):
        raise ValueError(f"{wanted}, or all 256 of them; got an array of shape {np.shape(label_map)}.")
    entries = dict(label_map.items() if isinstance(label_map, Mapping) else enumerate(label_map))
    wrong = [n for n in (*entries, *entries.values()) if not isinstance(n, int | np.integer) or not 0 <= n <= 255]
    if wrong:
        raise ValueError(f"{wanted}; got {wrong[0]}.")
    table = np.arange(256, dtype=np.uint8)
    table[list(entries)] = list(entries.values())
    return table


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


def _bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        if is_broken_link(path):
            raise DataError(broken_link(path, what)) from error
        raise DataError(f"{what} {path} does not exist.") from error
    except OSError as error:  # nothing is known against the file itself, which must not be thrown away
        remedy = _REMEDIES.get(error.errno or 0, "Look after the disk or the network that it lies on, and try again.")
        raise DataError(f"{what} {path} could not be read: {error.strerror or error}. {remedy}") from error


def is_broken_link(path: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def broken_link(path: Path, what: str) -> str:
    """The sentence on a link that leads nowhere."""
    return f"{what} {path} is a link to {path.readlink()}, which does not exist. Mend or remove it."


@contextmanager
def _large_images() -> Iterator[int | None]:
    """Pillow doubts images of 90 megapixels, and refuses larger ones; aerial images have more.

    Its limit, which is given, and Python's warnings are those of the whole process: one thread at a time changes them,
    for as long as a header is read, or the whole of an image that is so large.
    """
    with _PILLOWS_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # it refuses those that have twice as many
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _unfit(image: Image.Image) -> str:
    if image.format in ("JPEG", "MPO"):
        return "is a JPEG, which blurs class indices"
    if image.format == "WEBP":
        return "is a WebP, which holds colours only"
    inside = image.info.get("compression") in ("jpeg", "tiff_jpeg")
    return "is compressed as JPEG, which blurs class indices" if inside else ""


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; `ImageOps.exif_transpose` would also write the EXIF data again, which may not be possible.

    Some of it is read on demand only, so that odd data may fail here.
    """
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in _TURNS else 1


def _is_deep(image: Image.Image, rawmode: str) -> bool:
    sixteen = ";16" in rawmode and not rawmode.startswith("BGR")  # BGR;16 is a BMP of 5 or 6 bits a channel
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or sixteen


def and_more(items: Sequence[object] | np.ndarray) -> str:
    """What follows the first of several in a sentence: how many there are besides."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
