"""The live demonstration: a local page on which the CRF's sliders can be moved; the page itself needs Gradio."""
