"""Scores of the server's rows along each route, against words scored one by one and a prior found by bisection."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ROUTES, ServerLanguage
from llm_qfl.language.task import TaskView
from llm_qfl.language.tiny import byte_tokenizer
from server_app.language_scores import LanguageScores

BYTES = byte_tokenizer()
WORDS = ("up", "down")
ROWS = {
    "validation": (("good film", "bad", "so so"), np.array([0, 1, 1])),
    "test": (("fine", "awful thing", "dull", "a lovely day", "no"), np.array([0, 1, 1, 0, 1])),
}
PUBLIC = ("an apple", "trains", "the house on the hill", "x y z", "water")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def server(tmp_path) -> ServerLanguage:
    """Four layers, one of them dropped for sites; adapter and emulator away from zero."""
    config = LanguageConfig(model="tiny-4", adapter_layers=1, beta=0.4, rank=2, emulator_rank=2, device="cpu")
    made = ServerLanguage(load_base("tiny-4", tmp_path), config, seed=3)
    rng = np.random.default_rng(0)
    for adapter in (made.adapter, made.emulator):
        adapter.load({k: v + rng.normal(0, 0.4, v.shape).astype(np.float32) for k, v in adapter.arrays().items()})
    made.set_adapter(made.adapter.arrays())
    return made


def margins(server: ServerLanguage, kind: str, texts: tuple[str, ...]) -> np.ndarray:
    """Log p(up) - log p(down) after each text, each word scored as an answer of its own."""
    likelihoods = []
    for word in WORDS:
        prompts = [BYTES(f"Q: {text}\nA:")["input_ids"] for text in texts]
        rows = TokenRows.of(
            [[*prompt, *BYTES(f" {word}")["input_ids"]] for prompt in prompts], [len(prompt) for prompt in prompts]
        )
        likelihoods.append([-row.sum() for row in server.score(kind, rows)])
    return np.array(likelihoods[0]) - np.array(likelihoods[1])


def loss_sum(margin: np.ndarray, labels: np.ndarray) -> float:
    signed = np.where(labels == 0, margin, -margin)
    return float(-np.log(expit(signed)).sum())


def test_every_route_is_scored_along_itself_and_less_its_own_prior(server) -> None:
    view = TaskView.of(TextPlan("text", "Q: {row}\nA:", WORDS), server.config, BYTES)
    scores = LanguageScores(server, view, PUBLIC, ROWS)
    seen = []
    for part, (texts, labels) in ROWS.items():
        found = scores.final(part, {})
        assert set(found) == set(ROUTES)
        for kind, both in found.items():
            margin, public = margins(server, kind, texts), margins(server, kind, PUBLIC)
            shift = brentq(lambda bias, public=public: expit(public + bias).mean() - 0.5, -50, 50, xtol=1e-10)
            assert both.plain.loss_sum == pytest.approx(loss_sum(margin, labels), rel=1e-4), kind
            assert both.calibrated.loss_sum == pytest.approx(loss_sum(margin + shift, labels), rel=1e-3), kind
            assert scores.class_bias(kind) == pytest.approx({"up": shift / 2, "down": -shift / 2}, abs=1e-3)
            assert both.plain.rows.tolist() == np.bincount(labels).tolist()
            assert both.plain.correct.sum() == ((margin < 0) == labels).sum()
            seen += [both.plain.loss_sum, both.calibrated.loss_sum]
    assert min(np.diff(sorted(seen))) > 1e-3  # sixteen different numbers: none can stand for another


def test_the_validation_loss_is_of_the_validation_rows(server) -> None:
    view = TaskView.of(TextPlan("text", "Q: {row}\nA:", WORDS), server.config, BYTES)
    texts, labels = ROWS["validation"]
    scores = LanguageScores(server, view, PUBLIC, ROWS)
    for kind in ("adap-emu", "adap-fu"):
        found = scores.on_validation(kind, {})
        assert found.count == len(texts)
        assert found.loss_sum == pytest.approx(loss_sum(margins(server, kind, texts), labels), rel=1e-4)
    only_test = LanguageScores(server, view, PUBLIC, {"test": ROWS["test"]})
    assert only_test.on_validation("adap-emu", {}) is None


def test_sites_own_adapters_are_scored_one_by_one_and_added(server) -> None:
    view = TaskView.of(TextPlan("text", "Q: {row}\nA:", WORDS), server.config, BYTES)
    scores = LanguageScores(server, view, PUBLIC, {"test": ROWS["test"]})
    exact = server.adapter_arrays()
    own = {site: {k: np.float32(factor) * v for k, v in exact.items()} for site, factor in (("b", 0.5), ("a", -1.0))}
    texts, labels = ROWS["test"]
    found = scores.final("test", own)
    for kind in ROUTES:
        expected = []
        for arrays in own.values():
            with server.using(arrays):
                expected.append(loss_sum(margins(server, kind, texts), labels))
        total = sum(expected) if kind.startswith("adap") else expected[0]
        assert found[kind].plain.loss_sum == pytest.approx(total, rel=1e-4), kind
