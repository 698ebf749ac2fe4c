"""From a configuration to data sets and loaders."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from piecewise_training.config import DataConfig
from piecewise_training.dataset.camvid import camvid_dataset
from piecewise_training.dataset.cityscapes import cityscapes_dataset
from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import DataError, label_table
from piecewise_training.dataset.folder import SegmentationDataset
from piecewise_training.dataset.pairing import Pair, pair_by_stem, read_names
from piecewise_training.dataset.split import Split, draw
from piecewise_training.dataset.synthetic import SyntheticDataset
from piecewise_training.dataset.transforms import RandomQuarterTurn, augmentation
from piecewise_training.dataset.voc import AUGMENTED, voc2012_dataset

logger = logging.getLogger(__name__)

AnyDataset = SegmentationDataset | SyntheticDataset
Make = Callable[[], AnyDataset]
Find = Callable[[], list[Pair]]

_SYNTHETIC_SIZE = (96, 128)
VAL_FRACTION = 0.2
"""The share of the images that is held out where `val_fraction` says nothing."""


def build_datasets(config: DataConfig, seed: int = 0, split: Split | None = None) -> tuple[AnyDataset, AnyDataset]:
    """The training set, augmented, and the validation set, as they are.

    Args:
        config: what they are.
        seed: of the drawn scenes and of the images that are held out.
        split: which images a run has held out, where they are drawn; they are not drawn anew then.

    Raises:
        DataError: something that the configuration or the split names is missing or does not fit.
    """
    _refuse_unused(config)
    make_train, make_val = _SOURCES[config.name](config, seed, split)
    train, val = make_train(), make_val()
    train.transform = augmentation(_crop(train, config), config.scale, config.flip, config.jitter, config.turns)
    return train, val


def validation_set(config: DataConfig, seed: int = 0, split: Split | None = None) -> AnyDataset:
    """The second of `build_datasets` alone: images that are for training only need not be there.

    Raises:
        DataError: something that the configuration or the split names is missing or does not fit.
    """
    _refuse_unused(config)
    val: AnyDataset = _SOURCES[config.name](config, seed, split)[1]()
    return val


def draws_split(config: DataConfig) -> bool:
    """Whether training and validation images are drawn from one folder, so that they depend on what lies in it."""
    return config.name == "folder" and not (config.val_images or config.val_list)


def whole_folder(config: DataConfig) -> SegmentationDataset:
    """All images of a folder, as they are, with nothing held out.

    Raises:
        DataError: something that the configuration names is missing or does not fit.
    """
    _refuse_unused(config)
    classes = _folder_classes(config)
    names = _listed_names(config)
    pairs = pair_by_stem(*_images_and_labels(config), names, config.label_suffix)
    return SegmentationDataset.from_pairs(pairs, config.image_size, classes=classes, label_map=_label_map(config))


def train_loader(dataset: Dataset[Any], config: DataConfig, seed: int = 0) -> DataLoader[Any]:
    """Shuffled batches of crops; the last, smaller batch is left out, because batch norm suffers from it."""
    if len(dataset) < config.batch_size:  # type: ignore[arg-type]
        raise DataError(
            f"{len(dataset)} training images do not fill a batch of {config.batch_size}."  # type: ignore[arg-type]
            " Lower data.batch_size."
        )
    return DataLoader(
        dataset,
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def crf_loader(dataset: AnyDataset, config: DataConfig, seed: int = 0) -> DataLoader[Any]:
    """What the CRF alone is trained on: whole images, mirrored and turned, one at a time; or as in `train_loader`."""
    if config.crf_images == "crops":
        return train_loader(dataset, config, seed)
    whole = copy.copy(dataset)
    turns = [RandomQuarterTurn()] if config.turns else []
    whole.transform = v2.Compose([*turns, v2.RandomHorizontalFlip(config.flip)])
    return train_loader(whole, replace(config, batch_size=1), seed)


def joint_loader(dataset: AnyDataset, config: DataConfig, seed: int = 0) -> DataLoader[Any]:
    """What stage 3 is trained on: crops of images of their own scale and colours, mirrored; or as in `train_loader`."""
    if config.crf_images == "crops":
        return train_loader(dataset, config, seed)
    plain = copy.copy(dataset)
    plain.transform = augmentation(_crop(dataset, config), (1.0, 1.0), config.flip, jitter=0.0, turns=config.turns)
    return train_loader(plain, config, seed)


def val_loader(dataset: Dataset[Any], config: DataConfig) -> DataLoader[Any]:
    """Whole images in order, one at a time, since their sizes may differ."""
    return DataLoader(dataset, 1, num_workers=config.workers, persistent_workers=config.workers > 0)


def void_is_border(config: DataConfig) -> bool:
    """Whether border measures of the data take void for a border; see `BorderMetrics`.

    Example:
        >>> void_is_border(DataConfig(name="voc2012")), void_is_border(DataConfig(name="camvid"))
        (True, False)
    """
    if config.void_is_border is None:
        return config.name in ("voc2012", "voc2012_aug")
    return config.void_is_border


def _crop(train: AnyDataset, config: DataConfig) -> tuple[int, int]:
    """Height and width of training crops."""
    height, width = config.crop or train.image_size or train.read(0)[1].shape[:2]
    return height, width


def _refuse_unused(config: DataConfig) -> None:
    """An option that another data set has means that the name was forgotten, and would lead to the wrong data."""
    mine = _OPTIONS.get(config.name, {"root"})
    others = {"root"}.union(*_OPTIONS.values()) - mine
    neutral = {"val_fraction": (None, VAL_FRACTION)}  # runs of before have the usual share, whatever their data
    given = [
        f.name
        for f in fields(config)
        if f.name in others and getattr(config, f.name) not in neutral.get(f.name, (f.default,))
    ]
    if given:
        owners = [name for name in _SOURCES if given[0] in _OPTIONS.get(name, {"root"})]
        raise DataError(
            f"`data.{given[0]}` does not belong to data.name {config.name}. Give --data.name {' or '.join(owners)}."
        )


def _synthetic(config: DataConfig, seed: int, split: Split | None) -> tuple[Make, Make]:
    del split
    for name in ("train_scenes", "val_scenes"):
        if getattr(config, name) < 1:
            raise DataError(f"`data.{name}` must be at least 1; got {getattr(config, name)}.")
    size = config.image_size or _SYNTHETIC_SIZE
    return (
        lambda: SyntheticDataset(config.train_scenes, size, 2 * seed),
        lambda: SyntheticDataset(config.val_scenes, size, 2 * seed + 1),
    )


def _folder(config: DataConfig, seed: int, split: Split | None) -> tuple[Make, Make]:
    classes = _folder_classes(config)
    folders = _images_and_labels(config)

    def dataset(pairs: list[Pair]) -> SegmentationDataset:
        return SegmentationDataset.from_pairs(pairs, config.image_size, classes=classes, label_map=_label_map(config))

    def train() -> AnyDataset:
        pairs = training()
        if not pairs:
            raise DataError("no training image is left: every one is a validation image.")
        return dataset(pairs)

    training, validation = _parts(config, folders, seed, split)
    return train, lambda: dataset(validation())


def _parts(config: DataConfig, folders: tuple[Path, Path], seed: int, split: Split | None) -> tuple[Find, Find]:
    """What finds the pairs of training and what finds those of validation, each of which is looked for only then."""
    whole = cache(lambda: pair_by_stem(*folders, _listed_names(config), config.label_suffix))
    if config.val_images and config.val_labels:
        judged = Path(config.val_images), Path(config.val_labels)  # which may be the folders of training
    elif config.val_images or config.val_labels:
        raise DataError("`data.val_images` and `data.val_labels` must be given together.")
    elif config.val_list:
        judged = folders
    elif split is not None:
        return lambda: split.training(whole()), lambda: split.validation(whole())
    else:
        fraction = VAL_FRACTION if config.val_fraction is None else config.val_fraction
        drawn = cache(lambda: draw(whole(), fraction, seed))
        return lambda: drawn()[0], lambda: drawn()[1]
    listed = cache(lambda: None if config.val_list is None else _read_once(config.val_list))
    named = cache(lambda: pair_by_stem(*judged, listed(), config.label_suffix))
    return lambda: _without({pair.image.resolve() for pair in named()}, whole()), named


def _without(images: set[Path], pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.image.resolve() not in images]


def _listed_names(config: DataConfig) -> list[str] | None:
    return None if config.image_list is None else read_names(config.image_list, "data.image_list")


def _read_once(val_list: str) -> list[str]:
    """The names of validation images, each of which counts once; training lists may repeat theirs."""
    names = read_names(val_list, "data.val_list")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"`data.val_list` {val_list} names {name!r} {count} times, and would count it as often.")
    return names


def _folder_classes(config: DataConfig) -> Classes:
    if config.num_classes is None and config.class_names is None:
        raise DataError("`data.name` folder needs data.num_classes or data.class_names.")
    classes = Classes.named(config.class_names) if config.class_names else Classes.numbered(config.num_classes or 0)
    if config.num_classes not in (None, len(classes)):
        raise DataError(f"`data.num_classes` is {config.num_classes}, but data.class_names lists {len(classes)}.")
    return classes


def _label_map(config: DataConfig) -> np.ndarray | None:
    if config.label_map is None:
        return None
    try:
        return label_table(config.label_map)
    except ValueError as error:
        raise DataError(str(error).replace("`label_map`", "`data.label_map`")) from error


def _images_and_labels(config: DataConfig) -> tuple[Path, Path]:
    if config.images and config.labels:
        if config.root:
            logger.warning("data.root %s is not looked at: data.images and data.labels are given", config.root)
        return Path(config.images), Path(config.labels)
    if config.images or config.labels or not config.root:
        raise DataError(
            "`data.name` folder needs data.images and data.labels, or data.root with images/ and labels/ in it."
        )
    return Path(config.root) / "images", Path(config.root) / "labels"


def _rooted(config: DataConfig) -> str:
    if config.root is None:
        raise DataError(f"`data.name` {config.name} needs data.root, the folder it lies in.")
    return config.root


def _named(build: Any, train_split: str = "train") -> Any:
    def datasets(config: DataConfig, seed: int, split: Split | None) -> tuple[Make, Make]:
        del seed, split
        root = _rooted(config)
        return partial(build, root, train_split, config.image_size), partial(build, root, "val", config.image_size)

    return datasets


# What these two take beside what all data sets do; the others take their root alone.
_OPTIONS = {
    "synthetic": {"train_scenes", "val_scenes"},
    "folder": {
        *("root", "images", "labels", "image_list", "val_images", "val_labels", "val_list", "val_fraction"),
        *("num_classes", "class_names", "label_suffix", "label_map"),
    },
}
_SOURCES: dict[str, Any] = {
    "synthetic": _synthetic,
    "folder": _folder,
    "voc2012": _named(voc2012_dataset),
    "voc2012_aug": _named(voc2012_dataset, AUGMENTED),
    "cityscapes": _named(cityscapes_dataset),
    "camvid": _named(camvid_dataset),
}
