"""What is odd about many files together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from piecewise_training.dataset.files import decode, indices
from piecewise_training.dataset.remarks import Palettes, Turns

RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)


def palettes(folder: Path, *labels: tuple[list[int], list[tuple[int, int, int]]]) -> list[str]:
    """The remarks on labels of these indices and colours, which lie in 0.png, 1.png and so on."""
    found = Palettes()
    for place, (values, colours) in enumerate(labels):
        label = Image.fromarray(np.array([values], np.uint8))
        label.putpalette([channel for colour in colours for channel in colour])
        label.save(folder / f"{place}.png")
        decoded = decode(folder / f"{place}.png", "label")
        found.add(decoded, indices(decoded))
    return found.remarks()


def test_an_index_of_another_colour(tmp_path: Path) -> None:
    first, other, third = ([0, 1], [BLACK, RED]), ([0, 1], [BLACK, GREEN]), ([1], [RED, BLACK])
    [remark] = palettes(tmp_path, first, other, third)
    assert f"the palette of label {tmp_path / '1.png'} (and 1 more) is another: index 1 is {GREEN} there" in remark
    assert f"and {RED} in {tmp_path / '0.png'}" in remark


def test_colours_that_no_pixel_has_may_differ(tmp_path: Path) -> None:
    first, other = ([0, 1], [BLACK, RED, RED]), ([0, 2], [BLACK, GREEN, GREEN])
    assert palettes(tmp_path, first, other) == []
    assert palettes(tmp_path, ([255], [*([BLACK] * 255), RED]), ([255], [BLACK] * 256)) == []


def test_turned_images(tmp_path: Path) -> None:
    def save(name: str, size: tuple[int, int], orientation: int) -> Path:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("L", size).save(tmp_path / name, exif=exif)
        return tmp_path / name

    found = Turns()
    for place, (image, label, size) in enumerate(((6, 1, (8, 6)), (6, 6, (8, 6)), (1, 1, (8, 6)), (6, 1, (6, 8)))):
        paths = save(f"{place}.jpg", (8, 6), image), save(f"{place}.png", size, label)
        found.add(decode(paths[0], "image"), decode(paths[1], "label"))
    [remark] = found.remarks()
    assert f"whose labels are not: 2 (first: {tmp_path / '0.jpg'}); of other sizes than these then: 1." in remark
    assert Turns().remarks() == []
