"""`report.html`: one self-contained page about a run, made from the run folder alone.

Sections are functions `Run -> Markup` (`page.SECTIONS`); every text from outside passes `markup.tag`, which escapes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from server_app.report.page import render_page
from server_app.report.run import Run, read_run

__all__ = ["Run", "read_run", "render_page", "write_report"]


def write_report(run_folder: Path) -> Path:
    """Render a run folder's page, whole or not at all.

    Args:
        run_folder: a folder with `config.json`, `rounds.jsonl` and `summary.json`.

    Returns:
        The path of `report.html` in it.

    Raises:
        RunFolderError: the folder cannot be read or written.
    """
    page = render_page(read_run(run_folder))
    path = run_folder / "report.html"
    partial = path.with_name("report.html.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
