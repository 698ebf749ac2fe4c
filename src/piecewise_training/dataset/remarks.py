"""What is odd about many files together, though each of them can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from piecewise_training.dataset.files import VOID, Decoded, and_more

Colour = tuple[int, ...]


class Palettes:
    """Whether the palettes of labels give an index the same colour: else it may mean another class from file to file.

    Colours that no pixel of a file has are not looked at, nor is that of void.
    """

    def __init__(self) -> None:
        self._first: dict[int, tuple[Colour, Path]] = {}
        self._differ: list[tuple[Path, int, Colour]] = []

    def add(self, label: Decoded, indices: np.ndarray) -> None:
        """Compares a label with those of before, by its class indices."""
        if label.image.mode != "P":
            return
        colours = np.asarray(label.image.getpalette("RGB")).reshape(-1, 3)
        used = {int(k): tuple(colours[k].tolist()) for k in np.unique(indices) if k < len(colours) and k != VOID}
        for index, colour in used.items():
            self._first.setdefault(index, (colour, label.path))
        others = [(index, colour) for index, colour in used.items() if self._first[index][0] != colour]
        if others:
            self._differ.append((label.path, *others[0]))

    def remarks(self) -> list[str]:
        """A sentence on the files whose palette is another, if there are any."""
        if not self._differ:
            return []
        path, index, colour = self._differ[0]
        own, first = self._first[index]
        return [
            f"the palette of label {path}{and_more(self._differ)} is another: index {index} is {colour} there and "
            f"{own} in {first}. What is read are the indices: see that they mean the same classes."
        ]


class Turns:
    """How many images are turned by their EXIF orientation, and their labels not."""

    def __init__(self) -> None:
        self._turned: list[Path] = []
        self._misfits = 0

    def add(self, image: Decoded, label: Decoded) -> None:
        """Looks at the orientations of a pair."""
        if image.orientation in (1, label.orientation):
            return
        self._turned.append(image.path)
        self._misfits += image.image.size != label.image.size

    def remarks(self) -> list[str]:
        """A sentence on such images, if there are any."""
        if not self._turned:
            return []
        count, first = len(self._turned), f"{'first: ' if self._turned[1:] else ''}{self._turned[0]}"
        return [
            f"images that are turned by EXIF orientation and whose labels are not: {count} ({first}); of other sizes "
            f"than these then: {self._misfits}. Labels must be those of the upright image."
        ]
