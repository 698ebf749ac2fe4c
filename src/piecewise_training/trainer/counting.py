"""How often each class occurs in the labels, for the weights of classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from piecewise_training import checks
from piecewise_training.losses import VOID


def count_classes(labels: Iterable[Int[Tensor, "b h w"]], num_classes: int) -> tuple[Int[Tensor, k], Int[Tensor, k]]:
    """The pixels of each class, and those of all images in which it occurs; void counts nowhere.

    Raises:
        ValueError: a label is neither a class nor void.
    """
    pixels = torch.zeros(num_classes, dtype=torch.long)
    around = torch.zeros(num_classes, dtype=torch.long)
    for batch in labels:
        checks.labels(batch, num_classes)
        for label in batch:
            counts = torch.bincount(label[label != VOID].long(), minlength=num_classes)
            pixels += counts
            around += (counts > 0) * counts.sum()
    return pixels, around


def labels_on_disk(dataset: Any) -> Iterator[Tensor]:
    """The labels of a data set of ours before augmentation, (1, H, W) each; the images are not decoded."""
    for index in range(len(dataset)):
        yield torch.from_numpy(dataset.read_label(index))[None]
