"""Which examples of the package's own docstrings can run where an extra is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("gradio") else ["src/piecewise_training/demo/page.py"]
