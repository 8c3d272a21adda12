"""The run's policy: where it cannot be had, why not, and the run goes on with the rule."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import agent
from agent.shield import everything
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import LanguageError
from llm_qfl.language import policy_file
from server_app.policy import load_policy

SESSION = SimpleNamespace(server=SimpleNamespace(stack="stack", base=SimpleNamespace(tokenizer="t", digest="d")))


def config(policy):
    return RunConfig.from_run_config({"agent.mode": "policy", "agent.policy": policy})


class File:
    ranges = {"loss": (1, 5)}  # noqa: RUF012

    def __init__(self, problem=None):
        self.problem, self.asked = problem, []

    def load_on(self, stack, tokenizer, digest):
        assert (stack, tokenizer, digest) == ("stack", "t", "d")
        return self

    def probabilities(self, text, allowed):
        self.asked.append((text, allowed))
        if self.problem is not None:
            raise self.problem
        return {}


@pytest.mark.parametrize(
    ("name", "session", "reason"),
    [
        ("none", SESSION, "agent.policy is none"),
        ("none", None, "the run has no language model"),
        ("/no/such/policy.json", SESSION, "cannot read /no/such/policy.json"),
    ],
)
def test_a_policy_that_is_not_there_is_a_reason(name, session, reason):
    scorer, why, ranges = load_policy(config(name), session)
    assert scorer is None
    assert reason in why
    assert ranges == {}


def test_the_shipped_policy_is_looked_for_beside_the_package(monkeypatch):
    """A server app runs from where Flower unpacked it, not from the project's folder."""
    asked = []

    def read(path, sizes):
        asked.append(path)
        raise LanguageError("not there")

    monkeypatch.setattr(policy_file, "read_policy", read)
    assert load_policy(config("embedded"), SESSION)[1] == "not there"
    assert asked == [Path(agent.__file__).parent / "policy.json"]


def test_the_first_pass_counts_as_loading(monkeypatch):
    file = File()
    monkeypatch.setattr(policy_file, "read_policy", lambda path, sizes: file)
    assert load_policy(config("embedded"), SESSION) == (file, "", file.ranges)
    ((text, allowed),) = file.asked
    assert text.splitlines()[1].startswith("sites 0 round 0")
    assert allowed == everything()


@pytest.mark.parametrize("problem", [LanguageError("another base model"), RuntimeError("no memory")])
def test_a_first_pass_that_fails_is_a_reason(problem, monkeypatch):
    monkeypatch.setattr(policy_file, "read_policy", lambda path, sizes: File(problem))
    scorer, why, _ = load_policy(config("embedded"), SESSION)
    assert scorer is None
    assert str(problem) in why
