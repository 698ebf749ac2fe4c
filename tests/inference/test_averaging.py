"""Windows, scales and mirror images: nothing when off, the mean of what each look gives when on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from piecewise_training.dataset import SyntheticDataset
from piecewise_training.inference import InferenceConfig, evaluate, predict
from piecewise_training.inference.averaging import _places, score
from piecewise_training.model import PiecewiseTrainedModel
from tests.test_model import contextual_model, small_model


@pytest.mark.parametrize("size", [(20, 24), (33, 41), (9, 60)])
@pytest.mark.parametrize(
    "how",
    [
        InferenceConfig(),
        InferenceConfig(window=(100, 100)),
        InferenceConfig(overlap=0.1),
        InferenceConfig(scales=[1.0]),  # type: ignore[arg-type]
    ],
)
def test_one_look_is_the_plain_model(size: tuple[int, int], how: InferenceConfig) -> None:
    """Bit for bit when nothing is switched on; of an image smaller than the window up to rounding."""
    model, image = small_model(), torch.randn(2, 3, *size)
    expected = model(image)[0]
    found = score(model, image, how)
    assert found.contextual is None
    if how.window is None:
        assert torch.equal(found.unary, expected)
    else:
        torch.testing.assert_close(found.unary, expected.log_softmax(1))


def test_one_look_is_the_plain_contextual_model() -> None:
    model, image = contextual_model(), torch.randn(1, 3, 40, 48)
    nodes, found = model.score_nodes(image), score(model, image, InferenceConfig())
    assert torch.equal(found.unary, model.enlarged(nodes.scores, image))
    expected = model.contextual(image, nodes)
    assert expected is not None
    assert found.contextual is not None
    assert torch.equal(found.contextual, expected)


def test_mirror_images() -> None:
    model, image = small_model(), torch.randn(1, 3, 23, 31)
    both = model(image)[0].softmax(1) + model(image.flip(3))[0].softmax(1).flip(3)
    torch.testing.assert_close(score(model, image, InferenceConfig(flip=True)).unary, (both / 2).log())


def test_scales() -> None:
    model, image = small_model(), torch.randn(1, 3, 24, 30)
    half = nn.functional.interpolate(image, (12, 15), mode="bilinear", antialias=True)
    small = nn.functional.interpolate(model(half)[0].softmax(1), (24, 30), mode="bilinear")
    found = score(model, image, InferenceConfig(scales=(1.0, 0.5))).unary
    torch.testing.assert_close(found, ((model(image)[0].softmax(1) + small) / 2).log())


def test_windows_of_a_network_that_sees_single_pixels_change_nothing() -> None:
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1), use_crf=False).eval()
    image = torch.randn(2, 3, 37, 50)
    for window, overlap in (((16, 16), 0.5), ((37, 20), 0.0), ((5, 60), 0.9), ((36, 49), 0.25)):
        found = score(model, image, InferenceConfig(window=window, overlap=overlap))
        torch.testing.assert_close(found.unary, model(image)[0].log_softmax(1))


@pytest.mark.parametrize("make", [small_model, contextual_model])
def test_overlaps_are_blended_by_a_bump_in_the_middle_of_each_window(make: Any) -> None:
    """Of networks that see their surroundings, which end at a window's border: pixel by pixel, window by window."""
    model, image, (height, width) = make(), torch.randn(1, 3, 48, 56), (32, 40)
    rows, columns = [0, 16], [0, 16]
    total, weights = 0.0, torch.zeros(48, 56)
    for top in rows:
        for left in columns:
            view = image[:, :, top : top + height, left : left + width]
            nodes = model.score_nodes(view)
            contextual = model.contextual(view, nodes)
            scores = model.enlarged(nodes.scores, view) if contextual is None else contextual
            part, share = torch.zeros(3, 48, 56), torch.zeros(48, 56)
            for y in range(height):
                for x in range(width):
                    share[top + y, left + x] = math.prod(
                        max(1e-3, math.sin(math.pi * (place + 1) / (side + 1)) ** 2)
                        for place, side in ((y, height), (x, width))
                    )
            part[:, top : top + height, left : left + width] = scores.softmax(1)[0].detach()
            total, weights = total + share * part, weights + share
    scored = score(model, image, InferenceConfig(window=(height, width), overlap=0.5))
    found = scored.unary if scored.contextual is None else scored.contextual
    torch.testing.assert_close(found.softmax(1)[0], total / weights, rtol=1e-4, atol=1e-5)


def test_no_view_is_larger_than_the_window() -> None:
    model, sizes = small_model(), []
    model.unary.register_forward_hook(lambda module, inputs, _: sizes.append(tuple(inputs[0].shape[2:])))
    score(model, torch.randn(1, 3, 40, 70), InferenceConfig(scales=(1.0, 1.5), flip=True, window=(30, 32)))
    assert {height for height, _ in sizes} == {30}
    assert {width for _, width in sizes} == {32}
    assert len(sizes) == 2 * (2 * 4 + 3 * 6)


@pytest.mark.parametrize("side", [5, 16, 17, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.3, 0.5, 0.9, 0.99])
def test_windows_cover_everything_and_overlap(side: int, overlap: float) -> None:
    places = list(_places(side, 16, overlap))
    assert places[0].start == 0
    assert places[-1].stop == side
    steps = np.diff([place.start for place in places])
    shared = 16 - steps
    assert (shared >= min(15, 16 * overlap)).all()  # at least that, in whole pixels, and never all
    assert all(place.stop - place.start == min(16, side) for place in places)


def test_context_is_averaged_too() -> None:
    model, image = contextual_model(), torch.randn(1, 3, 40, 48)
    found = score(model, image, InferenceConfig(flip=True))
    assert found.contextual is not None
    sums = 0.0
    for mirrored in (False, True):
        seen = image.flip(3) if mirrored else image
        part = model.contextual(seen, model.score_nodes(seen))
        assert part is not None
        sums = sums + (part.softmax(1).flip(3) if mirrored else part.softmax(1))
    torch.testing.assert_close(found.contextual, (sums / 2).log())


def test_evaluation_and_prediction_see_the_same() -> None:
    model, data = small_model(7), SyntheticDataset(1, image_size=(32, 40))
    how = InferenceConfig(scales=(0.8, 1.2), flip=True, window=(24, 24))
    outcome = evaluate(model, DataLoader(data, 1), how=how)
    image, truth = data.read(0)
    prediction = predict(model, image, how=how)
    known = truth != 255
    assert outcome.crf is not None
    assert outcome.crf.scores.pixel_accuracy == pytest.approx((prediction.labels == truth)[known].mean(), abs=1e-6)
    unary = (prediction.unary_labels == truth)[known].mean()
    assert outcome.unary.scores.pixel_accuracy == pytest.approx(unary, abs=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (InferenceConfig(scales=()), r"`scales` must be one or more numbers above 0; got \[\]"),
        (InferenceConfig(scales=(1.0, 0.0)), r"`scales` must be one or more numbers above 0; got \[1.0, 0.0\]"),
        (InferenceConfig(overlap=1.0), "`overlap` must be from 0 to below 1; got 1.0"),
        (InferenceConfig(scales=(float("inf"),)), r"`scales` must be one or more numbers above 0; got \[inf\]"),
        (InferenceConfig(window=16), "`window` must be a height and a width of at least 1; got 16"),  # type: ignore[arg-type]
        (InferenceConfig(window=(16,)), r"`window` must be a height and a width of at least 1; got \(16,\)"),  # type: ignore[arg-type]
        (InferenceConfig(window=(0, 9)), r"`window` must be a height and a width of at least 1; got \(0, 9\)"),
    ],
)
def test_errors(how: InferenceConfig, message: str) -> None:
    model: Any = small_model()
    with pytest.raises(ValueError, match=message):
        evaluate(model, [], how=how)
    with pytest.raises(ValueError, match=message):
        predict(model, np.zeros((8, 8, 3), np.uint8), how=how)
