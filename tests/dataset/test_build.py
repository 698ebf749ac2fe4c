"""From a configuration to loaders: splits, crops, and every fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from piecewise_training.config import DataConfig
from piecewise_training.dataset import (
    DataError,
    SegmentationDataset,
    Split,
    build_datasets,
    crf_loader,
    joint_loader,
    normalise,
    train_loader,
    val_loader,
    validation_set,
    whole_folder,
)
from tests.dataset.test_layouts import make_voc

Maker = Callable[..., tuple[Path, Path]]
NAMES = tuple("abcdefghij")


def config(folders: tuple[Path, Path], **kwargs: Any) -> DataConfig:
    images, labels = (str(folder) for folder in folders)
    return DataConfig(**({"name": "folder", "images": images, "labels": labels, "num_classes": 3} | kwargs))


def test_held_out_share_is_fixed_by_the_seed(make_pairs: Maker) -> None:
    folders = make_pairs(NAMES)
    train, val = build_datasets(config(folders), seed=1)
    assert (len(train), len(val)) == (8, 2)
    assert not set(train.names) & set(val.names)
    assert build_datasets(config(folders), seed=1)[1].names == val.names
    assert {tuple(build_datasets(config(folders), seed=s)[1].names) for s in range(6)} != {tuple(val.names)}


def test_a_split_that_was_drawn_before_is_kept(make_pairs: Maker) -> None:
    """Drawn anew it would be another one with one image more, and judge on images of the training."""
    folders = make_pairs(NAMES)
    train, val = build_datasets(config(folders), seed=1)
    split = Split(tuple(train.names), tuple(val.names))
    for folder, suffix in zip(folders, ("jpg", "png"), strict=True):
        (folder / f"a.{suffix}").with_stem("0").write_bytes((folder / f"a.{suffix}").read_bytes())
    assert set(build_datasets(config(folders), seed=1)[1].names) & set(train.names)
    later = build_datasets(config(folders), 1, split)
    assert [part.names for part in later] == [train.names, val.names]
    assert validation_set(config(folders), 1, split).names == val.names


def test_images_of_training_need_not_be_there_to_judge(make_pairs: Maker, tmp_path: Path) -> None:
    make_voc(tmp_path, {"val": ["b"]})
    assert validation_set(DataConfig(name="voc2012_aug", root=str(tmp_path))).names == ["b"]
    images, labels = (str(folder) for folder in make_pairs(("x", "y")))
    apart = {"images": "nowhere", "labels": "nowhere", "val_images": images, "val_labels": labels}
    assert validation_set(DataConfig(name="folder", num_classes=3, **apart)).names == ["x", "y"]
    assert len(validation_set(DataConfig(val_scenes=3))) == 3
    with pytest.raises(DataError, match="`image_dir` nowhere is no folder"):
        build_datasets(DataConfig(name="folder", num_classes=3, **apart))


def test_lists_and_own_validation_folders(make_pairs: Maker, tmp_path: Path) -> None:
    folders, others = make_pairs(NAMES), make_pairs(("x", "y"), folder="val")
    (tmp_path / "val.txt").write_text("b\nd\n")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    train, val = build_datasets(config(folders, val_list=str(tmp_path / "val.txt")))
    assert val.names == ["b", "d"]
    assert train.names == [name for name in NAMES if name not in "bd"]
    train, val = build_datasets(
        config(
            folders,
            image_list=str(tmp_path / "train.txt"),
            val_images=str(others[0]),
            val_labels=str(others[1]),
        )
    )
    assert (train.names, val.names) == (["a", "b", "c"], ["x", "y"])


@pytest.mark.parametrize("kind", ["fraction", "list", "folders", "whole"])
def test_labels_by_another_name_and_of_other_numbers(make_pairs: Maker, tmp_path: Path, kind: str) -> None:
    folders, others = make_pairs(NAMES), make_pairs(("k",), folder="other")
    for path in (*folders[1].iterdir(), *others[1].iterdir()):
        path.rename(path.with_stem(f"{path.stem}_gt"))
    (tmp_path / "val.txt").write_text("j\n")
    changes: dict[str, Any] = {
        "fraction": {},
        "list": {"val_list": str(tmp_path / "val.txt")},
        "folders": {"val_images": str(others[0]), "val_labels": str(others[1])},
        "whole": {},
    }[kind]
    setup = config(folders, label_suffix="_gt", label_map={0: 255, 2: 0}, num_classes=2, **changes)
    for dataset in (whole_folder(setup),) if kind == "whole" else build_datasets(setup):
        assert isinstance(dataset, SegmentationDataset)
        assert [pair.label.stem for pair in dataset.pairs] == [f"{name}_gt" for name in dataset.names]
        assert {*dataset.read(0)[1].flat} == {255, 1, 0}


def test_root_with_images_and_labels(make_pairs: Maker) -> None:
    root = make_pairs(NAMES)[0].parent
    train, _ = build_datasets(DataConfig(name="folder", root=str(root), class_names=("p", "q", "r")))
    assert train.classes is not None
    assert train.classes.names == ("p", "q", "r")


def test_only_training_is_augmented_and_crops_default_to_the_first_image(make_pairs: Maker) -> None:
    train, val = build_datasets(config(make_pairs(NAMES), scale=(2.0, 2.0)))
    assert train[0][0].shape == (3, 30, 40)
    assert val.transform is None
    assert val[0][0].shape == (3, 30, 40)
    train, _ = build_datasets(DataConfig(crop=(40, 56)))
    assert train[0][0].shape == (3, 40, 56)


def test_loaders(make_pairs: Maker) -> None:
    setup = config(make_pairs(NAMES), batch_size=3, workers=0)
    train, val = build_datasets(setup)
    batches = list(train_loader(train, setup, seed=1))
    assert [len(image) for image, _ in batches] == [3, 3]
    assert [len(image) for image, _ in val_loader(val, setup)] == [1, 1]


def test_drawn_scenes_are_in_one_set() -> None:
    """Of all seeds: no validation scene is trained on, nor one of another seed."""
    setup = DataConfig(train_scenes=6, val_scenes=4, image_size=(32, 48))
    sets = [drawn for seed in (0, 1) for drawn in build_datasets(setup, seed)]
    scenes = [{drawn.read(index)[0].tobytes() for index in range(len(drawn))} for drawn in sets]
    assert [*map(len, scenes)] == [6, 4, 6, 4]
    assert len(set.union(*scenes)) == 20


def test_the_crf_sees_whole_images_or_crops() -> None:
    setup = DataConfig(train_scenes=6, image_size=(32, 48), crop=(16, 16), batch_size=3, workers=0)
    train, _ = build_datasets(setup)
    labels = [torch.from_numpy(train.read(index)[1]).long() for index in range(6)]
    drawn = {label.numpy().tobytes() for label in [*labels, *(label.flip(-1) for label in labels)]}
    whole = list(crf_loader(train, setup, seed=1))
    assert len(whole) == 6
    assert {label[0].numpy().tobytes() for _, label in whole} <= drawn  # as they are, or mirrored
    assert {tuple(label.shape) for _, label in whole} == {(1, 32, 48)}
    crops = list(crf_loader(train, replace(setup, crf_images="crops"), seed=1))
    assert [tuple(label.shape) for _, label in crops] == [(3, 16, 16)] * 2
    assert tuple(train[0][1].shape) == (16, 16)  # the training set itself still gives crops


@pytest.mark.parametrize("turns", [False, True])
def test_images_without_an_up_and_down_are_turned_in_every_stage(turns: bool) -> None:
    """Of 32 x 48 pixels, which on their side do not fill a crop of as many."""
    setup = DataConfig(
        train_scenes=8, image_size=(32, 48), scale=(1.0, 1.0), jitter=0, batch_size=1, workers=0, turns=turns
    )
    train, val = build_datasets(setup)
    for loader in (train_loader(train, setup), joint_loader(train, setup)):
        assert any(255 in label for _, label in loader) == turns
    assert {tuple(label.shape[1:]) for _, label in crf_loader(train, setup)} - {(32, 48)} == (
        {(48, 32)} if turns else set()
    )
    assert {tuple(label.shape[1:]) for _, label in val_loader(val, setup)} == {(32, 48)}


def test_both_together_see_crops_of_plain_images_or_augmented_ones() -> None:
    setup = DataConfig(train_scenes=6, image_size=(32, 48), crop=(16, 24), scale=(2.0, 2.0), batch_size=3, workers=0)
    train, _ = build_datasets(setup)
    images = [normalise(torch.from_numpy(train.read(index)[0]).movedim(-1, 0)) for index in range(6)]

    def is_part(crop: torch.Tensor) -> bool:
        windows = [view.unfold(1, 16, 1).unfold(2, 24, 1) for image in images for view in (image, image.flip(-1))]
        return any(bool((window == crop[:, None, None]).all((0, 3, 4)).any()) for window in windows)

    plain = [crop for batch, _ in joint_loader(train, setup, seed=1) for crop in batch]
    assert len(plain) == 6
    assert all(map(is_part, plain))
    augmented = next(iter(joint_loader(train, replace(setup, crf_images="crops"), seed=1)))[0]
    assert not any(map(is_part, augmented))


def test_augmentation_is_another_in_every_worker_and_epoch(make_pairs: Maker, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n" * 8)
    (tmp_path / "val.txt").write_text("b\n")
    lists = {"image_list": str(tmp_path / "train.txt"), "val_list": str(tmp_path / "val.txt")}
    setup = config(make_pairs(("a", "b")), **lists, crop=(16, 16), batch_size=1, workers=2)
    loader = train_loader(build_datasets(setup)[0], setup)
    crops = [image.numpy().tobytes() for _ in range(3) for image, _ in loader]
    assert len({*crops}) == len(crops) == 24


def test_loader_shuffles_by_seed() -> None:
    setup = DataConfig(train_scenes=12, batch_size=12, workers=0, jitter=0.0, scale=(1.0, 1.0), flip=0.0)
    train, _ = build_datasets(setup)
    first, again, other = (next(iter(train_loader(train, setup, seed)))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_named_sets(tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": ["a"], "val": ["b"]})
    train, val = build_datasets(DataConfig(name="voc2012", root=str(tmp_path)))
    assert (train.names, val.names, train.num_classes) == (["a"], ["b"], 21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": None}, "`data.name` folder needs data.num_classes or data.class_names"),
        ({"class_names": ("x", "y")}, "`data.num_classes` is 3, but data.class_names lists 2"),
        ({"labels": None}, "`data.name` folder needs data.images and data.labels, or data.root"),
        ({"val_images": "x"}, "`data.val_images` and `data.val_labels` must be given together"),
        ({"val_fraction": 1.0}, "`data.val_fraction` must be between 0 and 1; got 1.0"),
        ({"name": "voc2012"}, "`data.images` does not belong to data.name voc2012. Give --data.name folder"),
        ({"train_scenes": 5}, "`data.train_scenes` does not belong to .* folder. Give --data.name synthetic"),
        ({"label_map": {0: 300}}, "`data.label_map` must give values from 0 to 255 such classes, .*; got 300"),
        (
            {"name": "camvid", "images": None, "labels": None, "num_classes": None, "label_suffix": "_gt"},
            "`data.label_suffix` does not belong to data.name camvid. Give --data.name folder",
        ),
        ({"image_list": "nowhere.txt"}, "`data.image_list` nowhere.txt does not exist"),
        ({"val_list": "nowhere.txt"}, "`data.val_list` nowhere.txt does not exist"),
    ],
)
def test_faults(make_pairs: Maker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_datasets(config(make_pairs(NAMES), **changes))


def test_no_root() -> None:
    with pytest.raises(DataError, match="`data.name` voc2012 needs data.root, the folder it lies in"):
        build_datasets(DataConfig(name="voc2012"))
    with pytest.raises(DataError, match="`data.root` does not belong to data.name synthetic. Give .*folder or voc2012"):
        build_datasets(DataConfig(root="x"))


def test_too_few_images(make_pairs: Maker, tmp_path: Path) -> None:
    setup = config(make_pairs(("a",)))
    with pytest.raises(DataError, match="1 pair cannot be split into training and validation"):
        build_datasets(setup)
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(DataError, match="no training image is left: every one is a validation image"):
        build_datasets(config(make_pairs(("a",), folder="other"), val_list=str(tmp_path / "val.txt")))
    train, _ = build_datasets(config(make_pairs(("a", "b", "c"), folder="third")))
    with pytest.raises(DataError, match="2 training images do not fill a batch of 8. Lower data.batch_size"):
        train_loader(train, DataConfig())


def test_a_root_that_is_not_looked_at(make_pairs: Maker, caplog: pytest.LogCaptureFixture) -> None:
    build_datasets(config(make_pairs(NAMES), root="elsewhere"))
    assert "data.root elsewhere is not looked at: data.images and data.labels are given" in caplog.text


@pytest.mark.parametrize("name", ["train_scenes", "val_scenes"])
def test_no_scenes(name: str) -> None:
    with pytest.raises(DataError, match=f"`data.{name}` must be at least 1; got 0"):
        build_datasets(DataConfig(**{name: 0}))


def test_repeated_images_are_held_out_whole(make_pairs: Maker, tmp_path: Path) -> None:
    pairs = make_pairs(NAMES)
    (tmp_path / "train.txt").write_text("\n".join([*NAMES, *NAMES[:5], NAMES[0]]))
    for seed in range(5):
        train, val = build_datasets(config(pairs, image_list=str(tmp_path / "train.txt"), val_fraction=0.4), seed)
        assert not {*train.names} & {*val.names}
        assert len(val.names) == len({*val.names}) == round(0.4 * len(NAMES))
        kept = {name: ([*NAMES, *NAMES[:5], NAMES[0]]).count(name) for name in NAMES if name not in val.names}
        assert {name: train.names.count(name) for name in train.names} == kept


def test_validation_images_among_those_of_training_are_not_trained_on(make_pairs: Maker, tmp_path: Path) -> None:
    images, labels = make_pairs(("a", "b", "c"))
    (tmp_path / "val.txt").write_text("b\n")
    (tmp_path / "same").symlink_to(images)
    for trained, judged in ((images, tmp_path / "same"), (tmp_path / "same", images)):
        places = {"val_images": str(judged), "val_labels": str(labels), "val_list": str(tmp_path / "val.txt")}
        train, val = build_datasets(config((trained, labels), **places))
        assert (train.names, val.names) == (["a", "c"], ["b"])
    apart = make_pairs(("a", "b", "c"), folder="apart")  # of the same names, and other images
    train, _ = build_datasets(config((images, labels), val_images=str(apart[0]), val_labels=str(apart[1])))
    assert train.names == ["a", "b", "c"]


def test_training_lists_may_repeat_images_and_validation_lists_not(make_pairs: Maker, tmp_path: Path) -> None:
    pairs = make_pairs(("a", "b", "c"))
    (tmp_path / "train.txt").write_text("a\na\nb\n")
    (tmp_path / "val.txt").write_text("c\n")
    lists = {"image_list": str(tmp_path / "train.txt"), "val_list": str(tmp_path / "val.txt")}
    assert build_datasets(config(pairs, **lists))[0].names == ["a", "a", "b"]
    (tmp_path / "val.txt").write_text("c\nc.jpg\n")
    with pytest.raises(DataError, match=r"`data.val_list` .*val.txt names 'c' 2 times, and would count it as often"):
        build_datasets(config(pairs, **lists))
