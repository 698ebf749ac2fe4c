"""The demonstration in a real browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piecewise_training.cli import main
from piecewise_training.dataset import SyntheticDataset
from piecewise_training.model import PiecewiseTrainedModel

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, but says it decidedly, which is enough to see the CRF move."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = PiecewiseTrainedModel(7, unary="mobilenetv3_small_050", pretrained=False)
    with torch.no_grad():
        model.unary.get_submodule("decoder.score").weight.mul_(1000)
    model.save(path)
    return path


@pytest.fixture(scope="module", params=["model", "strokes"])
def address(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[str, str]]:
    """What the page works on, and where a server of it answers."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", str(model), "--device", "cpu"] if request.param == "model" else []
    command = [sys.executable, "-c", "from piecewise_training.cli import main; main()", "demo", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == url
            _wait_for(url)
            yield request.param, url
        finally:
            server.kill()


def _wait_for(url: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(url)


@pytest.fixture
def allowed() -> list[str]:
    """Errors on the console that a test may add because it provokes them."""
    return []


@pytest.fixture
def page(address: tuple[str, str], allowed: list[str]) -> Iterator[Any]:
    """A browser's page at the address; errors on its console fail the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1250, "height": 1150})
        errors: list[str] = []
        opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: errors.append(request.url) if _is_elsewhere(request.url) else None)
        opened.goto(address[1])
        yield opened
        browser.close()
        assert not [error for error in errors if error not in allowed]


def _is_elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def picture(page: Any, name: str, other_than: str = "") -> str:
    """The address of the picture that a part of the page shows, once there is one, or another one."""
    wanted = "([name, old]) => { const i = document.querySelector(`#${name} img`); return i && i.src !== old; }"
    page.wait_for_function(wanted, arg=[name, other_than], timeout=60_000)
    return page.locator(f"#{name} img").get_attribute("src")


def drop(page: Any, box: str, path: Path) -> None:
    """Gives a file to a box."""
    page.locator(f"#{box} input[type=file]").set_input_files(path)


def clear(page: Any, box: str) -> None:
    """Presses the x of a file in a box."""
    page.locator(f"#{box} button[aria-label=Clear]").first.click()


def set_number(page: Any, slider: str, number: str) -> None:
    """Types a number into a slider's box."""
    box = page.locator(f"#{slider} input[type=number]")
    box.fill(number)
    box.press("Enter")


def paint(page: Any) -> None:
    """Two strokes across the canvas."""
    page.wait_for_timeout(2_000)
    canvas = page.locator("#strokes canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for row in (0.35, 0.65):
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + row * box["height"], steps=8)
        page.mouse.up()


def draw_example(page: Any, kind: str) -> None:
    """An example, with strokes where there is no model, and waits for what the CRF makes of it."""
    page.get_by_role("button", name="Draw an example").click()
    if kind == "strokes":
        paint(page)
    picture(page, "after")


def wait_for_nothing(page: Any) -> None:
    """Waits until no result is shown, and no badge of an error either."""
    results = "#image img, #before img, #after img, #changed img, #told p"
    page.wait_for_function("found => !document.querySelector(found)", arg=results, timeout=60_000)
    assert page.get_by_text("Error", exact=True).count() == 0


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of an image, a mask of it and a mask of wrong values."""
    image, labels = SyntheticDataset(1, (120, 160), seed=5).read(0)
    mask = np.where(np.indices(labels.shape).sum(0) % 9 == 0, labels % 6, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "scene.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.where(mask == 255, 77, mask).astype(np.uint8)).save(tmp_path / "wrong.png")
    return tmp_path


def test_upload_and_sliders(page: Any, address: tuple[str, str], files: Path) -> None:
    drop(page, "upload", files / "scene.png")
    if address[0] == "strokes":
        page.wait_for_timeout(2_000)
        drop(page, "mask", files / "mask.png")
    first = picture(page, "after")
    if address[0] == "model":
        picture(page, "image")
        page.get_by_text("of the pixels changed, in").wait_for()
    else:
        page.get_by_text("of the labelled pixels changed, in").wait_for()
        page.get_by_text("of the image, was filled in").wait_for()
    set_number(page, "iterations", "0")
    picture(page, "after", other_than=first)
    page.get_by_text(re.compile("^0.0 % of the (labelled )?pixels changed")).wait_for()  # no update changes nothing


def test_example(page: Any, address: tuple[str, str]) -> None:
    draw_example(page, address[0])
    picture(page, "before")
    picture(page, "changed")


def test_broken_file(page: Any, address: tuple[str, str], tmp_path: Path) -> None:
    draw_example(page, address[0])
    (tmp_path / "broken.png").write_text("this is no image")
    drop(page, "upload", tmp_path / "broken.png")
    page.get_by_text("broken.png cannot be read as an image. Take a PNG or JPEG file that is whole.").wait_for()
    wait_for_nothing(page)
    assert "broken.png" not in page.locator("#upload").inner_text()


def test_cleared(page: Any, address: tuple[str, str], files: Path) -> None:
    """Without its file a result goes, except that strokes take a mask's place again."""
    drop(page, "upload", files / "scene.png")
    if address[0] == "strokes":
        paint(page)
        painted = picture(page, "before")
        page.wait_for_timeout(1_000)
        drop(page, "mask", files / "mask.png")
        masked = picture(page, "before", other_than=painted)
        clear(page, "mask")
        picture(page, "before", other_than=masked)
        drop(page, "mask", files / "wrong.png")
        page.get_by_text("wrong.png holds the value 77, but labels go from 0 to 5, and 255 is void.").wait_for()
        page.wait_for_function("() => !document.querySelector('#mask').innerText.includes('wrong.png')")
    picture(page, "after")
    clear(page, "upload")
    wait_for_nothing(page)


@pytest.mark.parametrize("address", ["model"], indirect=True)  # the same on both pages
def test_numbers_that_no_slider_has(page: Any, address: tuple[str, str]) -> None:
    draw_example(page, address[0])
    for number in ("", "99"):
        first = page.locator("#told").inner_html()
        set_number(page, "iterations", number)
        page.wait_for_function("old => document.querySelector('#told').innerHTML !== old", arg=first)
        page.wait_for_timeout(1_000)
        assert page.get_by_text("Error", exact=True).count() == 0
        assert page.locator("#after img").count() == 1


def test_phone(page: Any, address: tuple[str, str]) -> None:
    """One column: what is given, the pictures, the sliders; and every label beside its buttons."""
    page.set_viewport_size({"width": 390, "height": 844})
    draw_example(page, address[0])
    names = ["upload", *(["image"] if address[0] == "model" else ["strokes"]), "after", "sliders"]
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in names]
    assert tops == sorted(tops)
    for name in ("before", "after", "changed"):
        label = page.locator(f"#{name} label").first.bounding_box()
        button = page.locator(f"#{name} button").first.bounding_box()
        assert label["x"] + label["width"] <= button["x"]
    assert page.locator("#legend").bounding_box()["width"] <= 390


@pytest.mark.parametrize("address", ["model"], indirect=True)  # the same on both pages
def test_too_large_a_file(page: Any, address: tuple[str, str], allowed: list[str], tmp_path: Path) -> None:
    """Gradio's page refuses the file before it is sent, and logs so itself.

    It asks how far the upload is, which never began: hence the 404. "Response" is Gradio's own, as it logs what it
    got.
    """
    allowed += ["Failed to load resource: the server responded with a status of 404 (Not Found)", "Response"]
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(21 * 2**20)
    drop(page, "upload", tmp_path / "large.png")
    page.get_by_text('File(s) exceed the maximum allowed size of 20.0 Mb: "large.png"').wait_for()
    draw_example(page, address[0])


def test_a_mask_without_its_image() -> None:
    pytest.importorskip("gradio")
    from piecewise_training.demo import page

    with pytest.raises(ValueError, match="An image first, then its mask"):
        page._mask("mask.png", None)


def test_needs_a_crf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    model = PiecewiseTrainedModel(3, use_crf=False, unary="mobilenetv3_small_050", pretrained=False)
    model.save(tmp_path / "model.safetensors")
    assert main(["demo", "--model", str(tmp_path / "model.safetensors")]) == 1
    assert "the model has no dense CRF whose sliders could be moved" in capsys.readouterr().err
