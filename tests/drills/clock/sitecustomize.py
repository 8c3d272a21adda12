"""A clock that is wrong: Python imports this file by itself in processes whose PYTHONPATH names its folder.

The file that DRILL_CLOCK names holds by how many seconds the clock of such a process, and of those that it starts, is
off; it may be written at any moment, as a clock may be set at any moment. What Python code asks is shifted
(`time.time`, `datetime.now`); libraries in C that ask the system themselves are not, nor is the monotonic clock, which
no setting of a clock moves. On a machine with libfaketime the same can be had for all of a process.
"""

import datetime
import os
import time

_time, _time_ns = time.time, time.time_ns


def off() -> float:
    """Seconds; 0 where nothing was written yet."""
    try:
        with open(os.environ["DRILL_CLOCK"], encoding="utf-8") as file:
            return float(file.read() or 0)
    except FileNotFoundError:
        return 0.0


def shifted_time() -> float:
    return _time() + off()


def shifted_time_ns() -> int:
    return _time_ns() + round(off() * 1e9)


class ShiftedDatetime(datetime.datetime):
    """A datetime that asks the shifted clock; of its own type, so that what is registered for it is found."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "ShiftedDatetime":
        return cls.fromtimestamp(shifted_time(), tz)

    @classmethod
    def today(cls) -> "ShiftedDatetime":
        return cls.fromtimestamp(shifted_time())

    @classmethod
    def utcnow(cls) -> "ShiftedDatetime":
        return cls.fromtimestamp(shifted_time(), datetime.UTC).replace(tzinfo=None)


if "DRILL_CLOCK" in os.environ:
    time.time, time.time_ns = shifted_time, shifted_time_ns
    datetime.datetime = ShiftedDatetime
