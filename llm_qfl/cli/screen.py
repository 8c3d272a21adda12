"""What `make run` shows: the app's lines as they come, and on a terminal what is going on now."""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

_ROUND = re.compile(r"\s*(\d+)/(\d+)\s")


class Screen:
    """Lines, with a line below them that moves where there is a terminal.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._status = self._console.status("starting (some 20 s) ...", spinner="line")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()  # the cursor comes back

    def line(self, text: str) -> None:
        """Show a line of the app's."""
        if self._status is None:
            print(text, file=self._console.file, flush=True)
            return
        self._console.print(Text(text), soft_wrap=True)
        self._status.update(self._now(text))

    def _now(self, text: str) -> str:
        assert self._status is not None
        if text.startswith("llm-qfl: "):
            return "round 1 is running ..."
        if text.startswith("report: "):
            return "Flower is shutting down ..."
        found = _ROUND.match(text)
        if found is None:
            return str(self._status.status)
        done, rounds = int(found[1]), int(found[2])
        return f"round {done + 1} of {rounds} is running ..." if done < rounds else "scoring on the test rows ..."
