"""Which files belong together, and every fault of that by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from piecewise_training.dataset import DataError
from piecewise_training.dataset.pairing import match_by_stem, pair_by_stem, partners, read_names

Maker = Callable[..., tuple[Path, Path]]


def test_pairs_by_stem_across_formats(make_pairs: Maker) -> None:
    images, labels = make_pairs(("b", "a"))
    Image.open(images / "a.jpg").save(images / "a.webp")
    (images / "a.jpg").unlink()
    (images / "notes.txt").write_text("not an image")
    assert [(p.name, p.image.name, p.label.name) for p in pair_by_stem(images, labels)] == [
        ("a", "a.webp", "a.png"),
        ("b", "b.jpg", "b.png"),
    ]


def test_a_list_chooses_and_orders(make_pairs: Maker, tmp_path: Path) -> None:
    images, labels = make_pairs(("a", "b", "c"))
    (tmp_path / "list.txt").write_text("c.jpg\n\n a \n")
    names = read_names(tmp_path / "list.txt")
    assert names == ["c", "a"]
    assert [pair.name for pair in pair_by_stem(images, labels, names)] == ["c", "a"]
    assert read_names(["x.png", "y.v2"]) == ["x", "y.v2"]


def test_partners_that_are_missing(make_pairs: Maker) -> None:
    images, labels = make_pairs(("a", "b", "c"))
    (labels / "b.png").unlink()
    (images / "c.jpg").unlink()
    message = (
        r"image .*b.jpg has no label of its name in .*labels\. label .*c.png has no image of its name in .*images\.$"
    )
    with pytest.raises(DataError, match=message):
        pair_by_stem(images, labels)
    pairs, faults = match_by_stem(images, labels)
    assert [pair.name for pair in pairs] == ["a"]
    assert len(faults) == 2
    assert "c.png has no image of its name" in faults[1]
    with pytest.raises(DataError, match="'z' is listed, but .*images has no such image"):
        pair_by_stem(images, labels, ["a", "z"])
    with pytest.raises(
        DataError, match=r"'y2' is listed, but .*images has no such image\. There are 7 more such faults\.$"
    ):
        pair_by_stem(images, labels, [f"y{place}" for place in range(1, 6)])


def test_labels_whose_names_end_in_something(make_pairs: Maker) -> None:
    images, labels = make_pairs(("a", "b"))
    for name in "ab":
        (labels / f"{name}.png").rename(labels / f"{name}_mask.png")
    Image.new("L", (4, 4)).save(labels / "a_outline.png")
    pairs = pair_by_stem(images, labels, label_suffix="_mask")
    assert [(p.name, p.image.name, p.label.name) for p in pairs] == [
        ("a", "a.jpg", "a_mask.png"),
        ("b", "b.jpg", "b_mask.png"),
    ]
    assert [pair.name for pair in pair_by_stem(images, labels, ["b"], "_mask")] == ["b"]
    message = (
        r"no label in .*labels has the name of an image, but with '_mask' behind it all have: give that as `label_suf"
    )
    with pytest.raises(DataError, match=message):
        pair_by_stem(images, labels)
    with pytest.raises(DataError, match=r"no label in .*labels has a name that ends in `label_suffix` '_gt'\."):
        pair_by_stem(images, labels, label_suffix="_gt")
    (labels / "b_mask.png").rename(labels / "c_mask.png")
    pairs, faults = match_by_stem(images, labels, label_suffix="_mask")
    assert [pair.name for pair in pairs] == ["a"]
    assert faults[0].endswith(f"b.jpg has no label of its name and '_mask' in {labels}.")
    assert faults[1].endswith(f"c_mask.png has no image of its name in {images}.")


def test_one_folder_for_both_with_an_ending(make_pairs: Maker) -> None:
    images, labels = make_pairs(("a", "b"))
    for name in "ab":
        (labels / f"{name}.png").rename(images / f"{name}_mask.png")
    found = pair_by_stem(images, images, label_suffix="_mask")
    assert [(p.image.name, p.label.name) for p in found] == [("a.jpg", "a_mask.png"), ("b.jpg", "b_mask.png")]
    for name in "ab":
        (images / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"every file in .*images has a name that ends in `label_suffix` '_mask'\."):
        pair_by_stem(images, images, label_suffix="_mask")


def test_folders_that_are_missing_or_empty(tmp_path: Path, make_pairs: Maker) -> None:
    images, _ = make_pairs()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"`label_dir` .*empty holds no image \(jpg, "):
        pair_by_stem(images, tmp_path / "empty")
    with pytest.raises(DataError, match="`image_dir` .*nowhere is no folder"):
        pair_by_stem(tmp_path / "nowhere", images)


def test_two_files_of_one_stem(make_pairs: Maker) -> None:
    images, labels = make_pairs()
    Image.new("RGB", (4, 4)).save(images / "a.png")
    with pytest.raises(DataError, match=r"a.jpg and a.png share the name 'a'. Remove one"):
        pair_by_stem(images, labels)


def test_lists_that_are_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`image_list` .*none.txt does not exist"):
        read_names(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"`image_list` .*empty.txt names no image"):
        read_names(tmp_path / "empty.txt")


def test_partners_of_score_files(make_pairs: Maker) -> None:
    images, _ = make_pairs(("a", "b"))
    assert [p.name for p in partners([Path("x/b.npy")], images)] == ["b.jpg"]
    with pytest.raises(DataError, match=r"x/q.npy \(and 1 more\) has no image of its name in .*images"):
        partners([Path("x/q.npy"), Path("x/r.npy")], images)
    assert [p.name for p in partners([Path("x/b_probabilities.npz")], images, "_probabilities")] == ["b.jpg"]


def test_lists_of_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\u00e4\nb\n", encoding="utf-8-sig")  # as Windows' editor writes it
    assert read_names(path) == ["\u00e4", "b"]
    for encoding in ("latin-1", "utf-16"):
        path.write_text("\u00e4\nb\n", encoding=encoding)
        with pytest.raises(DataError, match=r"`image_list` .*list.txt is no text in UTF-8"):
            read_names(path)


def test_a_folder_is_no_image(make_pairs: Maker) -> None:
    images, labels = make_pairs(("a",))
    (images / "b.png").mkdir()
    assert [pair.name for pair in pair_by_stem(images, labels)] == ["a"]


def test_links_that_lead_nowhere_are_named_at_the_start(make_pairs: Maker, tmp_path: Path) -> None:
    images, labels = make_pairs(("a", "b"))
    (labels / "a.png").unlink()
    (labels / "a.png").symlink_to(tmp_path / "gone.png")
    (images / "c.png").symlink_to(tmp_path / "nowhere.png")
    pairs, faults = match_by_stem(images, labels)
    assert [pair.name for pair in pairs] == ["b"]
    assert len(faults) == 2
    assert "c.png has no label" in faults[0]
    with pytest.raises(DataError, match=r"label .*a.png is a link to .*gone.png, which does not exist. Mend or remove"):
        pair_by_stem(images, labels, ["a"])


def test_one_folder_for_both(make_pairs: Maker, tmp_path: Path) -> None:
    images, _ = make_pairs()
    (tmp_path / "same").symlink_to(images)
    for folder in (images, tmp_path / "same"):
        with pytest.raises(
            DataError, match=r"images and labels lie in one folder, .*Move the labels to .*`label_suffix`"
        ):
            pair_by_stem(images, folder)


def test_accented_names_of_a_mac(make_pairs: Maker) -> None:
    """It has written letter and accent apart, as other systems do not."""
    images, labels = make_pairs(("m\u00fcll", "x"))
    (labels / "m\u00fcll.png").rename(labels / "mu\u0308ll.png")
    for names in (None, ["mu\u0308ll", "x"], ["m\u00fcll", "x"]):
        assert [pair.name for pair in pair_by_stem(images, labels, names)] == ["m\u00fcll", "x"]
    assert [path.name for path in partners([Path("mu\u0308ll.npy")], images)] == ["m\u00fcll.jpg"]
    (images / "m\u00fcll.jpg").rename(images / "mu\u0308ll.jpg")
    (images / "m\u00fcll.png").symlink_to(images / "x.jpg")
    with pytest.raises(DataError, match="share the name"):
        pair_by_stem(images, labels)
