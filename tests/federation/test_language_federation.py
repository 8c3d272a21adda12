"""The language model in real federations in memory: what is sent changes what sites compute, what comes back counts.

Tiny random models: nothing here says how well a model learns, only that the numbers go where they should.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ConfigRecord

from client_app import admission
from client_app import language as site_side
from client_app.admission import why_not
from client_app.data import site_texts
from client_app.language import SiteLanguage
from llm_qfl.cli.predict import predict_rows
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.synthetic import write_csv
from llm_qfl.federation.errors import ConfigError, DataError, LanguageError
from llm_qfl.federation.records import ModelOffer, language_bytes
from llm_qfl.federation.seeding import seed_of
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.export import read_adapter
from llm_qfl.language.methods import step_budget
from llm_qfl.language.task import TaskView
from llm_qfl.language.training import train_adapter
from llm_qfl.language.wire import byte_count
from server_app.language import LanguageSession
from simulation.grid import InMemoryGrid
from simulation.run import run_federation

CLASSES = ("A", "B")
ROWS = {"train": 30, "validation": 5, "test": 5}
TINY = {
    "server.rounds": 2,
    "training.steps": 1,
    "quantum.layers": 1,
    "quantum.qubits": 2,
    "server.deadline": 20.0,
    "language.model": "tiny-4",
    "language.adapter-layers": 1,
    "language.beta": 0.4,
    "language.every": 1,
    "language.steps": 2,
    "language.batch-size": 4,
    "language.rank": 2,
    "language.emulator-rank": 2,
    "language.align-first": 2,
    "language.align-batch": 4,
    "language.public-rows": 8,
    "language.columns": 2,
    "language.max-tokens": 60,
    "language.label-words": "letters",
    "language.dtype": "float32",
    "data.test-fraction": 0.15,
    "data.partitioner": "iid",
}


@pytest.fixture(autouse=True)
def _small_and_apart(tmp_path, monkeypatch):
    """Few rows, one torch thread (two that wait for a busy core are slow), and no folder outside the test's."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    values = rng.normal(size=(80, 3)) + labels[:, None]
    lines = [",".join([*(f"{v:.4f}" for v in row), "AB"[y]]) for row, y in zip(values, labels, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["width,height,depth,label", *lines]) + "\n")
    monkeypatch.setitem(TINY, "data.source", f"csv:{tmp_path / 'rows.csv'}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    yield
    torch.set_num_threads(threads)


def nodes(tmp_path, count, **settings):
    """Simulated sites, each with a folder of its own."""
    return [
        {"partition-id": n, "num-partitions": count, "folder": str(tmp_path / f"node-{n}"), **settings}
        for n in range(count)
    ]


def federate(tmp_path, keys=None, *, sites=2, output=None, faults=None, each=None):
    places = [{**node, **(each or {}).get(n, {})} for n, node in enumerate(nodes(tmp_path, sites))]
    return run_federation({**TINY, **(keys or {})}, nodes=places, output=output, faults=faults)


def session_of(run) -> LanguageSession:
    assert run.finished.opened.language is not None
    return run.finished.opened.language


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def packed(arrays):
    """Bytes of matrices in numpy's own format, with its header of 128 bytes each."""
    return sum(array.nbytes + 128 for array in arrays.values())


def test_a_run_folder_with_a_language_model(tmp_path):
    """Scores of all four routes, two sites that differ, bytes at the border, a PEFT folder with the full numbers."""
    run = federate(tmp_path, output=tmp_path / "runs")
    session, summary = session_of(run), run.summary["language"]
    assert set(summary["test"]) == {"zero-shot", "compressed-zero-shot", "adap-emu", "adap-fu"}
    assert summary["test"]["adap-fu"]["plain"]["rows"] == run.summary["test_rows"]
    assert summary["adap_fu_accuracy"] == summary["test"]["adap-fu"]["plain"]["accuracy"]
    assert summary["zero_shot_accuracy"] == summary["test"]["zero-shot"]["calibrated"]["accuracy"]
    assert set(summary["validation"]) == {"compressed-zero-shot", "adap-emu"}  # the sites hold these rows
    assert summary["client_peak_bytes"] > 1 << 20

    first, second = (closed.language for closed in run.finished.rounds)
    one, two = (first.answers[site].arrays for site in ("site-0000", "site-0001"))
    assert one.keys() == two.keys()
    assert not same(one, two)
    assert first.adapter_digest != second.adapter_digest
    assert first.emulator_digest == second.emulator_digest  # no realignment, so it was sent once
    adapter, emulator = packed(one), packed(session.server.emulator.arrays())
    words = 2 * 1500  # digests, versions, path, counts
    assert 0 < first.bytes_down - 2 * (adapter + emulator) < words
    assert 0 < second.bytes_down - 2 * adapter < words
    assert 0 < first.bytes_up - 2 * adapter < words
    assert summary["bytes_up"] == first.bytes_up + second.bytes_up
    assert run.finished.rounds[0].bytes_up > first.bytes_up

    tuned = read_adapter(run.folder / "adapter")
    assert tuned.layers == session.server.plan.adapter == (3,)
    assert same(tuned.arrays, session.server.adapter_arrays())
    assert tuned.class_bias == session.scores.class_bias("adap-fu")
    assert sum(tuned.class_bias.values()) == pytest.approx(0)
    assert all(tuned.class_bias.values())
    assert "data" in (run.folder / "adapter" / "README.md").read_text()
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert [len(line["language"]["answers"]) for line in lines] == [2, 2]
    assert (run.folder / "checkpoint" / "adapter-000002.npz").is_file()
    about = json.loads((run.folder / "config.json").read_text())["language"]
    assert about["held_layers"] == list(session.server.plan.held)


def test_one_federated_round_of_one_site_is_the_same_steps_done_centrally(tmp_path):
    run = federate(tmp_path, {"server.rounds": 1}, sites=1)
    session, opened = session_of(run), run.finished.opened
    central = LanguageSession(opened.config, "central", tmp_path / "models", lambda _: None)
    central.begin(opened.setup, opened.roll.answers)
    settings = NodeSettings.from_node_config(nodes(tmp_path, 1)[0])
    texts, labels, _ = site_texts(opened.config, settings, "site-0000", opened.setup, "train")
    view = TaskView.of(opened.setup.text, central.config.language, central.server.base.tokenizer)
    rows = view.training(texts, labels)
    route, budget = central.server.route("adap-emu"), step_budget(opened.config.language, 0, 2)
    seed = seed_of(opened.config.server.seed, "site-0000", 1, "language")
    train_adapter(
        route, central.server.adapter, rows, budget, opened.config.language.eps, seed=seed, cache=route.cache(rows)
    )
    assert same(session.server.adapter_arrays(), central.server.adapter.arrays())
    untouched = LanguageSession(opened.config, "untouched", tmp_path / "models", lambda _: None)
    assert not same(untouched.server.adapter_arrays(), central.server.adapter.arrays())


def test_the_emulator_s_changes_change_what_a_site_computes(tmp_path, monkeypatch):
    """A site that is sent the emulator as it was before alignment trains something else."""
    plain = federate(tmp_path, {"server.rounds": 1}, sites=1)
    monkeypatch.setattr(
        "llm_qfl.language.server.ServerLanguage.align", lambda self, *_, **__: self.distribution.publish(first=True)
    )
    unaligned = federate(tmp_path, {"server.rounds": 1}, sites=1)
    one, two = (run.finished.rounds[0].language for run in (plain, unaligned))
    assert one.adapter_digest == two.adapter_digest
    assert one.emulator_digest != two.emulator_digest
    assert not same(one.answers["site-0000"].arrays, two.answers["site-0000"].arrays)
    assert one.validation.loss != two.validation.loss


def test_realignment_reaches_the_sites(tmp_path):
    run = federate(tmp_path, {"language.align-every": 1, "language.align-steps": 2, "server.rounds": 3})
    digests = [closed.language.emulator_digest for closed in run.finished.rounds]
    assert len(set(digests)) == 3
    assert [closed.language.align_seconds is None for closed in run.finished.rounds] == [False, False, True]
    assert not any(closed.language.rejected for closed in run.finished.rounds)
    repeated = federate(tmp_path, {"language.align-every": 1, "language.align-steps": 2, "server.rounds": 3})
    assert same(session_of(run).server.adapter_arrays(), session_of(repeated).server.adapter_arrays())


@pytest.mark.parametrize("reason", ["switched off", "no room", "other versions", "not installed"])
def test_a_site_without_the_model_takes_part_with_the_qnn_alone(tmp_path, monkeypatch, reason):
    each = {1: {"language": "no"}} if reason == "switched off" else None
    if reason != "switched off":
        original = admission.why_not

        def one_only(config, settings, offer, rows, class_names):
            if settings.partition_id != 1:
                return original(config, settings, offer, rows, class_names)
            with monkeypatch.context() as patch:
                if reason == "no room":
                    patch.setattr("llm_qfl.language.room.available_memory", lambda _: 10**6)
                elif reason == "other versions":
                    patch.setattr(admission, "version", lambda name: "0.0.1")
                else:
                    patch.setattr(admission, "find_spec", lambda name: None)
                return original(config, settings, offer, rows, class_names)

        monkeypatch.setattr(admission, "why_not", one_only)
    run = federate(tmp_path, each=each)
    session = session_of(run)
    assert list(session.left_out) == ["site-0001"]
    assert reason in session.left_out["site-0001"]
    assert session.sites == ("site-0000",)
    for closed in run.finished.rounds:
        assert {report.site for report in closed.reports} == {"site-0000", "site-0001"}
        assert set(closed.language.answers) == {"site-0000"}
    assert run.summary["language"]["left_out"] == session.left_out


def test_nobody_takes_part(tmp_path):
    run = federate(tmp_path, each={0: {"language": "no"}, 1: {"language": "no"}}, output=tmp_path / "runs")
    assert [closed.language for closed in run.finished.rounds] == [None, None]
    assert run.summary["language"]["sites"] == 0
    assert run.summary["language"]["adap_fu_accuracy"] is None
    assert not (run.folder / "adapter").exists()


def _cut(content):
    for key, array in list(content["language"].items())[:1]:
        content["language"][key] = FlowerArray(array.numpy()[:-1])


def _truncate(content):
    for key, array in list(content["language"].items())[:1]:
        content["language"][key] = FlowerArray(array.dtype, array.shape, array.stype, array.data[:-3])


def _infinite(content):
    for key, array in list(content["language"].items())[:1]:
        content["language"][key] = FlowerArray(np.full_like(array.numpy(), np.inf))


def _missing(content):
    del content["language"][next(iter(content["language"]))]


def _foreign(content):
    content["language"]["adapter/0/self_attn.q_proj/A"] = FlowerArray(np.zeros((2, 2), np.float32))


def _other_adapter(content):
    content["language-meta"]["adapter-digest"] = "0" * 64


def _other_classes(content):
    for key in ("received-rows", "received-correct", "trained-rows", "trained-correct"):
        content["language-metrics"][key] = [1, 2, 3]


def _gone(content):
    for name in ("language", "language-meta", "language-metrics"):
        del content[name]


def _numbers(content):
    content["language-meta"] = ConfigRecord({"problem": 3})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_cut, "expected float32"),
        (_truncate, "cannot be read"),
        (_infinite, "not finite"),
        (_missing, "missing"),
        (_foreign, "unknown"),
        (_other_adapter, "an answer to adapter 0000"),
        (_other_classes, "expected counts of 2 classes"),
        (_gone, "no language part"),
        (_numbers, "problem: expected a string"),
    ],
)
def test_a_bad_language_part_is_rejected_alone_and_the_round_goes_on(tmp_path, spoil, reason):
    def fault(task, reply):
        if task.metadata.message_type == "train" and task.metadata.group_id == "1":
            spoil(reply.content)
        return reply

    run = federate(tmp_path, faults={2: fault})
    first, second = run.finished.rounds
    assert list(first.language.rejected) == ["site-0001"]
    assert reason in first.language.rejected["site-0001"]
    assert {report.site for report in first.reports} == {"site-0000", "site-0001"}  # the QNN's part counts
    assert not first.rejected
    assert first.language.aggregated  # half of the sites is the quorum
    assert set(second.language.answers) == {"site-0000", "site-0001"}


def test_a_site_whose_training_fails_says_so_and_trains_the_qnn(tmp_path, monkeypatch):
    original = SiteLanguage._train

    def fails(self, setup, server_round):
        if self._site == "site-0001" and server_round == 1:
            raise OSError("no space left on /home/clinic/secret")
        return original(self, setup, server_round)

    monkeypatch.setattr(SiteLanguage, "_train", fails)
    run = federate(tmp_path)
    first, second = run.finished.rounds
    assert first.language.rejected == {"site-0001": "OSError (the full text is in the site's own log)"}
    assert len(first.reports) == 2
    assert set(second.language.answers) == {"site-0000", "site-0001"}


def test_a_site_that_lost_its_disk_is_sent_the_emulator_again(tmp_path):
    import shutil

    def fault(task, reply):
        if task.metadata.group_id == "1":
            shutil.rmtree(tmp_path / "node-1" / "language")
        return reply

    run = federate(tmp_path, {"server.rounds": 3}, faults={2: fault})
    second, third = (closed.language for closed in run.finished.rounds[1:])
    assert "LanguageError" in second.rejected["site-0001"]
    assert set(third.answers) == {"site-0000", "site-0001"}


def test_below_quorum_the_adapter_stays(tmp_path):
    def fault(task, reply):
        if task.metadata.message_type == "train":
            _gone(reply.content)
        return reply

    run = federate(tmp_path, {"server.quorum": 0.9}, faults={2: fault})
    first, second = (closed.language for closed in run.finished.rounds)
    assert not first.aggregated
    assert first.adapter_digest == second.adapter_digest
    assert run.finished.rounds[0].aggregated


def test_every_second_adapter_round_is_followed_by_an_alignment_and_scored(tmp_path):
    """`align-every` and `evaluate-every` count rounds in which the adapter was trained, not rounds."""
    keys = {"server.rounds": 9, "language.every": 2, "language.align-every": 2, "language.evaluate-every": 2}
    run = federate(tmp_path, keys | {"data.validation": "server"})
    language = {closed.plan.server_round: closed.language for closed in run.finished.rounds if closed.language}
    assert sorted(language) == [1, 3, 5, 7, 9]
    assert [number for number, one in language.items() if one.align_seconds is not None] == [3, 7]
    digests = [language[number].emulator_digest for number in (1, 3, 5, 7, 9)]
    assert digests[0] == digests[1] != digests[2] == digests[3] != digests[4]
    assert [number for number, one in language.items() if one.full_validation is not None] == [3, 7, 9]


def test_rounds_between_have_the_qnn_alone(tmp_path):
    run = federate(tmp_path, {"language.every": 2, "server.rounds": 4})
    assert [closed.language is None for closed in run.finished.rounds] == [False, True, False, True]
    assert [len(closed.reports) for closed in run.finished.rounds] == [2] * 4


@pytest.mark.parametrize("method", ["fedot", "offsite", "local", "fedlora-all", "fedlora-tail"])
def test_every_method(tmp_path, method):
    run = federate(tmp_path, {"language.method": method}, output=tmp_path / "runs")
    session = session_of(run)
    start = LanguageSession(run.finished.opened.config, "start", tmp_path / "models", lambda _: None)
    asked = {closed.language.sites for closed in run.finished.rounds}
    assert asked == ({("site-0000",)} if method == "offsite" else {("site-0000", "site-0001")})
    moved = not same(session.server.adapter_arrays(), start.server.adapter_arrays())
    assert moved == (method != "local")
    assert (run.folder / "adapter").exists() == (method != "local")
    if method != "local":
        card = (run.folder / "adapter" / "README.md").read_text()
        assert ("compressed model" in card) == (not method.startswith("fedlora"))
    assert len(session.server.plan.held) == (4 if method.startswith("fedlora") else 3)
    rows = run.summary["language"]["test"]["adap-emu"]["plain"]["rows"]
    assert rows == run.summary["test_rows"]  # also where every site's own adapter is scored on them
    if method == "local":
        first, second = (closed.language.answers for closed in run.finished.rounds)
        for site in first:  # each goes on with its own, whose trained score is the next received one
            assert second[site].received.loss == pytest.approx(first[site].trained.loss, rel=1e-6)


@pytest.mark.parametrize("wire", ["fp16", "int8"])
def test_fewer_bits_on_the_wire(tmp_path, wire):
    few, many = federate(tmp_path, {"language.wire": wire}), federate(tmp_path)
    assert few.summary["language"]["bytes_up"] < many.summary["language"]["bytes_up"]
    assert not any(closed.language.rejected for closed in few.finished.rounds)


def test_federated_test_rows_have_no_full_model(tmp_path):
    run = federate(tmp_path, {"data.test": "federated"}, output=tmp_path / "runs")
    assert read_adapter(run.folder / "adapter").class_bias == {}  # the full model was not run
    summary = run.summary["language"]
    assert set(summary["test"]) == {"compressed-zero-shot", "adap-emu"}
    assert summary["adap_fu_accuracy"] is None
    assert summary["test"]["adap-emu"]["plain"]["rows"] == run.summary["test_rows"]


def test_server_validation_scores_both_routes_first_and_last(tmp_path):
    run = federate(tmp_path, {"data.validation": "server", "server.rounds": 3})
    scored = [closed.language.full_validation is not None for closed in run.finished.rounds]
    assert scored == [True, False, True]
    assert run.finished.rounds[0].language.validation.count == run.finished.validation["qnn"].count


def test_a_preset_holds_at_the_sites_too(tmp_path):
    """The published code does not balance classes: rows weigh the same though the default says otherwise."""
    run = federate(tmp_path, {"language.preset": "released", "language.emulator-rank": 8})
    opened, session = run.finished.opened, session_of(run)
    settings = NodeSettings.from_node_config(nodes(tmp_path, 2)[0])
    offer = ModelOffer("again", session.source, session.exported.sha256, session.libraries)
    site = SiteLanguage(opened.config, settings, "site-0000", "again", offer)
    rows = site._view(opened.setup).training(("a", "b", "c"), np.array([0, 0, 1]))
    assert set(rows.weight.tolist()) == {1.0}
    assert session.server.config.balance is False


def test_nothing_is_scored_or_saved_of_an_adapter_that_nobody_trained(tmp_path, monkeypatch):
    def broken(self, setup, server_round):
        raise LanguageError("broken")

    monkeypatch.setattr(SiteLanguage, "_train", broken)
    run = federate(tmp_path, output=tmp_path / "runs")
    summary = run.summary["language"]
    assert run.summary["status"] == "finished"
    assert set(summary["test"]) == {"zero-shot", "compressed-zero-shot"}
    assert (summary["adap_emu_accuracy"], summary["adap_fu_accuracy"], summary["tuned"]) == (None, None, False)
    assert not (run.folder / "adapter").exists()
    assert "No adapter was tuned" in (run.folder / "report.html").read_text()


def test_public_text_is_no_test_row(tmp_path):
    rows = [f"good film number {n}" if n % 2 else f"bad film number {n}" for n in range(60)]
    (tmp_path / "r.csv").write_text("text,label\n" + "".join(f"{t},{'ab'[n % 2]}\n" for n, t in enumerate(rows)))
    (tmp_path / "p.txt").write_text("".join(f" {text}  \n" for text in rows))
    keys = {"data.source": f"csv:{tmp_path / 'r.csv'}", "language.public": f"file:{tmp_path / 'p.txt'}"}
    with pytest.raises(DataError, match=r"of the server's \d+ test rows are public texts, too"):
        federate(
            tmp_path,
            {**keys, "data.encoding": "language", "language.label-words": "classes", "language.public-rows": 60},
        )


def test_four_bit_weights_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    run = federate(tmp_path, {"language.quantization": "nf4"})
    assert "needs bitsandbytes" in run.summary["language"]["left_out"]["site-0000"]
    assert run.summary["language"]["test"] == {}


def test_other_numbers_are_another_copy_of_the_weights(tmp_path):
    """A client in bfloat16 rounds the weights that it shares; one in float32 in the same process must not get them."""
    run = federate(tmp_path)
    session = session_of(run)
    language = run.finished.opened.config.language
    folder, sha256 = session.exported.folder, session.exported.sha256
    exact = site_side._load(folder, sha256, language)
    before = {key: value.clone() for key, value in exact.stack.model.state_dict().items()}
    rounded = site_side._load(folder, sha256, language.model_copy(update={"dtype": "bfloat16"}))
    rounded.stack.model.to(torch.bfloat16)
    again = site_side._load(folder, sha256, language).stack.model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())


def test_calibration_after_the_last_average(tmp_path):
    plain, tuned = (federate(tmp_path, {"language.calibrate-steps": steps}) for steps in (0, 2))
    scores = [run.summary["language"]["test"] for run in (plain, tuned)]
    assert scores[0]["adap-emu"] == scores[1]["adap-emu"]  # what sites tuned
    assert scores[0]["adap-fu"] == scores[1]["adap-fu"] != scores[1]["adap-fu-calibrated"]
    assert "adap-fu-calibrated" not in scores[0]
    assert same(plain.finished.rounds[1].language.answers["site-0000"].arrays,
                tuned.finished.rounds[1].language.answers["site-0000"].arrays)  # fmt: skip
    assert not same(session_of(plain).server.adapter_arrays(), session_of(tuned).server.adapter_arrays())


def test_a_late_language_part_is_dropped_and_counted(tmp_path):
    from simulation.grid import Delayed

    def late(task, reply):
        return Delayed(reply, exchanges=1) if task.metadata.group_id == "1" else reply

    run = federate(tmp_path, {"server.deadline": 3.0, "server.rounds": 3}, faults={2: late})
    first, second, third = (closed.language for closed in run.finished.rounds)
    assert set(first.answers) == {"site-0000"}
    assert second.dropped == ("site-0001",)
    assert [report.site for report in run.finished.rounds[1].late] == ["site-0001"]  # its QNN part enters
    assert set(third.answers) == {"site-0000", "site-0001"}


TEXTS = [f"{'good fine lovely' if n % 2 else 'bad sad awful'} film number {n}" for n in range(60)]


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"{text},{'up' if n % 2 else 'down'}\n" for n, text in enumerate(TEXTS)))
    return {"data.source": f"csv:{path}", "language.label-words": "classes", "data.test-fraction": 0.2}


def test_hidden_states_are_the_rows_numbers(tmp_path, reviews):
    """Every side gets the same numbers for a text, whatever the adapter has become; the QNN learns from them."""
    keys = {**reviews, "data.encoding": "language", "language.align-every": 1, "language.every": 2}
    run = federate(tmp_path, keys | {"server.rounds": 3})
    opened, session = run.finished.opened, session_of(run)
    assert opened.setup.encoding == "language"
    assert run.summary["test_accuracy"] is not None
    settings = NodeSettings.from_node_config(nodes(tmp_path, 2)[0])
    offer = ModelOffer("another", session.source, session.exported.sha256, session.libraries)
    fresh = LanguageSession(opened.config, "fresh", tmp_path / "models", lambda _: None)
    site = SiteLanguage(opened.config, settings, "site-0000", "another", replace(
        offer, arrays=fresh.offer().arrays, emulator_digest=fresh.offer().emulator_digest))  # fmt: skip
    np.testing.assert_allclose(site.features(TEXTS[:5]), session.features(TEXTS[:5]), atol=1e-5)
    assert session.features(TEXTS[:2]).shape == (2, 32)


def test_a_new_machine_gets_the_features_emulator_after_a_realignment(tmp_path, reviews):
    """A site whose disk and memory are gone needs the emulator of before the first round as well as today's."""
    import shutil

    from client_app import data

    def replaced(task, reply):
        if task.metadata.group_id == "1":
            shutil.rmtree(tmp_path / "node-1" / "language")
            data._partition.cache_clear()
        return reply

    keys = {**reviews, "data.encoding": "language", "language.align-every": 1, "server.rounds": 4}
    run = federate(tmp_path, keys, faults={2: replaced})
    _, second, third, fourth = run.finished.rounds
    assert [len(closed.reports) for closed in run.finished.rounds] == [2, 1, 2, 2]
    assert set(third.language.answers) == {"site-0000", "site-0001"}
    server = session_of(run).server
    assert len({closed.language.emulator_digest for closed in run.finished.rounds}) == 4
    # every round adapter and emulator to both, in the third the first emulator as well: numbers and names of arrays
    more, numbers = third.language.bytes_down - second.language.bytes_down, byte_count(server.first_arrays())
    assert numbers < more < 1.5 * numbers
    assert abs(fourth.language.bytes_down - second.language.bytes_down) < 0.02 * numbers


def test_a_run_folder_predicts_from_texts(tmp_path, reviews):
    """The distributed model of before the first round is in the folder, though the emulator was aligned again."""
    keys = {**reviews, "data.encoding": "language", "language.align-every": 1, "language.method": "fedbiot"}
    run = federate(tmp_path, keys, output=tmp_path / "runs")
    opened = run.finished.opened
    data = tmp_path / "new.csv"
    data.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS[:6]))
    found, names = predict_rows(run.folder, data)
    features = opened.setup.feature_map.transform(session_of(run).features(TEXTS[:6]))
    expected = np.exp(opened.model.log_probabilities(run.finished.state.theta, features))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert names == opened.setup.class_names
    with pytest.raises(LanguageError, match="made with tiny"):
        predict_rows(run.folder, data, base="tiny-5")
    path = run.folder / "model" / "features.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LanguageError, match="copy it again"):
        predict_rows(run.folder, data)


def test_a_site_without_the_model_has_no_numbers_for_texts(tmp_path, reviews):
    run = federate(tmp_path, {**reviews, "data.encoding": "language"}, sites=3, each={2: {"language": "no"}})
    assert list(run.finished.opened.roll.nodes) == ["site-0000", "site-0001"]
    assert "needs the language model: switched off" in run.summary["left_out"]["site-0002"]


def test_texts_are_written(tmp_path, reviews):
    keys = {**reviews, "data.encoding": "language", "language.task": "generation", "language.max-tokens": 80}
    run = federate(tmp_path, keys)
    scores = run.summary["language"]["test"]["adap-fu"]
    assert scores["calibrated"] is None
    assert scores["plain"]["accuracy"] is None
    assert scores["plain"]["tokens"] > run.summary["test_rows"]
    assert 0 < scores["plain"]["loss"] < 10
    assert run.summary["language"]["adap_fu_accuracy"] is None


def test_answers_to_instructions_are_learned(tmp_path):
    """A grammar of one word: the answer to `repeat xyz` is `xyz`; only its tokens are scored."""
    words = ["".join(random) for random in itertools.permutations("abcd", 3)]
    rows = [[f"repeat {word}", word, "ab"[number % 2]] for number, word in enumerate(words * 3)]
    path = write_csv(tmp_path / "tasks.csv", ["prompt", "answer", "kind"], rows)
    keys = {
        "data.source": f"csv:{path}",
        "data.text-column": "prompt",
        "data.answer-column": "answer",
        "data.label-column": "kind",
        "data.encoding": "language",
        "language.dtype": "float32",
        "language.task": "generation",
    }
    run = federate(tmp_path, keys)
    scores = run.summary["language"]["test"]
    assert scores["adap-fu"]["plain"]["tokens"] == 4 * run.summary["test_rows"]  # three bytes and the end
    assert scores["adap-fu"]["plain"]["loss"] < scores["zero-shot"]["plain"]["loss"]


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        ({"language.model": "./nowhere"}, LanguageError, "expected smollm2-135m"),
        ({"language.model": "./unknown"}, LanguageError, "its layer stack is 'opt'"),
        ({"language.adapter-layers": 4}, LanguageError, "leave none to compress"),
        ({"language.max-tokens": 600}, LanguageError, "has 512 positions"),
        ({"language.max-tokens": 10}, LanguageError, "a row of one column"),
        ({"language.label-words": "class a,class b"}, LanguageError, None),
        ({"language.label-words": "a,ab"}, LanguageError, "are the beginning of"),
        ({"language.label-words": "one"}, ConfigError, "expected 2 different words"),
        ({"language.public": "file:nowhere.txt"}, Exception, "nowhere.txt"),
        ({"data.encoding": "language", "language.dtype": "auto"}, ConfigError, "expected float32"),
        ({"language.task": "generation", "language.prompt": "Write {row}"}, ConfigError, "to write texts it needs"),
        ({"data.answer-column": "width"}, ConfigError, "answers are learned where language.task=generation"),
        (
            {"data.answer-column": "width", "language.task": "generation", "language.prompt": "{label}"},
            ConfigError,
            "needs {row}",
        ),
        ({"data.answer-column": "width", "language.task": "generation"}, DataError, "answers belong to texts"),
    ],
)
def test_what_cannot_work_is_said_before_a_round_starts(tmp_path, monkeypatch, keys, error, text):
    tasks = []
    push = InMemoryGrid.push_messages

    def watched(grid, messages):
        messages = list(messages)
        tasks.extend(message.metadata.message_type for message in messages)
        return push(grid, messages)

    monkeypatch.setattr(InMemoryGrid, "push_messages", watched)
    if text is None:  # words that share their first token but not all: fine
        federate(tmp_path, keys)
        return
    if keys.get("language.model") == "./unknown":
        folder = tmp_path / "unknown"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "opt"}')
        keys = {"language.model": str(folder)}
    with pytest.raises(error, match=text):
        federate(tmp_path, keys)
    assert "train" not in tasks


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("server_app.language.find_spec", lambda name: None)
    with pytest.raises(LanguageError, match=r"needs torch, transformers, peft, safetensors.*language\.model=\"none\""):
        federate(tmp_path)


@pytest.mark.parametrize(
    ("keys", "train", "held_out"),
    [
        ({}, 1, 2),  # bytes: every answer begins with a space of its own, so each is scored on its own
        ({"agent.mode": "llm-qfl-all", "agent.distill-weight": 0.3}, 3, 2),  # soft labels score training rows, too
        ({"language.label-words": "aa,b,cc"}, 1, 3),  # of a class that the site has no row of, too
        ({"language.label-words": "classes"}, 1, 2),
        ({"language.task": "generation", "language.prompt": "Write {label}: {row}"}, 1, 1),
    ],
)
def test_every_file_of_boundary_states_needs_its_room(tmp_path, keys, train, held_out):
    config = RunConfig.from_run_config({**TINY, **keys})
    session = LanguageSession(config, "run", tmp_path / "models", lambda _: None)
    settings = NodeSettings.from_node_config(nodes(tmp_path, 1)[0])
    width = session.server.stack.config.hidden_size
    rows = {"train": 10**9, "validation": 10**8, "test": 10**8}
    said = why_not(config, settings, session.offer(), rows, CLASSES)
    need = 4 * 60 * width * (train * 10**9 + held_out * 2 * 10**8) / 1e6
    assert f"of 1200000000 rows need up to {need:.0f} MB of disk" in said


def test_a_model_that_is_not_there_or_damaged_keeps_a_site_out(tmp_path):
    config = RunConfig.from_run_config(TINY)
    session = LanguageSession(config, "run", tmp_path / "models", lambda _: None)
    settings = NodeSettings.from_node_config(nodes(tmp_path, 1)[0])
    offer = session.offer()
    assert why_not(config, settings, offer, ROWS, CLASSES) == ""
    assert "boundary states of 1000000010 rows need up to" in why_not(
        config, settings, offer, {**ROWS, "train": 10**9}, CLASSES
    )
    assert "cannot be had" in why_not(config, settings, replace(offer, source=str(tmp_path / "gone")), ROWS, CLASSES)
    assert "cannot be had" in why_not(config, settings, replace(offer, sha256="0" * 64), ROWS, CLASSES)
    weights = session.exported.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    problem = why_not(config, settings, offer, ROWS, CLASSES)
    assert "cannot be had" in problem
    assert str(tmp_path) not in problem


def test_folders_of_old_runs_are_removed(tmp_path):
    import os

    settings = NodeSettings.from_node_config(nodes(tmp_path, 1)[0])
    held = [site_side.Held(settings, run, "site-0000") for run in ("old", "new")]
    held[0].prepare()
    os.utime(held[0].run_folder, (0, 0))
    held[1].prepare()
    assert not held[0].run_folder.exists()
    assert held[1].folder.is_dir()


def test_language_bytes_are_those_of_the_language_records(tmp_path):
    seen = []

    def fault(task, reply):
        if task.metadata.message_type == "train":
            seen.append((language_bytes(task.content), language_bytes(reply.content)))
        return reply

    run = federate(tmp_path, {"server.rounds": 1}, sites=1, faults={1: fault})
    found = run.finished.rounds[0].language
    assert (found.bytes_down, found.bytes_up) == seen[0]


def test_rows_are_the_qnn_s_rows(tmp_path):
    """The split table feeds both views: as many rows, in the same order, with the same labels."""
    from client_app.data import site_partition

    run = federate(tmp_path, {"server.rounds": 1})
    opened = run.finished.opened
    for number, node in enumerate(nodes(tmp_path, 2)):
        settings = NodeSettings.from_node_config(node)
        site = f"site-{number:04d}"
        partition = site_partition(opened.config, settings, site, opened.setup, opened.setup.digest())
        for part in ("train", "validation"):
            texts, labels, _ = site_texts(opened.config, settings, site, opened.setup, part)
            np.testing.assert_array_equal(labels, getattr(partition, part).y)
            assert len(texts) == len(labels)
        answer = run.finished.rounds[0].language.answers[site]
        assert answer.num_examples == len(partition.train)
        assert answer.received.count == len(partition.validation)
    assert isinstance(session_of(run)._public, TokenRows)
