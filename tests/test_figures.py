"""What the figures show."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from piecewise_training import figures
from piecewise_training.dataset import Classes
from piecewise_training.dataset.voc import CLASSES as VOC


def test_overlay_leaves_void_bare() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = figures.overlay(image, np.array([[1, 255]], np.uint8), Classes.numbered(2), opacity=0.5)
    assert mixed.tolist() == [[[114, 50, 50], [100, 100, 100]]]


def test_curves_have_a_column_for_each_stage() -> None:
    values = {"train_loss": [2.0, 1.0], "val_miou": [0.1, 0.5], "val_loss": [2.0, 1.5], "lr": [0.1, 0.01]}
    figure = figures.training_curves({"stage1": values, "stage2": values}, {"stage1": "CNN", "stage2": "CRF"})
    loss_1, loss_2, score_1, _, rate_1, rate_2 = figure.axes
    assert [loss_1.get_title(), loss_2.get_title()] == ["1. CNN", "2. CRF"]
    assert list(loss_1.lines[0].get_xdata()) == [1, 2]
    assert list(loss_2.lines[0].get_xdata()) == [3, 4]
    assert list(score_1.lines[0].get_ydata()) == [10, 50]
    assert rate_1.get_yscale() == rate_2.get_yscale() == "log"


def test_curves_pass_over_epochs_that_were_not_validated() -> None:
    scores = [np.nan, 0.1, np.nan, 0.3]
    values = {"train_loss": [1.0] * 4, "val_miou": scores, "val_accuracy": [np.nan] * 4}
    axis = figures.training_curves({"stage1": values}, {"stage1": "CNN"}).axes[1]
    assert [line.get_label() for line in axis.lines] == ["mean IoU"]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[2, 10], [4, 30]])


def test_curves_of_a_single_epoch_without_validation() -> None:
    figure = figures.training_curves({"stage1": {"train_loss": [2.0], "lr": [0.1]}}, {"stage1": ""})
    assert figure.axes[0].get_title() == "stage1"


def test_confusion_matrix_is_row_normalised() -> None:
    figure = figures.confusion_matrix(np.array([[3, 1], [0, 0]]), Classes.numbered(2))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[75, 25], [0, 0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25"]


@pytest.mark.parametrize(("count", "numbers", "names"), [(40, 40, 40), (150, 0, 75), (255, 0, 128)])
def test_confusion_of_many_classes_stays_small(count: int, numbers: int, names: int) -> None:
    figure = figures.confusion_matrix(np.eye(count), Classes.numbered(count))
    assert max(figure.get_size_inches()) <= 20
    (axis,) = figure.axes
    assert len(axis.texts) == numbers
    for ticks, labels in ((axis.get_xticks(), axis.get_xticklabels()), (axis.get_yticks(), axis.get_yticklabels())):
        assert [label.get_text() for label in labels] == [f"class {place}" for place in ticks]
        assert len(ticks) == names


def test_bars_name_absent_classes() -> None:
    ious = {"before": np.array([0.5, np.nan]), "after": np.array([0.75, np.nan])}
    figure = figures.per_class_iou(ious, Classes.numbered(2))
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0", "absent", "75.0", "absent"]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["before (mean 50.0)", "after (mean 75.0)"]


def test_names_are_drawn_in_fonts_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's own comes first, and what it lacks is looked up in the others."""
    monkeypatch.setattr(figures, "_FONTS", ("a font that nobody has", "STIXGeneral"))
    classes = Classes.named(("\u9053\u8def", "b"))
    figure = figures.confusion_matrix(np.eye(2), classes)
    (axis,) = figure.axes
    assert [label.get_fontfamily() for label in axis.get_yticklabels()] == 2 * [["sans-serif", "STIXGeneral"]]
    assert rcParams["font.family"] == ["sans-serif"]


@pytest.mark.parametrize("letters", [3, 20, 40, 200])
def test_a_legend_lies_within_the_figure(letters: int) -> None:
    classes = Classes.named([f"{'construction--flat '[k:] * 12}"[: letters - 2] + f"{k:2}" for k in range(14)])
    labels = np.arange(14, dtype=np.uint8).reshape(2, 7)
    figure = figures.label_gallery({"a": [labels], "b": [labels], "c": [labels], "d": [labels]}, ["x"], classes)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent()
    if letters < 200:  # one name that is wider than the whole figure cannot
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y0 >= 0


def test_gallery_has_the_legend_of_what_is_shown() -> None:
    labels = [np.array([[0, 15], [255, 0]], np.uint8)]
    figure = figures.label_gallery({"image": [np.zeros((2, 2, 3), np.uint8)], "truth": labels}, ["a"], VOC)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["background", "person"]
    assert to_rgb(legend.get_patches()[1].get_facecolor()) == pytest.approx((192 / 255, 128 / 255, 128 / 255))
    assert len(figure.axes) == 2


def test_names_are_shown_to_the_letter() -> None:
    """Neither mathematics nor bytes that are no text end a training at its last step."""
    names = ("a$\\foo$", "_hidden", "x$_$")
    classes = Classes.named(names)
    maps = [np.array([[0, 1, 2]], np.uint8)]
    pictures = (
        figures.confusion_matrix(np.eye(3), classes),
        figures.per_class_iou({"_a $x_$": np.ones(3), "b": np.ones(3)}, classes),
        figures.label_gallery({"truth": maps}, [os.fsdecode(b"stra\xdfe$0.png")], classes),
    )
    for figure in pictures:
        figure.savefig(io.BytesIO(), format="png")
    legend = pictures[1].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [r" _a \$x_\$ (mean 100.0)", "b (mean 100.0)"]


def test_strips_do_not_make_a_huge_figure() -> None:
    strip = np.zeros((1000, 10), np.uint8)
    figure = figures.label_gallery({"truth": [strip, strip]}, ["a", "b"], VOC)
    assert figure.get_figheight() < 20


def test_curves_of_stages_without_epochs_and_of_fewer_validations() -> None:
    history = {"none": {"train_loss": []}, "stage2": {"train_loss": [2.0, 1.0], "val_loss": [1.5]}}
    figure = figures.training_curves(history, {"none": "", "stage2": "a $x_{ b$"})
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 1]  # type: ignore[arg-type]
    assert figure.axes[0].get_title().startswith("2. a")
    figure.savefig(io.BytesIO())  # where matplotlib reads the title
    with pytest.raises(ValueError, match="`history` has no stage with an epoch"):
        figures.training_curves({"none": {"train_loss": []}}, {"none": ""})


def test_overlay_leaves_all_but_classes_bare() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    assert figures.overlay(image, np.array([[-1, 2]]), Classes.numbered(2)).tolist() == image.tolist()
