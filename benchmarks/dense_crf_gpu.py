"""The part of `dense_crf.py --device cuda`: the dense CRF on a GPU, its kernels beside the floor, and its gradients.

Everything is on the device before the clock starts, and times are of device events after a warm-up; on the CPU, where
Triton's interpreter can try the script out with tiny sizes, they are of the wall. Before anything is timed the
marginals are compared with those of the plain-torch kernels and, where it is installed, of pydensecrf2.

The floor of a kernel is the time in which the bytes that it must read and write pass through memory, at the bandwidth
of a copy measured in the same run. ConvCRF (Teichmann & Cipolla, BMVC 2019) is another model: a kernel cut off at a few
pixels; it is written here with torch's operators as its paper describes it.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_crf as cpu
import measuring
import torch
from torch.nn import functional

from piecewise_training.crf import dense_crf
from piecewise_training.crf.lattice import PermutohedralLattice, resolve
from piecewise_training.crf.pixels import bilateral_kernel, spatial_kernel

STDS = {"pos": 3.0, "xy": 80.0, "rgb": 13.0}
Call = Callable[[], object]
Engine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def milliseconds(call: Call, device: torch.device, runs: int, before: int = 2) -> list[float]:
    """The times of some calls after a few others."""
    found = []
    for _ in range(before + runs):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - begin))
    return found[before:]


def conv_crf(scores: torch.Tensor, image: torch.Tensor, iterations: int, side: int) -> torch.Tensor:
    """ConvCRF: the same two Gaussians over the `side` x `side` pixels around each pixel."""
    batch, _, height, width = scores.shape
    half = side // 2
    y, x = torch.meshgrid(*2 * [torch.arange(-half, half + 1, device=scores.device, dtype=scores.dtype)], indexing="ij")
    squared = (x.square() + y.square()).reshape(1, -1, 1)

    def around(values: torch.Tensor) -> torch.Tensor:
        return functional.unfold(values, side, padding=half).reshape(batch, values.shape[1], side * side, -1)

    difference = (around(image) - image.reshape(batch, 3, 1, -1)).square().sum(1) / STDS["rgb"] ** 2
    near = torch.exp(-0.5 * squared / STDS["pos"] ** 2).expand(batch, -1, height * width)
    alike = torch.exp(-0.5 * (squared / STDS["xy"] ** 2 + difference))
    weights = 3 * near / near.sum(1, keepdim=True) + 10 * alike / alike.sum(1, keepdim=True)
    q = scores.softmax(1)
    for _ in range(iterations):
        q = (scores + (around(q) * weights[:, None]).sum(2).reshape(scores.shape)).softmax(1)
    return q


def engines(iterations: int) -> dict[str, Engine]:
    """What is timed, from scores and an image on the device to marginals."""
    ours: Any = "triton"
    found: dict[str, Engine] = {
        "piecewise-training": lambda s, i: dense_crf(s, i, iterations=iterations, logarithm=False, backend=ours),
        "plain torch": lambda s, i: dense_crf(s, i, iterations=iterations, logarithm=False, backend="reference"),
    }
    for side in (7, 11):
        found[f"ConvCRF {side} x {side}"] = lambda s, i, side=side: conv_crf(s, i.float(), iterations, side)
    if importlib.util.find_spec("pydensecrf") is not None:
        found["pydensecrf2, CPU"] = lambda s, i: torch.from_numpy(
            cpu.pydensecrf2(i[0].permute(1, 2, 0).contiguous().cpu().numpy(), s[0].cpu().numpy(), iterations)
        )[None]
    return found


def tensors(size: str, batch: int, images: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (B, K, H, W) and images (B, 3, H, W), each shifted by a few pixels against the one before."""
    image, scores = cpu.make_case(size, images)
    picture, own = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(scores)
    pictures = torch.stack([picture.roll(5 * n, 2) for n in range(batch)])
    return torch.stack([own.roll(5 * n, 2) for n in range(batch)]).to(device), pictures.to(device)


def bandwidth(device: torch.device, runs: int, megabytes: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * statistics.median(milliseconds(lambda: target.copy_(source), device, runs)))


def back_to_back(call: Call, device: torch.device, runs: int, times: int = 20) -> list[float]:
    """Milliseconds of one of several calls that the GPU finds in a graph, so that it does not wait for the CPU."""
    if device.type != "cuda":
        return milliseconds(call, device, runs)
    graph = captured(lambda: [call() for _ in range(times)])
    return [found / times for found in milliseconds(graph.replay, device, runs)]


def captured(call: Call) -> torch.cuda.CUDAGraph:
    """A call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def kernel_times(scores: torch.Tensor, image: torch.Tensor, speed: float, runs: int) -> list[dict[str, Any]]:
    """Each step of one update with both lattices, all updates, and the building of the larger lattice."""
    from piecewise_training.crf import _triton, _triton_pass

    device, batch = scores.device, len(scores)
    height, width = scores.shape[2:]
    logits = scores.flatten(2)
    rows = _triton_pass.as_rows(logits.softmax(1))
    like: Any = {"like": scores, "backend": "triton"}
    spatial = spatial_kernel(height, width, STDS["pos"], **like)
    bilateral = bilateral_kernel(image, STDS["xy"], STDS["rgb"], **like)
    steps: dict[str, tuple[Call, int]] = {}
    messages, to_read = [], logits.nbytes + rows.nbytes
    for name, kernel in (("spatial", spatial), ("bilateral", bilateral)):
        operator: Any = kernel.operator
        plan: _triton_pass.Plan = operator._tables
        factor = _triton_pass.of_each_point(kernel.after, batch)
        assert factor is not None
        through = _triton_pass.Pass(plan, batch, rows.shape[1])
        lattice = through.blurred(rows, factor)
        spare = torch.empty_like(lattice)
        sums = batch // len(plan) * plan.entries.numel() * rows[0].nbytes
        tables = plan.weights.nbytes + plan.order.nbytes + factor.nbytes
        through._run(rows, factor, lattice, spare, 0, 2, False)

        def phases(first: int, last: int, through=through, factor=factor, lattice=lattice, spare=spare) -> Call:
            return lambda: through._run(rows, factor, lattice, spare, first, last, False)

        steps[f"{name}: splat"] = phases(0, 1), rows.nbytes + tables + plan.groups.nbytes + sums
        steps[f"{name}: gather"] = phases(1, 2), sums + plan.entries.nbytes + plan.bounds.nbytes + lattice.nbytes
        for axis in range(plan.axes):
            moved = 2 * lattice.nbytes + plan.neighbours[0].nbytes
            steps[f"{name}: blur {axis + 1}"] = phases(2 + axis, 3 + axis), moved
        whole = lambda p=plan, f=factor: _triton_pass.Pass(p, batch, rows.shape[1]).blurred(rows, f)  # noqa: E731
        steps[f"{name}: all of these"] = whole, rows.nbytes + tables + lattice.nbytes
        messages.append(_triton_pass.Message(plan, lattice, factor))
        to_read += tables + plan.vertices.nbytes + lattice.nbytes
    out = torch.empty_like(rows)
    steps["read and update"] = lambda: _triton_pass.read(messages, logits, out, logits.shape, "softmax"), to_read
    found = [
        _beside_floor(name, back_to_back(call, device, runs), moved, speed) for name, (call, moved) in steps.items()
    ]

    terms = [kernel.operator.normalized(kernel.before, kernel.after) for kernel in (spatial, bilateral)]  # type: ignore[union-attr]
    weights = [torch.tensor(weight, device=device) for weight in (3.0, 10.0)]
    updates = lambda: _triton.mean_field(terms, weights, logits, cpu.ITERATIONS, (height, width), False)  # noqa: E731
    moved = cpu.ITERATIONS * (2 * rows.nbytes + to_read)
    found.append(_beside_floor("all updates", milliseconds(updates, device, runs), moved, speed))
    if device.type == "cuda":
        times = milliseconds(captured(updates).replay, device, runs)
        found.append(_beside_floor("all updates, as a graph", times, moved, speed))
    features, stds = bilateral_features(image)
    moved = features.nbytes + 4 * features.shape[0] * features.shape[2] * 30  # places, weights, names of 6 vertices
    call = lambda: PermutohedralLattice.build(features, stds, "triton")  # noqa: E731
    return [*found, _beside_floor("bilateral: lattice", milliseconds(call, device, runs), moved, speed)]


def _beside_floor(name: str, times: list[float], moved: int, speed: float) -> dict[str, Any]:
    floor = 1e3 * moved / speed
    return {"kernel": name, "ms": times, "floor_ms": floor, "ratio": statistics.median(times) / floor}


def bilateral_features(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a bilateral kernel's lattice is built of."""
    from piecewise_training.crf.pixels import _pixel_features

    stds = [STDS["xy"], STDS["xy"], *3 * [STDS["rgb"]]]
    return _pixel_features(image, torch.float32), torch.tensor(stds, device=image.device)


def training_step(scores: torch.Tensor, image: torch.Tensor, backend: Any) -> Call:
    """Five iterations forwards and backwards to scores, weights and costs."""
    costs = (1 - torch.eye(scores.shape[1], device=scores.device)).requires_grad_()
    weights = [torch.tensor(w, device=scores.device, requires_grad=True) for w in (3.0, 10.0)]
    leaf = scores.clone().requires_grad_()

    def step() -> None:
        log_q = dense_crf(
            leaf, image, pos_w=weights[0], bilateral_w=weights[1], compatibility=costs, iterations=5, backend=backend
        )
        log_q.mean().backward()

    return step


def check(scores: torch.Tensor, image: torch.Tensor) -> tuple[float, dict[str, float]]:
    """The largest difference of our marginals from those of plain torch and of pydensecrf2, and how long these take.

    pydensecrf2 takes seconds of a machine that is lent for minutes: this once is its time.
    """
    found = engines(cpu.ITERATIONS)
    ours = found["piecewise-training"](scores, image)
    worst, taken = 0.0, {}
    for name in ("plain torch", "pydensecrf2, CPU"):
        if name in found:
            begin = time.perf_counter()
            other = found[name](scores, image)
            taken[name] = 1e3 * (time.perf_counter() - begin)
            worst = max(worst, float((ours - other.to(ours)).abs().max()))
    return worst, taken


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """What a call needs beyond what is allocated before it; None where torch does not know."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def time_case(size: str, batch: int, arguments: argparse.Namespace, speed: float) -> dict[str, Any]:
    """A case's numbers."""
    device, runs = torch.device(arguments.device), arguments.runs
    scores, image = tensors(size, batch, arguments.images, device)
    worst, taken = check(scores[:1], image[:1])
    if worst > cpu.TOLERANCE:
        raise SystemExit(f"{size}: marginals differ by {worst}: nothing is timed.")
    case: dict[str, Any] = {"case": size, "batch": batch, "difference": worst, "ms_an_image": {}}
    for name, engine in engines(cpu.ITERATIONS).items():
        if batch > 1 and name.startswith(("ConvCRF", "pydensecrf2")):
            continue  # one after the other takes the same for each
        if name.endswith("CPU"):
            case["ms_an_image"][name] = [taken[name]]
            continue
        times = milliseconds(lambda engine=engine: engine(scores, image), device, runs)
        case["ms_an_image"][name] = [t / batch for t in times]
    case["peak_bytes"] = peak_bytes(lambda: dense_crf(scores, image, logarithm=False), device)
    if case["peak_bytes"] is not None:
        case["bytes_a_pixel"] = (case["peak_bytes"] - 2 * scores.nbytes) / (batch * scores[0, 0].numel())
    return case | {"kernels": kernel_times(scores, image, speed, runs)}


def text(case: dict[str, Any]) -> str:
    """A case's numbers as lines."""
    start = f"{case['case']} x {case['batch']:2}  "
    lines = [f"{n:28} {statistics.median(t):10.3f} ms an image" for n, t in case["ms_an_image"].items()]
    if "bytes_a_pixel" in case:
        lines.append(f"memory: 2 score maps and {case['bytes_a_pixel']:.0f} bytes a pixel")
    for kernel in case["kernels"]:
        own = statistics.median(kernel["ms"])
        lines.append(f"{kernel['kernel']:28} {own:10.4f} ms, {kernel['ratio']:6.1f} x its floor")
    return "\n".join(start + line for line in lines)


def main(arguments: argparse.Namespace) -> None:
    """Checks, times, prints and writes case by case, since the time of a GPU may be short."""
    device = torch.device(arguments.device)
    resolve("triton", device)
    speed = bandwidth(device, arguments.runs, 1024 if device.type == "cuda" else 16)
    report = {
        **measuring.surroundings(measuring.SEED),
        "iterations": cpu.ITERATIONS,
        "runs": arguments.runs,
        "copy_bytes_a_s": speed,
    }
    report["machine"]["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    report |= {"results": [], "training": None}
    lines: list[str] = []

    def done(found: str) -> None:
        lines.append(found)
        print(found, flush=True)
        if arguments.output:
            measuring.write_report(arguments.output, report, "\n".join(lines))

    done(f"copy: {speed / 1e9:.0f} GB/s")
    for size, batch in arguments.gpu_cases:
        report["results"].append(time_case(size, batch, arguments, speed))
        done(text(report["results"][-1]))
    size, batch = arguments.training_case
    scores, image = tensors(size, batch, arguments.images, device)
    training = {
        backend: milliseconds(training_step(scores, image, backend), device, arguments.runs)
        for backend in ("triton", "reference")
    }
    report["training"] = {"case": size, "batch": batch, "ms": training}
    start = f"{size} x {batch:2}  a training step"
    done("\n".join(f"{start}, {name}: {statistics.median(t):.2f} ms" for name, t in training.items()))
