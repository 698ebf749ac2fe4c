"""piecewise refine: a dense CRF on somebody else's score maps or labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_SCORE_SUFFIXES = (".npy", ".npz", ".png")


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
) -> None:
    """Refines other people's predictions with a dense CRF: score maps, or label images, and the images they are of.

    Args:
        inputs: .npy or .npz of (K, H, W) scores, .png of class indices, folders of them or globs
        images: folder of the images, of the same names and sizes
        output: folder for the refined labels
        kind: what .npy and .npz hold; auto takes what is from 0 to 1 and sums to 1 for probabilities
        num_classes: number of classes, for label images
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

    from piecewise_training.cli.inputs import find_files, read_scores
    from piecewise_training.dataset import Classes
    from piecewise_training.dataset.files import partners, read_image
    from piecewise_training.inference import refine
    from piecewise_training.visualization import save_prediction

    if class_names is not None:
        num_classes = len(class_names)
    paths = find_files(inputs, _SCORE_SUFFIXES)
    pairs = list(zip(paths, partners(paths, Path(images)), strict=True))
    kernels = {
        "pos_xy_std": pos_xy_std,
        "pos_w": pos_w,
        "bilateral_xy_std": bilateral_xy_std,
        "bilateral_rgb_std": bilateral_rgb_std,
        "bilateral_w": bilateral_w,
    }
    for path, partner in track(pairs, "refining"):
        image = np.asarray(read_image(partner))
        scores = read_scores(path, image.shape[:2], kind, num_classes, confidence)
        labels, refined = refine(scores, image, iterations=iterations, **kernels)
        classes = Classes.named(class_names) if class_names else Classes.numbered(len(scores))
        save_prediction(
            Path(output),
            path.stem,
            labels,
            refined,
            image,
            classes,
            with_overlay=overlay,
            with_probabilities=probabilities,
        )
    print(f"{len(paths)} refined label images are in {output}")
