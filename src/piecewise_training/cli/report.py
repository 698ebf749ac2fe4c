"""piecewise report: the page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

_OWN = "report.html"  # the page that a run has of itself


def run(runs: list[str], output: str | None = None) -> None:
    """Writes the report of a run as one HTML page that needs no other file, or of several runs side by side.

    Args:
        runs: folders of finished runs of piecewise train or evaluate
        output: the page; report.html in the run's folder, or of several runs in this one, unless this one is a run's
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        if not folder.is_dir():  # before the imports, which take seconds
            raise FileNotFoundError(f"there is no folder {folder}: name that of a finished run.")

    from piecewise_training.report import RECORD_FILE, RunRecord, write_page

    places = {folder.resolve() for folder in folders}
    if len(places) < len(folders):
        raise ValueError("`runs` names a folder twice.")
    page = Path(output) if output else (folders[0] if len(folders) == 1 else Path()) / _OWN
    if page.suffix not in (".html", ".htm"):
        raise ValueError(f"`output` must be the name of an .html file; got {page}.")
    if page.name == _OWN and (page.parent / RECORD_FILE).is_file() and places != {page.parent.resolve()}:
        raise ValueError(
            f"`output` {page} is the page of the run in {page.parent.resolve()}, which another would replace. Give the "
            "page another name, such as --output comparison.html."
        )
    records = {folder: RunRecord.load(folder) for folder in folders}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_page(page, records)
    print(page)
