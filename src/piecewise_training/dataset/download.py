"""Fetches data sets with other people's downloaders: torchvision's, which verify checksums, or Kaggle's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from piecewise_training.dataset import voc
from piecewise_training.dataset.files import DataError

KAGGLE_VOC2012 = "huanghanchina/pascal-voc-2012"


def check_source(name: str, source: str) -> None:
    """Raises a ValueError unless a data set of this name can be had from this source."""
    if name not in ("voc2012", "sbd"):
        raise ValueError(
            f"{name!r} cannot be downloaded: there are voc2012 and sbd. Cityscapes wants a login of one's own."
        )
    if source == "kaggle" and name != "voc2012":
        raise ValueError(f"`--source kaggle` has voc2012 alone; got {name}. Use --source torchvision.")


def download(name: str, root: Path, source: Literal["torchvision", "kaggle"]) -> Path:
    """Downloads a data set below a root; "sbd" also merges its labels into the VOC 2012 there.

    Args:
        name: "voc2012" (2 GB) or "sbd" (1.4 GB), the labels that make 10,582 training images of VOC's 1,464.
        root: where VOCdevkit comes to lie, or does so already.
        source: Kaggle's mirror serves voc2012 alone.

    Returns:
        The folder to train on.

    Raises:
        ValueError: there is no such data set, or not from this source.
        DataError: the download failed, or VOC 2012 is not there to merge SBD with.
    """
    check_source(name, source)
    fetch = {"voc2012": _voc2012_from_kaggle if source == "kaggle" else _voc2012, "sbd": _sbd}[name]
    try:
        return fetch(root)
    except DataError:
        raise
    except Exception as error:  # downloaders raise whatever their network library does
        raise DataError(f"{name} could not be downloaded from {source} ({type(error).__name__}: {error}).") from error


def _voc2012(root: Path) -> Path:
    from torchvision.datasets import VOCSegmentation

    VOCSegmentation(str(root), year="2012", image_set="train", download=True)
    return voc.voc_folder(root)


def _voc2012_from_kaggle(root: Path) -> Path:
    import kagglehub

    cache = Path(kagglehub.dataset_download(KAGGLE_VOC2012))
    found = next((path.parent for path in sorted(cache.rglob("JPEGImages")) if path.is_dir()), None)
    if found is None:
        raise DataError(f"{cache}, downloaded from Kaggle, holds no JPEGImages.")
    target = root / "VOCdevkit" / "VOC2012"
    if target.is_symlink() and not target.exists():  # into a cache that has been cleared since
        target.unlink()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(found, target_is_directory=True)
    return target


def _sbd(root: Path) -> Path:
    from torchvision.datasets import SBDataset

    try:
        folder = voc.voc_folder(root)
    except DataError as error:
        message = f"SBD's labels belong to VOC's images: run `piecewise data download voc2012 --root {root}` first."
        raise DataError(message) from error
    sbd = root / "sbd"
    if not (sbd / "cls").is_dir():
        SBDataset(str(sbd), mode="segmentation", download=True)
    voc.merge_sbd(root, sbd)
    return folder
