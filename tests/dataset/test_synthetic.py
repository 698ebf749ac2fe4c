"""The drawn scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from piecewise_training.dataset import SyntheticDataset
from piecewise_training.dataset.transforms import augmentation


def test_same_seed_same_scene() -> None:
    first, again, other = SyntheticDataset(3, seed=1), SyntheticDataset(9, seed=1), SyntheticDataset(3, seed=2)
    for a, b in zip(first.read(2), again.read(2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.read(2)[0], other.read(2)[0])
    assert not np.array_equal(first.read(1)[0], first.read(2)[0])


def test_every_class_occurs_and_colours_do_not_tell() -> None:
    dataset = SyntheticDataset(20)
    scenes = [dataset.read(i) for i in range(20)]
    labels = np.concatenate([label.ravel() for _, label in scenes])
    assert set(np.unique(labels)) == set(range(7))
    assert np.bincount(labels).min() / labels.size > 0.01
    ground = [image[label == 0].mean(0) for image, label in scenes]
    assert np.std(ground, axis=0).min() > 20


def test_scenes_of_any_size() -> None:
    for size in ((32, 32), (48, 100)):
        image, label = SyntheticDataset(1, image_size=size)[0]
        assert image.shape == (3, *size)
        assert label.shape == size


def test_augmented_scene() -> None:
    dataset = SyntheticDataset(1, transform=augmentation(crop=(40, 50)))
    image, label = dataset[0]
    assert (image.shape, label.shape, label.dtype) == ((3, 40, 50), (40, 50), torch.int64)


def test_ends() -> None:
    with pytest.raises(IndexError, match="scene 2 of 2"):
        SyntheticDataset(2)[2]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`length` must be at least 1; got 0"):
        SyntheticDataset(0)
    with pytest.raises(ValueError, match=r"`image_size` must be \(height, width\) of at least 32; got \(16, 64\)"):
        SyntheticDataset(1, image_size=(16, 64))


def test_seeds_are_not_negative() -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0; got -1"):
        SyntheticDataset(1, seed=-1)
