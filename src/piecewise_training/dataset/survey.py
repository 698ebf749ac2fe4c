"""Reads every pair of a folder and says what is in it and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from piecewise_training.dataset import camvid, cityscapes, voc
from piecewise_training.dataset.files import VOID, DataError, check_label, decode, indices, rgb
from piecewise_training.dataset.pairing import Pair, match_by_stem, read_names
from piecewise_training.dataset.remarks import Palettes, Turns

FOLDERS = (("images", "labels"), ("JPEGImages", "SegmentationClass"))
_ALL = "all"  # what the split of such a folder is called


@dataclass(frozen=True)
class Part:
    """The pairs of one split as found on disk, before any file is opened.

    Attributes:
        name: the split.
        pairs: images with their labels.
        faults: a sentence for each file without a partner.
        label_map: 256 values by which those of the labels are replaced, if any.
        num_classes: how many classes the layout has, if it says so.
    """

    name: str
    pairs: Sequence[Pair]
    faults: Sequence[str] = ()
    label_map: np.ndarray | None = None
    num_classes: int | None = None


@dataclass
class Survey:
    """What reading a part found.

    Attributes:
        name: the split.
        pairs: number of pairs.
        sizes: how many images have each (height, width).
        pixels: number of label pixels of each value, 256 of them.
        faults: a sentence that names the file, for each fault.
        remarks: a sentence for each thing that may be wrong.
        num_classes: how many classes there should be, if that is known.
    """

    name: str
    pairs: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    num_classes: int | None = None

    @property
    def classes(self) -> list[int]:
        """The class indices that occur."""
        return [int(k) for k in np.flatnonzero(self.pixels) if k != VOID]

    @property
    def absent(self) -> list[int]:
        """The class indices below the number of classes that do not occur; none where there is no label at all."""
        return [k for k in range(self.num_classes or 0) if not self.pixels[k]] if self.pixels.any() else []

    def frequency(self, k: int) -> float:
        """Share of class k among the pixels that are not void."""
        return float(self.pixels[k] / max(1, self.pixels[:VOID].sum()))

    @property
    def void_share(self) -> float:
        """Share of void among all pixels."""
        return float(self.pixels[VOID] / max(1, self.pixels.sum()))


def find_parts(root: Path, label_suffix: str = "", label_map: np.ndarray | None = None) -> list[Part]:
    """Recognises the layout of a folder: VOC, Cityscapes, the SegNet tutorial's CamVid, or images/ and labels/.

    Args:
        root: the folder.
        label_suffix: what a label's name has behind its image's, in images/ and labels/ or in the folder itself.
        label_map: what the values of labels there are replaced by.

    Raises:
        DataError: the folder does not exist, has none of these layouts, or one whose labels these two are not for.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder.")
    parts = _known_layout(root)
    if parts and (label_suffix or label_map is not None):
        raise DataError(f"`label_suffix` and `label_map` are for images/ and labels/, and {root} has another layout.")
    if parts:
        return parts
    folder = _voc_folder(root)
    for images, labels in (*FOLDERS, *([(".", ".")] if label_suffix else ())):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return [_part(_ALL, partial(_folder_part, folder / images, folder / labels, label_suffix, label_map))]
    raise DataError(
        f"{root} has no layout that is known: images/ and labels/ of the same names, VOC (JPEGImages, "
        "SegmentationClass, ImageSets), Cityscapes (leftImg8bit, gtFine) or CamVid (train, trainannot)."
    )


def _known_layout(root: Path) -> list[Part]:
    """The splits of a data set of the field; none where it is something else."""
    if (root / "leftImg8bit").is_dir():
        return [_part(split, partial(_cityscapes_part, root)) for split in cityscapes.cityscapes_splits(root)]
    segnet = [split for split in ("train", "val", "test") if camvid.segnet_folder(root, split)]
    if segnet:
        return [_part(split, partial(_segnet_part, root)) for split in segnet]
    folder = _voc_folder(root)
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    return [_part(listing.stem, partial(_voc_part, folder)) for listing in lists]


def _voc_folder(root: Path) -> Path:
    """Where VOC lies below a folder, or else the folder itself."""
    try:
        return voc.voc_folder(root)
    except DataError:
        return root


def survey(part: Part, num_classes: int | None = None) -> Survey:
    """Opens every pair of a part, and counts classes, sizes and faults."""
    classes = num_classes if num_classes is not None else part.num_classes
    found = Survey(part.name, len(part.pairs), faults=list(part.faults), num_classes=classes)
    palettes, turns = Palettes(), Turns()
    for pair in part.pairs:
        try:
            image, stored = decode(pair.image, "image"), decode(pair.label, "label")
            size = rgb(image).size[::-1]
            label = indices(stored)
            palettes.add(stored, label)
            turns.add(image, stored)
            if part.label_map is not None:
                label = part.label_map[label]
            found.sizes[size] += 1
            found.pixels += np.bincount(label.ravel(), minlength=256)
            check_label(pair.label, label, size, classes)
        except DataError as error:
            found.faults.append(str(error))
    found.remarks += [*palettes.remarks(), *turns.remarks()]
    if classes in (2, None) and np.flatnonzero(found.pixels).tolist() == [0, VOID]:
        unmapped = part.name == _ALL and part.label_map is None
        remedy = "write 1 in its place" + (f", or give --label_map '{{{VOID}: 1}}'" if unmapped else "")
        (found.faults if classes else found.remarks).append(
            f"the labels of split {part.name!r} hold 0 and {VOID} only, and {VOID} is void, which counts nowhere: no "
            f"pixel is of class 1. If {VOID} stands for the object, {remedy}."
        )
    return found


def _part(name: str, find: Callable[[str], Part]) -> Part:
    """A part, or where it cannot be found the fault that says why, so that the other parts are still read."""
    try:
        return find(name)
    except DataError as error:
        return Part(name, [], [str(error)])


def _folder_part(images: Path, labels: Path, label_suffix: str, label_map: np.ndarray | None, name: str) -> Part:
    return Part(name, *match_by_stem(images, labels, label_suffix=label_suffix), label_map)


def _voc_part(folder: Path, split: str) -> Part:
    labels = folder / ("SegmentationClassAug" if split == voc.AUGMENTED else "SegmentationClass")
    names = read_names(folder / "ImageSets" / "Segmentation" / f"{split}.txt")
    return Part(split, *match_by_stem(folder / "JPEGImages", labels, names))


def _segnet_part(root: Path, split: str) -> Part:
    folder = camvid.segnet_folder(root, split)
    assert folder is not None
    pairs, faults = match_by_stem(folder / split, folder / f"{split}annot")
    return Part(split, pairs, faults, camvid.segnet_ids(), len(camvid.CLASSES))


def _cityscapes_part(root: Path, split: str) -> Part:
    pairs, faults, by_train_id = cityscapes.cityscapes_pairs(root, split)
    return Part(split, pairs, faults, None if by_train_id else cityscapes.train_ids(), len(cityscapes.CLASSES))
