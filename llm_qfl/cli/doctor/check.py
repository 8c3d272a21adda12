"""What a check is, and how one is run: whatever happens in it becomes a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_qfl.federation.errors import ConfigError, LlmQflError

_OF_COURSE = ("nothing was spent", "nothing was submitted")  # a check never spends
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


def guarded(name: str, check: Callable[[], Checked], advice: str | None = None) -> list[Check]:
    """The check's lines; an exception is a red one with its class and message.

    Args:
        name: of the line, where the check raises.
        check: makes one line or several.
        advice: what to do if it raises; by default what the message says.
    """
    try:
        lines = check()
    except Exception as error:  # noqa: BLE001  the diagnosis must name every failure and go on to the next check
        return [failure(name, error, advice)]
    return [lines] if isinstance(lines, Check) else list(lines)


def failure(name: str, error: BaseException, advice: str | None = None) -> Check:
    """An exception as a red line. Our own messages say what is wrong, then, after a semicolon, what to do."""
    kind = type(error).__name__
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return Check(name, "fail", f"{kind}: " + "\n".join(error.problems), advice or "")
    parts = (" ".join(str(error).split()) or "no message").split("; ")
    parts = [part for part in parts if part not in _OF_COURSE]
    if isinstance(error, LlmQflError) and advice is None:
        return Check(name, "fail", f"{kind}: {parts[0]}", "; ".join(parts[1:]))
    if isinstance(error, ModuleNotFoundError):
        advice = advice or "a package is missing: see the lines of packages and extras"
    return Check(name, "fail", f"{kind}: {'; '.join(parts)}", advice or "not foreseen: report it with this line")
