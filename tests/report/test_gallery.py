"""Which images are shown, and their pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from piecewise_training.inference import Prediction
from piecewise_training.report import RECORD_FILE, RunRecord, write_gallery
from piecewise_training.report.gallery import _BYTES, _encoded, choose, error_map
from tests.report.conftest import CLASSES


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=30), st.integers(1, 4))
def test_best_median_and_worst(scores: list[float], each: int) -> None:
    chosen = choose(scores, each)
    known = sorted(score for score in scores if score == score)
    by_rank = {rank: [scores[p] for r, p in chosen if r == rank] for rank in ("best", "median", "worst")}
    places = [place for _, place in chosen]
    assert len(set(places)) == len(places)
    assert [rank for rank, _ in chosen] == sorted((rank for rank, _ in chosen), key=["best", "median", "worst"].index)
    if len(known) >= 3 * each:
        assert by_rank["best"] == known[::-1][:each]
        assert by_rank["worst"] == known[:each][::-1]
        assert len(by_rank["median"]) == each
        assert known[0] <= min(by_rank["median"])
        assert max(by_rank["median"]) <= known[-1]
    else:
        assert len(chosen) == min(len(known), 3 * max(1, len(known) // 3))


def test_median_is_in_the_middle() -> None:
    assert choose([0.1 * k for k in range(9)], each=1) == [("best", 8), ("median", 4), ("worst", 0)]
    assert [place for rank, place in choose([0.1 * k for k in range(15)]) if rank == "median"] == [8, 7, 6]


def test_colours_of_errors() -> None:
    truth = np.array([[0, 0, 0, 0, 255]], np.uint8)
    before, after = np.array([[0, 1, 0, 1, 0]], np.uint8), np.array([[0, 0, 1, 2, 0]], np.uint8)
    colours = error_map(truth, before, after)[0].tolist()
    assert colours == [[232, 236, 240], [46, 125, 50], [217, 115, 13], [160, 32, 40], [255, 255, 255]]


@pytest.mark.parametrize("file", ["/etc/1_best_image.jpg", "report_pictures/../1_best_image.jpg", "1_best_image.jpg"])
def test_pictures_of_nobody_elses(file: str, record: RunRecord, tmp_path: Path) -> None:
    """A page of somebody's results would show, and pass on, what lies anywhere."""
    record.save(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    content["gallery"][0]["pictures"]["image"] = file
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"is damaged.*{file} is no picture that a run has drawn"):
        RunRecord.load(tmp_path)


def test_pictures(record: RunRecord, tmp_path: Path) -> None:
    assert [shown.name for shown in record.gallery] == ["c", "a", "b"]
    assert [shown.rank for shown in record.gallery] == ["best", "median", "worst"]
    for shown in record.gallery:
        assert [*shown.pictures] == ["image", "truth", "unary", "CRF", "errors"]
        for file in shown.pictures.values():
            with Image.open(tmp_path / file) as picture:
                assert picture.size == (560, 420)
    with Image.open(tmp_path / record.gallery[0].pictures["errors"]) as picture:
        errors = np.array(picture.convert("RGB"))
    assert errors[0, 0].tolist() == [46, 125, 50]
    assert errors[-1, -1].tolist() == [232, 236, 240]


def write(folder: Path) -> list[str]:
    """The pictures of one small image."""
    labels = np.zeros((6, 8), np.uint8)

    def read(place: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((6, 8, 3), np.uint8), labels

    def predict(picture: np.ndarray) -> Prediction:
        return Prediction(labels, labels, np.zeros((3, 6, 8), np.float32))

    (shown,) = write_gallery(folder, ["a"], [0.5], [0.5], read, predict, CLASSES)
    return [Path(file).name for file in shown.pictures.values()]


def test_somebodys_files_are_left_alone(record: RunRecord, tmp_path: Path) -> None:
    """Those of an earlier gallery are not somebody's."""
    pictures = tmp_path / "report_pictures"
    assert (pictures / "3_worst_image.jpg").is_file()
    (pictures / "1_best.png").write_text("mine")
    (pictures / "mine").mkdir()
    (pictures / "mine" / "1_best_truth.png").write_text("mine")
    files = write(tmp_path)
    assert {path.name for path in pictures.iterdir()} == {*files, "1_best.png", "mine"}
    assert (pictures / "1_best.png").read_text() == (pictures / "mine" / "1_best_truth.png").read_text() == "mine"


@pytest.mark.parametrize("leads", [True, False])
def test_a_link_is_replaced_and_not_what_it_leads_to(leads: bool, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    if leads:
        theirs.mkdir()
        (theirs / "1_best_image.jpg").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report_pictures").symlink_to(theirs)
    files = write(tmp_path / "run")
    pictures = tmp_path / "run" / "report_pictures"
    assert not pictures.is_symlink()
    assert {path.name for path in pictures.iterdir()} == {*files}
    assert not leads or [path.read_text() for path in theirs.iterdir()] == ["theirs"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count: int) -> None:
    assert len(choose([0.5] * count)) == count


def test_noise_is_made_smaller_until_it_fits() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (19, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, 19, (512, 512))
    files = _encoded({f"{n}.png": colours[labels] for n in range(12)})
    assert sum(map(len, files.values())) <= _BYTES
    with Image.open(io.BytesIO(files["0.png"])) as picture:
        assert picture.mode == "P"
        assert picture.width > 100
        assert {colour for _, colour in picture.convert("RGB").getcolors()} == {tuple(c) for c in colours.tolist()}  # type: ignore[union-attr]
