"""The decisions on the page and in the terminal, from made-up run folders: who decided, why, and what is no win."""

import io
import json
import re
from html import unescape

import numpy as np
import pytest

from agent.actions import SIZES, Action
from agent.choice import Fallback
from agent.decisions import Decision, Proposal, conduct, decision_line
from agent.rules import Regulated
from agent.termination import Stop
from server_app.display import LiveDisplay, PlainDisplay
from server_app.lines import policy_lines, result_lines
from server_app.report import write_report

EVIL = "<script>alert(1)</script>\x1b[2J"
ROUNDS = 5


def decision(number, mode, fallback=None, stop=None):
    sites = ("site-0000", "site-0001")
    rule = Proposal(sites, dict.fromkeys(sites, 73 * 4 + 1), "align")
    values = {
        "server_round": number, "by": "rule", "sites": () if stop else sites, "weight": 0.3, "shots": 0, "stop": stop,
        "budgets": {} if stop else dict.fromkeys(sites, 73 * 2 + 1), "select": "align", "rule": rule,
        "fallback": fallback, "milliseconds": 12.0,
        "regulated": {"site-0000": Regulated("adaptive", "held", 1, 1, 0.5, "at the minimum")},
    }  # fmt: skip
    if mode == "policy" and fallback is None:
        probabilities = {name: np.eye(size)[0] for name, size in SIZES.items()}
        options = Action.at(dict.fromkeys(SIZES, 0))
        values |= {"by": "policy", "action": options, "probabilities": probabilities, "masked": {"stop yes": EVIL}}
    return Decision(**values)


@pytest.fixture
def decided_run(run_folder, tmp_path):
    def make(mode="policy", fallbacks=(), fired="held", stop=None, max_fallback=0.2):
        folder = run_folder(tmp_path / f"{mode}-{len(fallbacks)}-{fired}", rounds=ROUNDS)
        decisions = [
            decision(
                n, mode,
                Fallback("no history", "no round has closed yet") if n == 1 and mode == "policy"
                else Fallback("missing model", f"gone {EVIL}") if n in fallbacks else None,
            )
            for n in range(1, ROUNDS + 1)
        ]  # fmt: skip
        if stop is not None:
            decisions.append(decision(ROUNDS + 1, mode, stop=stop))
        lines = [decision_line(one, -0.1, one.server_round) for one in decisions]
        (folder / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = json.loads((folder / "summary.json").read_text())
        summary["mode"] = mode
        summary["policy"] = {
            **conduct(mode, decisions, max_fallback).as_json(),
            "rule": "adaptive",
            "rule_fired": {"grew": float(fired == "grew"), "shrank": 0.0, "rounds": ROUNDS, "inert": fired != "grew"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        closed = []
        for line in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines()):
            losses = {"site-0000": 0.25, "site-0001": None}
            closed.append({**line, "language_losses": losses, "regulated": {"site-0000": fired}})
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in closed))
        return folder, summary

    return make


def text_of(folder):
    page = write_report(folder).read_text()
    start = page.index('id="decisions"')
    section = page[start : page.index("</section>", start)]
    assert "<script>" not in section
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split())


def test_what_the_policy_did_stands_beside_the_rule(decided_run):
    text = text_of(decided_run()[0])
    assert "The language model decided 4 of the 4 rounds that had a history; the ratio rule took none." in text
    assert "2 sites (align), 2 steps, lambda 0.3" in text
    assert "2 sites (align), 4 steps" in text
    assert "no history: no round has closed yet" in text
    assert "1 option masked; nothing edited" in text
    assert "x0.5 (100%)" in text
    assert "budget 0.000" in text  # mutual information: it always says the same
    assert "0.250" in text


def test_one_fallback_in_five_is_still_the_policys_run_and_two_are_the_rules(decided_run):
    # among the rounds that had a history: 0 of 4, then 1 of 4 = 25%
    folder, summary = decided_run(fallbacks=(3,), max_fallback=0.25)
    assert summary["policy"]["kind"] == "policy"
    assert "decided 3 of the 4 rounds that had a history; the ratio rule took the other 1 (missing model 1)" in text_of(
        folder
    )
    folder, summary = decided_run(fallbacks=(3, 4))
    assert summary["policy"]["kind"] == "rule"
    text = text_of(folder)
    assert "counts as a run of the ratio rule, not of the language model: the rule took 2 of the 4" in text
    assert "missing model: gone" in text
    assert "reported as the ratio rule's run" in "\n".join(policy_lines(summary))


def test_a_rule_that_never_spent_more_is_inert_not_a_win(decided_run):
    folder, summary = decided_run("llm-qfl-all")
    text = text_of(folder)
    assert "The rule adaptive decided all 5 rounds." in text
    assert "It is inert here" in text
    assert "inert, it never had a reason to spend more" in "\n".join(result_lines(summary))
    folder, summary = decided_run("llm-qfl-all", fired="grew")
    assert "inert" not in text_of(folder)
    assert "raised a budget in 100%" in text_of(folder)
    assert "inert" not in "\n".join(result_lines(summary))


def test_a_stop_is_a_decision_too(decided_run):
    folder, _ = decided_run(stop=Stop("plateau", "validation loss stands still"))
    assert "stop (plateau): validation loss stands still" in text_of(folder)


def test_without_decisions_the_page_says_so(run_folder, tmp_path):
    assert "all rounds were alike" in text_of(run_folder(tmp_path / "run", rounds=2))


@pytest.mark.parametrize("live", [False, True])
def test_remarks_cannot_move_the_cursor(live):
    from rich.console import Console

    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, width=100)) if live else PlainDisplay(stream)
    display.remark(3, f"F 0.5 L 0.4 {EVIL}")
    if live:
        stream.write(str(display._remarks))
    assert "F 0.5 L 0.4" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
