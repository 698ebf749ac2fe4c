"""DenseCRF: parameters, modes, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from piecewise_training import crf as package
from piecewise_training import model
from piecewise_training.crf import (
    DenseCRF,
    Kernel,
    PairwiseTerm,
    bilateral_kernel,
    dense_crf,
    mean_field,
    spatial_kernel,
)
from tests.crf.scenes import scene


def test_has_two_homes() -> None:
    assert model.DenseCRF is package.DenseCRF is DenseCRF


def test_defaults_are_the_usual_ones() -> None:
    crf = DenseCRF(4)
    values = {name: round(value.item(), 4) for name, value in crf.kernel_parameters().items()}
    assert values == {
        "pos_xy_std": 3.0, "pos_w": 3.0, "bilateral_xy_std": 80.0, "bilateral_rgb_std": 13.0, "bilateral_w": 10.0,
    }  # fmt: skip
    assert crf.num_iterations == 10
    assert torch.equal(crf.pos_compatibility, 1 - torch.eye(4))


def test_is_the_function_with_its_parameters() -> None:
    scores, image = scene(12, 14, 4)
    torch.testing.assert_close(DenseCRF(4).eval()(scores, image), dense_crf(scores, image), rtol=1e-4, atol=1e-5)


def test_iterations_by_mode() -> None:
    scores, image = scene(12, 14, 3)
    crf = DenseCRF(3, num_iterations=4, train_iterations=1)
    torch.testing.assert_close(crf.train()(scores, image), dense_crf(scores, image, iterations=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(crf.eval()(scores, image), dense_crf(scores, image, iterations=4), rtol=1e-4, atol=1e-4)
    few = DenseCRF(3, num_iterations=2, train_iterations=5).train()
    torch.testing.assert_close(few(scores, image), dense_crf(scores, image, iterations=2), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    scores, image = scene(12, 14, 3)
    crf = DenseCRF(3)
    torch.nn.functional.nll_loss(crf(scores, image), scores.argmax(1).roll(2, 2)).backward()
    for name, parameter in crf.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-7, name


def test_weights_and_bandwidths_stay_positive() -> None:
    scores, image = scene(8, 9, 3)
    crf = DenseCRF(3, num_iterations=2)
    optimizer = torch.optim.SGD(crf.parameters(), lr=50.0)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(crf(scores, image), scores.argmax(1).roll(4, 2)).backward()
        torch.nn.utils.clip_grad_norm_(crf.parameters(), 0.05)
        optimizer.step()
    assert all(value.item() > 0 for value in crf.kernel_parameters().values())


def test_recovers_a_bandwidth_from_marginals_made_with_it() -> None:
    """Learning really moves bandwidths: from 2 pixels back to the 5 that the targets were made with."""
    scores, image = scene(24, 30, 3)
    kernels = {"pos_w": 4.0, "bilateral_w": 1e-3}
    target = dense_crf(scores, image, pos_xy_std=5.0, iterations=2, **kernels).exp()
    crf = DenseCRF(3, num_iterations=2, pos_xy_std=2.0, **kernels)
    optimizer = torch.optim.Adam([crf.log_pos_xy_std], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = -(target * crf(scores, image)).sum(1).mean()
        loss.backward()
        optimizer.step()
    assert crf.pos_xy_std.item() == pytest.approx(5.0, rel=0.15)


def test_recovers_bandwidths_on_the_fast_kernels() -> None:
    """All of them at once, from marginals made with others, on an image of colours."""
    scores, image = scene(30, 36, 3)
    truth = {"pos_xy_std": 2.0, "pos_w": 1.0, "bilateral_xy_std": 20.0, "bilateral_rgb_std": 30.0, "bilateral_w": 3.0}
    target = dense_crf(scores, image, iterations=3, **truth).exp()
    crf = DenseCRF(3, 3, 3.0, 1.0, 12.0, 50.0, 3.0, compatibility="potts")
    learned = [crf.log_pos_xy_std, crf.log_bilateral_xy_std, crf.log_bilateral_rgb_std]
    optimizer = torch.optim.Adam(learned, lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-(target * crf(scores, image)).sum(1).mean()).backward()
        optimizer.step()
    found = {name: value.item() for name, value in crf.kernel_parameters().items()}
    assert found == pytest.approx(truth, rel=0.1)


def test_kernels_of_every_kind() -> None:
    """Named by their kind and number, with what each of them learns, and maps by name."""
    kernels = [
        Kernel(xy_std=2.0, compatibility="potts"),
        {"xy_std": 30.0, "rgb_std": 4.0, "weight": 1.5, "compatibility": "class"},
        Kernel(xy_std=60.0, rgb_std=12.0, feature_stds={"depth": 0.5}),
        Kernel(feature_stds={"depth": 2.0}),
    ]
    crf = DenseCRF(3, 4, kernels=kernels, temperature=True, class_bias=True)
    assert {name: round(value.item(), 3) for name, value in crf.kernel_parameters().items()} == {
        "pos_xy_std": 2.0, "pos_w": 1.0, "bilateral_xy_std": 30.0, "bilateral_rgb_std": 4.0, "bilateral_w": 1.5,
        "bilateral2_xy_std": 60.0, "bilateral2_rgb_std": 12.0, "bilateral2_depth_std": 0.5, "bilateral2_w": 1.0,
        "feature_depth_std": 2.0, "feature_w": 1.0,
    }  # fmt: skip
    assert crf.pos_compatibility is None
    assert crf.bilateral_compatibility.shape == (3,)
    assert crf.bilateral2_compatibility.shape == (3, 3)
    scores, image = scene(9, 11, 3)
    depth = torch.rand(1, 1, 9, 11)
    terms = [
        PairwiseTerm(spatial_kernel(9, 11, 2.0, like=scores)),
        PairwiseTerm(bilateral_kernel(image, 30.0, 4.0, like=scores), 1.5),
        PairwiseTerm(bilateral_kernel(torch.cat([image, depth], 1), 60.0, [12.0] * 3 + [0.5], like=scores)),
        PairwiseTerm(bilateral_kernel(depth, None, 2.0, like=scores)),
    ]
    log_q = crf.eval()(scores, image, {"depth": depth})
    torch.testing.assert_close(log_q, mean_field(scores, terms, 4), rtol=1e-4, atol=1e-4)
    crf.train()(scores, image, {"depth": depth})[:, 0].mean().backward()
    assert all(parameter.grad is not None for parameter in crf.parameters())


def test_temperature_and_class_bias() -> None:
    scores, image = scene(9, 11, 3)
    crf = DenseCRF(3, temperature=True, class_bias=True).eval()
    with torch.no_grad():
        crf.log_temperature.fill_(np.log(2.0))
        crf.class_bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    expected = dense_crf(scores / 2 + torch.tensor([1.0, 0.0, -1.0])[:, None, None], image)
    torch.testing.assert_close(crf(scores, image), expected, rtol=1e-4, atol=1e-4)


def test_bandwidths_that_are_not_learned() -> None:
    crf = DenseCRF(3, learn_bandwidths=False)
    learned = {name for name, parameter in crf.named_parameters() if parameter.requires_grad}
    assert learned == {"log_pos_w", "log_bilateral_w", "pos_compatibility", "bilateral_compatibility"}


def test_options_of_the_function() -> None:
    scores, image = scene(12, 14, 3)
    options = {"normalization": "after", "spatial": "exact"}
    found = DenseCRF(3, **options).eval()(scores, image)
    torch.testing.assert_close(found, dense_crf(scores, image, **options), rtol=1e-4, atol=1e-4)


def test_runs_in_single_precision_under_autocast() -> None:
    scores, image = scene(8, 9, 3)
    crf = DenseCRF(3).eval()
    expected = crf(scores, image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crf(scores, image), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` must be at least 2; got 1"),
        ({"num_iterations": -1}, "`num_iterations` must be at least 0; got -1"),
        ({"train_iterations": -2}, "`train_iterations` must be at least 0; got -2"),
        ({"pos_w": 0.0}, "`pos_w` must be a finite number above 0; got 0.0"),
        ({"bilateral_xy_std": float("nan")}, "`bilateral_xy_std` must be a finite number above 0; got nan"),
        ({"compatibility": "full"}, r"`compatibility` must be potts, class, matrix; got 'full' \(str\)"),
        ({"kernels": [Kernel()]}, "A kernel needs the bandwidth of something: `xy_std`, `rgb_std` or `feature_stds`"),
        (
            {"kernels": [Kernel(xy_std=3, feature_stds={"xy": 5.0})]},
            "`feature_stds` must not have 'xy', whose bandwidth",
        ),
        ({"kernels": [Kernel(feature_stds={"band1.5": 1.0})]}, "have no dot in a map's name, .*; got 'band1.5'"),
        ({"normalization": "both"}, r"`normalization` must be none, before, after, symmetric; got 'both' \(str\)"),
        ({"spatial": "fast"}, "`spatial` must be lattice, exact; got 'fast'"),
        ({"backend": "cuda"}, "`backend` must be auto, numba, triton, reference, exact; got 'cuda'"),
        (
            {"kernels": [{"xy_std": 3.0, "xy": 1}]},
            "`kernels` must have xy_std, rgb_std, feature_stds, weight, compatibility alone; got 'xy'",
        ),
        (
            {"kernels": [Kernel(3)], "compatibility": "full"},
            r"`compatibility` must be potts, class, matrix; got 'full' \(str\)",
        ),
        (
            {"kernels": [Kernel(3, compatibility="full")]},
            r"`compatibility` must be potts, class, matrix; got 'full' \(str\)",
        ),
        ({"kernels": [{"xy_std": -1.0}]}, "`pos_xy_std` must be a finite number above 0; got -1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRF(**({"num_classes": 3} | arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    scores, image = scene(6, 7, 3)
    expected = DenseCRF(3)(scores, image)
    log_q = DenseCRF(3).to(dtype)(scores.to(dtype), image)
    assert log_q.dtype == dtype
    torch.testing.assert_close(log_q.float(), expected, rtol=0.05, atol=0.05)


def test_parameters_that_have_diverged_are_named() -> None:
    scores, image = scene(6, 7, 3)
    for name, value in (("pos_w", torch.inf), ("bilateral_rgb_std", torch.nan)):
        crf = DenseCRF(3)
        with torch.no_grad():
            getattr(crf, f"log_{name}").fill_(value)
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
            crf(scores, image)


def test_a_replica_of_data_parallels() -> None:
    """Its parameters are tensors that have a gradient to those of the whole."""
    scores, image = scene(6, 7, 3)
    crf = DenseCRF(3, temperature=True)
    replica = crf._replicate_for_data_parallel()
    for name, value in crf._parameters.items():
        if value is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, value * 1)
    log_q = replica(scores, image)
    assert torch.equal(log_q, crf(scores, image))
    log_q[:, 0].sum().backward()
    assert all(value.grad is not None for value in crf.parameters())


def test_images_from_0_to_1_are_told() -> None:
    scores, image = torch.randn(1, 2, 4, 5), torch.rand(1, 3, 4, 5)
    for crf in (DenseCRF(2), dense_crf):
        with pytest.warns(UserWarning, match=r"`image` holds values from 0 to 1, which are all one colour") as caught:
            crf(scores, image)
        assert [warning.filename for warning in caught] == [__file__]
    DenseCRF(2, kernels=[{"xy_std": 3.0, "rgb_std": 0.1}])(scores, image)
    dense_crf(scores, image, bilateral_w=0)
    dense_crf(scores, 255 * image)


def test_what_is_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"`unary_logits` must be a torch.Tensor; got \(2, 3\) float64 \(ndarray\)"):
        DenseCRF(3)(np.zeros((2, 3)), torch.zeros(1, 3, 2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "`features` must have depth; got a dict of"),
        ({"depth": torch.zeros(1, 1, 4, 4)}, r"`features\['depth'\]` must be \(B, F, H, W\) and fit `unary_logits`"),
        ({"depth": torch.full((1, 1, 4, 5), torch.nan)}, r"`features\['depth'\]` must be finite; 20 of 20"),
    ],
)
def test_maps_that_do_not_fit(features: Any, message: str) -> None:
    scores, image = scene(4, 5, 3)
    with pytest.raises(ValueError, match=message):
        DenseCRF(3, kernels=[Kernel(feature_stds={"depth": 1.0})])(scores, image, features)


def test_wrong_number_of_classes() -> None:
    scores, image = scene(4, 5, 3)
    with pytest.raises(ValueError, match=r"`unary_logits` must have 4 classes; got \(1, 3, 4, 5\) float32"):
        DenseCRF(4)(scores, image)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compatibility": "class", "temperature": True, "normalization": "none", "backend": "reference"},
        {
            "num_iterations": 3,
            "train_iterations": 2,
            "kernels": [
                Kernel(xy_std=2, compatibility="potts"),
                Kernel(30, 4, {"depth": 0.5}, np.float32(1.5)),
                Kernel(9, 9),
            ],
            "learn_bandwidths": False,
            "class_bias": True,
            "spatial": "exact",
        },
    ],
)
def test_is_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    crf = DenseCRF(3, **options)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    crf.save(tmp_path / "crf.safetensors")
    again = DenseCRF.load(tmp_path / "crf.safetensors")
    assert again.is_built_like(crf)
    assert not again.training
    assert again.configuration() == crf.configuration()
    learned = {name: parameter.requires_grad for name, parameter in crf.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in again.named_parameters()} == learned
    scores, image = scene(9, 10, 3)
    maps = {"depth": torch.rand(1, 1, 9, 10)}
    torch.testing.assert_close(again(scores, image, maps), crf.eval()(scores, image, maps), rtol=0, atol=0)


def test_what_is_no_saved_crf(tmp_path: Path) -> None:
    path = tmp_path / "crf.safetensors"
    with pytest.raises(FileNotFoundError, match=r"there is no CRF .*crf.safetensors: name a file that DenseCRF.save"):
        DenseCRF.load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"crf.safetensors was not written by DenseCRF.save: it holds other weights"):
        DenseCRF.load(path)
    model.PiecewiseTrainedModel(2, unary=torch.nn.Conv2d(3, 2, 1)).save(path)
    with pytest.raises(ValueError, match=r"DenseCRF.save: it holds piecewise-training model"):
        DenseCRF.load(path)
    with pytest.raises(ValueError, match=r"`path` must end in .safetensors; got .*crf.pth"):
        DenseCRF(2).save(tmp_path / "crf.pth")
