"""What the command line names: files, folders and globs as a list of files, and score files as arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from piecewise_training.crf.dense import LEAST
from piecewise_training.dataset.files import DataError, check_label, read_label
from piecewise_training.inference import scores_from_labels

SCORED = "_probabilities"  # ends the names of what `piecewise predict --probabilities` writes beside the labels
_SCORE_SUFFIXES = (".npy", ".npz", ".png")

# What may go wrong with one image of many. PyTorch's lack of memory is a RuntimeError, a name too long an OSError.
FAULTS = (ValueError, MemoryError, RuntimeError, OSError)


def first_line(error: Exception) -> str:
    """What an error says, without the trace that PyTorch adds to it."""
    return str(error).partition("\n")[0] or type(error).__name__


def find_scores(inputs: Iterable[str]) -> list[Path]:
    """The files of scores or labels that the inputs name; of predictions not the labels where there are scores.

    Raises:
        FileNotFoundError: an input names no such file.
    """
    paths = find_files(inputs, _SCORE_SUFFIXES, without="_overlay")
    scored = {path for path in paths if path.stem.endswith(SCORED)}
    return [path for path in paths if path.suffix != ".png" or path.with_name(f"{path.stem}{SCORED}.npz") not in scored]


def class_count(num_classes: int | None, class_names: Sequence[str] | None) -> int | None:
    """The number of classes, which their names tell as well.

    Raises:
        ValueError: the two do not agree.
    """
    if class_names is None:
        return num_classes
    if num_classes not in (None, len(class_names)):
        raise ValueError(f"`num_classes` is {num_classes}, but `class_names` lists {len(class_names)}.")
    return len(class_names)


def find_files(inputs: Iterable[str], suffixes: Sequence[str], without: str = "") -> list[Path]:
    """The files that the inputs name, in order and once: files, folders (not what lies deeper), globs.

    Of folders and globs only files of the suffixes count, none that are hidden, and none whose stem ends `without`.

    Raises:
        FileNotFoundError: an input names no such file.
    """
    found: dict[Path, Path] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor)
            several = path.iterdir() if path.is_dir() else anchor.glob(str(path.relative_to(anchor)))
            matches = sorted(match for match in several if _is_wanted(match, suffixes, without))
        if not matches and not path.exists() and not set("*?[") & set(entry):
            raise FileNotFoundError(f"there is no file or folder {entry!r}.")
        if not matches:
            raise FileNotFoundError(f"{entry!r} names no file of the kind {', '.join(s[1:] for s in suffixes)}.")
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def _is_wanted(path: Path, suffixes: Sequence[str], without: str) -> bool:
    hidden = path.name.startswith(".")
    other = bool(without) and path.stem.endswith(without)
    return path.is_file() and path.suffix.lower() in suffixes and not hidden and not other


def check_outputs(names: Mapping[Path, Sequence[str]], output: Path, read: Iterable[Path]) -> None:
    """Refuses to start where an output file would replace another one, or a file that is read or lies beside one.

    Args:
        names: the files that each input leads to.
        output: the folder that they will lie in.
        read: every file that will be read.

    Raises:
        ValueError: two inputs lead to the same file, or one to a file in a folder that is read from.
    """
    folders = {path.resolve().parent for path in read}
    taken: dict[Path, Path] = {}
    for source, files in names.items():
        for file in files:
            target = (output / file).resolve()
            if target.parent in folders and target.exists():
                raise ValueError(f"`output` {output} is no good: {target} would be replaced. Give another folder.")
            if target in taken:
                raise ValueError(
                    f"{taken[target]} and {source} would both be written as {target}. Run one after the other, with "
                    "another --output."
                )
            taken[target] = source


def read_scores(path: Path, size: tuple[int, int], kind: str, num_classes: int | None, confidence: float) -> np.ndarray:
    """Log-probabilities (K, H, W), up to a constant a pixel, from a file of scores or labels."""
    if path.suffix.lower() == ".png":
        if num_classes is None:
            raise DataError(f"{path} is a label image: give --num_classes or --class_names.")
        label = read_label(path)
        check_label(path, label, size, num_classes)
        return scores_from_labels(label, num_classes, confidence)
    scores = _read_array(path)
    if not np.issubdtype(scores.dtype, np.floating):
        raise DataError(f"{path} must hold floating-point scores; it holds {scores.dtype}. Divide counts by their sum.")
    if scores.ndim != 3 or scores.shape[1:] != size or len(scores) < 2:
        raise DataError(f"{path} must hold (K, {size[0]}, {size[1]}) scores, as its image; it holds {scores.shape}.")
    if num_classes not in (None, len(scores)):
        raise DataError(f"{path} holds scores of {len(scores)} classes, not of {num_classes}.")
    scores = scores.astype(np.float32)
    if kind == "logits" or (kind == "auto" and not _is_probability(scores)):
        return _finite(path, scores)
    if not _is_probability(scores):
        raise DataError(f"{path} holds no probabilities: they must be from 0 to 1 and sum to 1 over the classes.")
    return np.log(scores.clip(LEAST, 1))


def _finite(path: Path, logits: np.ndarray) -> np.ndarray:
    """Logits without their -inf, the logarithm of 0: 100 below the pixel's best is as impossible."""
    best = logits.max(0)
    if not np.isfinite(best).all():
        raise DataError(f"{path} holds NaN or infinite scores, or a pixel with no possible class.")
    return np.maximum(logits, best - 100)


def _read_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if len(loaded.files) != 1:
                raise ValueError(f"it holds {len(loaded.files)} arrays ({', '.join(loaded.files)}) and not one")
            return loaded[loaded.files[0]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} could not be read as one array of scores: {error}.") from error


def _is_probability(scores: np.ndarray) -> bool:
    # Resizing and averaging leave the range by a little.
    return bool(scores.min() >= -1e-3 and scores.max() <= 1.001 and np.allclose(scores.sum(0), 1, atol=2e-2))
