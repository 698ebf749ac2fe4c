"""What a dense CRF makes of label maps that were spoilt on purpose: the use for pseudo-labels and scribbles.

    python benchmarks/degraded_labels.py --camvid FOLDER [--images 101] [--every 4] [--output FILE]

True labels of CamVid's validation images are blurred, sampled at an eighth of the resolution, mixed with noise or cut
down to scribbles, turned into scores, and refined with the usual default, with finer kernels, with these at larger
weights, and with a CRF that is learned on every so many training images that were spoilt the same way, for each of two
losses. As by `piecewise learn`, other training images choose its epoch, or that it stays as it began. Given are mIoU,
pixel accuracy and the trimap's mIoU within 4 pixels of true borders, before and after.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from piecewise_training.config import Loss
from piecewise_training.crf import DenseCRF, Kernel
from piecewise_training.dataset import VOID, SegmentationDataset, camvid_dataset
from piecewise_training.inference import refine, scores_from_labels
from piecewise_training.trainer import learn_crf

SETTINGS: dict[str, dict[str, float]] = {
    "default": {},
    "finer": {
        "pos_xy_std": 2.0,
        "pos_w": 1.0,
        "bilateral_xy_std": 30.0,
        "bilateral_rgb_std": 4.0,
        "bilateral_w": 1.5,
    },
    "stronger": {
        "pos_xy_std": 2.0,
        "pos_w": 3.0,
        "bilateral_xy_std": 30.0,
        "bilateral_rgb_std": 4.0,
        "bilateral_w": 5.0,
    },
}
LOSSES: dict[str, Loss] = {"learned": "cross_entropy", "learned, Lovász": "lovasz"}
KERNELS = [Kernel(2.0), Kernel(30.0, 4.0), Kernel(60.0, 12.0)]
EPOCHS = 2
Spoil = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def blurred(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities of soft borders: each class's mask under a Gaussian of 8 pixels."""
    del rng
    masks = np.stack([gaussian_filter((labels == k).astype(np.float32), 8) for k in range(classes)]) + 1e-4
    return np.log(masks / masks.sum(0))


def coarse(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """An eighth of the resolution, as of a network of stride 8 without interpolation."""
    del rng
    small = labels[4::8, 4::8].repeat(8, 0).repeat(8, 1)
    padded = np.pad(small, [(0, max(0, a - b)) for a, b in zip(labels.shape, small.shape, strict=True)], mode="edge")
    return scores_from_labels(padded[: labels.shape[0], : labels.shape[1]], classes)


def noisy(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Every third pixel has a label at random."""
    wrong = rng.integers(0, classes, labels.shape).astype(labels.dtype)
    return scores_from_labels(np.where(rng.random(labels.shape) < 1 / 3, wrong, labels), classes)


def scribbles(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Only short horizontal strokes have labels, some three per cent of the pixels; the rest is not known."""
    kept = np.zeros(labels.shape, bool)
    rows, columns = np.nonzero(rng.random(labels.shape) < 0.03 / 24)
    for step in range(24):
        kept[rows, np.minimum(columns + step, labels.shape[1] - 1)] = True
    return scores_from_labels(np.where(kept, labels, VOID).astype(np.uint8), classes, confidence=0.99)


SPOILT: dict[str, Spoil] = {"blurred": blurred, "coarse": coarse, "noisy": noisy, "scribbles": scribbles}


class Spoilt(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A data set's images with scores from its spoilt labels, and the labels."""

    def __init__(self, data: SegmentationDataset, spoil: Spoil) -> None:
        self._data, self._spoil = data, spoil

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, truth = self._data.read(index)
        scores = self._spoil(truth, self._data.num_classes, np.random.default_rng(index))
        pixels = torch.from_numpy(image).movedim(-1, 0)
        return torch.from_numpy(scores.astype(np.float32)), pixels, torch.from_numpy(truth.astype(np.int64))


def learned(data: SegmentationDataset, spoil: Spoil, loss: Loss, every: int) -> tuple[DenseCRF, bool]:
    """A CRF that has learned to mend labels that were spoilt so, and whether it did, or no epoch was as good."""
    crf = DenseCRF(
        data.num_classes,
        kernels=KERNELS,
        learn_bandwidths=False,
        temperature=True,
        class_bias=True,
        train_iterations=3,
    )
    start = copy.deepcopy(crf.state_dict())
    images = Spoilt(data, spoil)
    seen, judging = (Subset(images, places) for places in chosen(len(data), every))
    learn_crf(crf, DataLoader(seen, shuffle=True), EPOCHS, DataLoader(judging), loss=loss, progress=False)
    return crf, any(not torch.equal(value, start[name]) for name, value in crf.state_dict().items())


def chosen(count: int, every: int) -> tuple[range, range]:
    """The places of the training images to learn on, and of others, a fourth as many, that choose the epoch."""
    return range(0, count, every), range(every // 2, count, 4 * every)


def main() -> None:
    """Reads the command line, learns, refines, judges, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--images", type=int, default=101)
    parser.add_argument("--every", type=int, default=4, help="learn on every so many training images")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    torch.manual_seed(measuring.SEED)  # the order of the images to learn on; what spoils one follows from its place
    data = camvid_dataset(arguments.camvid, "val")
    classes, count = data.num_classes, min(arguments.images, len(data))
    train = camvid_dataset(arguments.camvid, "train")
    hows: dict[str, dict[str, dict[str, Any]]] = {}
    did: dict[tuple[str, str], bool] = {}
    for name, spoil in SPOILT.items():
        hows[name] = dict(SETTINGS)
        for kind, loss in LOSSES.items():
            start = time.perf_counter()
            crf, did[name, kind] = learned(train, spoil, loss, arguments.every)
            hows[name][kind] = {"crf": crf}
            print(f"{name}, {kind}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    kinds = ("before", *SETTINGS, *LOSSES)
    tallies = {name: {kind: measuring.Tally(classes) for kind in kinds} for name in SPOILT}
    for index in range(count):
        image, truth = data.read(index)
        for name, spoil in SPOILT.items():
            scores = spoil(truth, classes, np.random.default_rng(index))
            tallies[name]["before"].add(scores.argmax(0).astype(np.uint8), truth, 0.0)
            for setting, options in hows[name].items():
                start = time.perf_counter()
                labels, _ = refine(scores, image, **options)
                tallies[name][setting].add(labels, truth, time.perf_counter() - start)
    results = {name: {kind: tally.found(count) for kind, tally in own.items()} for name, own in tallies.items()}
    for (name, kind), better in did.items():
        results[name][kind]["as_it_began"] = not better
    lines = [f"{'labels':12} {'CRF':16} {'mIoU':>6} {'accuracy':>8} {'trimap 4':>8} {'ms':>6}"]
    for name, own in results.items():
        for kind, r in own.items():
            shares = f"{100 * r['miou']:6.2f} {100 * r['accuracy']:8.2f} {100 * r['borders']['trimap_4']:8.2f}"
            note = "  as it began" if r.get("as_it_began") else ""
            lines.append(f"{name:12} {kind:16} {shares} {1e3 * r['seconds_an_image']:6.0f}{note}")
    print("\n".join(lines))
    if arguments.output:
        report = {**measuring.surroundings(measuring.SEED), "images": count, "settings": SETTINGS, "results": results}
        seen, judging = map(len, chosen(len(train), arguments.every))
        report |= {"learned_on": seen, "chosen_on": judging, "epochs": EPOCHS}
        measuring.write_report(arguments.output, report, "\n".join(lines))


if __name__ == "__main__":
    main()
