"""Files of JSON lines that a killed run leaves and the next one goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_qfl.federation.errors import FederationError

Json = dict[str, Any]


def read_lines(path: Path) -> Iterator[Json]:
    """Lines of a JSONL file that are whole; a last one that was cut short by a kill is not.

    Raises:
        FederationError: a damaged line before the last.
    """
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise FederationError(f"{path}: line {number} is damaged: {error}; delete it") from error


def mend(path: Path) -> None:
    """Cut off a last line that a kill cut short, so that the next one stands on its own; for the one who writes.

    The file's folder is there afterwards, the file only if it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + "\n" if whole else "")
