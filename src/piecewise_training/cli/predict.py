"""piecewise predict: labels for images, from a trained model."""

from __future__ import annotations

import sys
from pathlib import Path

from piecewise_training.config import InferenceConfig

_INFERENCE = InferenceConfig()


def run(
    inputs: list[str],
    model: str = "training_results",
    output: str = "predictions",
    crf: bool = True,
    overlay: bool = True,
    probabilities: bool = False,
    inference: InferenceConfig = _INFERENCE,
    device: str = "auto",
) -> int:
    """Predicts the labels of images: a palette PNG each, and the image with its labels painted over.

    Images are taken at their own size. One that cannot be read or predicted is named at the end, and the exit status
    is 1.

    Args:
        inputs: images, folders of images or globs
        model: folder of a run, or a .safetensors file
        output: folder for the predictions
        crf: whether to apply the CRF
        overlay: whether to write NAME_overlay.png, the image with its labels painted over
        probabilities: also write NAME_probabilities.npz (K, H, W), float16
        inference: how to look at an image
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
    """
    import numpy as np
    from rich.progress import track

    from piecewise_training.cli.inputs import FAULTS, check_outputs, find_files, first_line
    from piecewise_training.dataset.files import SUFFIXES, DataError, read_image
    from piecewise_training.inference import predict
    from piecewise_training.inference.averaging import check
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.trainer import best_device
    from piecewise_training.visualization import prediction_files, save_prediction

    check(inference)
    paths = find_files(inputs, SUFFIXES)
    kinds = {"with_overlay": overlay, "with_probabilities": probabilities}
    check_outputs({path: prediction_files(path.stem, **kinds) for path in paths}, Path(output), paths)
    network = PiecewiseTrainedModel.load(model).to(best_device(device))
    faults = []
    for path in track(paths, "predicting"):
        try:
            image = read_image(path)
            prediction = predict(network, image, apply_crf=crf, how=inference)
            save_prediction(
                Path(output),
                path.stem,
                prediction.labels,
                prediction.probabilities,
                np.asarray(image),
                network.classes,
                **kinds,
            )
        except DataError as error:  # which names the file
            faults.append(str(error))
        except FAULTS as error:
            faults.append(f"{path}: {first_line(error)}")
    print(f"{len(paths) - len(faults)} predictions are in {output}")
    for fault in faults:
        print(f"piecewise predict: {fault}", file=sys.stderr)
    return 1 if faults else 0
