"""Images and labels to train on: folders, the field's data sets, and scenes drawn from a seed."""

from piecewise_training.dataset.build import (
    AnyDataset,
    build_datasets,
    crf_loader,
    joint_loader,
    train_loader,
    val_loader,
    void_is_border,
    whole_folder,
)
from piecewise_training.dataset.camvid import camvid_dataset
from piecewise_training.dataset.cityscapes import cityscapes_dataset
from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import VOID, DataError, labels_from_colours
from piecewise_training.dataset.folder import SegmentationDataset
from piecewise_training.dataset.pairing import Pair
from piecewise_training.dataset.synthetic import SyntheticDataset
from piecewise_training.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, augmentation, normalise, to_rgb
from piecewise_training.dataset.voc import voc2012_dataset

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VOID",
    "AnyDataset",
    "Classes",
    "DataError",
    "Pair",
    "SegmentationDataset",
    "SyntheticDataset",
    "augmentation",
    "build_datasets",
    "camvid_dataset",
    "cityscapes_dataset",
    "crf_loader",
    "joint_loader",
    "labels_from_colours",
    "normalise",
    "to_rgb",
    "train_loader",
    "val_loader",
    "voc2012_dataset",
    "void_is_border",
    "whole_folder",
]
