"""The CRF from many threads and processes, after the parent has used it: right, and without a deadlock."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from piecewise_training.crf import dense_crf
from tests.crf.scenes import scene

ROOT = Path(__file__).parents[2]


def refined(seed: int = 0) -> torch.Tensor:
    scores, image = scene(70, 150, 3, seed)  # several tiles
    with torch.no_grad():
        return dense_crf(scores, image, iterations=3)[0]


class Refined(Dataset[torch.Tensor]):
    """A data set that refines in the process that loads."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return refined(index)


def test_from_eight_threads() -> None:
    expected = [refined(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(refined, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_from_a_process_after_its_parent_used_it(start: str) -> None:
    """With as many threads as the parent: torch's own would hang in a forked process, and none of them is used."""
    expected = _total(0)
    context = multiprocessing.get_context(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, on forking a process with threads
        with context.Pool(2) as pool:
            assert pool.map_async(_total, [0, 0]).get(timeout=120) == [expected, expected]


def _total(seed: int) -> float:
    return float(np.exp(refined(seed).numpy()).sum())


def test_in_a_data_loaders_workers() -> None:
    expected = [refined(index) for index in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = list(DataLoader(Refined(), batch_size=None, num_workers=2))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("writable", [True, False])
def test_from_a_read_only_installation(tmp_path: Path, writable: bool) -> None:
    """Machine code is kept in the user's cache folder, by two processes at once as well; else compiled each time."""
    code = "import logging; logging.basicConfig(level=20); import tests.crf.test_processes as t; t.refined()"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path) if writable else "/proc/nowhere"}
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserWideCacheLocator"  # as if the source's folder were read-only
    run = [sys.executable, "-c", code]
    said = []
    for together in (2, 1) if writable else (1,):
        begun = [
            subprocess.Popen(run, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(together)
        ]
        for process in begun:
            error = process.communicate()[1]
            assert process.returncode == 0, error
            said.append(error.count("compiling the CRF's kernels") + 10 * error.count("in every process"))
    if writable:
        assert 1 in said[:2]
        assert said[2] == 0
    else:
        assert said == [11]
