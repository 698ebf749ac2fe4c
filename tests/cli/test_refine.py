"""piecewise refine: score maps and label images of other people's networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piecewise_training.cli import main
from piecewise_training.inference import refine


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An image of two halves, and scores whose border is four pixels off."""
    images, scores = tmp_path / "images", tmp_path / "scores"
    images.mkdir()
    scores.mkdir()
    image = np.full((20, 24, 3), 30, np.uint8)
    image[:, 12:] = 220
    Image.fromarray(image).save(images / "a.png")
    logits = np.zeros((2, 20, 24), np.float32)
    logits[1] = np.where(np.arange(24) >= 8, 1.0, -1.0)
    np.save(scores / "a.npy", logits)
    return images, scores


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_logits(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, scores = folders
    out = tmp_path / "out"
    assert main(["refine", str(scores), "--images", str(images), "--output", str(out), "--pos_w", "0.1"]) == 0
    logits, image = np.load(scores / "a.npy"), read(images / "a.png")
    expected, _ = refine(logits, image, pos_w=0.1)
    np.testing.assert_array_equal(read(out / "a.png"), expected)
    assert (out / "a_overlay.png").is_file()
    assert not np.array_equal(expected, logits.argmax(0))


@pytest.mark.parametrize("packed", [False, True])
def test_probabilities_are_recognised(folders: tuple[Path, Path], tmp_path: Path, packed: bool) -> None:
    images, scores = folders
    logits = np.load(scores / "a.npy")
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    (scores / "a.npy").unlink()
    if packed:
        np.savez(scores / "a.npz", probabilities=probabilities)
    else:
        np.save(scores / "a.npy", probabilities.astype(np.float16))
    arguments = ["--images", str(images), "--output", str(tmp_path / "out"), "--probabilities"]
    assert main(["refine", str(scores), *arguments]) == 0
    _, expected = refine(logits, read(images / "a.png"))
    found = np.load(tmp_path / "out" / "a_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_logits_that_look_like_probabilities(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """They are from 0 to 1 and sum to 1, and `kind` says what they are."""
    images, scores = folders
    given = np.zeros((2, 20, 24), np.float32)
    given[1] = np.where(np.arange(24) >= 8, 0.9, 0.1)
    given[0] = 1 - given[1]
    np.save(scores / "a.npy", given)
    found = {}
    for kind in ("auto", "probabilities", "logits"):
        flags = ["--images", str(images), "--output", str(tmp_path / kind), "--kind", kind, "--probabilities"]
        assert main(["refine", str(scores), *flags, "--iterations", "0"]) == 0
        found[kind] = np.load(tmp_path / kind / "a_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(found["probabilities"], given, atol=1e-3)
    np.testing.assert_array_equal(found["auto"], found["probabilities"])
    np.testing.assert_allclose(found["logits"], np.exp(given) / np.exp(given).sum(0), atol=1e-3)


def test_a_device_that_is_not_there(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    images, scores = folders
    assert main(["refine", str(scores), "--images", str(images), "--device", "cuda:99"]) == 1
    assert "`device` is cuda:99, but torch finds" in capsys.readouterr().err


def test_label_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, scores = folders
    logits = np.load(scores / "a.npy")
    (scores / "a.npy").unlink()
    Image.fromarray(logits.argmax(0).astype(np.uint8)).save(scores / "a.png")
    arguments = ["--images", str(images), "--output", str(tmp_path / "out"), "--class_names", "[dark,bright]"]
    assert main(["refine", str(scores / "*.png"), *arguments, "--confidence", "0.6"]) == 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), np.tile(np.arange(24) >= 12, (20, 1)))


@pytest.mark.parametrize(
    ("array", "flags", "message"),
    [
        (np.zeros((2, 5, 5)), [], r"a.npy must hold (K, 20, 24) scores, as its image; it holds (2, 5, 5)"),
        (np.zeros((20, 24)), [], "must hold (K, 20, 24) scores"),
        (np.full((2, 20, 24), np.nan), [], "a.npy holds NaN or infinite scores"),
        (np.full((2, 20, 24), -np.inf), [], "or a pixel with no possible class"),
        (np.zeros((2, 20, 24), np.uint8), [], "a.npy must hold floating-point scores; it holds uint8"),
        (np.zeros((2, 20, 24)), ["--num_classes", "7"], "a.npy holds scores of 2 classes, not of 7"),
        (np.zeros((2, 20, 24)), ["--class_names", "[a,b]", "--num_classes", "3"], "but `class_names` lists 2"),
        (np.zeros((2, 20, 24)), ["--iterations", "-1"], "`iterations` must be at least 0; got -1"),
        (np.ones((2, 20, 24)), ["--kind", "probabilities"], "a.npy holds no probabilities"),
        (np.zeros((2, 20, 24)), ["--pos_xy_std", "0"], "`pos_xy_std` must be a finite number above 0"),
    ],
)
def test_faults(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    array: np.ndarray,
    flags: list[str],
    message: str,
) -> None:
    images, scores = folders
    np.save(scores / "a.npy", array)
    arguments = ["refine", str(scores), "--images", str(images), "--output", str(tmp_path / "out"), *flags]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.png").exists()


def test_files_that_are_no_arrays(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    images, scores = folders
    (scores / "a.npy").write_bytes(b"nothing")
    assert main(["refine", str(scores), "--images", str(images)]) == 1
    assert "a.npy could not be read as one array of scores" in capsys.readouterr().err
    (scores / "a.npy").unlink()
    (scores / "a.npz").write_bytes(b"PK\3\4 cut short")
    assert main(["refine", str(scores), "--images", str(images)]) == 1
    assert "a.npz could not be read as one array of scores" in capsys.readouterr().err
    np.savez(scores / "a.npz", x=np.zeros(1), y=np.zeros(1))
    assert main(["refine", str(scores), "--images", str(images)]) == 1
    assert "it holds 2 arrays (x, y) and not one" in capsys.readouterr().err


def test_inputs_without_a_file_of_scores(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, scores = folders
    (scores / "a.npy").rename(scores / "a.txt")
    for entry in (scores, scores / "*.npy"):
        assert main(["refine", str(entry), "--images", str(images), "--output", str(tmp_path / "out")]) == 1
        assert f"'{entry}' names no file of the kind npy, npz, png" in capsys.readouterr().err
    assert main(["refine", str(scores / "a"), "--images", str(images)]) == 1
    assert f"there is no file or folder '{scores / 'a'}'" in capsys.readouterr().err


def test_labels_need_a_number_of_classes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    images, scores = folders
    Image.new("L", (24, 20)).save(scores / "b.png")
    Image.new("RGB", (24, 20)).save(images / "b.png")
    assert main(["refine", str(scores / "b.png"), "--images", str(images)]) == 1
    assert "b.png is a label image: give --num_classes or --class_names" in capsys.readouterr().err


def test_probabilities_that_leave_their_range_by_rounding(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, scores = folders
    logits = np.load(scores / "a.npy")
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    probabilities[:, 3, 4] = 1 + 1e-6, -1e-6
    np.save(scores / "a.npy", probabilities)
    expected, _ = refine(np.log(probabilities.clip(1e-5, 1)), read(images / "a.png"))
    assert main(["refine", str(scores), "--images", str(images), "--output", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), expected)


def test_impossible_classes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A logit of -inf is the logarithm of 0: that label does not come back."""
    images, scores = folders
    logits = np.zeros((3, 20, 24), np.float32)
    logits[2] = -np.inf
    np.save(scores / "a.npy", logits)
    assert main(["refine", str(scores), "--images", str(images), "--output", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out" / "a.png").max() < 2


def test_what_predict_wrote(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, scores = folders
    logits = np.load(scores / "a.npy")
    (scores / "a.npy").unlink()
    np.savez(scores / "a_probabilities.npz", probabilities=(np.exp(logits) / np.exp(logits).sum(0)).astype(np.float16))
    Image.new("RGB", (24, 20)).save(scores / "a_overlay.png")
    Image.new("L", (24, 20)).save(scores / "a.png")  # the labels, which say less
    assert main(["refine", str(scores), "--images", str(images), "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "a_overlay.png"]


def test_scores_that_cannot_be_refined_do_not_stop_the_others(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, scores = folders
    (images / "b.png").write_bytes((images / "a.png").read_bytes())
    np.save(scores / "b.npy", np.load(scores / "a.npy"))
    np.save(scores / "a.npy", np.zeros((300, 20, 24), np.float32))
    assert main(["refine", str(scores), "--images", str(images), "--output", str(tmp_path / "out")]) == 1
    assert f"{scores / 'a.npy'}: labels of 300 classes do not fit into a byte" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.png").is_file()


def test_an_option_out_of_its_range_is_said_once(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, scores = folders
    options = ["--images", str(images), "--output", str(tmp_path / "out"), "--pos_xy_std", "0"]
    assert main(["refine", str(scores), *options]) == 1
    message = capsys.readouterr().err
    assert "pos_xy_std" in message
    assert "a.npy" not in message


def test_images_are_not_replaced(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    images, scores = folders
    assert main(["refine", str(scores), "--images", str(images), "--output", str(images)]) == 1
    assert "a.png would be replaced. Give another folder" in capsys.readouterr().err
