"""Images and labels to train on: folders, the field's data sets, and scenes drawn from a seed."""

from piecewise_training.dataset.build import (
    AnyDataset,
    build_datasets,
    crf_loader,
    draws_split,
    joint_loader,
    train_loader,
    val_loader,
    validation_set,
    void_is_border,
    whole_folder,
)
from piecewise_training.dataset.camvid import camvid_dataset
from piecewise_training.dataset.cityscapes import cityscapes_dataset
from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import VOID, DataError, labels_from_colours
from piecewise_training.dataset.folder import SegmentationDataset
from piecewise_training.dataset.pairing import Pair
from piecewise_training.dataset.split import SPLIT_FILE, Split
from piecewise_training.dataset.synthetic import SyntheticDataset
from piecewise_training.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, augmentation, normalise, to_rgb
from piecewise_training.dataset.voc import voc2012_dataset

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SPLIT_FILE",
    "VOID",
    "AnyDataset",
    "Classes",
    "DataError",
    "Pair",
    "SegmentationDataset",
    "Split",
    "SyntheticDataset",
    "augmentation",
    "build_datasets",
    "camvid_dataset",
    "cityscapes_dataset",
    "crf_loader",
    "draws_split",
    "joint_loader",
    "labels_from_colours",
    "normalise",
    "to_rgb",
    "train_loader",
    "val_loader",
    "validation_set",
    "voc2012_dataset",
    "void_is_border",
    "whole_folder",
]
