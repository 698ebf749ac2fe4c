"""Cityscapes with its 19 training classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import VOID, DataError
from piecewise_training.dataset.folder import SegmentationDataset, Transform
from piecewise_training.dataset.pairing import Pair

# Name, colour, and the label id whose train id is the position in this table.
_TABLE = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CLASSES = Classes(tuple(row[0] for row in _TABLE), tuple(row[1] for row in _TABLE))


def cityscapes_dataset(
    root: str | Path,
    split: str = "train",
    image_size: tuple[int, int] | None = None,
    transform: Transform | None = None,
) -> SegmentationDataset:
    """Cityscapes' fine annotations: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY under a root.

    Labels are read from labelTrainIds images where they exist, and else mapped from labelIds.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        split: "train" (2975 images) or "val" (500).
        image_size: as in `SegmentationDataset`.
        transform: as in `SegmentationDataset`.

    Raises:
        DataError: an image has no label or the reverse, also where some labels are there in one form and some in the
            other.
    """
    pairs, faults, by_train_id = cityscapes_pairs(Path(root), split)
    if faults:
        raise DataError(faults[0])
    return SegmentationDataset.from_pairs(
        pairs, image_size, transform, classes=CLASSES, label_map=None if by_train_id else train_ids()
    )


def cityscapes_splits(root: Path) -> list[str]:
    """The splits that have images or labels."""
    folders = [folder for part in ("leftImg8bit", "gtFine") for folder in (root / part).glob("*")]
    return sorted({folder.name for folder in folders if folder.is_dir()})


def cityscapes_pairs(root: Path, split: str) -> tuple[list[Pair], list[str], bool]:
    """The pairs of a split, a sentence for each file without a partner, and whether labels hold train ids already."""
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataError(f"`root` {root} holds no Cityscapes images: nothing matches leftImg8bit/{split}/*/*.png.")
    folder = root / "gtFine" / split
    by_train_id = any(folder.glob("*/*_gtFine_labelTrainIds.png"))
    kind = "labelTrainIds" if by_train_id else "labelIds"
    found = [Pair(_name(image), image, _label(folder, image, kind)) for image in images]
    pairs = [pair for pair in found if pair.label.is_file()]
    faults = [f"image {pair.image} has no label {pair.label}." for pair in found if not pair.label.is_file()]
    without_image = set(folder.glob(f"*/*_gtFine_{kind}.png")) - {pair.label for pair in found}
    faults += [f"label {label} has no image in {root / 'leftImg8bit' / split}." for label in sorted(without_image)]
    return pairs, faults, by_train_id


def train_ids() -> np.ndarray:
    """The 256 values by which Cityscapes' label ids are replaced: 0 to 18 for the training classes, 255 for the rest.

    Example:
        >>> train_ids()[[7, 33, 0]].tolist()
        [0, 18, 255]
    """
    table = np.full(256, VOID, np.uint8)
    for train_id, (_, _, label_id) in enumerate(_TABLE):
        table[label_id] = train_id
    return table


def _name(image: Path) -> str:
    return image.name.removesuffix("_leftImg8bit.png")


def _label(labels: Path, image: Path, kind: str) -> Path:
    return labels / image.parent.name / f"{_name(image)}_gtFine_{kind}.png"
