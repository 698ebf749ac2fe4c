"""piecewise learn: a dense CRF for somebody else's score maps or labels, learned from true labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from piecewise_training.config import KernelConfig, Loss

_KERNELS = [KernelConfig(2.0), KernelConfig(30.0, 4.0), KernelConfig(60.0, 12.0)]
_STEPS = 200  # about as many as were measured, docs/results/degraded_labels.md


def run(
    inputs: list[str],
    images: str = "images",
    labels: str = "labels",
    output: str = "crf.safetensors",
    kind: Literal["auto", "logits", "probabilities"] = "auto",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    confidence: float = 0.7,
    val_fraction: float = 0.2,
    epochs: int | None = None,
    learning_rate: float = 0.02,
    loss: Loss = "cross_entropy",
    kernels: list[KernelConfig] = _KERNELS,
    learn_bandwidths: bool = False,
    temperature: bool = True,
    class_bias: bool = True,
    iterations: int = 10,
    train_iterations: int = 3,
    flip: float = 0.5,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Learns a dense CRF for other people's predictions: from score maps, or label images, and the true labels.

    Some tens of images with true labels will do. A part of them is held out and tells what the CRF brings; the epoch
    that is kept is the best on it. `piecewise refine --crf` uses what is written, which has the classes' names and the
    confidence of label images, too.

    Args:
        inputs: .npy or .npz of (K, H, W) scores, .png of class indices, folders of them or globs
        images: folder of the images, of the same names and sizes
        labels: folder of the true label images, likewise, 255 is void; files without one are left out
        output: file for the CRF
        kind: what .npy and .npz hold; auto takes what is from 0 to 1 and sums to 1 for probabilities
        num_classes: number of classes; label images as inputs need it
        class_names: names of the classes, which also tell their number
        confidence: probability of each pixel's label, for label images as inputs
        val_fraction: share of the images held out; with 0 all are learned on, and none is judged on
        epochs: passes over the images; as many as make some 200 steps, and at least 2, if not given
        learning_rate: rate at the beginning; it falls to 0
        loss: on the CRF's marginals; cross_entropy is their negative log-likelihood
        kernels: kernels and what they start from
        learn_bandwidths: learn the bandwidths, too, which makes a step twice as long
        temperature: whether the scores are divided by a learned number
        class_bias: whether a learned number for each class is added to the scores
        iterations: mean-field updates
        train_iterations: mean-field updates while it learns
        flip: probability with which an image is mirrored
        seed: of everything random
        device: cpu, cuda, cuda:1, mps, or auto for the best there is
        overwrite: replace the output file
    """
    import copy
    import dataclasses
    import math

    from rich.console import Console
    from torch.utils.data import DataLoader, Subset

    from piecewise_training.cli.inputs import class_count
    from piecewise_training.cli.scored import ScoredImages
    from piecewise_training.crf import DenseCRF
    from piecewise_training.dataset import Classes
    from piecewise_training.dataset.split import held_out
    from piecewise_training.inference import evaluate_crf
    from piecewise_training.trainer import best_device, learn_crf
    from piecewise_training.trainer.given_scores import check_numbers

    target = Path(output)
    if target.suffix != ".safetensors":
        raise ValueError(f"`output` must end in .safetensors; got {output}.")
    if target.exists() and not overwrite:
        raise ValueError(f"`output` {output} already exists. Pass --overwrite to replace it, or give another name.")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"`val_fraction` must be from 0 to below 1; got {val_fraction}.")
    num_classes = class_count(num_classes, class_names)
    options: dict[str, Any] = {
        "num_iterations": iterations,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "learn_bandwidths": learn_bandwidths,
        "temperature": temperature,
        "class_bias": class_bias,
        "train_iterations": train_iterations,
    }
    # What is out of its range is said before the files are read, which may take a while.
    DenseCRF(2, **options)
    check_numbers(1 if epochs is None else epochs, learning_rate, flip)
    place = best_device(device)
    data = ScoredImages(inputs, Path(images), Path(labels), kind, num_classes, confidence)
    if val_fraction and len(data) < 2:
        raise ValueError("one image cannot be split. Give more, or --val_fraction 0.")
    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    crf = DenseCRF(data.classes(), **options)
    start = copy.deepcopy(crf.state_dict())
    judged = held_out(len(data), val_fraction, seed) if val_fraction else []
    seen = [index for index in range(len(data)) if index not in judged]
    console.print(f"{len(seen)} images to learn on, {len(judged)} held out, {crf.num_classes} classes")
    if data.unlabelled:
        console.print(f"{data.unlabelled} files without true labels are left out")
    val_loader = DataLoader(Subset(data, judged)) if judged else None
    classes = Classes.named(class_names) if class_names else Classes.numbered(crf.num_classes)
    described = {"classes": dataclasses.asdict(classes), "confidence": confidence}
    try:
        learn_crf(
            crf,
            DataLoader(Subset(data, seen), shuffle=True),
            max(2, math.ceil(_STEPS / len(seen))) if epochs is None else epochs,
            val_loader,
            learning_rate=learning_rate,
            loss=loss,
            flip=flip,
            device=place,
            seed=seed,
        )
    except (KeyboardInterrupt, SystemExit):
        if _moved(crf, start):
            crf.save(target, **described)
            console.print(f"what was learned so far is in {target}", highlight=False, markup=False)
        raise
    crf.save(target, **described)
    if val_loader is not None:
        _tell_gain(
            console,
            evaluate_crf(crf, val_loader, place),
            "+ CRF, learned" if _moved(crf, start) else "+ CRF, as it began",
        )
    values = crf.kernel_parameters() | ({"temperature": crf.temperature} if temperature else {})
    told = ", ".join(f"{name} {value.item():.2f}" for name, value in values.items())
    console.print(f"CRF parameters: {told}", highlight=False, markup=False)
    console.print(f"the CRF is in {target}; piecewise refine --crf {target} uses it", highlight=False, markup=False)


def _moved(crf: Any, start: Mapping[str, Any]) -> bool:
    return any(not value.equal(start[name]) for name, value in crf.state_dict().items())


def _tell_gain(console: Any, found: Any, name: str) -> None:
    """How good the scores are alone, and under the CRF."""
    from piecewise_training.cli.results import summary_table

    console.print(summary_table({"scores alone": found.unary, name: found.crf}))
    if found.crf.scores.miou < found.unary.scores.miou:
        console.print("The CRF makes these scores worse: use them as they are, or learn on more images.")
