"""The pages on speed that pages.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tables import Report, markdown, origin


def dense_crf(report: Report) -> str:
    """The speed of the dense CRF."""
    cells = []
    for row in report["results"]:
        engines = row["engines"]
        own, other = engines["piecewise-training"], engines["pydensecrf2"]
        cells.append(
            (
                f"{row['case']}, {_threads(row['threads'])}",
                own["setup_ms"],
                own["iteration_ms"],
                own["total_ms"],
                other["total_ms"],
                *(_of_rounds(own["times_faster"][order], report["rounds"]) for order in ("blocks", "alternating")),
            )
        )
    head = ["columns x rows x classes", "setup", "an iteration", "all", "pydensecrf2", "times faster", "alternating"]
    return "\n\n".join(
        [
            "# How fast the dense CRF is",
            f"From an image and scores to marginals in {report['iterations']} iterations, in milliseconds, medians, "
            "beside pydensecrf2 in the same process, which has one thread. The setup here is the bilateral lattice: "
            "the spatial one hangs on the size alone, and is kept. Each engine's runs come in a block; in the "
            "last column the engines take turns, so that each finds the other's data in the caches."
            + (" In brackets the least and the most of some rounds." if report["rounds"] > 1 else ""),
            markdown(head, cells),
            origin(report),
        ]
    )


def _of_rounds(ratio: Sequence[float], rounds: int) -> str:
    """A median, and the least and the most of some rounds."""
    median_of_all, least, most = ratio
    return f"{median_of_all:.1f}" + (f" ({least:.1f} to {most:.1f})" if rounds > 1 else "")


def dense_crf_gpu(report: Report) -> str:
    """The speed of the dense CRF on a GPU."""
    results, training = report["results"], report["training"]
    engines = list(dict.fromkeys(engine for row in results for engine in row["ms_an_image"]))
    own = [
        (
            f"{row['case']}, batch of {row['batch']}",
            *(f"{median(times):.2f}" if (times := row["ms_an_image"].get(e)) else "" for e in engines),
        )
        for row in results
    ]
    kernels = [
        (f"{row['case']} x {row['batch']}: {k['kernel']}", f"{1e3 * median(k['ms']):.0f}", k["ratio"])
        for row in results
        for k in row["kernels"]
    ]
    step = []
    if training:
        taken = ", ".join(f"{name} {median(times):.0f} ms" for name, times in training["ms"].items())
        step.append(
            f"A training step of five iterations, forwards and backwards, {training['case']} and a batch of "
            f"{training['batch']}: {taken}."
        )
    return "\n\n".join(
        [
            f"# How fast the dense CRF is on an {report['machine']['device']}",
            f"From an image and scores on the device to marginals in {report['iterations']} iterations, the lattice "
            "built anew (but for the spatial one, which hangs on the size alone and is kept); milliseconds an image, "
            "medians. Plain torch is our own reference on the GPU; ConvCRF is another model, cut off at a few pixels, "
            "as this script writes it in torch; pydensecrf2 has one thread of the machine's CPU, with scores and image "
            "still on the GPU, and was called once.",
            markdown(["columns x rows x classes", *engines], own),
            *step,
            f"The steps of an iteration beside the time in which the bytes they need pass through memory, at the "
            f"{report['copy_bytes_a_s'] / 1e9:.0f} GB/s of a copy.",
            markdown(["", "microseconds", "times the floor"], kernels),
            origin(report),
        ]
    )


def dense_crf_peers(report: Report) -> str:
    """The speed of the dense CRF beside that of every other engine."""
    cells = [
        (
            f"{row['case']}, {_threads(row['threads'])}",
            name,
            *(engine[key] for key in ("setup_ms", "iteration_ms", "total_ms", "alternating_ms")),
            f"{engine['peak_bytes'] / 1e6:.0f}",
            f"{engine['difference']:.0e}" if engine["difference"] else "0",
        )
        for row in report["results"]
        for name, engine in row["engines"].items()
    ]
    head = ["columns x rows x classes", "", "setup", "an iteration", "all", "alternating", "MB", "marginals differ by"]
    return "\n\n".join(
        [
            "# The dense CRF beside other engines",
            f"From an image and scores to marginals in {report['iterations']} iterations, in milliseconds, medians; "
            "the peak of memory beyond what a process had before; and by how much a marginal differs at most from "
            "pydensecrf2's. crfseg is another model: its kernel is spatial alone, cut off after 5 pixels, and does not "
            "see the image. Plain torch is our own reference. SimpleCRF does not build with this Python.",
            markdown(head, cells),
            origin(report),
        ]
    )


def dense_crf_options(report: Report) -> str:
    """What the dense CRF takes with other options than the usual."""
    runs = report["results"]
    cells = []
    for name in runs[0]["ms"]:
        beside = report["beside"].get(name, "")
        times = [median(run["ms"][name]) for run in runs]
        bases = [median(run["ms"][beside]) for run in runs] if beside else []
        ratios = [f"{own / base:.2f}" for own, base in zip(times, bases, strict=True)] if beside else [""] * len(runs)
        peak = report["peak_bytes"].get(name)
        memory = f"{peak / report['score_bytes']:.1f}" if peak else ""
        cells.append((name, *(value for pair in zip(times, ratios, strict=True) for value in pair), beside, memory))
    head = [""]
    for run in runs:
        head += [_threads(run["threads"]), "ratio"]
    return "\n\n".join(
        [
            "# What the options of the dense CRF take",
            f"{report['size']} (columns x rows x classes), 10 iterations where nothing else is said, in milliseconds "
            "an image, medians; the cases take turns, and of two calls in a row the second is timed; pydensecrf2 and "
            "its interface here are called once. A ratio is that to the case named behind it. Backwards there are "
            "gradients to scores, weights and K x K costs; a time includes that forwards. Memory is the peak beyond "
            "what a process had before, in score maps, the lattices among it.",
            markdown([*head, "to", "memory"], cells),
            origin(report),
        ]
    )


def dense_crf_start(report: Report) -> str:
    """How long the first calls take."""
    cells = [
        (name, *(f"{round(value, 2) + 0.0:.2f}" for value in (median(laps), min(laps), max(laps))))  # no -0.00
        for name, laps in report["seconds"].items()
    ]
    return "\n\n".join(
        [
            "# How the dense CRF starts",
            f"What a first call takes beyond a third one, {report['size']}, in seconds; imports are not counted.",
            markdown(["", "median", "least", "most"], cells),
            origin(report),
        ]
    )


def context_step(report: Report) -> str:
    """What a step of piecewise training takes beside one of joint training."""
    setup = report["setup"]
    first = next(iter(report["seconds"]))
    base, memory = median(report["seconds"][first]), report["peak_bytes"]
    cells = [
        (
            name,
            f"{median(found):.2f}",
            f"{median(found) / base:.2f}",
            f"{memory[name] / 1e6:.0f}",
            f"{memory[name] / memory[first]:.2f}",
        )
        for name, found in report["seconds"].items()
    ]
    return "\n\n".join(
        [
            "# What a step of training with context takes",
            f"{setup['trunk']}, {setup['batch']} images of {setup['size']}, {setup['classes']} classes; seconds and "
            "megabytes of a step, and both beside the network alone.",
            markdown(["", "s", "times (a)", "MB", "times (a)"], cells),
            origin(report),
        ]
    )


def precision_step(report: Report) -> str:
    """What bfloat16 makes of a training step."""
    setup = report["setup"]
    cells = []
    for name, row in report["rows"].items():
        single, half = (median(row["seconds"][precision]) for precision in ("32", "bf16"))
        cells.append((name, f"{single:.2f}", f"{half:.2f}", f"{half / single:.2f}"))
    return "\n\n".join(
        [
            "# What bfloat16 makes of a step of training",
            f"{setup['network']}, {setup['batch']} images of {setup['size']}, {setup['classes']} classes, in seconds; "
            "the first column says which of a processor's instructions for it there were.",
            markdown(["", "precision 32", "bf16", "times as long"], cells),
            origin(report),
        ]
    )


def cpu_step(*reports: Report) -> str:
    """What a training step on a CPU takes with and without what is done for it."""
    rows = []
    for report in reports:
        setup = report["setup"]
        usual = report["rows"]["as torch has it"]["seconds"]
        for kind, row in report["rows"].items():
            seconds = row["seconds"]
            share = median(own / other for own, other in zip(seconds, usual, strict=True))
            place = f"{setup['network']}, stride {setup['stride']}"
            rows.append((place, kind, f"{median(seconds):.2f}", f"{min(seconds):.2f}", f"{share:.2f}"))
    setup = reports[0]["setup"]  # but for the stride the same in all
    return "\n\n".join(
        [
            "# What is done for a step of training on a CPU",
            f"{setup['batch']} images of {setup['size']}, {setup['classes']} classes, single precision, in seconds: "
            "the median of steps that the kinds take in turns, the least, and the median of a step by the first kind's "
            "of the same turn. oneDNN has no fast gradient of dilated depthwise convolutions to their input, so it is "
            "made of a convolution forwards; and memory that a step frees is kept for the next.",
            markdown(["network", "step", "s", "least", "times as long"], rows),
            *(origin(report) for report in reports),
        ]
    )


def in_short(report: Report) -> str:
    """The speed of the dense CRF, in short."""
    found = {(row["case"], row["threads"]): row["engines"] for row in report["results"]}
    cells = []
    for case in dict.fromkeys(case for case, _ in found):
        runs = [found[case, threads] for threads in (1, 2)]
        own = [engines["piecewise-training"] for engines in runs]
        faster = ", ".join(f"{engine['times_faster']['blocks'][0]:.1f}" for engine in own)
        peer = runs[0]["pydensecrf2"]["total_ms"]
        cells.append((case, f"{peer:.0f}", *(f"{engine['total_ms']:.0f}" for engine in own), faster))
    return markdown(["columns x rows x classes", "pydensecrf2", "1 thread", "2 threads", "times faster"], cells)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
