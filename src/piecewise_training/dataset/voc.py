"""PASCAL VOC 2012, and the 10,582 training images that the labels of SBD make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import DataError
from piecewise_training.dataset.folder import SegmentationDataset, Transform
from piecewise_training.dataset.pairing import pair_by_stem, read_names

CLASSES = Classes.named(
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
    )
)  # fmt: skip
AUGMENTED = "trainaug"
_AUGMENTED_LABELS = "SegmentationClassAug"


def voc2012_dataset(
    root: str | Path,
    split: str = "train",
    image_size: tuple[int, int] | None = None,
    transform: Transform | None = None,
    *,
    classes: Classes = CLASSES,
) -> SegmentationDataset:
    """PASCAL VOC 2012, or any data set in its layout.

    Args:
        root: the folder that holds JPEGImages, SegmentationClass and ImageSets, or one above it (VOCdevkit/VOC2012).
        split: a list in ImageSets/Segmentation: "train", "val", "trainval"; or "trainaug", the 10,582 images of
            Hariharan et al. (ICCV 2011), whose labels lie in SegmentationClassAug; `merge_sbd` makes both.
        image_size: as in `SegmentationDataset`.
        transform: as in `SegmentationDataset`.
        classes: names and colours, where they are not VOC's.

    Raises:
        DataError: a folder, the list or a listed file is missing.
    """
    folder = voc_folder(Path(root))
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    labels = folder / (_AUGMENTED_LABELS if split == AUGMENTED else "SegmentationClass")
    if split == AUGMENTED and not (labels.is_dir() and listing.is_file()):
        raise DataError(f"{folder} has no {labels.name} or {listing.name}. Run `piecewise data download sbd` first.")
    pairs = pair_by_stem(folder / "JPEGImages", labels, read_names(listing, "split"))
    return SegmentationDataset.from_pairs(pairs, image_size, transform, classes=classes)


def voc_folder(root: Path) -> Path:
    """The folder in VOC's layout at or under a root.

    Raises:
        DataError: there is none.
    """
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012", root / "VOC2012_train_val"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise DataError(
        f"`root` {root} is not in VOC's layout: there is no JPEGImages in it, nor in VOCdevkit/VOC2012 under it."
    )


def merge_sbd(voc_root: Path, sbd_root: Path) -> int:
    """Adds SBD's labels to VOC 2012 as SegmentationClassAug and ImageSets/Segmentation/trainaug.txt.

    The list is VOC's train and SBD's train and val without VOC's val; where both have a label, VOC's, which is finer,
    stays.

    Args:
        voc_root: VOC 2012, as in `voc2012_dataset`.
        sbd_root: the folder that holds SBD's cls, train.txt and val.txt.

    Returns:
        The number of images in the list: 10,582 for the complete sets.

    Raises:
        DataError: a folder, a list or a listed label is missing.
    """
    from scipy.io import loadmat

    folder = voc_folder(voc_root)
    lists = folder / "ImageSets" / "Segmentation"
    own = read_names(lists / "train.txt")
    held_out = set(read_names(lists / "val.txt"))
    theirs = set(read_names(sbd_root / "train.txt")) | set(read_names(sbd_root / "val.txt"))
    added = sorted(theirs - held_out - set(own))

    target = folder / _AUGMENTED_LABELS
    target.mkdir(exist_ok=True)
    for name in own:
        label_of_voc = folder / "SegmentationClass" / f"{name}.png"
        if not label_of_voc.is_file():
            raise DataError(f"VOC lists {name!r}, but {label_of_voc} does not exist. Unpack the whole of VOC 2012.")
        (target / f"{name}.png").write_bytes(label_of_voc.read_bytes())
    palette = np.array(CLASSES.colours, np.uint8)
    for name in added:
        source = sbd_root / "cls" / f"{name}.mat"
        if not source.is_file():
            raise DataError(f"SBD lists {name!r}, but {source} does not exist. Unpack the whole of SBD.")
        label = Image.fromarray(loadmat(source)["GTcls"][0]["Segmentation"][0].astype(np.uint8))
        label.putpalette(palette.tobytes())
        label.save(target / f"{name}.png")
    names = sorted({*own, *added})
    (lists / f"{AUGMENTED}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return len(names)
