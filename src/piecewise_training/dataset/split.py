"""Which images of a folder a run was trained and judged on, by name: files that come later change nothing of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from piecewise_training.dataset.files import DataError, and_more
from piecewise_training.dataset.pairing import Pair
from piecewise_training.writing import atomic_write

logger = logging.getLogger(__name__)

SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class Split:
    """The names of the images of both parts; those of a training list that repeats some stand there as often.

    Example:
        >>> split = Split(train=("a", "b"), val=("c",))
        >>> split.trained_on(["b", "c"])
        ['b']
    """

    train: tuple[str, ...]
    val: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Writes the names into a run's folder."""
        with atomic_write(folder / SPLIT_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Split | None:
        """The split of the run in a folder; None where it did not draw one, or began before such files were written.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / SPLIT_FILE
        if not path.is_file():
            return None
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))
            return cls(*(tuple(str(name) for name in parts[part]) for part in ("train", "val")))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} does not hold the names of a run's images ({type(error).__name__}: {error}). Bring back the "
                "file that the run has written: without it the images would be drawn anew."
            ) from error

    def validation(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The validation images among those that are there now; a warning tells which are in neither part.

        Raises:
            DataError: one of them is gone.
        """
        known = {pair.name: pair for pair in pairs}
        gone = [name for name in self.val if name not in known]
        if gone:
            raise DataError(
                f"of the run's {len(self.val)} validation images {gone[0]!r}{and_more(gone)} is gone. Bring it back, "
                "since the run was judged on all of them; `evaluate` takes others that data.val_list names."
            )
        new = sorted(known.keys() - {*self.train, *self.val})
        if new:
            logger.warning("%r%s came after the run had begun and is left out", new[0], and_more(new))
        return [known[name] for name in self.val]

    def training(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The training images among those that are there now; a warning tells which are gone."""
        known = {pair.name: pair for pair in pairs}
        gone = sorted({*self.train} - known.keys())
        if gone:
            logger.warning("training image %r%s is gone: the run goes on without it", gone[0], and_more(gone))
        return [known[name] for name in self.train if name in known]

    def trained_on(self, names: Iterable[str]) -> list[str]:
        """Which of the names are among those of the training images."""
        trained = set(self.train)
        return [name for name in names if name in trained]


def held_out(count: int, fraction: float, seed: int) -> list[int]:
    """The places, in order, of the images that are drawn for validation: at least one, and not all."""
    chosen = min(count - 1, max(1, round(fraction * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:chosen].tolist())


def draw(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """A share of the images for validation, each once, and all entries of the others for training.

    Args:
        pairs: all images; a training list may repeat some.
        fraction: the share.
        seed: another one draws others.

    Returns:
        The pairs for training and those for validation.

    Raises:
        DataError: the share is not between 0 and 1, or there is but one image.
    """
    if not 0 < fraction < 1:
        raise DataError(f"`data.val_fraction` must be between 0 and 1; got {fraction}.")
    once = list(dict.fromkeys(pairs))
    if len(once) < 2:
        raise DataError(f"{len(once)} pair cannot be split into training and validation; give data.val_images.")
    val = [once[place] for place in held_out(len(once), fraction, seed)]
    chosen = set(val)
    return [pair for pair in pairs if pair not in chosen], val
