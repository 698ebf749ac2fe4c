"""Writes what a run leaves behind: pictures, tables and painted labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from piecewise_training import figures
from piecewise_training.dataset import VOID, Classes
from piecewise_training.inference import Prediction, Result
from piecewise_training.writing import atomic_write

REPORT_FILES = (
    *("training_curves.png", "confusion_matrix.png", "per_class_iou.png", "sample_predictions.png"),
    *("crf_comparison.png", "metrics_summary.txt", "metrics_summary.csv", "per_class_performance.csv"),
)
_SUMMARY = (
    "mIoU",
    "pixel accuracy",
    "mean accuracy",
    "freq. weighted IoU",
    "boundary IoU",
    "trimap 4 px",
    "ms an image",
)


@dataclass(frozen=True)
class Sample:
    """An image with its true labels and two predictions of them.

    Attributes:
        name: of the image.
        image: (H, W, 3) uint8.
        truth: (H, W) uint8.
        prediction: of the trained model.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: Prediction


def write_report(
    folder: str | Path,
    *,
    results: Mapping[str, Result],
    classes: Classes,
    samples: Sequence[Sample],
    history: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    stage_titles: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes the pictures and tables of a run into a folder.

    Args:
        folder: where to; existing files of the same names are replaced.
        results: by name, from the plainest to the best; the last is the one that the details are about. Where it is
            the only one, there is no crf_comparison.png.
        classes: names and colours.
        samples: images to show; without one there are no pictures of them.
        history: of the training, if there was one.
        stage_titles: what each stage of the history trained.
        notes: lines for the end of metrics_summary.txt.
    """
    folder = Path(folder)
    for name in REPORT_FILES:  # of an earlier time: interrupted, nothing of it stands beside what is new
        if history or name != "training_curves.png":
            (folder / name).unlink(missing_ok=True)
    _write_tables(folder, results, classes, notes)
    (first_name, first), (last_name, last) = list(results.items())[0], list(results.items())[-1]
    if history and any(values["train_loss"] for values in history.values()):
        titles = stage_titles or dict.fromkeys(history, "")
        save_figure(figures.training_curves(history, titles), folder / "training_curves.png")
    save_figure(figures.confusion_matrix(last.confusion.numpy(), classes), folder / "confusion_matrix.png")
    ends = {first_name: first, last_name: last}
    save_figure(
        figures.per_class_iou({name: r.scores.iou.numpy() for name, r in ends.items()}, classes),
        folder / "per_class_iou.png",
    )
    names = [sample.name for sample in samples]
    images, truths = [s.image for s in samples], [s.truth for s in samples]
    final = [s.prediction.labels for s in samples]
    painted = [figures.overlay(s.image, s.prediction.labels, classes) for s in samples]
    before = [s.prediction.unary_labels for s in samples]
    galleries = {
        "sample_predictions.png": {"image": images, "truth": truths, "prediction": final, "overlay": painted},
    }
    if len(results) > 1:
        compared = {"before the CRF": before, "after the CRF": final}
        galleries["crf_comparison.png"] = {"image": images, "truth": truths, **compared}
    for name, columns in galleries.items() if samples else ():
        save_figure(figures.label_gallery(columns, names, classes), folder / name)


def summary_rows(results: Mapping[str, Result]) -> tuple[tuple[str, ...], list[tuple[str, list[float]]]]:
    """The summary table: its columns, and for each result its name and values in per cent, the last in milliseconds."""
    rows = []
    for name, result in results.items():
        scores, borders = result.scores, result.borders
        shares = (
            scores.miou,
            scores.pixel_accuracy,
            scores.mean_accuracy,
            scores.frequency_weighted_iou,
            borders["boundary_iou"],
            borders["trimap_4"],
        )
        rows.append((name, [100 * share for share in shares] + [1000 * result.seconds]))
    return _SUMMARY, rows


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white", metadata={"Software": None})


def save_labels(path: Path, labels: np.ndarray, classes: Classes) -> None:
    """Writes labels (H, W) as a palette PNG, whose pixels are the class indices.

    Raises:
        ValueError: a label is not from 0 to 255.
    """
    if labels.size and (labels.min() < 0 or labels.max() > VOID):
        raise ValueError(f"`labels` must be from 0 to {VOID}; they go from {labels.min()} to {labels.max()}.")
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(classes)] = classes.colours
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette.tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary)


def prediction_files(name: str, *, with_overlay: bool, with_probabilities: bool) -> list[str]:
    """The names of the files that `save_prediction` writes, the labels first."""
    overlay = [f"{name}_overlay.png"] if with_overlay else []
    return [f"{name}.png", *overlay, *([f"{name}_probabilities.npz"] if with_probabilities else [])]


def save_prediction(
    folder: Path,
    name: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    image: np.ndarray,
    classes: Classes,
    *,
    with_overlay: bool,
    with_probabilities: bool,
) -> None:
    """Writes NAME.png, and if asked NAME_overlay.png and NAME_probabilities.npz (key "probabilities", float16)."""
    save_labels(folder / f"{name}.png", labels, classes)
    if with_overlay:
        with atomic_write(folder / f"{name}_overlay.png") as temporary:
            Image.fromarray(figures.overlay(image, labels, classes)).save(temporary)
    if with_probabilities:
        with atomic_write(folder / f"{name}_probabilities.npz") as temporary:
            np.savez_compressed(temporary, probabilities=probabilities.astype(np.float16))


def _write_tables(folder: Path, results: Mapping[str, Result], classes: Classes, notes: Sequence[str]) -> None:
    columns, rows = summary_rows(results)
    _write_csv(folder / "metrics_summary.csv", ["model", *columns], [[n, *(f"{v:.3f}" for v in vs)] for n, vs in rows])
    widest = max(len(name) for name in results)
    lines = [" ".join(["model".ljust(widest), *(column.rjust(max(8, len(column))) for column in columns)])]
    for name, values in rows:
        cells = (f"{value:.2f}".rjust(max(8, len(column))) for value, column in zip(values, columns, strict=True))
        lines.append(" ".join([name.ljust(widest), *cells]))
    with atomic_write(folder / "metrics_summary.txt") as temporary:
        text = "\n".join([*lines, "", "All in per cent, times excepted.", *notes]) + "\n"
        temporary.write_text(text, encoding="utf-8")

    last = list(results.values())[-1].scores
    header = ["class", *(f"IoU, {name}" for name in results), "precision", "recall", "F1", "pixels"]
    table: list[list[Any]] = []
    for k, name in enumerate(classes.names):
        shares = [r.scores.iou[k] for r in results.values()] + [last.precision[k], last.recall[k], last.f1[k]]
        table.append([name, *(f"{100 * float(share):.3f}" for share in shares), int(last.support[k])])
    _write_csv(folder / "per_class_performance.csv", header, table)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
