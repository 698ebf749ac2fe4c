"""The helpers against pydensecrf's own."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest

from piecewise_training.pydensecrf import utils as ours

theirs = pytest.importorskip("pydensecrf.utils")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8)
SOFTMAX = RNG.dirichlet(np.ones(3), (4, 5)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("unary_from_labels", (RNG.integers(0, 4, (4, 5)), 3, 0.7), {}),
        ("unary_from_labels", (RNG.integers(0, 3, (4, 5)), 3, 0.4), {"zero_unsure": False}),
        ("unary_from_softmax", (SOFTMAX,), {}),
        ("unary_from_softmax", (SOFTMAX.astype(np.float32), 0.6), {}),
        ("unary_from_softmax", (np.eye(3),), {}),
        ("unary_from_softmax", (np.eye(3),), {"clip": None}),
        ("unary_from_softmax", (np.eye(3),), {"clip": 0.01}),
        ("create_pairwise_gaussian", ((3, 2), (4, 5)), {}),
        ("create_pairwise_gaussian", ((3, 2, 7), (2, 3, 4)), {}),
        ("create_pairwise_bilateral", ((3, 2), (10, 20, 30), IMAGE), {"chdim": 2}),
        ("create_pairwise_bilateral", ((3, 2), 10, IMAGE.transpose(2, 0, 1)), {"chdim": 0}),
        ("create_pairwise_bilateral", ((3, 2), 5, IMAGE[..., 0]), {}),
        ("create_pairwise_bilateral", ((3, 2), (10,), IMAGE), {"chdim": 2}),
        ("create_pairwise_bilateral", ((3, 2), (0.5,), IMAGE), {}),
        ("create_pairwise_bilateral", ((3,), (10, 20), IMAGE), {"chdim": 2}),
        ("compute_unary", (RNG.integers(0, 4, (4, 5)), 3), {}),
        ("softmax_to_unary", (SOFTMAX,), {}),
        ("softmax_to_unary", (np.array([[1e-8, 1.0], [1 - 1e-8, 0.0]]),), {}),
    ],
)
def test_gives_what_theirs_gives(name: str, arguments: Any, options: Any) -> None:
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")  # theirs says more than ours
        expected = getattr(theirs, name)(*arguments, **options)
        found = getattr(ours, name)(*arguments, **options)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_old_names_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ours.compute_unary(np.array([1]), 2)
        ours.softmax_to_unary(SOFTMAX)
    assert [record.getMessage() for record in caplog.records] == [
        "compute_unary is the old name of unary_from_labels",
        "softmax_to_unary is the old name of unary_from_softmax",
    ]


def test_bandwidths_that_lack_are_told(caplog: pytest.LogCaptureFixture) -> None:
    ours.create_pairwise_bilateral((3,), (10, 20), IMAGE, chdim=2)
    ours.create_pairwise_bilateral((3, 2), 5, IMAGE)
    assert [record.getMessage() for record in caplog.records] == [
        "`sdims` has 1 for 2 axes: the last have a bandwidth of 1.",
        "`schan` has 2 for 3 channels: the last have a bandwidth of 1.",
        "`sdims` has 2 for 3 axes: the last have a bandwidth of 1. chdim=-1 means that there is no axis of channels: "
        "an image of (H, W, 3) wants chdim=2.",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.unary_from_labels(np.array([1]), 2, 1.0), "`gt_prob` must lie between 0 and 1; got 1.0"),
        (lambda: ours.unary_from_labels(np.array([3]), 2, 0.5), "`labels` must be from 0 to 2; they reach from 3 to 3"),
        (lambda: ours.unary_from_labels(np.array([-1]), 2, 0.5), "they reach from -1 to -1"),
        (lambda: ours.unary_from_labels(np.array([2]), 2, 0.5, zero_unsure=False), "must be from 0 to 1"),
        (lambda: ours.unary_from_softmax(SOFTMAX, scale=2), "`scale` must be above 0 and at most 1; got 2"),
        (lambda: ours.create_pairwise_gaussian((0, 3), (2, 2)), r"`sdims` must be above 0; got \(0, 3\)"),
        (lambda: ours.unary_from_labels(np.array([[0.5]]), 2, 0.5), r"`labels` must be whole .*; got 0\.5\. For proba"),
        (lambda: ours.create_pairwise_bilateral((1, 2, 3), -3, IMAGE), "`schan` must be above 0; got "),
        (lambda: ours.create_pairwise_gaussian((1, 2), (3, 4, 5)), "a bandwidth for each of the 3 axes; got 2"),
        (lambda: ours.create_pairwise_bilateral((1, 2, 3), 1, IMAGE, 2), "at most 2, for as many axes; got 3\\.$"),
        (
            lambda: ours.create_pairwise_bilateral((1, 2, 3), (1, 2), IMAGE),
            "`schan` must have at most 1, for as many channels; got 2. chdim=-1 means that .* wants chdim=2",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
