"""The pixels of each class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from piecewise_training.dataset import SegmentationDataset, SyntheticDataset
from piecewise_training.trainer.counting import count_classes, labels_on_disk


def test_count_classes() -> None:
    label = torch.tensor([[[0, 1, 1, 255]], [[0, 0, 255, 255]]])
    pixels, around = count_classes([label, label], 3)
    assert pixels.tolist() == [6, 4, 0]
    assert around.tolist() == [10, 6, 0]


def test_images_are_not_decoded(make_pairs: Any) -> None:
    """For large images that would be most of the work."""
    images, labels = make_pairs()
    for path in images.iterdir():
        path.write_bytes(b"nothing")
    dataset = SegmentationDataset(images, labels, (15, 20), num_classes=3)
    found = list(labels_on_disk(dataset))
    assert [label.shape for label in found] == [(1, 15, 20)] * 3
    assert sum(count_classes(found, 3)[0]).item() == 3 * 15 * 20
    scenes = SyntheticDataset(2, (32, 32))
    assert torch.equal(next(labels_on_disk(scenes))[0], torch.from_numpy(scenes.read(0)[1]))


def test_a_label_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 2 or 255 \(void\); it also holds \[7\]"):
        count_classes([torch.tensor([[[0, 7]]])], 3)
