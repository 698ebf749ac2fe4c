"""The report of runs: what a run leaves to be reported, its gallery, and the page made of it."""

from piecewise_training.report.gallery import Shown, remove_pictures, write_gallery
from piecewise_training.report.page import write_page
from piecewise_training.report.record import RECORD_FILE, Parameter, RunRecord

__all__ = ["RECORD_FILE", "Parameter", "RunRecord", "Shown", "remove_pictures", "write_gallery", "write_page"]
