"""Which examples of the package's own docstrings can run where an extra is not installed."""

from importlib.util import find_spec

_OF_GRADIO = [f"src/piecewise_training/demo/{name}.py" for name in ("page", "parts")]
collect_ignore = [] if find_spec("gradio") else _OF_GRADIO
