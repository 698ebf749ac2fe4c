"""piecewise predict: labels for images, from a trained model."""

from __future__ import annotations

from pathlib import Path


def run(
    inputs: list[str],
    model: str = "training_results",
    output: str = "predictions",
    crf: bool = True,
    overlay: bool = True,
    probabilities: bool = False,
    device: str = "auto",
) -> None:
    """Predicts the labels of images: a palette PNG each, and the image with its labels painted over.

    Args:
        inputs: images, folders of images or globs
        model: folder of a run, or a .safetensors file
        output: folder for the predictions
        crf: whether to apply the CRF
        overlay: whether to write NAME_overlay.png, the image with its labels painted over
        probabilities: also write NAME_probabilities.npz (K, H, W), float16
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
    """
    import numpy as np
    from rich.progress import track

    from piecewise_training.cli.inputs import find_files
    from piecewise_training.dataset.files import SUFFIXES, read_image
    from piecewise_training.inference import predict
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.trainer import best_device
    from piecewise_training.visualization import save_prediction

    paths = find_files(inputs, SUFFIXES)
    network = PiecewiseTrainedModel.load(model).to(best_device(device))
    for path in track(paths, "predicting"):
        image = read_image(path)
        prediction = predict(network, image, apply_crf=crf)
        save_prediction(
            Path(output),
            path.stem,
            prediction.labels,
            prediction.probabilities,
            np.asarray(image),
            network.classes,
            with_overlay=overlay,
            with_probabilities=probabilities,
        )
    print(f"{len(paths)} predictions are in {output}")
