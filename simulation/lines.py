"""Files of JSON lines that a killed run leaves and the next one goes on with.

A line is whole once its newline is there; what comes after the last one was cut short by a kill and counts for nothing.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from llm_qfl.federation.errors import FederationError

Json = dict[str, Any]


def read_lines(path: Path) -> list[Json]:
    """Whole lines of a file, packed (`.gz`) or not; none where there is no file.

    Raises:
        FederationError: a damaged line.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    found: list[Json] = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise FederationError(f"{path}: line {number} is damaged: {error}; delete it") from error
    return found


def mend(path: Path) -> None:
    """Cut off what comes after the last whole line, so that the next one stands on its own; for the one who writes.

    The file's folder is there afterwards, the file only if it was.

    Raises:
        FederationError: a packed file, which is only read.
    """
    if path.suffix == ".gz":
        raise FederationError(f"{path} is only read; unpack it with gunzip and name what comes out")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
