"""`llm-qfl policy`: a tiny policy from nothing to a file, in slices, and a run replayed."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.actions import FIELDS, SIZES
from agent.budgets import StepCost
from agent.decider import Decider
from agent.decisions import decision_line
from agent.history import RoundRecord, SiteRecord
from agent.means import Means
from agent.prices import Prices
from agent.shield import allowed_of
from agent.state import Setting
from llm_qfl.cli import policy_work as work
from llm_qfl.cli.main import app
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import FederationError, LanguageError
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.models import load_base
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.policy_file import PolicyFile, read_policy
from simulation import policy_learning
from simulation.policy_learning import Recipe, Training

TEXT = (
    "65252131 52142131\n"
    "sites 4 round 3 left 9 loss 3 gap 1 fall 780 distance 4 ratio 2 asked 4 steps 2 noise 1 queue 0 "
    "circuits {} rounds {} bytes {}"
)


def branch(by, plays):
    return {"by": by, "after": 1, "state": TEXT.format(3, 3, 3), "masked": [], "plays": plays}


def line(number):
    """Experience: cheap circuits want many steps, dear ones few."""
    play = {"bytes": [10, 10], "once": False}
    plays = [
        {**play, "options": {"budget": "1", "clients": "2"}, "accuracies": [0.9, 0.9], "circuits": [1, 1]},
        {**play, "options": {"budget": "20", "clients": "all"}, "accuracies": [0.9, 0.9], "circuits": [100, 100]},
    ]
    return {
        "number": number,
        "case": {"source": "x", "sites": 4, "alpha": 1.0, "seed": 0, "rounds": 2, "more": []},
        "quality": 0.0,
        "first": {"steps": 1, "fraction": 0.5},
        "teacher": "none",
        "target": 0.8,
        "fixed": {"circuits": 100.0, "bytes": 10.0},
        "plan": {"circuits": 100, "bytes": 10},
        "plays": plays,
        "branches": [branch("first", []), branch("followed", plays)],
    }


def write_lines(folder, count):
    folder.mkdir(exist_ok=True)
    (folder / "worlds.jsonl").write_text("".join(json.dumps(line(n)) + "\n" for n in range(count)))


def test_training_goes_on_in_slices_and_writes_an_honest_file(tmp_path, monkeypatch):
    folder, told = tmp_path / "training", []
    write_lines(folder, 12)
    recipe = Recipe(model="tiny-3", federations=12, epochs=2, layers=2, rank=2)
    output = tmp_path / "policy.json"
    assert not work.train_policy(folder, recipe, output, minutes=0, say=told.append)
    assert "the same command goes on" in told[-1]
    assert not output.exists()
    assert work.train_policy(folder, recipe, output, minutes=5, say=told.append)
    file = read_policy(output, SIZES)
    assert file.notes["kind"] == "clone only: no policy gradient yet"
    assert "stand-in" in file.notes["language model of the sites"]
    assert file.ranges["loss"] == (3, 3)
    assert "policy train --model tiny-3 --federations 12" in file.command
    policy = file.load(load_base("tiny-3", tmp_path))
    assert policy.probabilities(TEXT.format(9, 1, 1), allowed_of([]))["budget"].sum() == pytest.approx(1)

    monkeypatch.setattr(policy_learning, "roll_out", _rolled)
    more = Recipe(model="tiny-3", federations=12, epochs=2, layers=2, rank=2, groups=2)
    assert work.train_policy(folder, more, output, minutes=5, say=told.append)
    assert read_policy(output, SIZES).notes["kind"] == "clone, then 2 groups of policy gradient"
    assert len((folder / "groups.jsonl").read_text().splitlines()) == 2
    assert read_policy(output, SIZES).notes["federations"] == "12"
    improved = json.loads(output.read_text())["digest"]
    assert work.train_policy(folder, recipe, output, minutes=5, say=told.append)  # the clone again
    assert read_policy(output, SIZES).notes["kind"] == "clone only: no policy gradient yet"
    assert json.loads(output.read_text())["digest"] == file.digest() != improved
    longer = Recipe(model="tiny-3", federations=12, epochs=3, layers=2, rank=2, groups=2)
    with pytest.raises(LanguageError, match="its policy gradient began at another clone"):
        work.train_policy(folder, longer, output, minutes=5, say=told.append)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name, done in (("epochs", 2), ("groups", 2), ("federations", 12)):
        asked = {"federations": 12, "epochs": 2, "groups": 2, name: done - 1}
        shorter = Recipe(model="tiny-3", layers=2, rank=2, **asked)
        with pytest.raises(LanguageError, match=rf"expected --{name}.* {done} or more, which are done there, got"):
            work.train_policy(folder, shorter, output, minutes=5, say=told.append)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    with pytest.raises(LanguageError, match="another training"):
        Training(folder, Recipe(model="tiny-4"), tmp_path, told.append)


def _rolled(policy, line, random, group):
    from llm_qfl.language.policy_training import Taken

    options = dict.fromkeys(FIELDS, 0)
    return [Taken(TEXT.format(9, 1, 1), allowed_of([]), options, 1.0)], [1.0, 0.0]


@pytest.fixture
def policy(tmp_path):
    made = PolicyModel.on(load_base("tiny-3", tmp_path), SIZES, spec=LoraSpec(rank=2, alpha=4.0), layers=2)
    path = tmp_path / "policy.json"
    PolicyFile.of(made, "tiny-3", ranges={}, command="test").write(path)
    return path, made


UNDOUBTED = {"agent.max-entropy": 1.0, "agent.min-probability": 0.0}


def decided(made, text, masked=()):
    given = made.probabilities(text, allowed_of(masked))
    return {
        "round": 2,
        "action": {name: str(list(kind)[int(given[name].argmax())].value) for name, kind in FIELDS.items()},
        "state": text,
        "masked": dict.fromkeys(masked, "why"),
        "probabilities": {
            name: {str(option.value): float(p) for option, p in zip(kind, given[name], strict=True)}
            for name, kind in FIELDS.items()
        },
    }


def test_a_run_is_replayed(policy, tmp_path):
    path, made = policy
    run = tmp_path / "run"
    run.mkdir()
    lines = [decided(made, TEXT.format(9, 1, 1)), decided(made, TEXT.format(1, 9, 1), ["budget 20", "stop yes"])]
    lines.append({"round": 1, "state": None, "probabilities": {}, "masked": {}})
    (run / "decisions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (run / "config.json").write_text(json.dumps({"config": UNDOUBTED}))
    result = CliRunner().invoke(app, ["policy", "replay", str(run), "--policy", str(path)])
    assert result.exit_code == 0, result.output
    assert "2 of 2 decisions are the same" in result.output
    probabilities = lines[0]["probabilities"]["budget"]
    probabilities["1"], probabilities["2"] = 1.0, 0.0
    (run / "decisions.jsonl").write_text(json.dumps(lines[0]) + "\n")
    result = CliRunner().invoke(app, ["policy", "replay", str(run), "--policy", str(path)])
    assert result.exit_code == 1
    assert "0 of 1 decisions are the same" in result.output
    other = {**decided(made, TEXT.format(9, 1, 1)), "action": {**lines[0]["action"], "clients": "all"}}
    (run / "decisions.jsonl").write_text(json.dumps(other) + "\n")  # probabilities that do not bear out the action
    result = CliRunner().invoke(app, ["policy", "replay", str(run), "--policy", str(path)])
    assert result.exit_code == 1
    assert "clients all" in result.output


def played(made, **more):
    """A run of six rounds: its configuration, and its lines."""
    keys = {"mode": "policy", "max_entropy": 1.0, "min_probability": 0.0, "decision_timeout": 600.0, **more}
    agent = AgentConfig(**keys)
    setting = Setting(rounds=9, classes=2, cost=StepCost(10, 1, 11), prices=Prices(0.0, 1.0, 0.0))
    run = Decider(agent, setting, Means(seed=1, first_budget=51, shots=8, scorer=made))
    for number, loss in enumerate((0.6, 0.5, 0.45, 0.35, 0.34, 0.3), start=1):
        plan = run.decide(number, ["a", "b", "c", "d"])
        sites = tuple(SiteRecord(site, 10, loss, 0.4) for site in plan.sites)
        run.close(RoundRecord(number, sites, plan.sites, server_loss=loss))
    lines = [json.loads(json.dumps(decision_line(one))) for one in run.decisions if one.probabilities]
    flat = {f"agent.{key.replace('_', '-')}": value for key, value in keys.items()}
    return RunConfig.from_run_config({**default_run_config(), **flat, "server.seed": 1}), lines


def test_a_run_with_a_bandit_on_top_is_replayed(policy):
    """The lines say what the bandit had learned when each decision was made."""
    _, made = policy
    config, lines = played(made, online_rate=0.8)
    assert lines[-1]["preferences"]["budget"]
    assert all(one.same for one in work.replay_lines(lines, made, config))
    forgotten = [{**line, "preferences": {}} for line in lines]
    assert not all(one.same for one in work.replay_lines(forgotten, made, config))


def test_a_run_that_drew_its_options_is_replayed(policy):
    """From the run's own seed: the most probable options are others."""
    _, made = policy
    config, lines = played(made, choice="sample")
    likely = [{name: max(p, key=p.get) for name, p in line["probabilities"].items()} for line in lines]
    assert any(line["action"] != best for line, best in zip(lines, likely, strict=True))
    assert all(one.same for one in work.replay_lines(lines, made, config))
    other = config.model_copy(update={"server": config.server.model_copy(update={"seed": 2})})
    assert not all(one.same for one in work.replay_lines(lines, made, other))


def test_where_the_policy_was_too_unsure_the_replay_says_the_rule(policy):
    _, made = policy
    config, lines = played(made, min_probability=1.0)
    assert {line["fallback"]["reason"] for line in lines} == {"entropy"}
    again = work.replay_lines(lines, made, config)
    assert all(one.same and one.now is None for one in again)


def test_a_run_without_its_configuration_cannot_be_replayed(tmp_path):
    with pytest.raises(FederationError, match=r"config\.json cannot be read"):
        work.read_config(tmp_path)


def test_what_would_fail_at_the_end_fails_at_the_beginning(tmp_path):
    folder, told = tmp_path / "training", []
    with pytest.raises(FederationError, match="there is no folder"):
        work.train_policy(folder, Recipe(model="tiny-3"), tmp_path / "none" / "policy.json", minutes=5, say=told.append)
    with pytest.raises(LanguageError, match="got 33"):
        work.train_policy(folder, Recipe(model="tiny-33"), tmp_path / "policy.json", minutes=5, say=told.append)
    assert not folder.exists()  # nothing was played, and the folder is nobody's yet
    assert told == []


def test_a_run_without_decisions_cannot_be_replayed(tmp_path):
    with pytest.raises(FederationError, match="cannot be read"):
        work.read_decisions(tmp_path)
    (tmp_path / "decisions.jsonl").write_text('{"round": 1, "state": null, "probabilities": {}}\n')
    with pytest.raises(FederationError, match="asked in none of 1"):
        work.read_decisions(tmp_path)


def test_judging_is_relative_to_the_best_setting_of_each_federation(monkeypatch, tmp_path):
    from simulation import policy_judging as judging
    from simulation.policy_world import Played

    write_lines(tmp_path, 2)
    lines = [line(0), line(1)]
    monkeypatch.setattr(judging, "gather", lambda *args, **named: 2)
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))

    class World:
        def play(self, make, *, target):
            return Played((0.7, 0.5, 0.4), (0.9, 0.9), (1, 1), (10, 10), (), 0.9, 2)

    monkeypatch.setattr(judging, "reopen", lambda line: World())
    assert judging.best_setting(lines) == "budget=1 clients=2"
    found = judging.judge(
        None, {}, learned=lines, folder=tmp_path, federations=2, until=lambda: False, say=lambda text: None
    )
    for one in found.values():
        assert (one.policy, one.static_one, one.reached) == (pytest.approx(1), pytest.approx(1), 1.0)
        assert one.shuffled == (0, 0)  # this world does not listen
    assert judging.dependence(found.values()).static
    told = []
    monkeypatch.setattr(judging, "gather", lambda *args, **named: told.append("played"))
    with pytest.raises(FederationError, match="no experience"):
        judging.judge(None, {}, learned=[], folder=tmp_path, federations=2, until=lambda: False, say=told.append)
    assert told == []  # before anything is played


@pytest.mark.parametrize(("count", "words"), [(1, "one federation has no interval"), (2, "95% 1.00 to 1.00")])
def test_one_federation_has_neither_interval_nor_p(monkeypatch, tmp_path, policy, count, words):
    from simulation import policy_judging as judging

    one = judging.Judged(count, 1.0, 1.0, 1.0, 0.0, {}, None, (0.1, 0.2)[:count], (0.0, 0.0)[:count])
    monkeypatch.setattr(judging, "judge", lambda *args, **named: {"mixed": one})
    monkeypatch.setattr(work, "open_policy", lambda path: (read_policy(path, SIZES), policy[1]))
    told = []
    work.evaluate_policy(policy[0], tmp_path, count, minutes=1, say=told.append)
    assert words in told[0]
    assert ("no p: one federation" in told[1]) == (count == 1)
    assert "nan" not in "".join(told)


def test_a_policy_is_static_unless_shuffled_states_cost_more():
    from scipy.stats import ttest_1samp

    from simulation.policy_judging import Judged, dependence

    def judged(*logs):
        return Judged(len(logs), 1.0, 1.0, 1.0, 0.0, {}, None, logs)

    dear = dependence([judged(0.3, 0.1, 0.2, 0.4), judged(0.1, 0.1, 0.0, 0.2)])
    means = [0.2, 0.1, 0.1, 0.3]  # a federation counts once
    assert dear.ratio == pytest.approx(np.exp(np.mean(means)))
    assert dear.p == pytest.approx(ttest_1samp(means, 0, alternative="greater").pvalue)
    assert not dear.static
    assert dependence([judged(0.3, -0.3, 0.1, -0.2)]).static
    assert dependence([judged(-0.3, -0.2, -0.25)]).static  # cheaper is no use either
    assert dependence([judged(0.4)]).static  # one federation shows nothing
    with pytest.raises(FederationError, match="nothing was played"):
        dependence([])
