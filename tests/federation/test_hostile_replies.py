"""10,000 hostile replies with 1,000 valid ones among them, through the real strategy: none crashes it, none of them
counts, every valid one does. Hypothesis makes the lies; nothing runs in a process of its own.
"""

import random
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.records import encode_report, state_record
from llm_qfl.federation.types import ClientReport, Scores, Spent
from server_app.grid import BoundedGrid
from server_app.session import initial_state, make_strategy, open_session
from simulation.grid import InMemoryGrid

SITES, ROUNDS, HOSTILE = 50, 20, 10_000  # 50 sites answer truly in each of 20 rounds
LIARS = 10  # sites of the roster that never tell the truth
EACH = HOSTILE // ROUNDS
CONFIG = {
    "language.model": "none",
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "data.partitioner": "iid",
    "data.min-rows": 2,
    "server.rounds": ROUNDS,
    "training.steps": 2,
    "server.quorum": 0.1,
}


class Battery:
    """A run that is open for replies, and what its sites answer truly."""

    def __init__(self):
        flat = {**default_run_config(), **CONFIG}
        config = RunConfig.from_run_config(flat)
        nodes = {n + 1: {"partition-id": n, "num-partitions": SITES + LIARS} for n in range(SITES + LIARS)}
        self.grid = BoundedGrid(InMemoryGrid(client_app, nodes, flat))
        self.opened = open_session(self.grid, config)
        self.closed = []
        self.strategy = make_strategy(self.opened, lambda summary, state: self.closed.append(summary))
        self.nodes = self.opened.roll.nodes
        self.honest = sorted(self.nodes)[:SITES]
        self.liars = sorted(self.nodes)[SITES:]
        state = initial_state(self.opened)
        self.arrays, self.state, self.round = state_record(state), state, 0
        self.past = []  # replies that were counted

    def next_round(self):
        """Tasks go out; what the sites would answer."""
        self.round += 1
        list(self.strategy.configure_train(self.round, self.arrays, ConfigRecord(), self.grid))
        self.state = self.strategy.state_of(self.arrays, self.round)
        return {site: self.content(site) for site in self.nodes}

    def content(self, site, **other):
        """A reply that an honest site could send; training is not the point here, moving a little is."""
        rng = np.random.default_rng([self.round, sorted(self.nodes).index(site)])
        census, state = self.opened.roll.answers[site], self.state
        rows = np.array([census.rows["validation"], 0], np.intp)
        scores = Scores(0.7 * census.rows["validation"], rows, rows // 2)
        report = ClientReport(
            site=site,
            server_round=self.round,
            theta=state.theta + rng.normal(scale=0.01, size=len(state.theta)),
            num_examples=census.rows["train"],
            received=scores,
            trained=scores,
            train_loss_first=0.7,
            train_loss_best=0.6,
            spent=Spent(3, 3 * census.rows["train"], validation_circuits=2 * census.rows["validation"]),
            seconds=0.1,
            baselines={n: {k: v + 0.01 for k, v in arrays.items()} for n, arrays in state.baselines.items()},
            baseline_received=dict.fromkeys(state.baselines, scores),
        )
        return encode_report(report, self.opened.model.parameter_names, self.opened.fingerprint)

    def message(self, site, content):
        """As if the site's node had sent it."""
        node = self.nodes[site] if isinstance(site, str) else site
        message = Message(content, reply_to=Message(RecordDict(), dst_node_id=node, message_type="train"))
        message.metadata.__dict__["_src_node_id"] = node
        return message

    def close(self, messages):
        """One exchange's replies; the round's summary."""
        arrays, _ = self.strategy.aggregate_train(self.round, messages)
        self.arrays = self.arrays if arrays is None else arrays
        return self.closed[-1]


# Each lie takes a true reply apart and puts it together so that no honest site can have sent it.
HUGE = st.sampled_from([1e300, -1e300, sys.float_info.max, 1e9, -1e9, 50.0])
DTYPES = st.sampled_from(["<f4", ">f8", "<i8", "<c16", "<f2", "|b1", "<U3", "|S8", "<M8[s]", "|V8"])
SHAPES = st.sampled_from([(), (0,), (1,), (3, 3), (2, 2, 2), (10_000,), (1, 1, 1, 1, 1, 1, 1)])
JUNK = st.sampled_from(
    [b"", b"\x00", b"PK\x03\x04junk", b"\x93NUMPY", b"\x80\x04\x95junk.", b"\x93NUMPY\x01\x00\xff\xff{", b"x" * 999]
)
HEADERS = st.sampled_from(
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f8', 'shape': (3,), }",
        "(((((((((((((((((((((((((((((((((",
        "__import__('os').abort()",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 4), }",
        "\x00" * 40,
    ]
)
ODD = st.one_of(
    st.sampled_from([float("nan"), float("inf"), float("-inf"), -1.0, "text", b"bytes", True, [1.5], []]),
    st.integers(-(2**62), -1),
)


def _arrays(content, key, array):
    record = ArrayRecord({k: (array if k == key else v) for k, v in content["arrays"].items()})
    return RecordDict({**content, "arrays": record})


def _values(content, key, change):
    array = content["arrays"][key].numpy().copy()
    return _arrays(content, key, Array(change(array)))


def _raw(data, shape=(1,), dtype="float64", stype="numpy.ndarray"):
    array = Array(np.zeros(1))
    array.__dict__.update({"_data": data, "data": data, "shape": shape, "dtype": dtype, "stype": stype})
    return array


def _npy(header):
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\x00" * 24


def _put(content, record, key, value):
    """A record with one value in place of another; what Flower itself refuses to hold is put as a string."""
    old = content[record]
    for one in (value, str(value)):
        try:
            kind = MetricRecord if isinstance(old, MetricRecord) else ConfigRecord
            return RecordDict({**content, record: kind({**old, key: one})})
        except (TypeError, ValueError):
            continue
    return RecordDict({k: v for k, v in content.items() if k != record})


def _some_key(draw):
    return draw(st.sampled_from(["qnn/weights", "baseline/logistic/w", "baseline/mlp/w0"]))


def lie_shape(draw):
    key, shape, order = _some_key(draw), draw(SHAPES), draw(st.sampled_from("CF"))
    return lambda content, b, site: _arrays(content, key, Array(np.zeros(shape, order=order)))


def lie_dtype(draw):
    key, dtype = _some_key(draw), draw(DTYPES)

    def tell(content, b, site):
        return _values(content, key, lambda a: np.zeros(a.shape, np.dtype(dtype)))

    return tell


def lie_not_finite(draw):
    key, value = _some_key(draw), draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    place = draw(st.integers(0, 99))

    def change(array):
        array.flat[place % array.size] = value
        return array

    return lambda content, b, site: _values(content, key, change)


def lie_huge(draw):
    key, value, place = _some_key(draw), draw(HUGE), draw(st.integers(0, 99))

    def change(array):
        array.flat[place % array.size] += value
        return array

    return lambda content, b, site: _values(content, key, change)


def lie_bytes(draw):
    key = _some_key(draw)
    data = draw(st.one_of(JUNK, HEADERS.map(_npy), st.binary(max_size=60)))
    stype = draw(st.sampled_from(["numpy.ndarray", "numpy.ndarray", "pickle", ""]))
    return lambda content, b, site: _arrays(content, key, _raw(data, stype=stype))


def lie_cut(draw):
    key, cut = _some_key(draw), draw(st.integers(1, 40))

    def tell(content, b, site):
        return _arrays(content, key, _raw(content["arrays"][key].data[:-cut]))

    return tell


def lie_missing_record(draw):
    name = draw(st.sampled_from(["arrays", "metrics", "meta", "fingerprint"]))
    return lambda content, b, site: RecordDict({k: v for k, v in content.items() if k != name})


def lie_swapped_record(draw):
    one, two = draw(st.permutations(["arrays", "metrics", "meta", "fingerprint"]))[:2]
    return lambda content, b, site: RecordDict({**content, one: content[two]})


def lie_missing_array(draw):
    key = _some_key(draw)

    def tell(content, b, site):
        left = {k: v for k, v in content["arrays"].items() if k != key}
        return RecordDict({**content, "arrays": ArrayRecord(left)})

    return tell


def lie_more_arrays(draw):
    name = draw(st.sampled_from(["qnn/weights2", "../../etc", "baseline/x/y", "", "language/x"]))
    return lambda content, b, site: RecordDict(
        {**content, "arrays": ArrayRecord({**content["arrays"], name: Array(np.zeros(2))})}
    )


def lie_missing_metric(draw):
    place = draw(st.integers(0, 999))

    def tell(content, b, site):
        keys = sorted(content["metrics"])
        gone = keys[place % len(keys)]
        left = {k: v for k, v in content["metrics"].items() if k != gone}
        return RecordDict({**content, "metrics": MetricRecord(left)})

    return tell


def lie_odd_metric(draw):
    place, value = draw(st.integers(0, 999)), draw(ODD)

    def tell(content, b, site):
        keys = [k for k in sorted(content["metrics"]) if not _may_be(k, value)]
        return _put(content, "metrics", keys[place % len(keys)], value)

    return tell


def _may_be(key, value):
    """A negative loss of the first point is a number that is held at zero, not a lie that can be known."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    limited = ("train-loss-first", "train-loss-best", "seconds", "distill-weight")
    return number and key in limited


def lie_rows(draw):
    rows = draw(st.sampled_from([1, 2**40, 2**53, 2**62, 10**6]))
    return lambda content, b, site: _put(content, "metrics", "num-examples", rows)


def lie_counts(draw):
    key = draw(st.sampled_from(["received", "trained", "baseline/mlp/received"]))
    counts = draw(st.sampled_from([[10**6, 0], [2**62, 2**62], [0, 0, 0], [1], [2**53, 2**53]]))
    return lambda content, b, site: _put(content, "metrics", f"{key}-rows", counts)


def lie_correct(draw):
    key = draw(st.sampled_from(["received", "trained", "baseline/logistic/received"]))
    return lambda content, b, site: _put(content, "metrics", f"{key}-correct", [10**6, 0])


def lie_work(draw):
    key, value = draw(st.sampled_from(["evaluations", "circuits"])), draw(st.sampled_from([10**7, 2**53, 2**62]))
    return lambda content, b, site: _put(content, "metrics", key, value)


def lie_fingerprint(draw):
    key = draw(st.sampled_from(["config", "circuit", "setup", "sources", "schema", "more"]))
    return lambda content, b, site: _put(content, "fingerprint", key, "0" * 16)


def lie_meta(draw):
    key = draw(st.sampled_from(["schema", "site", "round", "backend", "parameter-names"]))
    value = draw(st.sampled_from([-1, 99, "site-9999", "server", "", "../..", ["a"], 2.5, True, b"\x00"]))
    return lambda content, b, site: _put(content, "meta", key, value)


def lie_name(draw):
    place = draw(st.integers(0, 999))

    def tell(content, b, site):
        others = [s for s in sorted(b.nodes) if s != site]
        return b.content(others[place % len(others)])

    return tell


def lie_again(draw):
    place = draw(st.integers(0, 10**6))

    def tell(content, b, site):
        if not b.past:
            return RecordDict({})
        return b.past[place % len(b.past)]

    return tell


def lie_future(draw):
    step = draw(st.sampled_from([-1, 1, 2, 10]))
    return lambda content, b, site: _put(content, "meta", "round", b.round + step)


def lie_empty(draw):
    return lambda content, b, site: RecordDict({})


def lie_epsilon(draw):
    value = draw(st.sampled_from([0.0, 1.0]))
    return lambda content, b, site: _put(content, "metrics", "epsilon", value)


LIES = {name.removeprefix("lie_"): made for name, made in sorted(globals().items()) if name.startswith("lie_")}


@pytest.fixture(scope="module")
def battery():
    return Battery()


def all_lies():
    """Two dozen of each kind."""
    return [(kind, example) for kind in sorted(LIES) for example in _examples(kind)]


def _examples(kind, count=24):
    found = []

    @settings(
        max_examples=count, phases=[Phase.generate], database=None, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def fill(data):
        found.append(LIES[kind](data.draw))

    fill()
    return found


@pytest.mark.timeout(900)  # twenty seconds of work; a machine that is busy takes its time
def test_ten_thousand_lies_among_a_thousand_truths(battery):
    rng, told, counted, reasons = random.Random(7), {}, 0, set()
    pool = all_lies()
    for number in range(1, ROUNDS + 1):
        truths = battery.next_round()
        assert len(truths) == SITES + LIARS
        messages = [battery.message(site, truths[site]) for site in battery.honest]
        messages += messages[:5]  # the same reply twice is one reply
        for _ in range(EACH):
            kind, tell = rng.choice(pool)
            site = rng.choice(battery.liars if rng.random() < 0.5 else battery.honest)
            hostile = tell(truths[site], battery, site)
            sender = rng.randrange(10**6, 10**7) if rng.random() < 0.02 else site
            messages.append(battery.message(sender, hostile))
            told[kind] = told.get(kind, 0) + 1
        rng.shuffle(messages)
        summary = battery.close(messages)
        assert [report.site for report in summary.reports] == battery.honest, f"round {number}"
        assert not summary.late
        assert summary.aggregated
        assert set(summary.rejected) >= set(battery.liars)
        for report in summary.reports:
            np.testing.assert_array_equal(report.theta, truths[report.site]["arrays"]["qnn/weights"].numpy())
        counted += len(summary.reports)
        reasons |= set(summary.rejected.values())
        battery.past += [truths[site] for site in battery.honest]
    again = battery.close([battery.message(site, truths[site]) for site in battery.honest])
    assert again.reports == ()
    assert set(again.rejected.values()) == {"answered a task that is not open"}
    assert counted == SITES * ROUNDS == 1000
    assert sum(told.values()) == HOSTILE
    assert set(told) == set(LIES)
    assert all(np.isfinite(battery.strategy.state_of(battery.arrays, ROUNDS).theta))
    assert all(len(reason) < 1000 for reason in reasons)
