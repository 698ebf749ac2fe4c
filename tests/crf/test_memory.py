"""An image that is too large says so, instead of the process being ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from piecewise_training.crf import DenseCRF, _memory, dense_crf
from piecewise_training.pydensecrf.densecrf import DenseCRF2D


def test_there_is_some() -> None:
    free = _memory.available()
    assert free is None or free > 1 << 20


def test_the_container_limits_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr(_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(_memory, "_CGROUP", tmp_path)
    assert _memory.available() == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert _memory.available() == 1_024_000
    (tmp_path / "memory.max").write_text("1500\n")
    assert _memory.available() == 1000
    (tmp_path / "meminfo").write_text("nothing\n")
    assert _memory.available() == 1000
    kept = "anon 7\nfile 200\nactive_file 50\ninactive_file 100\nslab_reclaimable 30\n"
    (tmp_path / "memory.stat").write_text(kept)  # of files that were read; file counts shared memory too
    assert _memory.available() == 1180


def test_a_huge_image_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """144 megapixels, of one number each in memory."""
    monkeypatch.setattr(_memory, "available", lambda: 64_000_000_000)
    scores = torch.zeros(1, 1, 1, 1).expand(8, 2, 12_000, 12_000)
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(8, 3, 12_000, 12_000)
    message = r"Refining 8 x 12000 x 12000 pixels of 2 classes needs about \d+\.\d GB of memory, and 64\.0 GB are free"
    for refine in (dense_crf, DenseCRF(2)):
        with pytest.raises(MemoryError, match=message):
            refine(scores, image)


def test_pydensecrfs_interface_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    crf = DenseCRF2D(1300, 1300, 2)
    crf.addPairwiseBilateral(80, 13, np.zeros((1300, 1300, 3), np.uint8), 10)
    monkeypatch.setattr(_memory, "available", lambda: 1)
    with pytest.raises(
        MemoryError, match=r"Refining 1 x 1300 x 1300 pixels of 2 classes needs about 0\.\d GB of memory"
    ):
        crf.inference(1)
    image = np.broadcast_to(np.uint8(0), (1300, 1300, 3))
    for add in (  # before anything large is made
        lambda: crf.addPairwiseGaussian(3, 3),
        lambda: crf.addPairwiseBilateral(80, 13, image, 10),
        lambda: crf.addPairwiseEnergy(np.broadcast_to(np.float32(0), (5, 1300 * 1300)), 3),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("piecewise_training.pydensecrf.densecrf._matrix", None)
            patch.setattr(DenseCRF2D, "_place", None)
            with pytest.raises(MemoryError, match="Refining 1 x 1300 x 1300 pixels"):
                add()


@pytest.mark.parametrize("options", [{}, {"tolerance": 1e-9}])
def test_lattices_that_are_larger_than_usual_say_so(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise has several vertices a pixel, which is known only when they are there."""
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (3, 40, 50), dtype=np.uint8), np.zeros((21, 40, 50), np.float32)
    monkeypatch.setattr(_memory, "_LITTLE", 0)
    expected = _memory.of_refinement(1, 2000, 21, (2, 5))
    monkeypatch.setattr(_memory, "available", lambda: 1.1 * expected)
    flat = np.full_like(image, 7)
    dense_crf(scores, flat, iterations=1, **options)
    message = r"Refining 2000 pixels of 21 classes with lattices of \d{5} vertices needs about 0\.0 GB of memory"
    with pytest.raises(MemoryError, match=message):
        dense_crf(scores, image, iterations=1, bilateral_rgb_std=1.0, **options)
    monkeypatch.setattr(_memory, "available", lambda: 5 * expected)
    dense_crf(scores, image, iterations=9, bilateral_rgb_std=1.0, **options)
    learned = torch.from_numpy(scores).requires_grad_()
    with pytest.raises(MemoryError, match=message):  # which keeps the lattices of all nine updates
        dense_crf(learned, torch.from_numpy(image), iterations=9, bilateral_rgb_std=1.0)


def test_two_classes_have_lattices_of_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (3, 40, 50), dtype=np.uint8), np.zeros((2, 40, 50), np.float32)
    monkeypatch.setattr(_memory, "_LITTLE", 0)
    monkeypatch.setattr(_memory, "available", lambda: 1.1 * _memory.of_refinement(1, 2000, 2, (2, 5)))
    dense_crf(scores, image, iterations=1, bilateral_rgb_std=1.0)


def test_double_precision_needs_twice_as_much() -> None:
    assert _memory.of_refinement(1, 10, 3, (2, 5), 8) == 2 * _memory.of_refinement(1, 10, 3, (2, 5))


def test_a_batch_needs_the_work_of_one_image() -> None:
    """200 bytes a pixel were measured with 2 classes; of a batch only lattices and results are there all at once."""
    one, eight = (_memory.of_refinement(images, 1000, 2, (2, 5)) for images in (1, 8))
    assert 200_000 <= one <= 230_000
    assert eight < 4 * one
