"""The terminal: a live table where there is a terminal, one aligned line a round where there is none.

Site names and reasons come from the outside: control characters are taken out before they reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import ConfigError

Json = Mapping[str, Any]

COLUMNS = ("round", "sites", "val loss", "val acc", "logistic acc", "mlp acc", "evaluations", "up", "down", "seconds")
WIDTHS = (7, 9, 8, 7, 12, 7, 11, 9, 9, 7)
MODELS = (("qnn", "quantum neural network"), ("logistic", "logistic regression"), ("mlp", "small neural network"))
UNKNOWN = "-"
MOST_REASONS = 3  # reasons shown a round; the ledger has them all


class Display(Protocol):
    """Who shows a run while it goes on."""

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """The census is closed; `sites` as in `config.json`."""

    def round(self, line: Json) -> None:
        """A round is closed; its line of the ledger."""

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

    def start(self, config: RunConfig, sites: Sequence[Json]) -> None:
        """See Display."""

    def round(self, line: Json) -> None:
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
        self._live: Live | None = None

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
        room = max(4, self._console.size.height - 10)
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
        parts += [Text(f"  {note}", style="red") for note in (self._notes if whole else self._notes[-MOST_REASONS:])]
        return Group(*parts)


def head_lines(config: RunConfig, sites: Sequence[Json]) -> list[str]:
    """What is run, on what."""
    rows = {part: sum(int(site["rows"].get(part, 0)) for site in sites) for part in ("train", "validation", "test")}
    quantum, training = config.quantum, config.training
    shape = f"{quantum.qubits} qubits" + (f", {quantum.layers} layers" if quantum.circuit != "qcnn" else "")
    held = f" + {rows['test']:,} test" if rows["test"] else ""
    return [
        f"llm-qfl: {clean(config.data.source)} across {len(sites)} sites, {config.server.rounds} rounds",
        f"rows at the sites: {rows['train']:,} train + {rows['validation']:,} validation{held}; "
        f"test {clean(config.data.test)}, validation {clean(config.data.validation)}, seed {config.server.seed}",
        f"circuit: {quantum.circuit} ({shape}), readout {quantum.readout}, {config.data.reduction}, "
        f"{training.optimizer} {training.steps} steps a round",
    ]


def round_cells(line: Json, rounds: int) -> tuple[str, ...]:
    """One round as the cells of `COLUMNS`."""
    validation: Json = line.get("validation") or {}
    baselines: Json = line.get("baselines") or {}
    asked, came = len(line["plan"]["sites"]), len(line["clients"])
    return (
        f"{line['round']}/{rounds}",
        f"{came}/{asked}" + ("" if line["aggregated"] else " !"),
        number(validation.get("loss")),
        number(validation.get("accuracy")),
        *(number((baselines.get(name) or {}).get("accuracy")) for name in ("logistic", "mlp")),
        f"{line['evaluations']:,}",
        size(line["bytes_up"]),
        size(line["bytes_down"]),
        f"{line['seconds']:.1f}",
    )


def round_notes(line: Json) -> list[str]:
    """What did not go well in a round: below quorum, rejected replies (the first few)."""
    notes: list[str] = []
    if not line["aggregated"]:
        notes.append("below quorum: the model of the round before is kept")
    rejected: Json = line.get("rejected") or {}
    for site, reason in sorted(rejected.items())[:MOST_REASONS]:
        notes.append(f"rejected {clean(site)}: {clean(reason)}")
    if len(rejected) > MOST_REASONS:
        notes.append(f"... and {len(rejected) - MOST_REASONS} more, in rounds.jsonl")
    return notes


def result_rows(summary: Json) -> list[tuple[str, str, str, str]]:
    """Model, accuracy, balanced accuracy and loss on the test rows."""
    baselines: Json = summary.get("baselines") or {}
    rows = []
    for key, name in MODELS:
        found: Json = summary if key == "qnn" else (baselines.get(key) or {})
        cells = (number(found.get(f"test_{what}")) for what in ("accuracy", "balanced_accuracy", "loss"))
        rows.append((name, *cells))
    return rows  # type: ignore[return-value]


def result_lines(summary: Json) -> list[str]:
    """The result as plain lines: a table of the models, then what it cost."""
    lines = [f"{'on the test rows':<24}{'accuracy':>10}{'balanced':>10}{'loss':>10}"]
    lines += [f"{n:<24}{a:>10}{b:>10}{loss:>10}" for n, a, b, loss in result_rows(summary)]
    tested = summary.get("test_rows")
    if tested:
        lines.append(f"{tested:,} test rows ({clean(str(summary.get('test_source')))}); losses in nats")
    if summary.get("evaluations") is not None:
        lines.append(
            f"{summary['evaluations']:,} evaluations, {summary['circuits']:,} circuits, "
            f"{size(summary['bytes_up'])} up, {size(summary['bytes_down'])} down, {summary['seconds']:.1f} s"
        )
    return lines


def number(value: float | None) -> str:
    """Three decimals, or a dash for what is not known."""
    return UNKNOWN if value is None else f"{value:.3f}"


def size(count: int | None) -> str:
    """Bytes in kB or MB (powers of ten)."""
    if count is None:
        return UNKNOWN
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count} B" if unit == "B" else f"{count / limit * 1e3:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def clean(text: str, *, lines: bool = False) -> str:
    """Text from outside without control characters (a site's name must not move the cursor)."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in str(text))


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
