"""A trained network as one file for other programs: ONNX, or torch.export's .pt2."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.writing import atomic_write

_TRACED, _OTHER = (101, 139), (128, 96)  # sizes that no stride divides, and another
_TOLERANCE = 1e-3  # of the largest score
_OPSET = 18
Program = Callable[[Tensor], Tensor]


class _Scores(nn.Module):
    """From grey levels to what the dense CRF takes, in operations that can be written down for images of any size."""

    def __init__(self, model: PiecewiseTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        model = self.model
        image = (image / 255 - model.mean) / model.std
        height, width = image.shape[2:]
        right, below = model.margin(image)[1::2]
        nodes = model.score_nodes(image)
        size = height + below, width + right
        parts = [nodes.scores] if model.context is None else [nodes.scores, model.told(nodes)]
        larger = [functional.interpolate(p.float(), size, mode="bilinear", align_corners=False) for p in parts]
        scores = torch.stack(larger).sum(0)
        # Not a slice: torch.export would take one that cuts nothing off for another program than one that does.
        return scores.index_select(2, torch.arange(height)).index_select(3, torch.arange(width))


def export(model: PiecewiseTrainedModel, path: str | Path, size: tuple[int, int] | None = None) -> float:
    """Writes the network, with normalisation and a contextual CRF, as one file that needs nothing of this package.

    Its input `image` is (B, 3, H, W) RGB in grey levels from 0 to 255, float32; its output `scores` is (B, K, H, W),
    what the dense CRF takes, or `argmax` where there is none. The dense CRF is not in the file: it is no graph of array
    operations. On the scores of the file, `model.crf` does what it does in the model.

    The file is read back and compared with the model before it is put in its place.

    Args:
        model: what to export; left as it is.
        path: where to, .onnx or .pt2. ONNX needs the extra "export".
        size: height and width of images; None leaves them free above the network's stride. A contextual CRF, whose
            edges are those of one size, needs it, and is written for one image at a time; else their number is free.

    Returns:
        The largest difference between the scores of the file and the model's, on random images.

    Raises:
        ValueError: the suffix or the size is none of these, or packages for ONNX are missing.
        RuntimeError: the network cannot be written down, or the file does something else.

    Example:
        >>> import tempfile
        >>> model = PiecewiseTrainedModel(5, unary=nn.Conv2d(3, 5, 3, padding=1))
        >>> file = Path(tempfile.mkdtemp()) / "network.pt2"
        >>> difference = export(model, file)
        >>> scores = torch.export.load(file).module()(torch.zeros(1, 3, 48, 64))
        >>> scores.shape
        torch.Size([1, 5, 48, 64])
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"`path` must end in {' or '.join(_WRITERS)}; got {path}.")
    if size is not None and min(size) < 1:
        raise ValueError(f"`size` must be a height and a width of at least 1 pixel; got {size}.")
    if model.context is not None and size is None:
        raise ValueError("a model with a contextual CRF is exported for images of one size: give `size`.")
    missing = [name for name in _NEEDS[path.suffix] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'{path.suffix} needs {", ".join(missing)}, not installed here: pip install ".[export]" in the checkout.'
        )
    network = _Scores(_fixed_padding(copy.deepcopy(model).to("cpu").float())).eval().requires_grad_(False)
    free = [] if model.context is not None else [0] if size else [0, 2, 3]
    axes = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    numbers = (1, 1) if model.context is not None else (2, 3)
    images = [_noise(n, size or s) for n, s in zip(numbers, (_TRACED, _OTHER), strict=True)]
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        # What the model keeps for a size, edges above all, must not be made while it is written down.
        network(images[0])
        try:
            program = torch.export.export(network, (images[0],), dynamic_shapes={"image": axes})
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RuntimeError(f"torch.export cannot write this network down: {reason}") from error
        with atomic_write(path) as temporary:
            read_back = _WRITERS[path.suffix](program, temporary, json.dumps(list(model.classes.names)))
            judge = copy.deepcopy(model).to("cpu").float().eval()
            difference = max(_difference(read_back, judge, batch) for batch in images)
    return difference


class _Padded(Conv2dSame):
    """TensorFlow's "same" convolution on maps whose sides the stride divides: then its padding is always the same."""

    def forward(self, image: Tensor) -> Tensor:
        margins: list[int] = []
        for size, stride, dilation in reversed(list(zip(self.kernel_size, self.stride, self.dilation, strict=True))):
            whole = max(0, (size - 1) * dilation + 1 - stride)
            margins += [whole // 2, whole - whole // 2]
        return self._conv_forward(functional.pad(image, margins), self.weight, self.bias)


def _fixed_padding(model: PiecewiseTrainedModel) -> PiecewiseTrainedModel:
    """Frees a timm backbone's convolutions from their input's size, of which torch.export makes formulas for minutes.

    All images are continued to a multiple of the strides, if the network says of which.
    """
    if hasattr(model.unary, "multiple"):
        for module in model.modules():
            if isinstance(module, Conv2dSame):
                module.__class__ = _Padded
    return model


def _write_pt2(program: Any, path: Path, classes: str) -> Program:
    torch.export.save(program, path, extra_files={"classes.json": classes})
    read_back: Program = torch.export.load(path).module()
    return read_back


def _write_onnx(program: Any, path: Path, classes: str) -> Program:
    import onnxruntime

    written = torch.onnx.export(
        program, dynamo=True, opset_version=_OPSET, input_names=["image"], output_names=["scores"], verbose=False
    )
    assert written is not None  # as always with dynamo=True
    written.model.metadata_props["classes"] = classes
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2}
_NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}


def _noise(images: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(images, 3, *size, generator=torch.Generator().manual_seed(0)) * 255


def _difference(read_back: Program, model: PiecewiseTrainedModel, image: Tensor) -> float:
    """The largest between the scores of the file and what the model itself gives its dense CRF."""
    pixels = (image / 255 - model.mean) / model.std
    nodes = model.score_nodes(pixels)
    expected = model.enlarged(nodes.scores, pixels) if model.context is None else model.contextual(pixels, nodes)
    assert expected is not None
    difference = float((read_back(image) - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise RuntimeError(
            f"the exported network's scores differ by {difference:.2g} from the model's, on random images of "
            f"{tuple(image.shape[2:])}; nothing was written."
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch says to its own developers."""
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)
