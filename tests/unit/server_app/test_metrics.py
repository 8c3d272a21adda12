"""`metrics.prom`: the text format by its published grammar, and the same figures as the run folder's ledger."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.config import RunConfig, default_run_config
from server_app.metrics import FILE, HELP, STATES, Family, RunMetrics, render
from simulation.run import run_federation

# https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
VALUE = r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|Inf)|NaN"
HELP_LINE = re.compile(rf"# HELP (?P<name>{NAME}) (?P<text>(?:[^\\\n]|\\[\\n])*)")
TYPE_LINE = re.compile(rf"# TYPE (?P<name>{NAME}) (?P<kind>counter|gauge)")
SAMPLE = re.compile(rf"(?P<name>{NAME})(?:\{{(?P<labels>{LABEL}(?:,{LABEL})*)\}})? (?P<value>{VALUE})")
ONE = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')


def unescape(text):
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text)


def parse(text):
    """{(name, labels): value}; fails on whatever the grammar does not have: order, groups and doubles too."""
    assert text == "" or text.endswith("\n")
    samples, groups, name = {}, [], None
    for line in text.split("\n")[:-1]:
        if help_line := HELP_LINE.fullmatch(line):
            name = help_line["name"]
            assert name not in groups
            groups.append(name)
            kind = None
        elif type_line := TYPE_LINE.fullmatch(line):
            assert type_line["name"] == name
            assert kind is None
            kind = type_line["kind"]
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] == name
            assert kind is not None
            labels = tuple((key, unescape(value)) for key, value in ONE.findall(sample["labels"] or ""))
            assert len(dict(labels)) == len(labels)
            assert (name, labels) not in samples
            samples[name, labels] = float(sample["value"])
    return samples


texts = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats() | st.integers(-(2**70), 2**70)


@settings(max_examples=60, deadline=None)
@given(texts, st.lists(st.tuples(texts, numbers), max_size=4, unique_by=lambda one: one[0]))
def test_whatever_labels_and_values_hold_the_grammar_reads_them_back(text, samples):
    family = Family("llm_qfl_x_total", "counter", text, [((("site", site),), value) for site, value in samples])
    found = parse(render([family]))
    assert len(found) == len(samples)
    for site, value in samples:
        read = found["llm_qfl_x_total", (("site", site),)]
        assert read == float(value) or (math.isnan(read) and math.isnan(value))


def test_the_text_of_one_family_by_hand():
    samples = [((("way", 'a"b\\c\nd'),), 2), ((), 0.25), ((("way", "none"),), None)]
    assert render([Family("x", "gauge", "Back\\slash\nnew line", samples), Family("y", "gauge", "empty", [])]) == (
        '# HELP x Back\\\\slash\\nnew line\n# TYPE x gauge\nx{way="a\\"b\\\\c\\nd"} 2\nx 0.25\n'
    )


@pytest.mark.parametrize("name", HELP)
def test_names_follow_the_conventions(name):
    kind, text = HELP[name]
    assert re.fullmatch(NAME, f"llm_qfl_{name}")
    assert (kind == "counter") == name.endswith("_total")
    assert text.endswith(".")


def value(samples, name, **labels):
    (found,) = [
        amount
        for (called, given), amount in samples.items()
        if called == f"llm_qfl_{name}" and labels.items() == (dict(given).items() - {("run", dict(given)["run"])})
    ]
    return found


def lines(folder, name="rounds.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = {"server.rounds": 3, "quantum.qubits": 2, "quantum.layers": 1, "training.steps": 2}

    def lost(task, reply):
        return None if task.metadata.message_type == "train" and task.metadata.group_id == "2" else reply

    config |= {"server.deadline": 1.0}
    return run_federation(config, sites=3, output=tmp_path_factory.mktemp("runs"), faults={2: lost})


def test_a_run_s_figures_are_those_of_its_folder(run):
    found, rounds = parse((run.folder / FILE).read_text()), lines(run.folder)
    summary = run.summary
    assert {dict(labels)["run"] for _, labels in found} == {run.folder.name}
    assert value(found, "rounds_closed_total") == len(rounds) == summary["rounds"]
    assert value(found, "rounds_planned") == 3
    assert value(found, "sites") == 3
    assert value(found, "sites_left_out") == 0
    assert value(found, "resumes_total") == value(found, "sites_joined_total") == 0
    for kind, count in {
        "asked": sum(len(line["plan"]["sites"]) for line in rounds),
        "accepted": sum(len(line["clients"]) for line in rounds),
        "late": sum(len(line["late"]) for line in rounds),
        "refused": sum(len(line["rejected"]) for line in rounds),
        "busy": sum(len(line["busy"]) for line in rounds),
    }.items():
        assert value(found, "replies_total", kind=kind) == count
    for name in ("evaluations", "circuits", "shots", "jobs", "qpu_seconds"):
        assert value(found, f"{name}_total") == summary[name]
    for way in ("up", "down"):
        assert value(found, "sent_bytes_total", direction=way) == summary[f"bytes_{way}"]
    assert value(found, "rounds_duration_seconds_total") == pytest.approx(sum(line["seconds"] for line in rounds))
    assert value(found, "test_loss_nats", model="qnn") == summary["test_loss"]
    assert value(found, "test_accuracy_ratio", model="mlp") == summary["baselines"]["mlp"]["test_accuracy"]
    assert value(found, "validation_loss_nats", model="qnn") == summary["validation_loss"]
    assert {state: value(found, "run_status", status=state) for state in STATES} == {
        "running": 0, "finished": 1, "stopped": 0, "failed": 0,
    }  # fmt: skip
    assert not list(run.folder.glob("*.partial"))


def test_a_counter_never_falls(run):
    """Prometheus takes a fall for a restart and counts from nothing again."""
    config = RunConfig.from_run_config(default_run_config())
    metrics, before = RunMetrics("r", config, 3), {}
    for step in [*lines(run.folder), None]:
        if step is None:
            metrics.finish(run.summary)
        else:
            metrics.close_round(step)
        now = {key: amount for key, amount in parse(render(metrics.families(0.0))).items() if "_total" in key[0]}
        assert before.keys() <= now.keys()
        assert all(now[key] >= amount for key, amount in before.items())
        before = now


def test_a_run_that_goes_on_counts_on(run):
    config = RunConfig.from_run_config(default_run_config())
    whole, again = RunMetrics("r", config, 3), RunMetrics("r", config, 3, 0, lines(run.folder)[:-1])
    for line in lines(run.folder):
        whole.close_round(line)
    again.close_round(lines(run.folder)[-1])
    assert render(again.families(5.0)) == render(whole.families(5.0))


def test_a_failed_run_says_so_and_makes_no_figure_up():
    config = RunConfig.from_run_config(default_run_config())
    metrics = RunMetrics("r", config, 0)
    metrics.finish({"status": "failed"})
    found = parse(render(metrics.families(7.5)))
    assert value(found, "run_status", status="failed") == 1
    assert value(found, "updated_timestamp_seconds") == 7.5
    assert not [name for name, _ in found if name.endswith("left_out")]
    assert not [name for name, _ in found if "loss" in name or "accuracy" in name or "epsilon" in name]


def test_decisions_fallbacks_and_epsilon(run_folder, tmp_path):
    config = RunConfig.from_run_config(default_run_config())
    metrics, line = RunMetrics("r", config, 4), lines(run_folder(tmp_path / "run", rounds=1))[0]
    for number, fallback in enumerate([{"reason": "timeout", "why": "late", "counts": True}, None]):
        by = "rule" if fallback else "policy"
        metrics.decided({"round": number, "by": by, "fallback": fallback, "milliseconds": 250.0})
    line["clients"][0]["epsilon"] = 1.5
    metrics.close_round(line)
    found = parse(render(metrics.families(0.0)))
    assert value(found, "decisions_total", by="policy") == value(found, "decisions_total", by="rule") == 1
    assert value(found, "decision_fallbacks_total", reason="timeout") == 1
    assert value(found, "decision_duration_seconds") == 0.25
    assert value(found, "privacy_epsilon", site="site-0000") == 1.5
    assert len([name for name, _ in found if name.endswith("epsilon")]) == 1
