"""SegmentationDataset: sizes, transforms, workers, checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from piecewise_training.dataset import Classes, DataError, SegmentationDataset, augmentation, normalise, to_rgb

Maker = Callable[..., tuple[Path, Path]]


def test_default_size_and_types(make_pairs: Maker) -> None:
    dataset = SegmentationDataset(*make_pairs())
    image, label = dataset[0]
    assert len(dataset) == 3
    assert (image.shape, image.dtype) == ((3, 512, 512), torch.float32)
    assert (label.shape, label.dtype) == ((512, 512), torch.int64)
    assert type(image) is type(label) is torch.Tensor


def test_normalised_as_imagenet(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    dataset = SegmentationDataset(images, labels, image_size=None)
    image, label = dataset[1]
    pixels, truth = dataset.read(1)
    assert image.shape == (3, 30, 40)
    np.testing.assert_array_equal(to_rgb(image).permute(1, 2, 0).numpy(), pixels)
    np.testing.assert_array_equal(label.numpy(), truth)
    expected = (pixels[0, 0, 0] / 255 - 0.485) / 0.229
    assert image[0, 0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_labels_without_their_images(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    dataset = SegmentationDataset(images, labels, (17, 23), num_classes=3)
    for index in range(3):
        np.testing.assert_array_equal(dataset.read_label(index), dataset.read(index)[1])
    mapped = SegmentationDataset.from_pairs(dataset.pairs, label_map=np.full(256, 9, np.uint8), num_classes=3)
    with pytest.raises(DataError, match=r"label .*a.png holds the value 9, but classes go from 0 to 2"):
        mapped.read_label(0)


def test_labels_are_resized_by_nearest_only(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    Image.fromarray(np.where(np.indices((30, 40)).sum(0) % 2, 255, 2).astype(np.uint8)).save(labels / "a.png")
    _, label = SegmentationDataset(images, labels, image_size=(47, 91))[0]
    assert set(label.unique().tolist()) == {2, 255}


def test_image_and_label_stay_aligned(tmp_path: Path) -> None:
    """Whatever the augmentation does, it does it to both: the label is still where the image is bright."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    truth = np.zeros((60, 80), np.uint8)
    truth[10:40, 30:70] = 1
    Image.fromarray(np.stack([200 * truth] * 3, -1)).save(tmp_path / "images" / "a.png")
    Image.fromarray(truth).save(tmp_path / "labels" / "a.png")
    transform = augmentation(crop=(48, 64), scale=(0.5, 2.0), jitter=0.0)
    dataset = SegmentationDataset(tmp_path / "images", tmp_path / "labels", None, transform)
    seen = set()
    for _ in range(20):
        image, label = dataset[0]
        assert image.shape == (3, 48, 64)
        bright = to_rgb(image)[0] > 150
        known = label != 255
        seen |= set(label.unique().tolist())
        agreement = (bright == (label == 1))[known].float().mean()
        assert agreement > 0.97
    assert seen == {0, 1, 255}


def test_any_torchvision_transform(make_pairs: Maker) -> None:
    dataset = SegmentationDataset(*make_pairs(), image_size=(20, 20), transform=v2.RandomHorizontalFlip(1.0))
    plain = SegmentationDataset(dataset.pairs[0].image.parent, dataset.pairs[0].label.parent, image_size=(20, 20))
    for flipped, original in zip(dataset[0], plain[0], strict=True):
        torch.testing.assert_close(flipped, original.flip(-1))


def test_what_a_transform_fills_in_is_void_if_it_is_told_so(make_pairs: Maker) -> None:
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
    images, labels = make_pairs()
    for transform in (
        v2.Pad(7, fill=fill),
        v2.RandomRotation((40, 40), fill=fill),
        v2.RandomAffine((40, 40), fill=fill),
    ):
        assert SegmentationDataset(images, labels, None, transform)[0][1][0, 0] == 255
    assert (
        SegmentationDataset(images, labels, None, v2.Pad(7))[0][1][0, 0] == 0
    )  # a class: hence the docstring's advice


def test_loads_with_workers(make_pairs: Maker) -> None:
    dataset = SegmentationDataset(*make_pairs(("a", "b", "c", "d")), image_size=(16, 24), num_classes=3)
    loader = DataLoader(dataset, batch_size=2, num_workers=2)
    batches = list(loader)
    assert [image.shape for image, _ in batches] == [(2, 3, 16, 24)] * 2


def test_fault_in_a_worker_names_the_file(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    loader = DataLoader(SegmentationDataset(images, labels, image_size=(16, 16)), num_workers=1)
    with pytest.raises(DataError, match=r"image .*b.jpg is broken or cut short"):
        list(loader)


def test_faults_of_an_item(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    Image.new("L", (10, 10)).save(labels / "a.png")
    Image.new("L", (40, 30), 9).save(labels / "b.png")
    dataset = SegmentationDataset(images, labels, num_classes=3)
    with pytest.raises(DataError, match=r"label .*a.png is 10 x 10 pixels, its image 40 x 30"):
        dataset[0]
    with pytest.raises(DataError, match=r"label .*b.png holds the value 9, but classes go from 0 to 2"):
        dataset[1]


def test_list_and_classes(make_pairs: Maker) -> None:
    classes = Classes.named(("x", "y", "z"))
    dataset = SegmentationDataset(*make_pairs(), image_list=["c", "a"], classes=classes)
    assert dataset.names == ["c", "a"]
    assert dataset.num_classes == 3
    numbered = SegmentationDataset.from_pairs(dataset.pairs, num_classes=4)
    assert numbered.classes is not None
    assert numbered.classes.names[3] == "class 3"


@pytest.mark.parametrize("size", [(0, 5), (5,)])
def test_bad_size(make_pairs: Maker, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"`image_size` must be \(height, width\) of at least 1 or None; got"):
        SegmentationDataset(*make_pairs(), image_size=size)


@pytest.mark.parametrize("argument", ["image_dir", "label_dir"])
def test_folders_that_are_no_paths(make_pairs: Maker, argument: str) -> None:
    folders: dict[str, object] = dict(zip(("image_dir", "label_dir"), make_pairs(), strict=True))
    with pytest.raises(TypeError, match=rf"`{argument}` must be the path of a folder; got \['a'\]"):
        SegmentationDataset(**(folders | {argument: ["a"]}))  # type: ignore[arg-type]


def test_contradicting_classes(make_pairs: Maker) -> None:
    with pytest.raises(ValueError, match="`num_classes` 5 and the 3 `classes` contradict each other"):
        SegmentationDataset(*make_pairs(), num_classes=5, classes=Classes.numbered(3))


def test_normalise_takes_floats_too() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    torch.testing.assert_close(normalise(image), normalise(image / 255))


def test_labels_by_another_name_and_of_other_numbers(make_pairs: Maker) -> None:
    images, labels = make_pairs(("a", "b"))
    Image.fromarray(np.array([[0, 1], [2, 7]], np.uint8).repeat(20, 1).repeat(15, 0)).save(labels / "a.png")
    for name in "ab":
        (labels / f"{name}.png").rename(labels / f"{name}_gt.png")
    options = {"image_size": None, "label_suffix": "_gt", "image_list": ["a"]}
    mapped = SegmentationDataset(images, labels, label_map={0: 255, 1: 0, 7: 1}, num_classes=3, **options)
    assert mapped[0][1][[0, 0, 29, 29], [0, 39, 0, 39]].tolist() == [255, 0, 2, 1]
    assert mapped.read(0)[1][[0, 0, 29, 29], [0, 39, 0, 39]].tolist() == [255, 0, 2, 1]
    assert mapped.read_label(0)[0, 0] == 255
    table = np.full(256, 255, np.uint8)
    table[1:3] = 0, 1
    for label_map in (table, dict(zip(np.arange(256), table, strict=True))):
        same = SegmentationDataset(images, labels, label_map=label_map, num_classes=2, **options)
        assert same[0][1][[0, 0, 29, 29], [0, 39, 0, 39]].tolist() == [255, 0, 1, 255]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({0: 256}, "256"),
        ({-1: 0}, "-1"),
        ({0: 1.5}, r"1\.5"),
        (np.arange(9), r"an array of shape \(9,\)"),
        (np.zeros((256, 1)), r"an array of shape \(256, 1\)"),
        (np.zeros(()), r"an array of shape \(\)"),
        (np.full(256, 300), "300"),
    ],
)
def test_maps_of_labels_that_are_none(make_pairs: Maker, wrong: object, told: str) -> None:
    with pytest.raises(ValueError, match=rf"`label_map` must give values from 0 to 255 such classes, .*; got {told}\."):
        SegmentationDataset(*make_pairs(), label_map=wrong)  # type: ignore[arg-type]
