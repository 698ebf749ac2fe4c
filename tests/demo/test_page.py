"""The demonstration in a real browser."""

from __future__ import annotations

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
def page(address: tuple[str, str]) -> Iterator[Any]:
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
        assert not errors


def _is_elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def picture(page: Any, name: str, other_than: str = "") -> str:
    """The address of the picture that a part of the page shows, once there is one, or another one."""
    wanted = "([name, old]) => { const i = document.querySelector(`#${name} img`); return i && i.src !== old; }"
    page.wait_for_function(wanted, arg=[name, other_than], timeout=60_000)
    return page.locator(f"#{name} img").get_attribute("src")


def paint(page: Any) -> None:
    """Two strokes across the canvas."""
    page.wait_for_timeout(2_000)
    box = page.locator("#strokes canvas").first.bounding_box()
    for row in (0.35, 0.75):
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + row * box["height"], steps=8)
        page.mouse.up()


def test_upload_and_sliders(page: Any, address: tuple[str, str], tmp_path: Path) -> None:
    image, labels = SyntheticDataset(1, (120, 160), seed=5).read(0)
    Image.fromarray(image).save(tmp_path / "scene.png")
    Image.fromarray(np.where(np.indices(labels.shape).sum(0) % 9 == 0, labels, 255).astype(np.uint8)).save(
        tmp_path / "mask.png"
    )
    page.locator("input[type=file]").first.set_input_files(tmp_path / "scene.png")
    if address[0] == "strokes":
        page.wait_for_timeout(2_000)
        page.locator("input[type=file]").nth(1).set_input_files(tmp_path / "mask.png")
    first = picture(page, "after")
    page.get_by_text("of the pixels changed, in").wait_for()
    slider = page.locator("#iterations input[type=number]")
    slider.fill("0")
    slider.press("Enter")
    picture(page, "after", other_than=first)
    if address[0] == "model":
        page.get_by_text("0.0 % of the pixels changed").wait_for()  # no update changes nothing


def test_example(page: Any, address: tuple[str, str]) -> None:
    page.get_by_role("button", name="Draw an example").click()
    if address[0] == "strokes":
        paint(page)
    picture(page, "before")
    picture(page, "changed")


def test_broken_file(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("this is no image")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    page.get_by_text("broken.png cannot be read as an image. Take a PNG or JPEG file that is whole.").wait_for()


def test_needs_a_crf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    model = PiecewiseTrainedModel(3, use_crf=False, unary="mobilenetv3_small_050", pretrained=False)
    model.save(tmp_path / "model.safetensors")
    assert main(["demo", "--model", str(tmp_path / "model.safetensors")]) == 1
    assert "the model has no dense CRF whose sliders could be moved" in capsys.readouterr().err
