"""piecewise report: the page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path


def run(runs: list[str], output: str | None = None) -> None:
    """Writes the report of a run as one HTML page that needs no other file, or of several runs side by side.

    Args:
        runs: folders of finished runs of piecewise train or evaluate
        output: the page; report.html in the run's folder, or of several runs in this one
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        if not folder.is_dir():  # before the imports, which take seconds
            raise FileNotFoundError(f"there is no folder {folder}: name that of a finished run.")

    from piecewise_training.report import RunRecord, write_page

    if len(set(folders)) < len(folders):
        raise ValueError("`runs` names a folder twice.")
    page = Path(output) if output else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if page.suffix not in (".html", ".htm"):
        raise ValueError(f"`output` must be the name of an .html file; got {page}.")
    records = {folder: RunRecord.load(folder) for folder in folders}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_page(page, records)
    print(page)
