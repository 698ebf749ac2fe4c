"""What the command line names: files, folders and globs as a list of files, and score files as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from piecewise_training.dataset.files import check_label, read_label
from piecewise_training.inference import scores_from_labels


def find_files(inputs: Iterable[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that the inputs name, in order and once: files, folders (not what lies deeper), globs.

    Raises:
        FileNotFoundError: an input names no file of these suffixes.
        ValueError: two files share a name, so that one's output would replace the other's.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        elif path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor)
            matches = sorted(p for p in anchor.glob(str(path.relative_to(anchor))) if p.suffix.lower() in suffixes)
        if not matches:
            raise FileNotFoundError(f"{entry!r} names no file of the kind {', '.join(s[1:] for s in suffixes)}.")
        found.update(dict.fromkeys(matches))
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise ValueError(f"{stems[path.stem]} and {path} would both be written as {path.stem}.png.")
        stems[path.stem] = path
    return list(found)


def read_scores(path: Path, size: tuple[int, int], kind: str, num_classes: int | None, confidence: float) -> np.ndarray:
    """Log-probabilities (K, H, W), up to a constant a pixel, from a file of scores or labels."""
    if path.suffix.lower() == ".png":
        if num_classes is None:
            raise ValueError(f"{path} is a label image: give --num_classes or --class_names.")
        label = read_label(path)
        check_label(path, label, size, num_classes)
        return scores_from_labels(label, num_classes, confidence)
    scores = _read_array(path)
    if scores.ndim != 3 or scores.shape[1:] != size or len(scores) < 2:
        raise ValueError(f"{path} must hold (K, {size[0]}, {size[1]}) scores, as its image; it holds {scores.shape}.")
    scores = scores.astype(np.float32)
    if kind == "logits" or (kind == "auto" and not _is_probability(scores)):
        return scores
    if not _is_probability(scores):
        raise ValueError(f"{path} holds no probabilities: they must be from 0 to 1 and sum to 1 over the classes.")
    return np.log(scores.clip(min=1e-10))


def _read_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if len(loaded.files) != 1:
                raise ValueError(f"it holds {len(loaded.files)} arrays ({', '.join(loaded.files)}) and not one")
            return loaded[loaded.files[0]]
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} could not be read as one array of scores: {error}.") from error


def _is_probability(scores: np.ndarray) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1 and np.allclose(scores.sum(0), 1, atol=2e-2))
