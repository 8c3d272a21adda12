"""The code behind the tweet tables, on a tiny model and few rows: each kind of arm, resumed or not, by hand."""

import gzip
from dataclasses import replace

import numpy as np
import pytest

from experiments import tweets_run
from experiments.tweets_arms import TABLES, Arm
from experiments.tweets_data import Sizes, Tweets, questions
from experiments.tweets_run import run_arm, settings_digest
from llm_qfl.federation.seeding import seed_of
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.models import load_base
from llm_qfl.language.scoring import LabelScorer, class_weights
from llm_qfl.language.server import ServerLanguage
from llm_qfl.language.tokens import LabelWords

pytestmark = pytest.mark.slow  # eleven small federations with torch

SIZES = Sizes(train=80, public=64, test=24, written_test=10)
MODEL = "tiny-6"
SMALL = {"adapter_layers": 2, "rank": 2, "emulator_rank": 2, "align_first": 3, "align_steps": 2, "max_tokens": 100}
LETTERS = ("a", "b", "c")  # the words of the table begin alike in bytes


@pytest.fixture(autouse=True)
def _small(monkeypatch, one_torch_thread, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tweets_run, "WORDS", LETTERS)
    monkeypatch.setattr(tweets_run, "ROUNDS", 3)
    monkeypatch.setattr(tweets_run, "STEPS", 2)
    monkeypatch.setitem(tweets_run.COMMON, "steps", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("tweets"), np.random.default_rng(0)
    for kind in ("train", "test", "shifted"):
        labels = random.integers(3, size=120)
        rows = [f"{kind} {n} {'xyz'[y] * 4},{y}" for n, y in enumerate(labels)]
        with gzip.open(folder / f"tweet_sentiment_{kind}.csv.gz", "wt") as file:
            file.write("\n".join(["text,label", *rows, ""]))
    return folder


def run(arm, data, work, table="classification", seed=0):
    small = replace(arm, config={**arm.config, **SMALL})
    found = run_arm(table, small, seed, data=data, work=work, sizes=SIZES, model=MODEL)
    return {key: value for key, value in found.items() if not key.endswith("seconds")}


BIOT = Arm("biot", config={"beta": 0.5, "align_every": 1}, public="related", calibrate=True)


@pytest.mark.parametrize(
    ("table", "arm"),
    [
        ("classification", BIOT),
        ("generation", BIOT),
        ("classification", Arm("local", config={"beta": 0.5, "method": "local"}, public="related")),
        ("classification", Arm("one", config={"beta": 0.5, "method": "offsite"}, public="unrelated")),
        ("generation", Arm("control", "control", {"method": "fedlora-tail"}, "related", labels=True)),
        ("classification", Arm("zero", "zero-shot")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_is_kept_changes_no_number(data, tmp_path, table, arm):
    """A line made again from the states and emulators of the first time is the same line; another seed's is not."""
    first = run(arm, data, tmp_path / "work", table)
    assert run(arm, data, tmp_path / "work", table) == first
    assert run(arm, data, tmp_path / "fresh", table) == first
    if arm.kind != "zero-shot":
        assert run(arm, data, tmp_path / "work", table, seed=1)["adap-fu"] != first["adap-fu"]
        sites = 1 if arm.name == "one" else 4
        assert first["bytes_up"] % (sites * 3) == 0  # rounds
        assert sum(first["rows"]) == (SIZES.public if arm.kind == "control" else SIZES.train)
        up, down = first["bytes_up"], first["bytes_down"]
        assert down == up if "compressed-zero-shot" not in first else down > up


def test_emulators_are_kept_apart(data, tmp_path):
    """Other steps, public text or rank: another emulator, though the folder is one."""
    losses = {
        str(change): run(replace(BIOT, config={**BIOT.config, "align_every": 0, **change}), data, tmp_path)["adap-fu"]
        for change in ({}, {"kl_weight": 1.0}, {"align_rate": 1e-3})
    }
    assert len({repr(loss) for loss in losses.values()}) == len(losses)


def test_a_line_is_the_protocol_done_by_hand(data, tmp_path):
    """Two rounds' worth of code: server, four clients with their rows, weights by rows; no realignment, no cache."""
    arm = replace(BIOT, config={**BIOT.config, **SMALL, "align_every": 0}, calibrate=False)
    found = run_arm("classification", arm, 0, data=data, work=tmp_path / "work", sizes=SIZES, model=MODEL)
    config = tweets_run.config_of("classification", arm, MODEL)
    base = load_base(MODEL, tmp_path)
    server = ServerLanguage(base, config, seed=0)
    tweets: Tweets = tweets_run.read_tweets(data, SIZES, 0)
    words = LabelWords.of(LETTERS, base.tokenizer)

    def rows(texts, labels, weights=None):
        return questions(texts, words, base.tokenizer).answered(labels, weights)

    server.align(rows(tweets.public, tweets_run.drawn_labels(SIZES.public)), 0)
    exported = server.export(tmp_path / "models")
    clients = [ClientLanguage(load_compressed(exported.folder, exported.sha256), config) for _ in range(4)]
    parts = tweets_run.deal(tweets.labels, 0, "dirichlet")
    for number in (1, 2, 3):
        sent, answers = server.broadcast(emulator=True), []
        for site, (client, part) in enumerate(zip(clients, parts, strict=True)):
            client.receive(sent.arrays, sent.emulator_digest)
            labels = tweets.labels[part]
            mine = rows(tuple(tweets.texts[i] for i in part), labels, class_weights(np.bincount(labels, minlength=3)))
            seed = seed_of(0, f"site-{site}", number, "language-train")
            update = client.train(mine, seed=seed, offset=2 * (number - 1), total=6)
            answers.append((server.receive(update.arrays, sent.adapter_digest), sent.adapter_digest, float(len(part))))
        server.aggregate(answers)
    test = LabelScorer(questions(tweets.test, words, base.tokenizer))
    for route in ("adap-emu", "adap-fu"):
        scores = test.log_likelihoods(server.route(route))
        picked = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        nll = -picked[np.arange(SIZES.test), tweets.test_labels].mean()
        assert found[route]["nll"] == pytest.approx(nll, rel=1e-4)
    public = LabelScorer(questions(tweets.public, words, base.tokenizer)).log_likelihoods(server.route("adap-fu"))
    bias = np.zeros(3)
    for _ in range(500):  # the fixed point at which public prompts get every class equally often
        shown = np.exp(public + bias)
        bias -= np.log(3 * (shown / shown.sum(axis=1, keepdims=True)).mean(axis=0))
    moved = scores + bias
    picked = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
    nll = -picked[np.arange(SIZES.test), tweets.test_labels].mean()
    assert found["adap-fu, no labels"]["nll"] == pytest.approx(nll, rel=1e-4) != pytest.approx(found["adap-fu"]["nll"])


def test_without_public_text_no_prior_is_known(data, tmp_path):
    found = run(Arm("none", config={"beta": 0.5, "align_first": 0, "align_every": 0}), data, tmp_path)
    assert "adap-fu" in found
    assert "adap-fu, no labels" not in found
    marks = run(Arm("tail", config={"method": "fedlora-tail"}), data, tmp_path)
    assert "adap-fu, no labels" in marks  # of a mark, on the related text


def test_the_digest_knows_defaults(monkeypatch):
    arm = next(arm for arm in TABLES["classification"] if arm.name == "fedlora-tail")
    before = settings_digest("classification", arm, Sizes())
    assert settings_digest("classification", replace(arm, name="another"), Sizes()) == before
    config = tweets_run.config_of("classification", arm, "smollm2-135m")
    other = config.model_copy(update={"learning_rate": 0.5})
    monkeypatch.setattr(tweets_run, "config_of", lambda *_: other)
    assert settings_digest("classification", arm, Sizes()) != before
