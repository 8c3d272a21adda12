"""The launcher's screen: plain text in a pipe, a moving line on a terminal."""

import io

import pytest
from rich.console import Console

from llm_qfl.cli.screen import Screen

LINES = [
    "llm-qfl: breast-cancer across 4 sites, 2 rounds",
    "   1/2   4/4   0.727",
    "   2/2   4/4   0.268",
    "report: a",
    "x" * 300,
]


def test_in_a_pipe_lines_are_what_they_are():
    out = io.StringIO()
    with Screen(Console(file=out)) as screen:
        for line in LINES:
            screen.line(line)
    assert out.getvalue().splitlines() == LINES


def test_on_a_terminal_the_running_round_is_named_and_the_cursor_comes_back():
    out = io.StringIO()
    now = []
    with Screen(Console(file=out, force_terminal=True, width=100)) as screen:
        for line in LINES[:4]:
            screen.line(line)
            now.append(str(screen._status.status))
    assert now == [
        "round 1 is running ...",
        "round 2 of 2 is running ...",
        "scoring on the test rows ...",
        "Flower is shutting down ...",
    ]
    assert "\x1b[?25h" in out.getvalue()
    assert all(line in out.getvalue() for line in LINES[:4])


def test_the_cursor_comes_back_after_an_error():
    out = io.StringIO()

    def body():
        with Screen(Console(file=out, force_terminal=True)):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        body()
    assert "\x1b[?25h" in out.getvalue()
