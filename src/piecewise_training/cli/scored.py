"""Images with scores from elsewhere, and their true labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from piecewise_training.cli.inputs import SCORED, find_scores, read_scores
from piecewise_training.dataset.files import DataError, check_label, read_image, read_label
from piecewise_training.dataset.pairing import partners, partners_if_any


class ScoredImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Scores (K, H, W), image (3, H, W) uint8 and labels (H, W) int64 of each file that the inputs name.

    Args:
        inputs: files of scores or labels, folders or globs.
        images: folder of the images.
        labels: folder of the true labels.
        kind: what score files hold.
        num_classes: K, where label images stand for scores.
        confidence: of such.

    Attributes:
        unlabelled: how many of the files have no true labels; they are left out.

    Raises:
        DataError: no file has true labels, one that has them has no image, or two files are of one image.
        FileNotFoundError: an input names no such file.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        images: Path,
        labels: Path,
        kind: str = "auto",
        num_classes: int | None = None,
        confidence: float = 0.7,
    ) -> None:
        paths = find_scores(inputs)
        found = zip(paths, partners_if_any(paths, labels, SCORED, "labels"), strict=True)
        labelled = [(path, label) for path, label in found if label is not None]
        if not labelled:
            raise DataError(f"none of the {len(paths)} files, such as {paths[0]}, has a label of its name in {labels}.")
        self.unlabelled = len(paths) - len(labelled)
        self._paths = [path for path, _ in labelled]
        self._labels = [label for _, label in labelled]
        self._images = partners(self._paths, images, SCORED)
        self._refuse_twice()
        self._how = kind, num_classes, confidence

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One image, read anew.

        Raises:
            DataError: one of its files cannot be read, or does not fit the others.
        """
        image = np.array(read_image(self._images[index]))
        scores = read_scores(self._paths[index], image.shape[:2], *self._how)
        label = read_label(self._labels[index])
        check_label(self._labels[index], label, image.shape[:2], len(scores))
        pixels = torch.from_numpy(image).movedim(-1, 0)
        return torch.from_numpy(scores), pixels, torch.from_numpy(label.astype(np.int64))

    def _refuse_twice(self) -> None:
        """One image in two files could be learned on and held out, and true labels could be learned from themselves."""
        seen: dict[Path, Path] = {}
        for path, image, label in zip(self._paths, self._images, self._labels, strict=True):
            if path.resolve() == label.resolve():
                raise DataError(f"{path} is given as scores and lies in `labels`. Give other files, or another folder.")
            if image in seen:
                raise DataError(f"{seen[image]} and {path} are both of {image}. Give one of them.")
            seen[image] = path

    def classes(self) -> int:
        """K, after each file has been read once: what is wrong with one is said before anything is learned.

        Raises:
            DataError: a file cannot be read, or has other classes than the first.
        """
        found: dict[int, Path] = {}
        for index in track(range(len(self)), "reading"):
            found.setdefault(len(self[index][0]), self._paths[index])
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            raise DataError(f"{one} holds scores of {first} classes, and {other} of {second}. They must be the same.")
        return next(iter(found))
