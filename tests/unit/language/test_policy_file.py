import json

import numpy as np
import pytest

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.models import load_base
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.policy_file import PolicyFile, read_policy
from llm_qfl.language.stack import Stack

FIELDS = {"budget": 5, "stop": 2}
ALL = {name: (True,) * size for name, size in FIELDS.items()}


@pytest.fixture
def policy(tmp_path, shake):
    made = PolicyModel.on(load_base("tiny-4", tmp_path), FIELDS, spec=LoraSpec(2, 4.0), layers=2)
    shake(made.adapter, seed=3)
    return made


@pytest.fixture
def written(policy, tmp_path):
    path = tmp_path / "policy.json"
    PolicyFile.of(
        policy, "tiny-4", ranges={"noise": (1, 3)}, command="llm-qfl policy train", notes={"seeds": "20"}
    ).write(path)
    return path


def test_a_policy_comes_back_but_for_the_rounding(policy, written, tmp_path):
    read = read_policy(written, FIELDS)
    assert (read.base_name, read.base_digest, read.layers, read.spec) == ("tiny-4", policy.base, 2, policy.adapter.spec)
    assert read.ranges == {"noise": (1, 3)}
    assert (read.command, read.notes) == ("llm-qfl policy train", {"seeds": "20"})
    for key, value in policy.adapter.arrays().items():
        np.testing.assert_allclose(read.arrays[key], value, rtol=2**-10, atol=1e-6)
    again = read.load(load_base("tiny-4", tmp_path))
    before, after = policy.probabilities("loss 4", ALL), again.probabilities("loss 4", ALL)
    for name in FIELDS:
        np.testing.assert_allclose(after[name], before[name], atol=5e-3)
    twice = tmp_path / "twice.json"
    PolicyFile.of(again, "tiny-4", ranges=read.ranges, command=read.command, notes=read.notes).write(twice)
    assert twice.read_bytes() == written.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_another_base_model_is_refused(written, tmp_path):
    with pytest.raises(LanguageError, match=r"trained on tiny-4 \(.*this model is"):
        read_policy(written, FIELDS).load(load_base("tiny-5", tmp_path))


def test_a_stack_that_is_there_is_shared(policy, written, tmp_path):
    base = load_base("tiny-4", tmp_path)
    stack = Stack(base.model)
    shared = read_policy(written, FIELDS).load_on(stack, base.tokenizer, base.digest)
    assert shared.stack is stack
    np.testing.assert_allclose(
        shared.probabilities("loss 4", ALL)["budget"], policy.probabilities("loss 4", ALL)["budget"], atol=5e-3
    )
    with pytest.raises(LanguageError, match="trained on tiny-4"):
        read_policy(written, FIELDS).load_on(stack, base.tokenizer, "0" * 64)


@pytest.mark.parametrize("fields", [{"budget": 6, "stop": 2}, {"stop": 2, "budget": 5}, {"budget": 5}])
def test_other_actions_are_refused(written, fields):
    with pytest.raises(LanguageError, match="train it anew"):
        read_policy(written, fields)


def damaged(data, what):
    first = next(iter(data["arrays"].values()))
    if what == "bits":
        text = first["float16"]
        first["float16"] = ("B" if text[0] != "B" else "C") + text[1:]
    elif what == "base64":
        first["float16"] = "!!" + first["float16"][2:]
    elif what == "shape":
        first["shape"] = [3, 3]
    elif what == "format":
        data["format"] = 99
    else:
        del data[what]
    return data


@pytest.mark.parametrize("what", ["bits", "base64", "shape", "format", "ranges", "arrays", "digest"])
def test_drill_a_damaged_file_is_refused(written, what):
    written.write_text(json.dumps(damaged(json.loads(written.read_text()), what)))
    with pytest.raises(LanguageError, match=r"agent\.policy: .*(damaged|not a policy file)"):
        read_policy(written, FIELDS)


def test_drill_a_missing_file_and_no_json_are_refused(tmp_path):
    with pytest.raises(LanguageError, match="cannot read"):
        read_policy(tmp_path / "nothing.json", FIELDS)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(LanguageError, match="is not JSON"):
        read_policy(tmp_path / "text.json", FIELDS)
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(LanguageError, match="not a policy file"):
        read_policy(tmp_path / "text.json", FIELDS)


def test_numbers_beyond_float16_are_refused(policy):
    arrays = policy.adapter.arrays()
    key = next(iter(arrays))
    arrays[key][0, 0] = 1e6
    policy.adapter.load(arrays)
    with pytest.raises(LanguageError, match="float16"):
        PolicyFile.of(policy, "tiny-4", ranges={}, command="")
