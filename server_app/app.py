"""The ServerApp: config in, run folder out."""

from __future__ import annotations

import sys
from contextlib import closing

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from llm_qfl.federation import logs
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import LlmQflError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; the last line printed names the run folder.

    Raises:
        LlmQflError: the run cannot go on. Whatever ends a run, the folder's summary says `failed` and why.
    """
    logs.configure()
    config = RunConfig.from_run_config(context.run_config)
    from llm_qfl.federation.settings import project_folder
    from server_app.book import FolderBook
    from server_app.display import make_display
    from server_app.journal import logged
    from server_app.ledger import Ledger
    from server_app.report import write_report
    from server_app.resume import read_run, resume_folder
    from server_app.session import run_session

    before = resume_folder(config)
    resumed = None if before is None else read_run(before, config)
    output = project_folder() / config.server.output
    ledger = Ledger.create(output) if resumed is None else Ledger.reopen(resumed.folder)
    with closing(ledger):
        display = logged(make_display(config.server.show, sys.stdout), ledger.run_id)
        book = FolderBook(ledger, display)
        try:
            summary = book.finish(run_session(grid, config, book, resumed))
        except Exception as error:
            reason = str(error) if isinstance(error, LlmQflError) else f"{type(error).__name__}: {error}"
            display.fail(reason)  # first: where the disk is full, the folder cannot be told
            book.fail(config, reason)
            write_report(ledger.folder)
            raise
        write_report(ledger.folder)
        display.finish(summary, ledger.folder)
