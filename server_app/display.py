"""The terminal: a live table where there is a terminal, one aligned line a round where there is none.

Site names and reasons come from the outside: control characters are taken out before they reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import ConfigError
from server_app.lines import (
    MODELS,
    MOST_REASONS,
    Json,
    clean,
    head_lines,
    result_lines,
    result_rows,
    round_cells,
    round_notes,
)

COLUMNS = ("round", "sites", "val loss", "val acc", "logistic acc", "mlp acc", "evaluations", "up", "down", "seconds")
MOST_REMARKS = 2  # below the live table; all of them stay when the run is over
WIDTHS = (7, 9, 8, 7, 12, 7, 11, 9, 9, 7)


class Display(Protocol):
    """Who shows a run while it goes on."""

    def note(self, text: str) -> None:
        """Something that takes long begins or is done."""

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """The census is closed; `sites` as in `config.json`."""

    def round(self, line: Json) -> None:
        """A round is closed; its line of the ledger."""

    def remark(self, server_round: int, text: str) -> None:
        """Something about a round: the two losses, who decided what and why."""

    def finish(self, summary: Json, folder: Path) -> None:
        """The run is over; the last line printed is the run folder's path."""

    def fail(self, reason: str) -> None:
        """The run cannot go on."""


def make_display(show: str = "auto", stream: TextIO | None = None) -> Display:
    """The display that `server.show` names.

    Args:
        show: `live`, `plain`, `auto` (live on a terminal) or `none`.
        stream: where to; standard output by default.

    Raises:
        ConfigError: another word.
    """
    out = sys.stdout if stream is None else stream
    if show == "auto":
        show = "live" if out.isatty() else "plain"
    if show == "live":
        return LiveDisplay(Console(file=out))
    if show == "plain":
        return PlainDisplay(out)
    if show == "none":
        return SilentDisplay()
    raise ConfigError(f"server.show: expected auto, live or plain, got {show!r}")


class SilentDisplay:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """See Display."""

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """See Display."""

    def round(self, line: Json) -> None:
        """See Display."""

    def remark(self, server_round: int, text: str) -> None:
        """See Display."""

    def finish(self, summary: Json, folder: Path) -> None:
        """See Display."""

    def fail(self, reason: str) -> None:
        """See Display."""


class PlainDisplay:
    """One aligned line a round, no control codes, flushed at once.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rounds = stream, 0

    def note(self, text: str) -> None:
        """See Display."""
        self._print(text)

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """See Display."""
        self._rounds = config.server.rounds
        for line in head_lines(config, sites):
            self._print(line)
        self._print("")
        self._print(_aligned(COLUMNS))

    def round(self, line: Json) -> None:
        """See Display."""
        self._print(_aligned(round_cells(line, self._rounds)))
        for note in round_notes(line):
            self._print(f"        {note}")

    def remark(self, server_round: int, text: str) -> None:
        """See Display."""
        self._print(f"        {clean(text)}")

    def finish(self, summary: Json, folder: Path) -> None:
        """See Display."""
        self._print("")
        for line in result_lines(summary):
            self._print(line)
        self._print("")
        self._print(f"report: {folder / 'report.html'}")
        self._print(str(folder))

    def fail(self, reason: str) -> None:
        """See Display."""
        self._print(f"the run failed: {clean(reason, lines=True)}")

    def _print(self, text: str) -> None:
        print(text.rstrip(), file=self._stream, flush=True)


class LiveDisplay:
    """A table that grows by a line a round; the whole of it stays when the run is over.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._rounds = console, 0
        self._head: list[str] = []
        self._rows: list[tuple[str, ...]] = []
        self._notes: list[str] = []
        self._remarks: list[str] = []
        self._live: Live | None = None

    def note(self, text: str) -> None:
        """See Display."""
        self._console.print(Text(text, style="dim"))

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """See Display."""
        self._rounds = config.server.rounds
        for line in head_lines(config, sites):
            self._console.print(Text(line, style="bold" if not self._head else "dim"))
            self._head.append(line)
        self._console.print()
        # Standard output stays ours: Flower's own log lines go through Live and push the table down.
        self._live = Live(self._render(), console=self._console, refresh_per_second=4)
        self._live.start()

    def round(self, line: Json) -> None:
        """See Display."""
        cells = round_cells(line, self._rounds)
        self._rows.append(cells)
        self._notes += [f"round {line['round']}: {note}" for note in round_notes(line)]
        if self._live is not None:
            self._live.update(self._render())

    def remark(self, server_round: int, text: str) -> None:
        """See Display."""
        self._remarks.append(f"round {server_round}: {clean(text)}")
        if self._live is not None:
            self._live.update(self._render())

    def finish(self, summary: Json, folder: Path) -> None:
        """See Display."""
        self._stop()
        self._console.print()
        self._console.print(_result_table(summary))
        for line in result_lines(summary)[len(MODELS) + 1 :]:
            self._console.print(Text(line, style="dim"))
        self._console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)
        self._console.print(Text(str(folder), style="bold"), soft_wrap=True)

    def fail(self, reason: str) -> None:
        """See Display."""
        self._stop()
        self._console.print(Text(f"the run failed: {clean(reason, lines=True)}", style="bold red"))

    def _stop(self) -> None:
        """Leave the whole table on the screen."""
        if self._live is not None:
            self._live.vertical_overflow = "visible"
            self._live.update(self._render(whole=True))
            self._live.stop()
            self._live = None

    def _render(self, *, whole: bool = False) -> RenderableType:
        room = max(4, self._console.size.height - 10 - min(len(self._remarks), MOST_REMARKS))
        rows = self._rows if whole else self._rows[-room:]
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name in COLUMNS:
            style = {"val loss": "magenta", "val acc": "magenta", "logistic acc": "yellow", "mlp acc": "cyan"}.get(
                name, ""
            )
            table.add_column(name, justify="right", no_wrap=True, style=style)
        for cells in rows:
            table.add_row(*(Text(cell) for cell in cells))
        parts: list[RenderableType] = [table]
        done = len(self._rows)
        if not whole and done < self._rounds:
            parts.append(Text(f"  round {done + 1} of {self._rounds} is running ...", style="dim"))
        parts += [Text(f"  {text}", style="dim") for text in self._remarks[0 if whole else -MOST_REMARKS :]]
        parts += [Text(f"  {note}", style="red") for note in (self._notes if whole else self._notes[-MOST_REASONS:])]
        return Group(*parts)


def _aligned(cells: Iterable[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _result_table(summary: Json) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("on the test rows")
    for name in ("accuracy", "balanced", "loss"):
        table.add_column(name, justify="right")
    for (key, _), cells in zip(MODELS, result_rows(summary), strict=True):
        style = {"qnn": "bold magenta", "logistic": "yellow", "mlp": "cyan"}[key]
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table
