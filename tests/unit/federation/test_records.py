import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_qfl.federation import records
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.types import ClientReport, GlobalState, RoundPlan, Scores, Spent

NAMES = ("theta[0]", "theta[1]", "readout/scale")
STATE = GlobalState(3, np.array([0.1, -0.2, 3.0]), NAMES, {"logistic": {"w": np.ones((2, 2)), "b": np.zeros(2)}})
ROWS = {"train": 5, "validation": 1, "test": 0}
SCORES = Scores(1.25, np.array([2, 1]), np.array([1, 1]))


def report(**changes):
    fields = {
        "site": "a",
        "server_round": 3,
        "theta": np.array([1.0, 2.0, 3.0]),
        "num_examples": 7,
        "received": SCORES,
        "trained": SCORES,
        "train_loss_first": 0.7,
        "train_loss_best": 0.6,
        "spent": Spent(5, 35, 0, 0.0, 6, 9),
        "seconds": 0.01,
        "baselines": STATE.baselines,
        "baseline_received": {"logistic": SCORES},
    }
    return ClientReport(**{**fields, **changes})


def encoded(**changes):
    return records.encode_report(report(**changes), NAMES, {"config": "x"})


def decode(content):
    return records.decode_report(content, site="a", sent=STATE, classes=2)


@given(theta=arrays(np.float64, 3, elements=st.floats(-1e6, 1e6)), setup=st.none() | st.text())
def test_a_task_survives_the_wire(theta, setup):
    plan = RoundPlan(3, ("a",), 91, 0.05, 0)
    state = GlobalState(3, theta, NAMES, STATE.baselines)
    back = records.decode_task(records.encode_task(records.Task("a", state, plan, setup, "d", {"config": "x"})))
    assert (back.site, back.plan, back.setup, back.setup_digest) == ("a", plan, setup, "d")
    assert back.fingerprint == {"config": "x"}
    np.testing.assert_array_equal(back.state.theta, theta)
    np.testing.assert_array_equal(back.state.baselines["logistic"]["w"], np.ones((2, 2)))


def test_a_report_survives_the_wire():
    back = decode(encoded())
    np.testing.assert_array_equal(back.theta, [1.0, 2.0, 3.0])
    assert back.spent == report().spent or vars(back.spent) == vars(report().spent)
    assert back.received.loss == pytest.approx(1.25 / 3)
    assert back.baseline_received["logistic"].accuracy == pytest.approx(2 / 3)
    assert back.num_examples == 7


def test_census_and_evaluation_survive_the_wire():
    census = records.Census(
        "a",
        True,
        "columns",
        ("x", "y"),
        ("0", "1"),
        {"train": 5, "validation": 1, "test": 0},
        np.array([3, 2]),
        {"count": np.array([5.0])},
        "exact",
        "ibm:least-busy",
    )
    back = records.decode_census(records.encode_census(census))
    assert (back.backend, back.scoring_backend, back.pays) == ("exact", "ibm:least-busy", True)
    assert (back.site, back.own_data, back.columns, back.class_names) == ("a", True, ("x", "y"), ("0", "1"))
    assert back.rows == census.rows
    np.testing.assert_array_equal(back.sums["count"], [5.0])
    scores = {"validation": SCORES, "test": SCORES}
    evaluation = records.Evaluation("a", scores, {"mlp": scores})
    seen = records.decode_evaluation(records.encode_evaluation(evaluation), site="a", baselines=("mlp",), classes=2)
    assert seen.baselines["mlp"]["test"].loss_sum == 1.25


@pytest.mark.parametrize(("backend", "pays"), [("exact", False), ("aer", False), ("ibm-local:FakeManilaV2", False),
                                               ("ibm:least-busy", True)])  # fmt: skip
def test_who_may_pay_for_a_task(backend, pays):
    census = records.Census("a", True, "columns", ("x",), ("0",), ROWS, np.array([1]), None, backend)
    assert records.decode_census(records.encode_census(census)).pays is pays


@pytest.mark.parametrize("key", ["backend", "scoring-backend"])
def test_a_census_with_an_unknown_backend_is_refused(key):
    census = records.Census("a", True, "columns", ("x",), ("0",), ROWS, np.array([1]), None)
    content = records.encode_census(census)
    content["meta"][key] = "quantum-leap"
    with pytest.raises(RecordError, match=f"{key}: expected exact, aer"):
        records.decode_census(content)


def _with(record, key, value):
    def change(content):
        content[record][key] = value

    return change


def _without(record, key):
    def change(content):
        del content[record][key]

    return change


def _drop(record):
    def change(content):
        del content[record]

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_with("arrays", "qnn/weights", Array(np.array([1.0, np.nan, 2.0]))), "1 values that are not finite"),
        (_with("arrays", "qnn/weights", Array(np.array([1.0, np.inf, 2.0]))), "not finite"),
        (_with("arrays", "qnn/weights", Array(np.ones(4))), r"expected shape \(3,\), got \(4,\)"),
        (_with("arrays", "qnn/weights", Array(np.ones(3, np.float32))), "expected float64, got float32"),
        (_with("arrays", "qnn/weights", Array("float64", (3,), "numpy.ndarray", b"rubbish")), "cannot be read"),
        (_with("arrays", "extra", Array(np.ones(1))), r"unknown \['extra'\]"),
        (_without("arrays", "baseline/logistic/w"), r"missing \['baseline/logistic/w'\]"),
        (_drop("arrays"), "expected an ArrayRecord, got NoneType"),
        (_drop("metrics"), "expected a MetricRecord"),
        (_with("meta", "site", "b"), "asked 'a', the reply is from 'b'"),
        (_with("meta", "round", 2), "expected 3, got 2"),
        (_with("meta", "schema", 99), "expected 4, got 99"),
        (_with("meta", "parameter-names", ["a", "b", "c"]), "parameter names"),
        (_with("metrics", "num-examples", 0), "at least 1"),
        (_with("metrics", "num-examples", 2.5), "expected an integer"),
        (_with("metrics", "train-loss-best", float("nan")), "finite"),
        (_with("metrics", "received-correct", [9, 1]), "more correct answers than rows"),
        (_with("metrics", "received-rows", [1, 2, 3]), "expected 2 counts"),
        (_with("metrics", "trained-loss-sum", -1.0), "not negative"),
        (_with("metrics", "evaluations", -4), "at least 0"),
        (_without("metrics", "circuits"), "circuits"),
    ],
)
def test_a_reply_that_is_off_is_refused_with_its_reason(change, text):
    content = encoded()
    decode(content)  # the honest one is accepted
    change(content)
    with pytest.raises(RecordError, match=text):
        decode(content)


def test_a_pickled_array_is_not_opened():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    content = encoded()
    content["arrays"]["qnn/weights"] = Array("object", (1,), "numpy.ndarray", buffer.getvalue())
    with pytest.raises(RecordError, match="cannot be read"):
        decode(content)


def test_a_state_must_fit_the_receivers_model():
    records.check_state(STATE, NAMES, STATE.baselines)
    with pytest.raises(RecordError, match="first difference"):
        records.check_state(STATE, ("theta[0]", "theta[9]", "readout/scale"), STATE.baselines)
    with pytest.raises(RecordError, match="expected shape"):
        records.check_state(STATE, NAMES, {"logistic": {"w": np.ones((3, 2)), "b": np.zeros(2)}})


def test_baselines_do_not_count_in_the_bytes():
    with_baselines = encoded()
    bare = GlobalState(3, STATE.theta, NAMES, {})
    without = records.encode_report(report(baselines={}, baseline_received={}), NAMES, {"config": "x"})
    assert bare.baselines == {}
    assert records.content_bytes(with_baselines) == records.content_bytes(without)
    total = sum(len(r.deflate()) for r in without.values() if isinstance(r, ConfigRecord | MetricRecord))
    arrays_total = sum(len(a.data) for r in without.values() if isinstance(r, ArrayRecord) for a in r.values())
    assert records.content_bytes(without) == total + arrays_total
