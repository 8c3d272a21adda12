import pytest
from pydantic import ValidationError

from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.config_agent import AgentConfig, agent_problems
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import ConfigError


def of(**keys):
    return AgentConfig.model_validate({key.replace("_", "-"): value for key, value in keys.items()})


def test_every_key_has_a_value_and_comes_back():
    dumped = AgentConfig().model_dump(by_alias=True)
    assert AgentConfig.model_validate(dumped) == AgentConfig()
    assert all(isinstance(value, bool | int | float | str) for value in dumped.values())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "paper"}, "qfl"),
        ({"rule": "ratio"}, "incremental"),
        ({"distill_weight": 1.1}, "less than or equal to 1"),
        ({"distill_temperature": 0.0}, "greater than 0"),
        ({"distill_temperature": float("inf")}, "finite"),
        ({"price_circuit": -1.0}, "greater than or equal to 0"),
        ({"price_byte": float("nan")}, "finite"),
        ({"budget": 1.5}, "integer"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"min_steps": 5, "cap_steps": 4}, "agent.min-steps"),
        ({"policy": ""}, "agent.policy"),
        ({"epsilon": 0.1}, "Extra inputs"),
    ],
)
def test_wrong_values_are_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        of(**keys)


def test_modes():
    assert (of().regulates, of().distills, of().selection) == (False, False, "all")
    everyone = of(mode="llm-qfl-all", select="oort", distill_weight=0.3)
    assert (everyone.regulates, everyone.distills, everyone.selection) == (True, True, "all")
    assert of(mode="llm-qfl-selected", select="oort").selection == "oort"
    assert not of(mode="llm-qfl-all").distills
    assert of(mode="policy").distills  # the policy may choose a weight


@pytest.mark.parametrize(
    ("keys", "mode"),
    [
        ({}, "policy"),
        ({"language.model": "none"}, "qfl"),
        ({"language.model": "tiny-4"}, "qfl"),  # the embedded policy knows another model
        ({"language.task": "generation"}, "qfl"),
        ({"agent.mode": "llm-qfl-all"}, "llm-qfl-all"),
        ({"agent.mode": "qfl"}, "qfl"),
    ],
)
def test_auto_is_the_policy_where_it_knows_the_language_model(keys, mode):
    config = RunConfig.from_run_config(keys)
    assert config.agent.mode == mode
    assert config.flat()["agent.mode"] == mode  # what is recorded is what was run
    assert RunConfig.from_run_config(config.flat()) == config


def test_modes_but_qfl_need_a_language_model_that_classifies():
    none, writes = LanguageConfig(model="none"), LanguageConfig(task="generation")
    assert agent_problems(of(), none) == []
    assert "language.model is none" in agent_problems(of(mode="llm-qfl-all"), none)[0]
    assert "'generation'" in agent_problems(of(mode="policy"), writes)[0]
    assert agent_problems(of(mode="policy"), LanguageConfig()) == []


@pytest.mark.parametrize("keys", [{"agent.mode": "qfl"}, {"agent.mode": "auto", "language.model": "none"}])
def test_a_budget_that_nobody_would_keep_is_refused(keys):
    with pytest.raises(ConfigError, match=r"agent\.budget: mode 'qfl' .* keeps to no budget, got 1000"):
        RunConfig.from_run_config({**default_run_config(), **keys, "agent.budget": 1000})
    assert RunConfig.from_run_config({"agent.budget": 1000}).agent.mode == "policy"  # which keeps it


def test_three_prices_of_zero_are_refused_where_they_are_weighed():
    zeros = {"agent.price-circuit": 0.0, "agent.price-round": 0.0, "agent.price-byte": 0.0}
    for mode in ("auto", "policy"):
        with pytest.raises(ConfigError, match=r"agent\.price-round: the policy weighs prices"):
            RunConfig.from_run_config({**zeros, "agent.mode": mode})
    assert RunConfig.from_run_config({**zeros, "agent.mode": "auto", "language.model": "none"}).agent.mode == "qfl"
