"""A language model's policy, small enough for a test."""

import pytest


@pytest.fixture
def deciding(tmp_path):
    """The keys of a run that a tiny random policy decides, whatever it says."""
    pytest.importorskip("torch")
    from agent.actions import SIZES
    from llm_qfl.language.lora import LoraSpec
    from llm_qfl.language.models import load_base
    from llm_qfl.language.policy import PolicyModel
    from llm_qfl.language.policy_file import PolicyFile

    model = PolicyModel.on(load_base("tiny-4", tmp_path), SIZES, spec=LoraSpec(2, 4.0), layers=2)
    path = tmp_path / "policy.json"
    PolicyFile.of(model, "tiny-4", ranges={}, command="a test").write(path)
    return {
        "agent.mode": "policy",
        "agent.policy": str(path),
        "agent.max-entropy": 1.0,
        "agent.min-probability": 0.0,
        "agent.regress-rounds": 9,
        "agent.decision-timeout": 60.0,
    }
