"""Log lines as JSON, one object a line on standard error: `LLM_QFL_LOG=json`, for whoever collects logs.

    {"time": "2026-11-21T17:20:09.123Z", "level": "info", "logger": "server_app.journal", "run": "20261121-...",
     "round": 3, "site": null, "message": "round closed", "accepted": 4, ...}

What is collected is read elsewhere. So an exception is told by its class and the places that it passed through, and
by its text only where that can quote no row: see `told`. Other libraries' lines are taken from `warning` on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_qfl.federation.errors import ConfigError, DataError, LlmQflError

VARIABLE, WORDS = "LLM_QFL_LOG", ("text", "json")
OURS = ("llm_qfl", "client_app", "server_app", "agent", "simulation")
FLOWER = "flwr"
FIELDS = "fields"
"""Key of `extra` in which a log call names its figures: `log.info("round closed", extra={FIELDS: {"accepted": 4}})`."""
MOST_FRAMES = 8
_FIRST = '{"time": "'
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^ *File "([^"]+)", line (\d+), in (.+)$', re.MULTILINE)

Fields = Mapping[str, Any]
_ABOUT: ContextVar[Fields | None] = ContextVar("about", default=None)


def as_json() -> bool:
    """Does the environment ask for JSON?

    Raises:
        ConfigError: it asks for something else.
    """
    word = os.environ.get(VARIABLE) or "text"
    if word not in WORDS:
        raise ConfigError(f"{VARIABLE}: expected one of {', '.join(WORDS)}, got {word!r}")
    return word == "json"


def configure() -> bool:
    """Let this process log as the environment asks; again and again is no harm.

    Returns:
        Is it JSON? Else nothing was changed.

    Raises:
        ConfigError: it asks for something else.
    """
    if not as_json():
        return False
    root, flower = logging.getLogger(), logging.getLogger(FLOWER)
    for handler in [one for one in flower.handlers if type(one).__name__ == "ConsoleHandler"]:
        flower.removeHandler(handler)  # its lines reach the root, as all others do
    if not any(isinstance(handler, JsonHandler) for handler in root.handlers):
        root.addHandler(JsonHandler())
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    return True


@contextmanager
def about(**fields: Any) -> Iterator[None]:  # noqa: ANN401  whatever JSON takes
    """Within, every line of this thread carries these fields (and what `add` names later)."""
    before = _ABOUT.set({**(_ABOUT.get() or {}), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(before)


def add(**fields: Any) -> None:  # noqa: ANN401  whatever JSON takes
    """From here on to the end of the surrounding `about`, lines carry these fields, too."""
    _ABOUT.set({**(_ABOUT.get() or {}), **fields})


def is_line(text: str) -> bool:
    """Is this text such a line?"""
    return text.startswith(_FIRST)


def told(error: BaseException) -> str:
    """An exception in words that can quote no row: the text of ours but for those about rows, else the class."""
    name = type(error).__name__
    if isinstance(error, LlmQflError) and not isinstance(error, DataError):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}" + (f": {error.filename}" if error.filename else "")
    return f"{name} (its text may quote a row and is not logged; LLM_QFL_LOG=text shows it)"


class JsonHandler(logging.Handler):
    """Writes to what is standard error at the moment: Flower puts another one in its place."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        try:
            if record.msg or record.exc_info:  # Flower writes empty lines for the eye
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
        except Exception:  # noqa: BLE001  as every handler of the standard library: a log line must not end a run
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **dict.fromkeys(("run", "round", "site")),
            **(_ABOUT.get() or {}),
            "message": _message(record),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = {"is": told(record.exc_info[1]), "at": _places(record.exc_info[2])}
        return json.dumps(_plain(line), allow_nan=False, default=str)


def _message(record: logging.LogRecord) -> str:
    """The message with its arguments in, and exceptions as they may be told; a traceback is its places alone."""
    text = _written(record)
    before, found, trace = text.partition(_TRACEBACK)
    if not found:
        return text
    places = [_place(file, int(line), name) for file, line, name in _FRAME.findall(trace)]
    return f"{before}traceback: {', '.join(places[-MOST_FRAMES:])}"


def _written(record: logging.LogRecord) -> str:
    if isinstance(record.msg, BaseException):
        return told(record.msg)
    if not record.args:
        return str(record.msg)
    try:
        if isinstance(record.args, Mapping):
            return str(record.msg) % {key: _argument(value) for key, value in record.args.items()}
        return str(record.msg) % tuple(_argument(value) for value in record.args)
    except (TypeError, ValueError, KeyError):  # else the standard library would print the arguments as they are
        return f"{record.msg} (its arguments do not fit)"


def _argument(value: object) -> object:
    return told(value) if isinstance(value, BaseException) else value


def _places(trace: TracebackType | None) -> list[str]:
    """`client_app/data.py:88 read`, innermost last: no line of source, no value."""
    found: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        found.append(_place(code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return found[-MOST_FRAMES:]


def _place(file: str, line: int, name: str) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever JSON takes
    """Without what JSON has no word for: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
