"""On whose scores stage 2 learns best: the network's own, or those of weights from earlier in such a training.

    python benchmarks/crf_scores.py --run RUN --earlier CHECKPOINT ... --output FILE [--every 2] [--epochs 2]

A network is surer and better on the images that it was trained on than on others, and a CRF that learns on these scores
learns to trust it. Weights from earlier in the training err on training images as the last ones do on new images. Here
a CRF is learned for each source of scores and each set of kernels as crf_levers.py does it, and judged on what it is
for: the scores of RUN's network for all validation images, after its last epoch.

RUN is a folder of `piecewise train` whose stage 1 is trained. Checkpoints are those of a stage 1 of the same network,
also from another start. Rows are kept in the output file: one that is in it is not learned again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import measuring
from crf_levers import VARIANTS, judge, learn, score, settings_of

from piecewise_training.cli.results import build_model
from piecewise_training.dataset import build_datasets

KERNELS = {
    "as configured": "as configured",
    "6 px and 8 grey levels": "this kernel instead of the widest",
    "60 px and 12 grey levels": "60 px and 12 grey levels for the widest",
}


def table(rows: dict[str, Any]) -> str:
    """The rows as text, in per cent."""
    lines = [
        f"{'scores of, and kernels':52} {'on train':>8} {'mIoU':>6} {'trimap 4':>8} {'boundary':>8}  IoU of each class"
    ]
    for name, row in rows.items():
        borders, classes = row["borders"], " ".join(f"{100 * iou:3.0f}" for iou in row["iou"])
        shares = [row["train_miou"], row["miou"], borders["trimap_4"], borders["boundary_iou"]]
        lines.append(f"{name:52} {' '.join(f'{100 * share:8.2f}' for share in shares)}  {classes}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, learns what is missing, and writes after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of piecewise train")
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help="checkpoints of stage 1")
    parser.add_argument("--every", type=int, default=2, help="learns on every so many training images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .txt")
    arguments = parser.parse_args()
    settings = settings_of(arguments.run)
    train_set, val_set = build_datasets(settings.data, settings.seed)
    assert train_set.classes is not None
    model = build_model(settings.model, train_set.classes, settings.seed).eval()
    plain, classes = copy.copy(train_set), len(train_set.classes)
    plain.transform = None
    best = arguments.run / "checkpoints/stage1/best.ckpt"
    measuring.take_weights(model, best)
    held_out = score(model, val_set, 1)
    learned_on = {
        "run": (arguments.run / "config.yaml").read_text(),
        "images": len(range(0, len(plain), arguments.every)),
        "epochs": arguments.epochs,
        "classes": list(train_set.classes.names),
    }
    rows = measuring.kept(arguments.output, learned_on)

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row | measuring.when()
        measuring.write_report(
            arguments.output, {**measuring.surroundings(settings.seed), **learned_on, "rows": rows}, table(rows)
        )
        print(table({name: rows[name]}), flush=True)

    wanted = {name: settings_of(arguments.run, VARIANTS[variant].options) for name, variant in KERNELS.items()}
    # The run's own kernels once, by the name of "as configured".
    wanted = {name: own for name, own in wanted.items() if name == "as configured" or own.model != settings.model}
    sources: dict[str, Path] = {}
    for checkpoint in (best, *arguments.earlier):
        epoch = measuring.take_weights(model, checkpoint)
        source = "the network itself" if checkpoint == best else f"epoch {epoch}"
        if source in sources:
            sys.exit(f"{checkpoint} and {sources[source]} are of one epoch, whose rows would have one name: give one.")
        sources[source] = checkpoint
        if all(f"{source}, {kernels}" in rows for kernels in wanted):
            continue
        scored = score(model, plain, arguments.every)
        shared = {"train_miou": judge([(None, scored)], classes)["miou"]}
        if checkpoint == best and "no CRF" not in rows:
            keep("no CRF", {**shared, "training_seconds": 0.0, **judge([(None, held_out)], classes)})
        for kernels, own in wanted.items():
            model.crf = build_model(own.model, train_set.classes, own.seed).crf
            assert model.crf is not None
            start = time.perf_counter()
            learn(model, scored, own, 1, arguments.epochs)
            seconds = {"training_seconds": time.perf_counter() - start}
            keep(f"{source}, {kernels}", {**shared, **seconds, **judge([(model.crf, held_out)], classes)})


if __name__ == "__main__":
    main()
