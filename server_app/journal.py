"""What a run says while it goes on, as log lines beside the terminal; see `llm_qfl.federation.logs`.

Every figure is one of the ledger's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from llm_qfl.federation import logs
from llm_qfl.federation.config import RunConfig
from server_app.display import Display
from server_app.lines import Json

_LOG = logging.getLogger(__name__)

FIGURES = ("evaluations", "circuits", "shots", "bytes_up", "bytes_down", "seconds", "aggregated", "theta_digest")
RESULTS = (
    *("status", "stop_reason", "rounds", "clients", "test_accuracy", "test_loss", "validation_loss"),
    *("evaluations", "circuits", "shots", "jobs", "qpu_seconds", "bytes_up", "bytes_down", "seconds"),
)


def logged(display: Display, run: str) -> Display:
    """The display, which also logs where the environment asks for log lines in JSON.

    Args:
        display: the terminal.
        run: id of the run.
    """
    return Journal(display, run) if logs.as_json() else display


class Journal:
    """A display that writes a log line for all that is shown.

    Args:
        display: is shown everything.
        run: id of the run.
    """

    def __init__(self, display: Display, run: str) -> None:
        self._display, self._run = display, run

    def note(self, text: str) -> None:
        """See Display."""
        self._display.note(text)
        self._log(text)

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """See Display."""
        self._display.start(config, sites)
        rows = sum(int(site["rows"].get("train", 0)) for site in sites)
        self._log("the run begins", sites=len(sites), train_rows=rows, rounds=config.server.rounds)

    def round(self, line: Json) -> None:
        """See Display."""
        self._display.round(line)
        number, validation = int(line["round"]), line.get("validation") or {}
        for site, reason in (line.get("rejected") or {}).items():
            self._log(f"reply refused: {reason}", logging.WARNING, round=number, site=site)
        for site in line.get("joined") or []:
            self._log("site joined", round=number, site=site)
        for late in line.get("late") or []:
            self._log("late reply", round=number, site=late["site"], of_round=late["of_round"])
        self._log(
            "round closed",
            logging.INFO if line["aggregated"] else logging.WARNING,
            round=number,
            asked=len(line["plan"]["sites"]),
            accepted=len(line["clients"]),
            late=len(line.get("late") or []),
            refused=len(line.get("rejected") or {}),
            busy=len(line.get("busy") or []),
            validation_loss=validation.get("loss"),
            validation_accuracy=validation.get("accuracy"),
            **{key: line[key] for key in FIGURES},
        )

    def remark(self, server_round: int, text: str) -> None:
        """See Display."""
        self._display.remark(server_round, text)
        self._log(text, round=server_round)

    def finish(self, summary: Json, folder: Path) -> None:
        """See Display."""
        self._display.finish(summary, folder)
        self._log("the run has ended", logging.INFO, **{key: summary.get(key) for key in RESULTS})

    def fail(self, reason: str) -> None:
        """See Display. Why it failed is told as an exception may be (`logs.told`); the folder's summary has it all."""
        self._display.fail(reason)
        _LOG.error("the run failed", exc_info=True, extra={logs.FIELDS: {"run": self._run}})

    def _log(self, message: str, level: int = logging.INFO, **fields: object) -> None:
        _LOG.log(level, "%s", message, extra={logs.FIELDS: {"run": self._run, **fields}})
