"""piecewise data: what is in a data set and what is wrong with it, and fetching the field's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def check(
    folders: list[str],
    num_classes: int | None = None,
    label_suffix: str = "",
    label_map: dict[int, int] | None = None,
) -> int:
    """Reads every pair of image and label, and prints what is in them and every fault by file name.

    Exits with 1 if there is a fault.

    Args:
        folders: data sets: images/ and labels/, or the layout of VOC, Cityscapes or CamVid
        num_classes: number of classes, to find labels beyond them; known for Cityscapes and the SegNet CamVid
        label_suffix: what a label's name has behind its image's, such as _mask, in images/ and labels/
        label_map: classes for values of label images there, such as {0: 255, 1: 0}; other values stay
    """
    from rich.console import Console

    from piecewise_training.cli.surveys import print_frequencies, print_remarks, print_summary
    from piecewise_training.dataset.files import DataError, label_table
    from piecewise_training.dataset.survey import find_parts, survey

    console = Console()
    table = None if label_map is None else label_table(label_map)
    faults: list[str] = []
    for folder in folders:
        try:
            parts = find_parts(Path(folder), label_suffix, table)
        except DataError as error:
            faults.append(str(error))
            continue
        surveys = [survey(part, num_classes) for part in parts]
        faults += [fault for found in surveys for fault in found.faults]
        print_summary(console, folder, surveys)
        print_frequencies(console, surveys)
        print_remarks(console, surveys)
        if num_classes is None and any(part.num_classes is None for part in parts):
            console.print("label values were not checked against a number of classes: give --num_classes")
    for fault in faults:
        console.print(f"fault: {fault}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(faults)} faults" if len(faults) != 1 else "1 fault", highlight=False)
    return 1 if faults else 0


def download(names: list[str], root: str = "data", source: Literal["torchvision", "kaggle"] = "torchvision") -> None:
    """Downloads data sets, with checksums: voc2012, or sbd, which makes 10,582 training images of VOC's 1,464.

    Args:
        names: voc2012 or sbd
        root: folder below which they come to lie
        source: torchvision's downloader, or Kaggle's mirror of voc2012
    """
    from piecewise_training.dataset.download import check_source
    from piecewise_training.dataset.download import download as fetch

    for name in names:
        check_source(name, source)
    for name in names:
        print(f"{name} is in {fetch(name, Path(root), source)}")
