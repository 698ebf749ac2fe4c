"""CamVid with the 11 classes of SegNet, in VOC's layout or in that of the SegNet tutorial."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import VOID, DataError
from piecewise_training.dataset.folder import SegmentationDataset, Transform
from piecewise_training.dataset.pairing import pair_by_stem
from piecewise_training.dataset.voc import voc2012_dataset

CLASSES = Classes(
    (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip


def camvid_dataset(
    root: str | Path,
    split: str = "train",
    image_size: tuple[int, int] | None = None,
    transform: Transform | None = None,
) -> SegmentationDataset:
    """CamVid's 367 training, 101 validation or 233 test images.

    Args:
        root: a folder in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt, 255 void), or
            the SegNet tutorial's (SPLIT and SPLITannot, 11 void), also one above it named CamVid.
        split: "train", "val" or "test".
        image_size: as in `SegmentationDataset`.
        transform: as in `SegmentationDataset`.

    Raises:
        DataError: a folder, a partner or the list is missing.
    """
    folder = segnet_folder(Path(root), split)
    others = [s for s in ("train", "val", "test") if segnet_folder(Path(root), s)]
    if folder is None and others:
        raise DataError(f"`root` {root} has {' and '.join(f'{s}annot' for s in others)}, but no {split}annot.")
    if folder is None:
        return voc2012_dataset(root, split, image_size, transform, classes=CLASSES)
    pairs = pair_by_stem(folder / split, folder / f"{split}annot")
    return SegmentationDataset.from_pairs(pairs, image_size, transform, classes=CLASSES, label_map=segnet_ids())


def segnet_folder(root: Path, split: str) -> Path | None:
    """The folder in the SegNet tutorial's layout at or under a root, if there is one."""
    return next((f for f in (root, root / "CamVid") if (f / f"{split}annot").is_dir()), None)


def segnet_ids() -> np.ndarray:
    """The 256 values by which the SegNet tutorial's labels are replaced: its 11 is void."""
    table = np.arange(256, dtype=np.uint8)
    table[len(CLASSES)] = VOID
    return table
