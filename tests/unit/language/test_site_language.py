"""What a site answers, against the server's own computation along the route that the answer is about."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax

from client_app.language import SiteLanguage
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.records import LanguageTask
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage
from llm_qfl.language.tiny import byte_tokenizer

BYTES = byte_tokenizer()
WORDS = ("up", "down")
ROWS = {
    "train": (("ab", "cd e", "f", "gh", "ijk l", "mn", "op", "q"), np.array([0, 1, 0, 1, 1, 1, 0, 1])),
    "validation": (("good film", "bad", "so so"), np.array([0, 1, 1])),
    "test": (("fine", "awful", "dull", "a day", "no"), np.array([0, 1, 1, 0, 1])),
}
SETUP = SimpleNamespace(text=TextPlan("text", "Q: {row}\nA:", WORDS))
CONFIG = RunConfig.from_run_config(
    {
        "language.model": "tiny-4",
        "language.adapter-layers": 1,
        "language.beta": 0.4,
        "language.steps": 2,
        "language.batch-size": 3,
        "language.learning-rate": 0.02,
        "language.rank": 2,
        "language.emulator-rank": 2,
        "language.device": "cpu",
        "language.dtype": "float32",
    }
)


@pytest.fixture
def server(tmp_path, shake) -> ServerLanguage:
    made = ServerLanguage(load_base("tiny-4", tmp_path), CONFIG.language, seed=3)
    shake(made.emulator, 1, 0.4)
    made.distribution.publish(first=True)
    shake(made.adapter, 2, 0.4)
    made.set_adapter(made.adapter.arrays())
    return made


@pytest.fixture
def site_of(server, tmp_path, monkeypatch):
    monkeypatch.setattr(SiteLanguage, "_texts", lambda self, setup, part: ROWS[part])
    exported, sent = server.export(tmp_path / "models"), server.broadcast(emulator=True)

    def make(name: str = "clinic", **changes: object) -> SiteLanguage:
        settings = NodeSettings.from_node_config({"partition-id": 0, "num-partitions": 1, "folder": str(tmp_path)})
        digests = (sent.adapter_digest, sent.emulator_digest, sent.first_digest)
        task = LanguageTask(
            str(exported.folder), exported.sha256, {}, sent.arrays, *digests, train=True, score=True, **changes
        )
        return SiteLanguage(CONFIG, settings, name, "run", task)

    return make


def loss_sum(server: ServerLanguage, kind: str, part: str) -> float:
    """Each label word scored as an answer of its own, by the server's copy of the model."""
    texts, labels = ROWS[part]
    prompts = [BYTES(f"Q: {text}\nA:")["input_ids"] for text in texts]
    likelihoods = []
    for word in WORDS:
        answered = [[*prompt, *BYTES(f" {word}")["input_ids"]] for prompt in prompts]
        found = server.score(kind, TokenRows.of(answered, [len(prompt) for prompt in prompts]))
        likelihoods.append([-row.sum() for row in found])
    return float(-log_softmax(np.array(likelihoods).T, axis=1)[np.arange(len(labels)), labels].sum())


def test_a_site_scores_each_route_under_its_own_name(server, site_of) -> None:
    found, problem = site_of().scores(SETUP)
    assert problem == ""
    seen = []
    for route in ("compressed-zero-shot", "adap-emu"):
        for part in ("validation", "test"):
            assert found[route][part].count == len(ROWS[part][0])
            assert found[route][part].loss_sum == pytest.approx(loss_sum(server, route, part), rel=1e-4)
            seen.append(found[route][part].loss)
    assert min(np.diff(sorted(seen))) > 1e-2


def test_a_round_is_scored_on_validation_rows_with_the_adapter_before_and_after(server, site_of) -> None:
    answer, problem = site_of().train(SETUP, 1)
    assert problem == ""
    before = loss_sum(server, "adap-emu", "validation")
    with server.using(server.receive(answer.arrays, answer.adapter_digest)):
        after = loss_sum(server, "adap-emu", "validation")
    assert answer.received.loss_sum == pytest.approx(before, rel=1e-4)
    assert answer.trained.loss_sum == pytest.approx(after, rel=1e-4)
    assert abs(before - after) > 1e-2
    assert answer.num_examples == len(ROWS["train"][0])


def test_batches_differ_by_round_and_site_and_the_rate_falls_along_the_run(site_of) -> None:
    """The same adapter, sent to the same rows: what is drawn, and where in the run it is, make the difference."""

    def trained(name: str = "clinic", server_round: int = 1, **changes: object) -> np.ndarray:
        answer, problem = site_of(name, **changes).train(SETUP, server_round)
        assert problem == ""
        return np.concatenate([answer.arrays[key].ravel() for key in sorted(answer.arrays)])

    first = trained()
    assert np.array_equal(first, trained())
    assert not np.allclose(first, trained(server_round=2), atol=1e-5)
    assert not np.allclose(first, trained("hospital"), atol=1e-5)
    early, late = trained(offset=0, total=20), trained(offset=17, total=20)
    assert not np.allclose(early, late, atol=1e-5)
