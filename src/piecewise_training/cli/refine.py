"""piecewise refine: a dense CRF on somebody else's score maps or labels."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def run(
    inputs: list[str],
    images: str = "images",
    output: str = "refined",
    kind: Literal["auto", "logits", "probabilities"] = "auto",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    confidence: float | None = None,
    pos_xy_std: float = 3.0,
    pos_w: float = 3.0,
    bilateral_xy_std: float = 80.0,
    bilateral_rgb_std: float = 13.0,
    bilateral_w: float = 10.0,
    crf: str | None = None,
    iterations: int | None = None,
    overlay: bool = True,
    probabilities: bool = False,
    device: str = "auto",
) -> int:
    """Refines other people's predictions with a dense CRF: score maps, or label images, and the images they are of.

    What `piecewise predict --probabilities` has written can be refined too; the labels beside it are left out. A file
    that cannot be refined is named at the end, and the exit status is 1.

    Args:
        inputs: .npy or .npz of (K, H, W) scores, .png of class indices, folders of them or globs
        images: folder of the images, of the same names and sizes
        output: folder for the refined labels
        kind: what .npy and .npz hold; auto takes what is from 0 to 1 and sums to 1 for probabilities
        num_classes: number of classes; label images need it, unless a learned CRF says it
        class_names: names of the classes, which also tell their number; those of a learned CRF, if not given
        confidence: probability of each pixel's label, for label images; that of a learned CRF, or 0.7
        pos_xy_std: bandwidth of the spatial kernel, in pixels
        pos_w: weight of the spatial kernel
        bilateral_xy_std: bandwidth of the bilateral kernel, in pixels
        bilateral_rgb_std: bandwidth of the bilateral kernel, in grey levels
        bilateral_w: weight of the bilateral kernel
        crf: a learned CRF instead of these two kernels: what `piecewise learn` wrote, or the folder of a run
        iterations: mean-field updates; those of a learned CRF, or 10
        overlay: whether to write NAME_overlay.png, the image with its labels painted over
        probabilities: also write NAME_probabilities.npz (K, H, W), float16
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
    """
    import numpy as np
    from rich.progress import track

    from piecewise_training.cli.inputs import (
        FAULTS,
        SCORED,
        check_outputs,
        class_count,
        find_scores,
        first_line,
        read_scores,
    )
    from piecewise_training.dataset import Classes
    from piecewise_training.dataset.files import DataError, read_image
    from piecewise_training.dataset.pairing import partners
    from piecewise_training.inference import refine
    from piecewise_training.model import model_file
    from piecewise_training.storage import read_header
    from piecewise_training.trainer import best_device
    from piecewise_training.visualization import prediction_files, save_prediction

    num_classes = class_count(num_classes, class_names)
    paths = find_scores(inputs)
    pairs = list(zip(paths, partners(paths, Path(images), SCORED), strict=True))
    kinds = {"with_overlay": overlay, "with_probabilities": probabilities}
    names = {path: prediction_files(partner.stem, **kinds) for path, partner in pairs}
    check_outputs(names, Path(output), [file for pair in pairs for file in pair])
    kernels = {
        "pos_xy_std": pos_xy_std,
        "pos_w": pos_w,
        "bilateral_xy_std": bilateral_xy_std,
        "bilateral_rgb_std": bilateral_rgb_std,
        "bilateral_w": bilateral_w,
    }
    how: dict[str, Any] = kernels | {"iterations": 10 if iterations is None else iterations}
    scores, image = np.zeros((2, 1, 1), np.float32), np.zeros((1, 1, 3), np.uint8)
    place = best_device(device)
    refine(scores, image, **how)  # an option out of its range is said before a file is read
    classes = Classes.named(class_names) if class_names else None
    if crf is not None:
        how = {"crf": _learned(crf, kernels, num_classes, iterations)}
        num_classes = how["crf"].num_classes
        described = read_header(model_file(Path(crf)))
        if classes is None and "classes" in described:
            classes = Classes.stored(json.loads(described["classes"]))
        confidence = float(described.get("confidence", "0.7")) if confidence is None else confidence
    confidence = 0.7 if confidence is None else confidence
    faults = []
    for path, partner in track(pairs, "refining"):
        try:
            image = np.asarray(read_image(partner))
            scores = read_scores(path, image.shape[:2], kind, num_classes, confidence)
            labels, refined = refine(scores, image, device=place, **how)
            shown = Classes.numbered(len(scores)) if classes is None else classes
            save_prediction(Path(output), partner.stem, labels, refined, image, shown, **kinds)
        except DataError as error:  # which names the file
            faults.append(str(error))
        except FAULTS as error:
            faults.append(f"{path}: {first_line(error)}")
    print(f"{len(paths) - len(faults)} refined label images are in {output}")
    for fault in faults:
        print(f"piecewise refine: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _learned(path: str, kernels: Mapping[str, float], num_classes: int | None, iterations: int | None) -> Any:
    """The CRF of a file or run, which nothing that was given contradicts."""
    from piecewise_training.model import load_crf

    defaults = inspect.signature(run).parameters
    others = [name for name, value in kernels.items() if value != defaults[name].default]
    if others:
        raise ValueError(f"`crf` {path} has kernels of its own: leave out {', '.join(others)}.")
    crf = load_crf(path)
    if num_classes not in (None, crf.num_classes):
        raise ValueError(f"`num_classes` is {num_classes}, but the CRF of {path} has {crf.num_classes} classes.")
    if iterations is not None:
        crf.num_iterations = iterations
    return crf
