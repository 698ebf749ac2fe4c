"""What the demonstration computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piecewise_training.crf import DenseCRF, dense_crf
from piecewise_training.dataset import Classes
from piecewise_training.demo import refining
from piecewise_training.model import PiecewiseTrainedModel

CLASSES = Classes.named([*"abc"])


def test_reads_upright_and_not_too_large(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # taken on its side
    Image.new("L", (3000, 1500), 200).save(tmp_path / "a.jpg", exif=exif)
    image = refining.read_image(tmp_path / "a.jpg")
    assert image.shape == (1024, 512, 3)
    assert image.dtype == np.uint8


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image. Take a PNG or JPEG file"):
        refining.read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"^short.png is broken or cut short"):
        refining.read_image(tmp_path / "short.png")
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"^deep.png has more than 8 bits a channel"):
        refining.read_image(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image. Take a PNG of class indices"):
        refining.read_mask(tmp_path / "text.png", (10, 10), 3)
    with pytest.raises(ValueError, match=r"^short.png .*(truncated|cut)"):
        refining.read_mask(tmp_path / "short.png", (10, 10), 3)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(refining, "MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match="a.png has 40 x 30 pixels: at most 50 megapixels, please"):
        refining.read_image(tmp_path / "a.png")


def test_masks(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "m.png")
    assert refining.read_mask(tmp_path / "m.png", (4, 4), 3)[::2, ::2].tolist() == [[0, 1], [2, 255]]
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"^rgb.png is a colour image \(RGB\), not one of class indices"):
        refining.read_mask(tmp_path / "rgb.png", (4, 4), 3)
    Image.new("L", (4, 4), 255).save(tmp_path / "void.png")
    with pytest.raises(ValueError, match="void.png holds no label from 0 to 2"):
        refining.read_mask(tmp_path / "void.png", (4, 4), 3)


@pytest.mark.parametrize(
    ("values", "told"),
    [([3], "the value 3"), ([9, 77], "the values 9, 77"), (range(3, 11), "the values 3, 4, 5, 6, 7 and 3 more")],
)
def test_masks_of_other_values(tmp_path: Path, values: Sequence[int], told: str) -> None:
    """Even a single pixel, which the image's smaller size might leave out."""
    labels = np.zeros((16, 16), np.uint8)
    labels[1, : len(values)] = values
    Image.fromarray(labels).save(tmp_path / "m.png")
    expected = f"m.png holds {told}, but labels go from 0 to 2, and 255 is void. Map what is no label to 255."
    with pytest.raises(ValueError, match=f"^{expected}$"):
        refining.read_mask(tmp_path / "m.png", (4, 4), 3)


def test_strokes() -> None:
    layer = np.zeros((2, 3, 4), np.uint8)
    layer[0, 1] = (*CLASSES.colours[1], 255)
    layer[1, 2] = (*CLASSES.colours[2], 255)
    layer[1, 0] = (*CLASSES.colours[2], 20)  # the soft edge of a brush
    assert refining.strokes(layer, CLASSES).tolist() == [[255, 1, 255], [255, 255, 2]]


def test_sliders_are_the_crfs_parameters() -> None:
    """At the sliders' values the scene is what `dense_crf` makes of it; at the start it is the model's own."""
    torch.manual_seed(0)
    image = refining.drawn_image(3)[:60, :80]
    model = PiecewiseTrainedModel(3, 4, unary=torch.nn.Conv2d(3, 3, 3, padding=1)).eval()
    assert model.crf is not None
    scene = refining.scene_of_model(model, image)
    start = {name: float(value.detach()) for name, value in model.crf.kernel_parameters().items()}
    same = refining.adjusted(model.crf, start, 1.0, 4)
    scores, pixels = torch.from_numpy(scene.scores)[None], torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        torch.testing.assert_close(same(scores, pixels), model.crf(scores, pixels), atol=1e-4, rtol=1e-4)
    other = refining.adjusted(DenseCRF(3, compatibility="potts"), {"pos_w": 2.0, "bilateral_rgb_std": 5.0}, 1.5, 2)
    expected = dense_crf(scores, pixels, pos_w=3.0, bilateral_rgb_std=5.0, iterations=2)
    with torch.inference_mode():
        torch.testing.assert_close(other(scores, pixels), expected, atol=1e-4, rtol=1e-4)
    assert model.crf.num_iterations == 4


def test_what_changed() -> None:
    """Void is filled in, which is no change; specks of another class in a region are changed to its own."""
    image = np.full((40, 50, 3), 90, np.uint8)
    labels = np.full((40, 50), 255, np.uint8)
    labels[:20, 10:18] = 0
    labels[9:11, 13:14], labels[2:11:2, 11], labels[13:18, 12:15] = 1, 1, 1
    scene = refining.scene_of_labels(image, labels, 3, 0.6)
    refined = refining.refine_scene(scene, DenseCRF(3, compatibility="potts"), CLASSES)
    red = (refined.changed == (217, 48, 37)).all(-1)
    np.testing.assert_array_equal(red, labels == 1)
    assert refined.share == (labels == 1).sum() / (labels != 255).sum()
    assert refined.void == (labels == 255).mean()
    assert refined.before.shape == refined.after.shape == (40, 50, 3)
    assert refined.seconds > 0


def test_summary() -> None:
    picture = np.zeros((1, 1, 3), np.uint8)
    whole = refining.Refined(picture, picture, picture, share=0.0312, void=0.0, seconds=0.04)
    assert refining.summary(whole) == "**3.1 %** of the pixels changed, in **40 ms**."
    line = refining.summary(replace(whole, void=0.955))
    assert line == (
        "**3.1 %** of the labelled pixels changed, in **40 ms**. Void, **95.5 %** of the image, was filled in."
    )


def test_masks_of_another_shape(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 100), np.uint8)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="long.png is 100 x 20, the image 40 x 40"):
        refining.read_mask(tmp_path / "long.png", (40, 40), 3)
    assert refining.read_mask(tmp_path / "long.png", (205, 1024), 3).shape == (205, 1024)


def test_only_usual_formats(tmp_path: Path) -> None:
    """Pillow reads EPS with a program of its own, whatever the file is called."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    for read in (refining.read_image, lambda path: refining.read_mask(path, (8, 8), 3)):
        with pytest.raises(ValueError, match="x.png cannot be read as an image"):
            read(tmp_path / "x.png")


def test_huge_masks(tmp_path: Path) -> None:
    Image.new("L", (10_000, 6_000)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="at most 50 megapixels"):
        refining.read_mask(tmp_path / "m.png", (8, 8), 3)
