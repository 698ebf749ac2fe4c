"""Which image and label files belong together: by their names, in two folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from piecewise_training.dataset.files import SUFFIXES, DataError, and_more, broken_link, is_broken_link

_SHOWN = 3  # of the faults, where all may be thousands


@dataclass(frozen=True)
class Pair:
    """An image, its label image, and the name both go by."""

    name: str
    image: Path
    label: Path


def pair_by_stem(
    image_dir: Path, label_dir: Path, names: Iterable[str] | None = None, label_suffix: str = ""
) -> list[Pair]:
    """Pairs images with labels by file name without suffix, in the order of `names`, or sorted.

    Args:
        image_dir: the images.
        label_dir: the labels.
        names: of the images to take; None takes all.
        label_suffix: what a label's stem has behind its image's; files of other names are no labels then.

    Raises:
        DataError: a folder is missing or empty, both are one, two files share a stem, a partner or a listed name is
            missing, or a link leads nowhere.
    """
    pairs, faults = match_by_stem(image_dir, label_dir, names, label_suffix)
    if faults:
        shown = " ".join(faults[:_SHOWN])
        rest = f" There are {len(faults) - _SHOWN} more such faults." if faults[_SHOWN:] else ""
        raise DataError(shown + rest)
    return pairs


def match_by_stem(
    image_dir: Path, label_dir: Path, names: Iterable[str] | None = None, label_suffix: str = ""
) -> tuple[list[Pair], list[str]]:
    """The pairs of two folders, and a sentence for each file or listed name that lacks a partner or leads nowhere.

    Args:
        image_dir: as in `pair_by_stem`.
        label_dir: as in `pair_by_stem`.
        names: as in `pair_by_stem`.
        label_suffix: as in `pair_by_stem`.

    Raises:
        DataError: a folder is missing or empty, both are one, two files share a stem, or names of labels end otherwise
            than is said.
    """
    one_folder = image_dir.is_dir() and image_dir.resolve() == label_dir.resolve()
    if one_folder and not label_suffix:
        raise DataError(
            f"images and labels lie in one folder, {image_dir}, where they have to share their names. Move the labels "
            "to a folder of their own, or say what their names end in: `label_suffix`."
        )
    images, labels = _by_stem(image_dir, "image_dir"), _by_stem(label_dir, "label_dir")
    if label_suffix:
        if one_folder:
            images = {name: path for name, path in images.items() if not name.endswith(label_suffix)}
        labels = _without_ending(labels, label_suffix, label_dir)
    if not images:
        raise DataError(f"every file in {image_dir} has a name that ends in `label_suffix` {label_suffix!r}.")
    if not (label_suffix or images.keys() & labels.keys()) and (ending := _ending(images, labels)):
        raise DataError(
            f"no label in {label_dir} has the name of an image, but with {ending!r} behind it all have: give that as "
            "`label_suffix`."
        )
    if names is None:
        names = sorted(images.keys() & labels.keys())
        called = f"its name and {label_suffix!r}" if label_suffix else "its name"
        faults = [f"image {images[name]} has no label of {called} in {label_dir}." for name in images.keys() - labels]
        faults += [f"label {labels[name]} has no image of its name in {image_dir}." for name in labels.keys() - images]
    else:
        names = [_composed(name) for name in names]
        faults = [f"{name!r} is listed, but {image_dir} has no such image." for name in names if name not in images]
        faults += [f"{name!r} is listed, but {label_dir} has no such label." for name in names if name not in labels]
    pairs = [Pair(name, images[name], labels[name]) for name in names if name in images and name in labels]
    broken = {path: broken_link(path, "image") for path in (pair.image for pair in pairs) if is_broken_link(path)}
    broken |= {path: broken_link(path, "label") for path in (pair.label for pair in pairs) if is_broken_link(path)}
    sound = [pair for pair in pairs if pair.image not in broken and pair.label not in broken]
    return sound, sorted([*faults, *broken.values()])


def partners(paths: Iterable[Path], folder: Path, ending: str = "") -> list[Path]:
    """The file of the same stem in a folder of images, for each path; an `ending` of its stem does not count.

    Raises:
        DataError: the folder is missing or empty, or a path has no partner in it.
    """
    paths = list(paths)
    found = partners_if_any(paths, folder, ending, "images")
    absent = [path for path, partner in zip(paths, found, strict=True) if partner is None]
    if absent:
        raise DataError(f"{absent[0]}{and_more(absent)} has no image of its name in {folder}.")
    return [partner for partner in found if partner is not None]


def partners_if_any(paths: Iterable[Path], folder: Path, ending: str, called: str) -> list[Path | None]:
    """The file of the same stem in a folder, or None, for each path; an `ending` of its stem does not count.

    Args:
        paths: of the files that want a partner.
        folder: where the partners lie.
        ending: of the paths' stems.
        called: what errors call the folder.

    Raises:
        DataError: the folder is missing or empty.
    """
    known = _by_stem(folder, called)
    stems = [_composed(path.stem) for path in paths]
    return [known.get(stem) or known.get(stem.removesuffix(ending)) for stem in stems]


def read_names(image_list: str | Path | Sequence[str], called: str = "image_list") -> list[str]:
    """The names in a list: a file with one a line, or a sequence; suffixes of image files are dropped.

    Args:
        image_list: the list.
        called: what errors call it.

    Raises:
        DataError: the file does not exist or is not in UTF-8, or the list is empty.
    """
    if isinstance(image_list, str | Path):
        path = Path(image_list)
        if not path.is_file():
            raise DataError(f"`{called}` {path} does not exist. It must be a text file with one image name a line.")
        try:
            lines: Iterable[str] = path.read_text(encoding="utf-8-sig").split("\n")  # Windows puts a mark before it
        except UnicodeDecodeError as error:
            raise DataError(f"`{called}` {path} is no text in UTF-8 ({error}). Save it as such.") from error
    else:
        lines = image_list
    names = [_without_suffix(line.strip()) for line in lines if line.strip()]
    if not names:
        raise DataError(f"`{called}` {image_list} names no image.")
    return names


def _by_stem(folder: Path, argument: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"`{argument}` {folder} is no folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if not path.is_file() and not is_broken_link(path):  # whose target is missed rather than the file itself
            continue
        name = _composed(path.stem)
        if name in found:
            raise DataError(f"{found[name]} and {path.name} share the name {name!r}. Remove one of them.")
        found[name] = path
    if not found:
        raise DataError(f"`{argument}` {folder} holds no image ({', '.join(s[1:] for s in SUFFIXES)}).")
    return found


def _without_ending(labels: dict[str, Path], ending: str, folder: Path) -> dict[str, Path]:
    """The labels whose stem has an ending, by what is before it."""
    found = {name.removesuffix(ending): path for name, path in labels.items() if name.endswith(ending)}
    if not found:
        raise DataError(f"no label in {folder} has a name that ends in `label_suffix` {ending!r}.")
    return found


def _ending(images: dict[str, Path], labels: dict[str, Path]) -> str | None:
    """What labels' names have behind those of images, where every image has such a label."""
    first = min(images)
    endings = sorted(name.removeprefix(first) for name in labels if name.startswith(first))
    return next((ending for ending in endings if all(name + ending in labels for name in images)), None)


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name


def _composed(name: str) -> str:
    """A name with each accented letter as one character; macOS has written letter and accent apart."""
    return unicodedata.normalize("NFC", name)
