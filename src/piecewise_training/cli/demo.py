"""piecewise demo: a local page with the CRF's sliders."""

from __future__ import annotations

import os
import sys


def run(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    browser: bool = True,
) -> None:
    """Opens a local page: an image, the network's labels and the CRF's side by side, and sliders that move them.

    Without a model a few painted strokes, or a mask, take the network's place. It needs the extra "demo".

    Args:
        model: folder of a run, or a .safetensors file in one
        host: address to answer on; 0.0.0.0 shows the page to the whole network
        port: the page's port
        device: where the network runs: cpu, cuda, cuda:1, mps, or auto for the best there is
        browser: open a browser on it
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError('piecewise demo needs Gradio: pip install ".[demo]" in the checkout.') from error

    from piecewise_training.demo.page import LARGEST_FILE, build_page
    from piecewise_training.demo.parts import STYLE, theme
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.trainer import best_device

    network = None if model is None else PiecewiseTrainedModel.load(model).to(best_device(device))
    page = build_page(network)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,  # Gradio would publish the page from some machines unasked
            inbrowser=browser and sys.stdout.isatty(),
            max_file_size=LARGEST_FILE,
            show_error=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme(),
            css=STYLE,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(f"`port` {port} of {host} cannot be had, something else may answer there: {error}.") from error
    print(f"http://{host}:{port}", flush=True)
    page.block_thread()
