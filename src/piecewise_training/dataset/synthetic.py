"""Scenes drawn from a seed: something to train on wherever the package is installed.

Every object has its own colour, texture and shading, whatever its class, so that colour alone tells little; objects
overlap, some are thin, and the picture is blurred and noisy, so that a small network finds the objects and misses
their borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.folder import Item, Transform
from piecewise_training.dataset.transforms import normalise

CLASSES = Classes(
    ("ground", "sky", "hill", "house", "ball", "tree", "pole"),
    ((150, 110, 70), (110, 170, 230), (90, 130, 60), (190, 70, 60), (240, 200, 50), (30, 110, 40), (130, 130, 140)),
)
GROUND, SKY, HILL, HOUSE, BALL, TREE, POLE = range(len(CLASSES))


class SyntheticDataset(Dataset[Item]):
    """Procedurally drawn scenes of seven classes; item i of a seed is always the same scene.

    A scene is drawn on first use and kept, in 4 bytes a pixel.

    Args:
        length: number of scenes.
        image_size: (height, width) in pixels, at least (32, 32).
        seed: the scenes of two seeds have nothing in common.
        transform: as in `SegmentationDataset`.

    Raises:
        ValueError: a length below 1, an image size below 32 or a seed below 0.

    Example:
        >>> image, label = SyntheticDataset(2, image_size=(64, 96))[0]
        >>> image.shape, label.shape
        (torch.Size([3, 64, 96]), torch.Size([64, 96]))
    """

    classes = CLASSES

    def __init__(
        self,
        length: int,
        image_size: tuple[int, int] = (96, 128),
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"`length` must be at least 1; got {length}.")
        if len(image_size) != 2 or min(image_size) < 32:
            raise ValueError(f"`image_size` must be (height, width) of at least 32; got {image_size!r}.")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0; got {seed}.")
        self.length = length
        self.image_size = image_size
        self.seed = seed
        self.transform = transform
        self.num_classes = len(CLASSES)
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def names(self) -> list[str]:
        """The name of each item."""
        return [f"scene {index}" for index in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        pixels, label = self.read(index)
        image: Any = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
        mask: Any = tv_tensors.Mask(torch.from_numpy(label))
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        return normalise(image).as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The scene (H, W, 3) and its labels (H, W), both uint8."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        if index not in self._drawn:
            self._drawn[index] = draw_scene(np.random.default_rng((self.seed, index)), *self.image_size)
        image, label = self._drawn[index]
        return image.copy(), label.copy()

    def read_label(self, index: int) -> np.ndarray:
        """The scene's labels (H, W) uint8."""
        return self.read(index)[1]


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene: (H, W, 3) uint8 and its labels (H, W) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    image = np.empty((height, width, 3), np.float32)
    label = np.empty((height, width), np.uint8)
    for k, mask in _objects(rng, y, x):
        label[mask] = k
        image[mask] = _surface(rng, y[mask], x[mask])
    image *= 1 - 0.35 * rng.random() * np.hypot(y - rng.random(), x - rng.random())[..., None]  # light falls off
    image = ndimage.gaussian_filter(image, (*(2 * [rng.uniform(0.4, 0.8)]), 0))
    image += rng.normal(0, rng.uniform(4, 9), image.shape)
    return image.clip(0, 255).astype(np.uint8), label


def _objects(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Class and mask of each object, from the back to the front."""
    aspect = x.max()
    horizon = rng.uniform(0.35, 0.6) + rng.uniform(-0.05, 0.05) * x
    yield SKY, np.ones_like(y, bool)
    ridge = sum(rng.uniform(0.02, 0.08) * np.sin(rng.uniform(2, 9) * x + rng.uniform(0, 6)) for _ in range(3))
    yield HILL, y > horizon - rng.uniform(0.05, 0.15) + ridge
    yield GROUND, y > horizon
    draw: dict[int, Callable[..., np.ndarray]] = {HOUSE: _house, BALL: _ball, TREE: _tree, POLE: _pole}
    kinds = rng.choice([HOUSE, BALL, TREE, POLE], size=rng.integers(6, 12), p=[0.22, 0.26, 0.26, 0.26])
    for foot in np.sort(rng.uniform(0.5, 1.05, len(kinds))):  # what stands lower is nearer, larger and in front
        kind = int(kinds[0])
        kinds = kinds[1:]
        yield kind, draw[kind](rng, y, x, foot, rng.uniform(0, aspect), 0.35 + 0.65 * foot)


def _house(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, foot: float, at: float, size: float) -> np.ndarray:
    half, tall = size * rng.uniform(0.08, 0.18), size * rng.uniform(0.15, 0.35)
    roof = size * rng.uniform(0.0, 0.15)
    across = np.abs(x - at)
    walls = (across < half) & (y < foot) & (y > foot - tall)
    gable = (y <= foot - tall) & (y > foot - tall - roof * (1 - across / (1.15 * half)))
    return walls | gable & (across < 1.15 * half)


def _ball(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, foot: float, at: float, size: float) -> np.ndarray:
    a, b = size * rng.uniform(0.05, 0.14, 2)
    turn = rng.uniform(0, np.pi)
    u, v = x - at, y - (foot - b)
    along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    return (along / a) ** 2 + (across / b) ** 2 < 1


def _tree(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, foot: float, at: float, size: float) -> np.ndarray:
    crown, trunk = size * rng.uniform(0.08, 0.15), size * rng.uniform(0.1, 0.25)
    angle = np.arctan2(y - (foot - trunk - crown), x - at)
    waves = sum(rng.uniform(0.05, 0.14) * np.cos(n * angle + rng.uniform(0, 6)) for n in (3, 5, 8))
    leaves = np.hypot(x - at, y - (foot - trunk - crown)) < crown * (1 + waves)
    stem = (np.abs(x - at) < size * 0.014) & (y < foot) & (y > foot - trunk - crown)
    return leaves | stem


def _pole(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, foot: float, at: float, size: float) -> np.ndarray:
    tall, lean = size * rng.uniform(0.4, 0.8), rng.uniform(-0.12, 0.12)
    shaft = (np.abs(x - at - lean * (foot - y)) < size * rng.uniform(0.01, 0.018)) & (y < foot) & (y > foot - tall)
    arm = (np.abs(y - (foot - tall)) < size * 0.012) & (np.abs(x - at - lean * tall) < size * rng.uniform(0.03, 0.1))
    return shaft | arm


def _surface(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The colours (N, 3) of one object's N pixels: a base colour, a texture of its own, and shading."""
    base = rng.uniform(40, 215, 3).astype(np.float32)
    turn, pitch, phase = rng.uniform(0, np.pi), rng.uniform(25, 90), rng.uniform(0, 6)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    across = across - across.mean() if across.size else across
    texture = _TEXTURES[rng.integers(len(_TEXTURES))](rng, pitch * along + phase, pitch * across)
    shading = rng.uniform(-60, 60) * across
    tint = rng.uniform(0.6, 1.0, 3).astype(np.float32)
    return base + (rng.uniform(4, 14) * texture + shading)[..., None] * tint


_TEXTURES: tuple[Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda rng, u, v: np.zeros_like(u),
    lambda rng, u, v: np.sin(u),
    lambda rng, u, v: np.sign(np.sin(u) * np.sin(v)),
    lambda rng, u, v: rng.normal(0, 0.6, u.shape).astype(np.float32),
)
