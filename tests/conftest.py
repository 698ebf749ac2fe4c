"""What tests share: real data where it is there, and small data sets drawn on the spot."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

_THREADS = os.environ.get("OMP_NUM_THREADS")
SHARED = Path(__file__).parents[2] / "shared" / "data"

settings.register_profile("untimed", deadline=None)  # an example takes as long as the machine's other work lets it
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--device cuda runs the tests of Triton's kernels on a GPU, and not in Triton's interpreter."""
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu")


def pytest_configure(config: pytest.Config) -> None:
    """Triton reads its variable when it is imported, which happens later; processes that test together share cores."""
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton's kernels run."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_the_session_began() -> None:
    """What a command sets for its whole process, in a test or in a module's fixture, is not there in the next test."""
    logging.getLogger("piecewise_training").setLevel(logging.NOTSET)
    if _THREADS is None:
        os.environ.pop("OMP_NUM_THREADS", None)


@pytest.fixture
def camvid_root() -> Path:
    """The real CamVid images; tests that want them are skipped where they are not."""
    if not (SHARED / "camvid").is_dir():
        pytest.skip("the CamVid images are not on this machine")
    return SHARED / "camvid"


@pytest.fixture
def lite0_weights() -> Path:
    """Real ImageNet weights of tf_efficientnet_lite0."""
    path = SHARED / "tf_efficientnet_lite0.safetensors"
    if not path.is_file():
        pytest.skip("the ImageNet weights are not on this machine")
    return path


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes random images and labels of their names into two folders."""

    def make(
        names: tuple[str, ...] = ("a", "b", "c"),
        size: tuple[int, int] = (30, 40),
        num_classes: int = 3,
        folder: str = "data",
    ) -> tuple[Path, Path]:
        images, labels = tmp_path / folder / "images", tmp_path / folder / "labels"
        rng = np.random.default_rng(0)
        for path in (images, labels):
            path.mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(images / f"{name}.jpg")
            Image.fromarray(rng.integers(0, num_classes, size).astype(np.uint8)).save(labels / f"{name}.png")
        return images, labels

    return make
