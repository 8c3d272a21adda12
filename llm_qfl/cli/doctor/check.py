"""What a check is, and how one is run: whatever happens in it becomes a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_qfl.federation.errors import LlmQflError

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        name: what was looked at.
        status: `fail` means that a run would fail here; `warn` that a person should know.
        found: what is there; never a token, a row or a value.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


Checked = Check | Sequence[Check]


def guarded(name: str, check: Callable[[], Checked]) -> list[Check]:
    """The check's lines; an exception is a red one with its class and message.

    Args:
        name: of the line, where the check raises.
        check: makes one line or several.
    """
    try:
        lines = check()
    except Exception as error:  # noqa: BLE001  the diagnosis must name every failure and go on to the next check
        return [failure(name, error)]
    return [lines] if isinstance(lines, Check) else list(lines)


def failure(name: str, error: BaseException) -> Check:
    """An exception as a red line. Our own messages say what is wrong, then, after a semicolon, what to do."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, LlmQflError):
        found, _, advice = text.partition("; ")
        return Check(name, "fail", f"{type(error).__name__}: {found}", advice)
    return Check(name, "fail", f"{type(error).__name__}: {text}", "not foreseen: report it with this line")
