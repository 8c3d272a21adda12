"""Rounds of the adapter on the server: unequal sites, several rounds, and the end, with what sites answer made up."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.types import NOTHING, ClientReport, LanguageAnswer, Scores
from llm_qfl.language.task import TaskView
from llm_qfl.language.tiny import byte_tokenizer
from server_app.language import LanguageSession
from server_app.language_end import finish

BYTES = byte_tokenizer()
SITES = ("a", "b")
CONFIG: dict[str, object] = {
    "server.rounds": 5,
    "language.model": "tiny-4",
    "language.adapter-layers": 1,
    "language.beta": 0.4,
    "language.every": 2,
    "language.steps": 3,
    "language.rank": 2,
    "language.emulator-rank": 2,
    "language.device": "cpu",
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def session_of(tmp_path, monkeypatch) -> Callable[..., LanguageSession]:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))

    def make(**changes: object) -> LanguageSession:
        config = RunConfig.from_run_config(
            {**CONFIG, **{k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}}
        )
        session = LanguageSession(config, "run", tmp_path / "models", lambda _: None)
        session.sites = session.trainers = SITES
        session.view = TaskView.of(TextPlan("text", "Q: {row}\nA:", ("up", "down")), config.language, BYTES)
        return session

    return make


def scores() -> Scores:
    return Scores(1.0, np.array([1, 1]), np.array([1, 0]))


def answer(session: LanguageSession, site: str, server_round: int, rows: int, peak: int) -> ClientReport:
    """A site's reply: matrices drawn from its name and round, sent as they are."""
    task = session.exchange.task(site, server_round)
    rng = np.random.default_rng([ord(site), server_round])
    arrays = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in session.server.adapter_arrays().items()}
    wire = {f"adapter/{key}": value for key, value in arrays.items()}
    language = LanguageAnswer(wire, task.adapter_digest, rows, 3, scores(), scores(), 1.0, 0.5, peak_bytes=peak)
    return ClientReport(
        site, server_round, np.zeros(2), rows, scores(), scores(), 1.0, 0.5, NOTHING, 0.1, language=language
    )


def play(session: LanguageSession, server_round: int, *, rows: tuple[int, int] = (5, 5), peaks=(1, 1)):
    session.exchange.open_round(server_round)
    reports = [answer(session, *one) for one in zip(SITES, (server_round,) * 2, rows, peaks, strict=True)]
    closed = session.exchange.close_round(server_round, reports, [])
    assert sorted(closed.answers) == list(SITES)
    return reports


@pytest.mark.parametrize(("weighting", "shares"), [("examples", (0.75, 0.25)), ("uniform", (0.5, 0.5))])
def test_sites_of_unequal_size_weigh_by_their_rows(session_of, weighting, shares) -> None:
    session = session_of(server__weighting=weighting)
    one, two = (r.language.arrays for r in play(session, 1, rows=(30, 10)))
    for key, value in session.server.adapter_arrays().items():
        expected = shares[0] * one[f"adapter/{key}"] + shares[1] * two[f"adapter/{key}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_steps_go_on_where_the_last_round_ended(session_of) -> None:
    """Rounds 1, 3 and 5 of five train the adapter, three steps each: one cosine over nine."""
    session = session_of()
    places = []
    for server_round in range(1, 6):
        session.exchange.open_round(server_round)
        task = session.exchange.task("a", server_round)
        if task is not None:
            places.append((server_round, task.train, task.offset, task.total))
    assert places == [(1, True, 0, 9), (3, True, 3, 9), (5, True, 6, 9)]


def test_the_most_memory_of_any_round_is_kept_and_the_emulator_is_sent_once(session_of) -> None:
    session = session_of()
    session.exchange.open_round(1)
    assert any(key.startswith("emulator/") for key in session.exchange.task("a", 1).arrays)
    play(session, 1, peaks=(700, 900))
    assert session.exchange.client_peak == 900
    session.exchange.open_round(3)
    assert not any(key.startswith("emulator/") for key in session.exchange.task("a", 3).arrays)
    play(session, 3, peaks=(800, 100))
    assert session.exchange.client_peak == 900


def test_the_end_scores_each_part_then_calibrates_on_the_label_words_alone(session_of, monkeypatch) -> None:
    """On public prompts the two first tokens count, not the other 255; AdapFu is scored again after it, not before."""
    session = session_of(language__calibrate_steps=2)
    session._texts = ("an apple", "trains")
    play(session, 1)
    done: list[object] = []

    def calibrate(rows, number, tokens):
        done.append("calibrated")
        assert tokens == [BYTES("u")["input_ids"][0], BYTES("d")["input_ids"][0]]
        prompts = [row[:start].tolist() for row, start in zip(rows.ids, rows.prompt, strict=True)]
        assert prompts == [BYTES(f"Q: {text}\nA: ")["input_ids"] for text in session._texts]
        assert number == 5

    def final(part, own, *, tuned):
        done.append(part)
        assert tuned
        return {"adap-fu": part}

    monkeypatch.setattr(session.server, "calibrate", calibrate)

    def class_bias(kind):
        done.append(f"bias of {kind}")  # of the adapter that is kept
        return {"up": 1.0}

    again = SimpleNamespace(
        parts=("test", "validation"),
        rows=lambda part: part,
        final=final,
        route=lambda part, kind: (part, kind),
        class_bias=class_bias,
    )
    session.scores = again
    finish(session, [])
    assert done == ["test", "validation", "calibrated", "bias of adap-fu"]
    assert session.class_bias == {"up": 1.0}
    assert session.found == {p: {"adap-fu": p, "adap-fu-calibrated": (p, "adap-fu")} for p in ("test", "validation")}


def test_a_rule_against_bad_clients_holds_for_the_adapter_too(session_of, monkeypatch) -> None:
    monkeypatch.setattr("test_adapter_rounds.SITES", ("a", "b", "c"))
    session = session_of(server__aggregation="median")
    before = session.server.adapter_arrays()
    session.exchange.open_round(1)
    reports = [answer(session, site, 1, 5, 1) for site in SITES]
    bad = {key: value * 1e4 for key, value in reports[2].language.arrays.items()}
    reports[2] = dataclasses.replace(reports[2], language=dataclasses.replace(reports[2].language, arrays=bad))
    closed = session.exchange.close_round(1, reports, [])
    for key, value in session.server.adapter_arrays().items():
        expected = np.median([one.language.arrays[f"adapter/{key}"] for one in reports], axis=0)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    lengths = {site: stats.norm for site, stats in closed.updates.items()}
    start = np.concatenate([before[key].ravel() for key in sorted(before)])
    for one in reports:
        end = np.concatenate([one.language.arrays[f"adapter/{key}"].ravel() for key in sorted(before)])
        assert lengths[one.site] == pytest.approx(np.linalg.norm(end - start), rel=1e-5)


def test_krum_waits_for_three_adapters(session_of) -> None:
    session = session_of(server__aggregation="krum")
    before = session.server.adapter_arrays()
    session.exchange.open_round(1)
    reports = [answer(session, site, 1, 5, 1) for site in SITES]  # two
    assert not session.exchange.close_round(1, reports, []).aggregated
    assert all(np.array_equal(before[key], value) for key, value in session.server.adapter_arrays().items())


def test_long_updates_of_adapters_are_scaled_down(session_of) -> None:
    session = session_of(language__norm_bound=0.5, server__weighting="uniform")
    before = session.server.adapter_arrays()
    reports = play(session, 1)
    updates = [{k: r.language.arrays[f"adapter/{k}"] - v for k, v in before.items()} for r in reports]
    lengths = [np.sqrt(sum((value**2).sum() for value in update.values())) for update in updates]
    assert min(lengths) > 0.5
    for key, value in session.server.adapter_arrays().items():
        expected = before[key] + sum(0.5 / n * update[key] for n, update in zip(lengths, updates, strict=True)) / 2
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_a_weight_counts_no_more_rows_than_the_cap(session_of) -> None:
    session = session_of(server__row_cap=10)
    one, two = (r.language.arrays for r in play(session, 1, rows=(30, 10)))
    for key, value in session.server.adapter_arrays().items():
        np.testing.assert_allclose(value, (one[f"adapter/{key}"] + two[f"adapter/{key}"]) / 2, rtol=1e-5, atol=1e-6)
