"""piecewise data check and download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piecewise_training.cli import main
from piecewise_training.dataset import DataError
from piecewise_training.dataset import download as module
from tests.dataset.test_layouts import make_voc, write_image, write_label

Maker = Callable[..., tuple[Path, Path]]


def test_sound_folder(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = make_pairs()
    assert main(["data", "check", str(images.parent), "--num_classes", "3"]) == 0
    out = capsys.readouterr().out
    assert "30 x 40" in out
    assert "0-2" in out
    assert "0 faults" in out


def test_every_fault_by_name(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = make_pairs(tuple("abcdefg"))
    (images / "a.jpg").write_bytes(b"nothing")
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:400])
    (labels / "c.png").unlink()
    (images / "d.jpg").unlink()
    Image.new("L", (10, 10)).save(labels / "e.png")
    Image.new("L", (40, 30), 7).save(labels / "f.png")
    Image.new("RGB", (40, 30)).save(labels / "g.png")
    assert main(["data", "check", str(images.parent), "--num_classes", "3"]) == 1
    out = capsys.readouterr().out
    for fault in (
        "a.jpg is no image", "b.jpg is broken or cut short", "c.jpg has no label", "d.png has no image",
        "e.png is 10 x 10 pixels", "f.png holds the value 7", "g.png is a colour image", "7 faults",
    ):  # fmt: skip
        assert fault in out


def test_voc_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_voc(tmp_path, {"train": ["a", "b"], "val": ["c"]})
    write_image(folder / "JPEGImages" / "unlisted.jpg")
    assert main(["data", "check", str(tmp_path)]) == 0
    rows = [line.replace("\u2502", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["train"], ["val"])] == [["train", "2"], ["val", "1"]]
    (folder / "SegmentationClass" / "c.png").unlink()
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "'c' is listed, but" in capsys.readouterr().out


def test_vocs_folders_without_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_label(tmp_path / "SegmentationClass" / f"{name}.png", 5)
    assert main(["data", "check", str(tmp_path), "--num_classes", "6"]) == 0
    out = capsys.readouterr().out
    assert [word for word in out.split() if word in ("all", "2", "6", "train", "val")][:3] == ["all", "2", "6"]
    assert "0 faults" in out
    (tmp_path / "SegmentationClass" / "b.png").unlink()
    assert main(["data", "check", str(tmp_path), "--num_classes", "6"]) == 1
    assert "b.jpg has no label" in capsys.readouterr().out


def test_cityscapes_and_segnet_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "cs" / "leftImg8bit" / "train" / "ulm" / "ulm_0_leftImg8bit.png")
    write_label(tmp_path / "cs" / "gtFine" / "train" / "ulm" / "ulm_0_gtFine_labelIds.png", 26)
    write_image(tmp_path / "cv" / "train" / "x.png")
    write_label(tmp_path / "cv" / "trainannot" / "x.png", 11)
    assert main(["data", "check", str(tmp_path / "cs"), str(tmp_path / "cv")]) == 0
    rows = [line.replace("\u2502", " ").split() for line in capsys.readouterr().out.splitlines()]
    summaries = [row for row in rows if row[:1] == ["train"]]
    assert [row[5] for row in summaries] == ["13", "-"]  # a car's label id by its train id, and void
    assert [row[6] for row in summaries] == ["0.00", "100.00"]
    assert ["13", "100.000"] in rows


def test_classes_that_never_occur(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = make_pairs()
    assert main(["data", "check", str(images.parent), "--num_classes", "6"]) == 0
    out = capsys.readouterr().out
    rows = [line.replace("\u2502", " ").split() for line in out.splitlines()]
    assert [row for row in rows if row[:1] in (["3"], ["4"], ["5"])] == [[k, "0.000"] for k in "345"]
    assert "warning: no pixel of split 'all' is of class 3-5" in out
    assert main(["data", "check", str(images.parent), "--num_classes", "3"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_masks_of_0_and_255(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = make_pairs(("a", "b"))
    for name in "ab":
        Image.fromarray(np.tile(np.array([0, 255], np.uint8), (30, 20))).save(labels / f"{name}.png")
    assert main(["data", "check", str(images.parent), "--num_classes", "2"]) == 1
    out = capsys.readouterr().out
    assert "fault: the labels of split 'all' hold 0 and 255 only, and 255 is void, which counts nowhere" in out
    assert "If 255 stands for the object, write 1 in its place, or give --label_map '{255: 1}'." in out
    assert main(["data", "check", str(images.parent)]) == 0
    assert "warning: the labels of split 'all' hold 0 and 255 only" in capsys.readouterr().out
    assert main(["data", "check", str(images.parent), "--num_classes", "2", "--label_map", "{255: 1}"]) == 0
    assert "warning" not in capsys.readouterr().out
    Image.fromarray(np.ones((30, 40), np.uint8)).save(labels / "b.png")
    assert main(["data", "check", str(images.parent), "--num_classes", "2"]) == 0


def test_labels_by_another_name(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    """In two folders or in one."""
    images, labels = make_pairs(("a", "b"))
    assert main(["data", "check", str(images.parent), "--label_suffix", "_gt"]) == 1
    assert "has a name that ends in `label_suffix` '_gt'." in capsys.readouterr().out
    for name in "ab":
        (labels / f"{name}.png").rename(labels / f"{name}_gt.png")
    assert main(["data", "check", str(images.parent)]) == 1
    assert "with '_gt' behind it all have: give that as `label_suffix`." in capsys.readouterr().out
    options = ("--label_suffix", "_gt", "--label_map", "{0: 255, 1: 0, 2: 1}", "--num_classes", "2")
    assert main(["data", "check", str(images.parent), *options]) == 0
    for path in labels.iterdir():
        path.rename(images / path.name)
    assert main(["data", "check", str(images), *options]) == 0
    assert main(["data", "check", str(images)]) == 1
    assert "has no layout that is known" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--label_suffix", "_gt"), ("--label_map", "{1: 0}")])
def test_named_layouts_have_their_own_labels(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_voc(tmp_path, {"train": ["a"]})
    assert main(["data", "check", str(tmp_path), *option]) == 1
    assert "`label_suffix` and `label_map` are for images/ and labels/, and" in capsys.readouterr().out


def test_palettes_and_turned_images_are_remarked_on(make_pairs: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = make_pairs(("a", "b"))
    for name, red in (("a", 200), ("b", 100)):
        palette = Image.fromarray(np.ones((30, 40), np.uint8))
        palette.putpalette([0, 0, 0, red, 0, 0])
        palette.save(labels / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(images / "a.jpg", exif=exif)
    assert main(["data", "check", str(images.parent)]) == 0
    out = capsys.readouterr().out
    assert f"warning: the palette of label {labels / 'b.png'} is another: index 1 is (100, 0, 0) there" in out
    assert f"whose labels are not: 1 ({images / 'a.jpg'}); of other sizes than these then: 0." in out


def test_every_fault_of_cityscapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png")
    for name in ("c", "d"):
        write_label(tmp_path / "gtFine" / "train" / "ulm" / f"{name}_gtFine_labelIds.png", 26)
    write_label(tmp_path / "gtFine" / "val" / "ulm" / "e_gtFine_labelIds.png", 26)
    (tmp_path / "leftImg8bit" / ".DS_Store").write_text("")
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for fault in (
        "a_leftImg8bit.png has no label", "b_leftImg8bit.png has no label", "d_gtFine_labelIds.png has no image",
        "nothing matches leftImg8bit/val", "4 faults",
    ):  # fmt: skip
        assert fault in out


def test_a_fault_in_one_split_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_voc(tmp_path, {"train": ["a"], "val": ["b"]})
    (folder / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a\n")
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "SegmentationClassAug is no folder" in out
    assert "1 fault" in out
    assert "give --num_classes" in out


def test_no_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path), str(tmp_path / "gone")]) == 1
    out = capsys.readouterr().out
    assert "has no layout that is known" in out
    assert "gone is no folder" in out


def test_real_camvid_is_sound(camvid_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(camvid_root), "--num_classes", "11"]) == 0
    assert "367" in capsys.readouterr().out


def test_download_uses_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import torchvision.datasets

    calls = []

    def fetch(root: str, **options: Any) -> None:
        calls.append(options)
        make_voc(Path(root), {"train": ["a"], "val": ["b"]})

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", fetch)
    assert main(["data", "download", "voc2012", "--root", str(tmp_path)]) == 0
    assert calls == [{"year": "2012", "image_set": "train", "download": True}]
    assert str(tmp_path / "VOCdevkit" / "VOC2012") in capsys.readouterr().out


def test_download_from_kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kagglehub

    asked = []

    def fetch(name: str) -> str:
        asked.append(name)
        return str(make_voc(tmp_path / "cache", {"train": ["a"], "val": ["b"]}).parents[1])

    monkeypatch.setattr(kagglehub, "dataset_download", fetch)
    folder = module.download("voc2012", tmp_path / "data", "kaggle")
    assert asked == ["huanghanchina/pascal-voc-2012"]
    assert (folder / "JPEGImages" / "a.jpg").is_file()
    (tmp_path / "cache").rename(tmp_path / "cleared")  # and fetched again, to another place
    folder.unlink()
    folder.symlink_to(tmp_path / "cache of before")
    folder = module.download("voc2012", tmp_path / "data", "kaggle")
    assert (folder / "JPEGImages" / "a.jpg").is_file()


def test_a_download_from_kaggle_that_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kagglehub

    monkeypatch.setattr(kagglehub, "dataset_download", lambda _: str(tmp_path))
    with pytest.raises(DataError, match=f"^{tmp_path}, downloaded from Kaggle, holds no JPEGImages"):
        module.download("voc2012", tmp_path / "data", "kaggle")
    assert not (tmp_path / "data").exists()


def test_download_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision.datasets

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", fail)
    assert main(["data", "download", "voc2012", "--root", str(tmp_path)]) == 1
    assert "voc2012 could not be downloaded from torchvision (OSError: no route)" in capsys.readouterr().err
    assert main(["data", "download", "sbd", "--root", str(tmp_path)]) == 1
    assert "run `piecewise data download voc2012 --root" in capsys.readouterr().err
    assert main(["data", "download", "voc2012", "sbd", "--source", "kaggle"]) == 1
    assert "`--source kaggle` has voc2012 alone; got sbd" in capsys.readouterr().err
    assert main(["data", "download", "ade20k"]) == 1
    assert "'ade20k' cannot be downloaded: there are voc2012 and sbd" in capsys.readouterr().err
