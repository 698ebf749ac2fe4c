"""Turns the results of the benchmarks into docs/results and the README's tables: no figure in a table is typed by hand.

    python benchmarks/pages.py [--results benchmarks/results] [--docs docs/results] [--readme README.md]

A page is made from each JSON file that is there. It has the file's `remark`, too, in which somebody wrote what the
script cannot know. A test makes them again and compares.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
import gain_pages
import speed_pages
from tables import MEASURES, Report, data_name, markdown, origin, percent

COLOURS = ("#1f6feb", "#d9730d", "#2e7d32", "#9a3fb5", "#9aa4af")


def recipe_levers(report: Report) -> str:
    """What single changes of a recipe bring."""
    rows = report["rows"]
    classes = next(iter(rows.values()))["classes"]
    cells = [
        (
            name,
            row["steps"],
            100 * row["miou"],
            100 * row["accuracy"],
            100 * row["borders"]["trimap_4"],
            *(f"{100 * iou:.0f}" for iou in row["iou"]),
        )
        for name, row in rows.items()
    ]
    return "\n\n".join(
        [
            "# What was tried for the recipe",
            "The network alone after a short training, always with the same seed, in per cent; single changes, and "
            "some of them together.",
            markdown(["", "steps", "mIoU", "accuracy", "trimap 4 px", *classes], cells),
            origin(report),
            f"The configuration that they change:\n\n```yaml\n{report['config'].strip()}\n```",
        ]
    )


def crf_levers(report: Report, title: str = "What was tried for stage 2") -> str:
    """What single changes of stage 2 bring."""
    cells = [
        (
            name,
            100 * row["miou"],
            100 * row["borders"]["trimap_4"],
            100 * row["borders"]["boundary_iou"],
            row["training_seconds"] / 60,
            1e3 * row["seconds_an_image"],
            *(f"{100 * iou:.0f}" for iou in row["iou"]),
        )
        for name, row in report["rows"].items()
    ]
    return "\n\n".join(
        [
            f"# {title}: {data_name(report)}",
            f"A CRF learned on the scores of one network, which stays as it is: {report['images']} training images, "
            f"{report['epochs']} epochs, one seed; all validation images, in per cent, after the last epoch. Single "
            "changes of the configuration below, and some of them together. Minutes are those of learning, "
            "milliseconds those of the CRF, on a shared machine.",
            markdown(
                ["", "mIoU", "trimap 4 px", "boundary IoU", "min", "ms an image", *report["classes"]],
                cells,
            ),
            origin(report),
            f"The configuration of the run:\n\n```yaml\n{report['run'].strip()}\n```",
        ]
    )


def crf_scores(report: Report, title: str = "On whose scores stage 2 learns") -> str:
    """What a CRF brings that was learned on the scores of earlier weights."""
    cells = [
        (
            name,
            100 * row["train_miou"],
            100 * row["miou"],
            100 * row["borders"]["trimap_4"],
            100 * row["borders"]["boundary_iou"],
            *(f"{100 * iou:.0f}" for iou in row["iou"]),
        )
        for name, row in report["rows"].items()
    ]
    return "\n\n".join(
        [
            f"# {title}: {data_name(report)}",
            "A network is surer and better on the images that it was trained on than on others, and a CRF that learns "
            "on these scores learns to trust it. Weights from earlier in such a training err there as the last ones do "
            f"on new images. Each CRF is learned on the scores of {report['images']} training images by the network "
            f"itself or by weights of an earlier epoch, in {report['epochs']} epochs, one seed, and judged after the "
            "last on all validation images as the network itself scores them; in per cent. The first column is the "
            "mIoU on the training images of the scores that it learned on.",
            markdown(["", "on train", "mIoU", "trimap 4 px", "boundary IoU", *report["classes"]], cells),
            origin(report),
            f"The configuration of the network's run:\n\n```yaml\n{report['run'].strip()}\n```",
        ]
    )


def why_piecewise(report: Report, data: str, plot: str) -> str:
    """Piecewise, independent and joint training."""
    rows = report["rows"]
    starts = len({row["seed"] for row in rows})
    whole = {row["seed"]: row["seconds"] for row in rows if row["name"] == "piecewise" and row["crf"]}
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        epochs = sorted({(*row["epochs"],) for row in own})
        ended = [row for row in own if row["crf"]]  # not given up by the trainer
        final = [100 * row["crf"]["miou"] for row in ended]
        ratios = [row["seconds"] / whole[row["seed"]] for row in ended if row["seed"] in whole]
        cells.append(
            (
                name,
                " or ".join("+".join(str(n) for n in stages if n) for stages in epochs),
                _mean(final),
                f"{min(final):.1f} to {max(final):.1f}" if final else "",
                _mean([100 * row["unary"]["miou"] for row in ended]),
                _mean([100 * row["crf"]["borders"]["trimap_4"] for row in ended]),
                _mean([row["seconds"] for row in ended]),
                f"{fmean(ratios):.2f}" if ratios else "",
                f"{sum(row['diverged'] for row in own)} of {len(own)}",
            )
        )
    return "\n\n".join(
        [
            f"# Piecewise, independent or joint: {data}",
            f"The same network and CRF from {starts} start{'s' if starts > 1 else ''}; validation in per cent, on "
            "images that chose the epoch of each stage. The seconds are those of training, their ratio is that to the "
            "piecewise run of the same seed; equal time is what the clock made of it, in whole epochs. Joint training "
            "has the rates of the others.",
            markdown(["", "epochs", "mIoU", "range", "network alone", "trimap 4 px", "s", "ratio", "diverged"], cells),
            f"![Validation mIoU over the time of training]({plot})",
            "Dotted is the network alone, in the stage that trains it by itself; what follows is that of the CRF.",
            origin(report),
            f"The configuration of the piecewise runs:\n\n```yaml\n{report['config'].strip()}\n```",
        ]
    )


def _mean(values: Sequence[float]) -> float | str:
    """The mean, or an empty cell where there is nothing."""
    return fmean(values) if values else ""


def curves(report: Report) -> Figure:
    """Validation mIoU over the seconds of training, a line for each run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    names = [name for name in dict.fromkeys(row["name"] for row in report["rows"]) if "epochs" not in name]
    for name, colour in zip(names, COLOURS, strict=False):
        for place, row in enumerate(row for row in report["rows"] if row["name"] == name and row["curve"]):
            seconds, miou = zip(*row["curve"], strict=True)
            shares = [100 * m for m in miou]
            alone = 0 if name.startswith("joint") else row["epochs"][0]  # the stage that is judged without a CRF
            look = {"color": colour, "linewidth": 1, "alpha": 0.8}
            axis.plot(seconds[:alone], shares[:alone], ":", **look)
            axis.plot(
                seconds[alone:], shares[alone:], marker="o", markersize=3, label=name if place == 0 else None, **look
            )
    return _labelled(figure, axis, "seconds of training", "validation mIoU, %")


def weak_nets(report: Report) -> str:
    """When a CRF pays."""
    kinds = ("unary", "default", "learned")
    cells = [
        (
            f"stride {row['output_stride']}, {row['epochs']} epochs",
            *(100 * row[kind]["miou"] for kind in kinds),
            *(100 * row[kind]["borders"]["trimap_4"] for kind in kinds),
        )
        for row in report["rows"]
    ]
    return "\n\n".join(
        [
            "# When a dense CRF pays",
            "Networks of several output strides, trained for several numbers of epochs: mIoU, then the trimap's mIoU "
            "within 4 pixels, of the network alone, under a CRF with pydensecrf's usual parameters, and under one that "
            "was learned on it; in per cent.",
            markdown(["", "alone", "usual CRF", "learned CRF", "trimap: alone", "usual CRF", "learned CRF"], cells),
            "![Gain of the CRF over the epochs of the network](weak_nets.png)",
            origin(report),
            f"The configuration:\n\n```yaml\n{report['config'].strip()}\n```",
        ]
    )


def gains(report: Report) -> Figure:
    """What the CRF adds to the mIoU, over the epochs of the network, a line for each stride."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    strides = dict.fromkeys(row["output_stride"] for row in report["rows"])
    for stride, colour in zip(strides, COLOURS, strict=False):
        own = [row for row in report["rows"] if row["output_stride"] == stride]
        epochs = [row["epochs"] for row in own]
        for kind, style in (("learned", "o-"), ("default", "o:")):
            gain = [100 * (row[kind]["miou"] - row["unary"]["miou"]) for row in own]
            axis.plot(epochs, gain, style, color=colour, label=f"stride {stride}, {kind}")
    axis.axhline(0, color="#22262b", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(sorted({row["epochs"] for row in report["rows"]}), minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:.0f}")
    return _labelled(figure, axis, "epochs of the network", "gain in mIoU, points")


def degraded_labels(report: Report) -> str:
    """Other people's scores."""
    cells = [
        (
            f"{name}: {kind}" + (", as it began" if row.get("as_it_began") else ""),
            *percent(row),
            1e3 * row["seconds_an_image"],
        )
        for name, own in report["results"].items()
        for kind, row in own.items()
    ]
    settings = "; ".join(
        f"{name}: {', '.join(f'{key} {value:g}' for key, value in options.items())}"
        for name, options in report["settings"].items()
        if options
    )
    return "\n\n".join(
        [
            "# A CRF on spoilt label maps",
            f"True labels of {report['images']} images, blurred, sampled at an eighth of the resolution, mixed with "
            "noise or cut down to scribbles, and refined with parameters chosen by hand, or learned on "
            f"{report['learned_on']} training images that were spoilt the same way, in {report['epochs']} epochs, with "
            f"{report['chosen_on']} more to choose the epoch by; in per cent, the last column in milliseconds an "
            "image.",
            markdown(["", *MEASURES, "ms"], cells),
            f"The default is pydensecrf's usual one; {settings}. A learned CRF has a third, wider kernel, and its own "
            "costs of labels for each; it was learned with cross-entropy where nothing else is said. As it began: no "
            "epoch was as good on the images that choose it, so that what stands there are the values that learning "
            "started from.",
            origin(report),
        ]
    )


def context_ablation(report: Report, title: str, what: str) -> str:
    """What the parts of the contextual CRF bring."""
    names = {"unary": "", "context": ", no dense CRF", "crf": ""}
    results = [
        (row["name"] + names[kind], result, row["training_seconds"] / 60)
        for row in report["rows"]
        for kind, result in row["results"].items()
    ]
    factors = [
        f"{row['name'].removeprefix('+ ')}: {' and '.join(f'{factor:.2f}' for factor in row['relation_factors'])}"
        for row in report["rows"]
        if "relation_factors" in row
    ]
    epochs = report["settings"]["training"]["stage1_epochs"]
    return "\n\n".join(
        [
            f"# {title}",
            f"{what} part by part, {epochs} epochs of the network, one seed; validation in per cent. The rows from the "
            "dense CRF on have the very same network.",
            markdown(["", *MEASURES, "min"], ((name, *percent(result), minutes) for name, result, minutes in results)),
            f"Stage 2 gave the relations these factors: {'; '.join(factors)}. The IoU of each class:",
            markdown(
                ["", *report["classes"]], ((name, *(100 * iou for iou in result["iou"])) for name, result, _ in results)
            ),
            origin(report),
            f"The configuration:\n\n```yaml\n{yaml.safe_dump(report['settings'], sort_keys=False).strip()}\n```",
        ]
    )


# What is made from several results.
SOURCES = {"crf_gain_starts": gain_pages.STARTS, "cpu_step": ("cpu_step", "cpu_step_stride8")}
PAGES: dict[str, Callable[..., str]] = {
    "crf_gain_short": partial(gain_pages.crf_gain, title="What each step of the recipe brings"),
    "crf_gain": partial(gain_pages.crf_gain, title="What each step brings from a first start"),
    "crf_gain_synthetic": gain_pages.crf_gain,
    "crf_gain_seed1": partial(gain_pages.crf_gain, title="What each step brings from a second start"),
    "crf_gain_seed2": partial(gain_pages.crf_gain, title="What each step brings from a third start"),
    "crf_gain_starts": gain_pages.starts,
    "recipe_levers": recipe_levers,
    "crf_levers": crf_levers,
    "crf_levers_all": partial(crf_levers, title="Stage 2 on all training images"),
    "crf_levers_recipe": partial(crf_levers, title="Stage 2 on the network of the recipe"),
    "crf_levers_untuned": partial(crf_levers, title="Stage 2 on the network before it was tuned"),
    "crf_levers_seed2": partial(crf_levers, title="Stage 2 on the recipe's network from another start"),
    "crf_scores": crf_scores,
    "crf_scores_seed2": partial(crf_scores, title="On whose scores stage 2 learns, from another start"),
    "crf_limits": partial(crf_levers, title="How far stage 2 could go on the recipe's network"),
    "crf_limits_seed2": partial(crf_levers, title="How far stage 2 could go from another start"),
    "why_piecewise": partial(why_piecewise, data="drawn scenes", plot="why_piecewise.png"),
    "why_piecewise_camvid": partial(why_piecewise, data="CamVid", plot="why_piecewise_camvid.png"),
    "context_ablation": partial(
        context_ablation, title="What the contextual CRF's parts bring", what="FeatMap-Net and the contextual CRF"
    ),
    "context_recipe": partial(
        context_ablation, title="What context brings to the recipe's network", what="The contextual CRF"
    ),
    "context_recipe_seed2": partial(
        context_ablation, title="What context brings to it from another start", what="The contextual CRF"
    ),
    "weak_nets": weak_nets,
    "degraded_labels": degraded_labels,
    "dense_crf": speed_pages.dense_crf,
    "dense_crf_peers": speed_pages.dense_crf_peers,
    "dense_crf_options": speed_pages.dense_crf_options,
    "dense_crf_start": speed_pages.dense_crf_start,
    "dense_crf_gpu": speed_pages.dense_crf_gpu,
    "context_step": speed_pages.context_step,
    "precision_step": speed_pages.precision_step,
    "cpu_step": speed_pages.cpu_step,
}
PLOTS: dict[str, Callable[[Report], Figure]] = {
    "why_piecewise": curves,
    "why_piecewise_camvid": curves,
    "weak_nets": gains,
}
# The README's tables: between <!-- NAME --> and <!-- end -->.
TABLES: dict[str, Callable[..., str]] = {
    "crf_gain_starts": gain_pages.starts_in_short,
    "crf_gain_synthetic": gain_pages.in_short,
    "dense_crf": speed_pages.in_short,
}


def read_reports(results: Path, name: str) -> list[Report]:
    """The results that a page or table is made from; none if one of them is not there."""
    sources = [results / f"{source}.json" for source in SOURCES.get(name, (name,))]
    return [json.loads(source.read_text()) for source in sources if all(file.is_file() for file in sources)]


def write_pages(results: Path, docs: Path) -> list[Path]:
    """Writes a page for each result that there is, with its plot, and gives their paths."""
    docs.mkdir(parents=True, exist_ok=True)
    written = []
    for name, page in PAGES.items():
        reports = read_reports(results, name)
        if not reports:
            continue
        written.append(docs / f"{name}.md")
        written[-1].write_text(page(*reports) + "\n")
        if name in PLOTS:
            PLOTS[name](*reports).savefig(docs / f"{name}.png", dpi=130, facecolor="white", metadata={"Software": None})
    return written


def with_tables(readme: str, results: Path) -> str:
    """A README whose tables are those of the results."""
    for name, table in TABLES.items():
        reports = read_reports(results, name)
        before, mark, behind = readme.partition(f"<!-- {name} -->\n")
        readme = f"{before}{mark}{table(*reports)}\n{behind[behind.index('<!-- end -->') :]}"
    return readme


def _labelled(figure: Figure, axis: Any, x: str, y: str) -> Figure:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure


def main() -> None:
    """Reads the command line and writes the pages."""
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=root / "benchmarks/results")
    parser.add_argument("--docs", type=Path, default=root / "docs/results")
    parser.add_argument("--readme", type=Path, default=root / "README.md")
    arguments = parser.parse_args()
    arguments.readme.write_text(with_tables(arguments.readme.read_text(), arguments.results))
    for path in write_pages(arguments.results, arguments.docs):
        print(path)


if __name__ == "__main__":
    main()
