"""The files of a report."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piecewise_training.dataset import Classes
from piecewise_training.inference import Prediction, Result
from piecewise_training.metrics import scores_from_confusion
from piecewise_training.visualization import Sample, save_labels, save_prediction, summary_rows, write_report

CLASSES = Classes.named(("road", "car"))


def result(hits: int) -> Result:
    confusion = torch.tensor([[hits, 1], [2, 7]])
    borders = {"boundary_iou": 0.25, "trimap_4": 0.5}
    return Result(scores_from_confusion(confusion), confusion, borders, seconds=0.125)


def sample(name: str) -> Sample:
    labels = np.array([[0, 1, 255], [1, 1, 0]], np.uint8).repeat(10, 0).repeat(10, 1)
    image = np.zeros((*labels.shape, 3), np.uint8)
    prediction = Prediction(labels.clip(max=1), labels.clip(max=1), np.zeros((2, *labels.shape), np.float32))
    return Sample(name, image, labels, prediction)


def test_report_of_an_evaluation(tmp_path: Path) -> None:
    write_report(
        tmp_path, results={"a": result(5), "b": result(9)}, classes=CLASSES, samples=[sample("x")], notes=["a note"]
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        "confusion_matrix.png", "per_class_iou.png", "sample_predictions.png", "crf_comparison.png",
        "metrics_summary.txt", "metrics_summary.csv", "per_class_performance.csv",
    }  # fmt: skip
    text = (tmp_path / "metrics_summary.txt").read_text().splitlines()
    assert text[0].split()[:3] == ["model", "mIoU", "pixel"]
    assert text[-1] == "a note"
    with (tmp_path / "per_class_performance.csv").open() as file:
        road, car = csv.DictReader(file)
    assert float(road["IoU, b"]) == pytest.approx(100 * 9 / 12, abs=1e-3)
    assert float(car["precision"]) == pytest.approx(100 * 7 / 8, abs=1e-3)
    assert car["pixels"] == "9"


def test_summary_is_in_per_cent_and_milliseconds() -> None:
    columns, ((name, values),) = summary_rows({"a": result(9)})
    row = dict(zip(columns, values, strict=True))
    assert name == "a"
    assert row["mIoU"] == pytest.approx(100 * (9 / 12 + 7 / 10) / 2)
    assert (row["boundary IoU"], row["trimap 4 px"], row["ms an image"]) == (25, 50, 125)


def test_labels_come_back_from_their_file(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [255, 0]], np.uint8)
    save_labels(tmp_path / "a.png", labels, CLASSES)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0, 1], CLASSES.colours[1])


def test_predictions_on_request(tmp_path: Path) -> None:
    labels, image = np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.uint8)
    probabilities = np.full((2, 4, 5), 0.5, np.float32)
    for folder, wanted in (("none", False), ("all", True)):
        save_prediction(
            tmp_path / folder,
            "a",
            labels,
            probabilities,
            image,
            CLASSES,
            with_overlay=wanted,
            with_probabilities=wanted,
        )
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["a.png"]
    assert len(list((tmp_path / "all").iterdir())) == 3
    with np.load(tmp_path / "all" / "a_probabilities.npz") as file:
        assert file.files == ["probabilities"]
        assert file["probabilities"].dtype == np.float16
        np.testing.assert_array_equal(file["probabilities"], probabilities)


def test_report_without_pictures(tmp_path: Path) -> None:
    nothing = {"stage1": {"train_loss": []}}
    write_report(tmp_path, results={"a": result(5)}, classes=CLASSES, samples=[], history=nothing)
    assert {p.name for p in tmp_path.iterdir()} == {
        "confusion_matrix.png", "per_class_iou.png", "metrics_summary.txt", "metrics_summary.csv",
        "per_class_performance.csv",
    }  # fmt: skip


def test_tables_of_names_of_any_script(tmp_path: Path) -> None:
    classes = Classes.named(["Stra\u00dfe", "car"])
    write_report(tmp_path, results={"\u00e4": result(5)}, classes=classes, samples=[], notes=["\u00fc"])
    assert "Stra\u00dfe" in (tmp_path / "per_class_performance.csv").read_text(encoding="utf-8")
    assert "\u00fc" in (tmp_path / "metrics_summary.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [-1, 300])
def test_labels_that_fit_no_file(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"`labels` must be from 0 to 255; they go from {wrong} to {wrong}"):
        save_labels(tmp_path / "a.png", np.full((2, 2), wrong), CLASSES)
    assert not list(tmp_path.iterdir())
