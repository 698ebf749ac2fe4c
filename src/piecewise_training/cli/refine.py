"""piecewise refine: a dense CRF on somebody else's score maps or labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

_SCORE_SUFFIXES = (".npy", ".npz", ".png")
_SCORED = "_probabilities"  # ends the names of what `piecewise predict --probabilities` writes beside the labels


def run(
    inputs: list[str],
    images: str = "images",
    output: str = "refined",
    kind: Literal["auto", "logits", "probabilities"] = "auto",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    confidence: float = 0.7,
    pos_xy_std: float = 3.0,
    pos_w: float = 3.0,
    bilateral_xy_std: float = 80.0,
    bilateral_rgb_std: float = 13.0,
    bilateral_w: float = 10.0,
    iterations: int = 10,
    overlay: bool = True,
    probabilities: bool = False,
) -> int:
    """Refines other people's predictions with a dense CRF: score maps, or label images, and the images they are of.

    What `piecewise predict --probabilities` has written can be refined too; the labels beside it are left out. A file
    that cannot be refined is named at the end, and the exit status is 1.

    Args:
        inputs: .npy or .npz of (K, H, W) scores, .png of class indices, folders of them or globs
        images: folder of the images, of the same names and sizes
        output: folder for the refined labels
        kind: what .npy and .npz hold; auto takes what is from 0 to 1 and sums to 1 for probabilities
        num_classes: number of classes; label images need it
        class_names: names of the classes, which also tell their number
        confidence: probability of each pixel's label, for label images
        pos_xy_std: bandwidth of the spatial kernel, in pixels
        pos_w: weight of the spatial kernel
        bilateral_xy_std: bandwidth of the bilateral kernel, in pixels
        bilateral_rgb_std: bandwidth of the bilateral kernel, in grey levels
        bilateral_w: weight of the bilateral kernel
        iterations: mean-field updates
        overlay: whether to write NAME_overlay.png, the image with its labels painted over
        probabilities: also write NAME_probabilities.npz (K, H, W), float16
    """
    import numpy as np
    from rich.progress import track

    from piecewise_training.cli.inputs import check_outputs, find_files, read_scores
    from piecewise_training.dataset import Classes
    from piecewise_training.dataset.files import DataError, partners, read_image
    from piecewise_training.inference import refine
    from piecewise_training.visualization import prediction_files, save_prediction

    if class_names is not None:
        if num_classes not in (None, len(class_names)):
            raise ValueError(f"`num_classes` is {num_classes}, but `class_names` lists {len(class_names)}.")
        num_classes = len(class_names)
    paths = find_files(inputs, _SCORE_SUFFIXES, without="_overlay")
    scored = {path for path in paths if path.stem.endswith(_SCORED)}
    paths = [p for p in paths if p.suffix != ".png" or p.with_name(f"{p.stem}{_SCORED}.npz") not in scored]
    pairs = list(zip(paths, partners(paths, Path(images), _SCORED), strict=True))
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
    scores, image = np.zeros((2, 1, 1), np.float32), np.zeros((1, 1, 3), np.uint8)
    refine(scores, image, iterations=iterations, **kernels)  # an option out of its range is said before a file is read
    faults = []
    for path, partner in track(pairs, "refining"):
        try:
            image = np.asarray(read_image(partner))
            scores = read_scores(path, image.shape[:2], kind, num_classes, confidence)
            labels, refined = refine(scores, image, iterations=iterations, **kernels)
        except DataError as error:  # which names the file
            faults.append(str(error))
            continue
        except (ValueError, MemoryError) as error:
            faults.append(f"{path}: {error}")
            continue
        classes = Classes.named(class_names) if class_names else Classes.numbered(len(scores))
        save_prediction(
            Path(output),
            partner.stem,
            labels,
            refined,
            image,
            classes,
            **kinds,
        )
    print(f"{len(paths) - len(faults)} refined label images are in {output}")
    for fault in faults:
        print(f"piecewise refine: {fault}", file=sys.stderr)
    return 1 if faults else 0
