"""The terminal: aligned plain lines without control codes, a live table, and the folder's path last."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import ConfigError
from server_app.display import LiveDisplay, PlainDisplay, SilentDisplay, make_display
from server_app.lines import clean, left_out_notes, result_lines, round_cells, round_notes, size


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(display, folder):
    about = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    display.start(RunConfig.from_run_config(about["config"]), about["sites"])
    for line in lines:
        display.round(line)
    display.finish(json.loads((folder / "summary.json").read_text()), folder)


def test_plain_lines_are_aligned_and_the_folder_is_last(run_folder, tmp_path):
    stream = io.StringIO()
    folder = run_folder(tmp_path / "run", rounds=12)
    play(PlainDisplay(stream), folder)
    text = stream.getvalue()
    lines = text.splitlines()
    assert lines[-1] == str(folder)
    assert "\x1b" not in text
    assert "\r" not in text
    head = next(i for i, line in enumerate(lines) if line.lstrip().startswith("round"))
    rounds = lines[head : head + 13]
    assert len({len(line) for line in rounds}) == 1
    assert rounds[1].split()[:2] == ["1/12", "4/4"]
    assert any("0.965" in line and "quantum neural network" in line for line in lines)


def test_what_went_wrong_is_said_and_cannot_move_the_cursor(run_folder, tmp_path):
    stream = io.StringIO()
    reasons = {f"site-{n:04d}": "bad\x1b[2J\nline" for n in range(4)}
    play(PlainDisplay(stream), run_folder(tmp_path / "run", rounds=1, rejected={1: reasons}))
    text = stream.getvalue()
    assert "below quorum" in text
    assert "rejected site-0000: bad" in text
    assert "and 1 more" in text
    assert "\x1b" not in text


def test_who_is_left_out_is_said_for_the_first_few():
    found = left_out_notes({f"site-{n}": "bad\x1b[2J" for n in range(5)})
    assert found[0] == "left out site-0: bad\N{REPLACEMENT CHARACTER}[2J"
    assert found[-1] == "... and 2 more are left out, in config.json"
    assert left_out_notes({}) == []


@pytest.mark.parametrize("options", [{"validation": False, "rounds": 2}, {"accept": False, "rounds": 2}])
def test_missing_numbers_are_dashes(options, run_folder, tmp_path):
    stream = io.StringIO()
    play(PlainDisplay(stream), run_folder(tmp_path / "run", **options))
    line = next(line for line in stream.getvalue().splitlines() if line.lstrip().startswith("1/2"))
    assert line.split().count("-") == 4


def test_the_live_table_leaves_every_round_on_the_screen(run_folder, tmp_path):
    stream = Terminal()
    folder = run_folder(tmp_path / "run", rounds=40, names=["[red]x[/red]", "b", "c", "d"])
    play(LiveDisplay(Console(file=stream, force_terminal=True, width=120, height=20)), folder)
    text = stream.getvalue()
    after = text[text.rindex("40/40") - 4000 :]
    assert "1/40" in after
    assert str(folder) in text.splitlines()[-1]


def test_a_failure_ends_the_live_table(run_folder, tmp_path):
    stream = Terminal()
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=120))
    display.start(RunConfig(), [])
    display.fail("configuration, 2 problems:\n  - a\n  - b")
    assert "the run failed: configuration" in stream.getvalue()
    display.fail("again")  # nothing to stop any more


def test_make_display():
    assert isinstance(make_display("auto", io.StringIO()), PlainDisplay)
    assert isinstance(make_display("auto", Terminal()), LiveDisplay)
    assert isinstance(make_display("plain", Terminal()), PlainDisplay)
    assert isinstance(make_display("none"), SilentDisplay)
    with pytest.raises(ConfigError, match=r"server\.show: expected auto, live or plain, got 'loud'"):
        make_display("loud")


def test_silence_prints_nothing(run_folder, tmp_path, capsys):
    display = make_display("none")
    play(display, run_folder(tmp_path / "run", rounds=1))
    display.fail("x")
    assert capsys.readouterr().out == ""


def test_a_failed_summary_can_be_shown():
    stream = io.StringIO()
    unknown = dict.fromkeys(("test_accuracy", "test_loss", "evaluations", "circuits", "seconds"))
    PlainDisplay(stream).finish({"baselines": {}, **unknown}, Path("runs/x"))
    assert stream.getvalue().splitlines()[-1] == "runs/x"


def test_sizes_and_clean_text():
    assert [size(n) for n in (None, 0, 999, 2210, 3_400_000, 5_000_000_000)] == [
        "-",
        "0 B",
        "999 B",
        "2.2 kB",
        "3.4 MB",
        "5.0 GB",
    ]
    assert clean("a\x07b\nc") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    assert clean("a\nb", lines=True) == "a\nb"


def ledger_line(**parts):
    client = {"site": "a"}
    line = {"round": 2, "plan": {"sites": ["a"]}, "aggregated": True, "clients": [client], "evaluations": 5}
    return {**line, "bytes_up": 1, "bytes_down": 1, "seconds": 1.0, **parts}


def test_late_and_busy_sites_are_said():
    late = [{"site": "b", "of_round": 1, "lag": 1}, {"site": "c\x1b", "of_round": 1, "lag": 1}]
    entered = [{"site": "b", "of_round": 1, "factor": 0.5}]
    line = ledger_line(late=late, entered=entered, busy=["b", "c\x1b", "d", "e", "f", "g"])
    assert round_cells(line, 3)[:2] == ("2/3", "1/1+2")
    assert round_notes(line) == [
        "late b: its reply to round 1 counts x 0.5",
        "late c\N{REPLACEMENT CHARACTER}: its reply to round 1 does not enter this average",
        "still busy, no new task: d, e, f and 1 more",
    ]


def test_the_closing_round_is_named():
    line = ledger_line(round=4, plan={"sites": []}, clients=[], late=[], entered=[], busy=["b"], aggregated=False)
    assert round_cells(line, 3)[:2] == ("closing", "0/0 !")
    assert round_notes(line)[0] == "nothing to average: the model of the round before is kept"


def test_what_hardware_cost_is_said_where_there_was_any():
    known = {"baselines": {}, "evaluations": 1, "circuits": 2, "bytes_up": 1, "bytes_down": 1, "seconds": 1.0}
    assert not any("shots" in line or "jobs" in line for line in result_lines({**known, "shots": 0}))
    spent = {"shots": 20480, "jobs": 12, "qpu_seconds": 31.26, "qpu_seconds_estimated": 0.0, "queue_seconds": 5400.4}
    assert result_lines({**known, **spent})[-2:] == [
        "20,480 shots",
        "12 jobs on IBM Quantum: 31.3 s on QPUs, 5400 s in queues",
    ]
