"""The page's parts, without a browser."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import Classes

pytest.importorskip("gradio")

from piecewise_training.demo import parts, refining

# How many signatures Numba has compiled or loaded after the page is built, and after a scene is refined.
_COUNT = """
import gc, numpy as np
from numba.core.dispatcher import Dispatcher
from piecewise_training.demo import page, refining

def count():
    return sum(len(function.overloads) for function in gc.get_objects() if isinstance(function, Dispatcher))

page.build_page()
built = count()
image = refining.drawn_image(3)
labels = np.full(image.shape[:2], 255, np.uint8)
labels[50:60], labels[150:160] = 1, 2
scene = refining.scene_of_labels(image, labels, 6, 0.9)
refining.refine_scene(scene, page._gentle(6), page._STROKES)
print(built > 0, count() - built)
"""


def test_numbers_of_a_slider() -> None:
    slider = parts.slider(1, 20, 10, 1, "iterations", "iterations")
    assert [slider.preprocess(number) for number in (None, 0, 3, 99)] == [10, 1, 3, 20]


def test_sliders_that_nobody_moved_are_the_models_own_values() -> None:
    """They show two decimals, which would be another CRF than the one that was learned."""
    crf = DenseCRF(3, 5, 3.14159, 0.0071828, 41.41421, 13.37037, 2.71828)
    with torch.no_grad():
        crf.log_pos_xy_std.fill_(1.07)  # whose exponential has another logarithm
    kernels, _ = parts.sliders(crf)
    own = {name: float(value.detach()) for name, value in crf.kernel_parameters().items()}
    assert {name: slider.preprocess(slider.value) for name, slider in kernels.items()} == own
    assert all(slider.value == round(own[name], 2) for name, slider in kernels.items())
    untouched = refining.adjusted(crf, own, 1.0, 5).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in crf.state_dict().items())


def test_legend() -> None:
    value = parts.legend(Classes(("sky", "<b>"), ((0, 0, 255), (9, 9, 9))), numbered=True).value
    assert '<i style="background: #0000ff"></i>0 sky</span>' in value
    assert '<i style="background: #090909"></i>1 &lt;b&gt;</span>' in value
    assert "</i>sky</span>" in parts.legend(Classes.named(["sky", "sea"]), numbered=False).value


def test_legend_of_many_classes() -> None:
    value = parts.legend(Classes.numbered(150), numbered=False).value
    assert "class 39</span><span>and 110 more</span>" in value
    assert "class 40" not in value


@pytest.mark.slow
def test_no_kernel_is_left_to_compile() -> None:
    """An answer's time would otherwise be that of the compiler; in a process of its own, where nothing is compiled."""
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]
