"""One line of a tweet table at one seed, through the same code as any run: server, compressed model, four sites."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tweets_arms import BATCH, COMMON, ROUNDS, STEPS, Arm
from experiments.tweets_data import (
    SERVER_SEED,
    SITES,
    WORDS,
    Sizes,
    Tweets,
    deal,
    drawn_labels,
    questions,
    read_tweets,
    requests,
)
from experiments.tweets_states import Client, Server, States, align_first
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.seeding import seed_of
from llm_qfl.federation.types import Array, Labels
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.client import share
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.lora import Arrays
from llm_qfl.language.models import load_base
from llm_qfl.language.public import public_texts
from llm_qfl.language.route import Route
from llm_qfl.language.scoring import (
    Calibration,
    LabelScorer,
    class_weights,
    fit_bias_and_scale,
    match_prior,
    written_scores,
)
from llm_qfl.language.tokens import LabelWords

Metrics = dict[str, Any]


@dataclass
class Job:
    """What a line is run on.

    Attributes:
        table: `classification` or `generation`.
        arm: the line.
        seed: of private rows, deal and batches.
        tweets: the rows.
        server: the full model.
        work: folder of what arms share.
        states: the frozen layers' states.
    """

    table: str
    arm: Arm
    seed: int
    sizes: Sizes
    tweets: Tweets
    server: Server
    work: Path
    states: States

    @cached_property
    def words(self) -> LabelWords:
        """The classes' answers as tokens."""
        return LabelWords.of(WORDS, self.tokenizer)

    @property
    def tokenizer(self) -> Any:
        """The base model's."""
        return self.server.base.tokenizer

    def rows(self, texts: tuple[str, ...], labels: Labels, *, balanced: bool) -> TokenRows:
        """Training rows of the table's task."""
        if self.table == "generation":
            return requests(texts, labels, self.tokenizer)
        weight = class_weights(np.bincount(labels, minlength=len(WORDS))) if balanced else None
        return questions(texts, self.words, self.tokenizer).answered(labels, weight)

    def public_texts(self, source: str) -> tuple[str, ...]:
        """The public tweets, or as many texts that are unrelated."""
        unrelated = source == "unrelated"
        return public_texts("embedded", self.sizes.public, seed=SERVER_SEED) if unrelated else self.tweets.public

    def public(self, source: str, *, labels: bool = False) -> TokenRows:
        """Public rows in the form of the task; without `labels` the classes in them are drawn."""
        texts = self.public_texts(source)
        classes = self.tweets.public_labels if labels else drawn_labels(len(texts))
        return self.rows(texts, classes, balanced=labels)

    def unlabelled(self) -> tuple[str, ...]:
        """Texts that a flat prior is matched on: the arm's own public ones; of the marks, the related ones."""
        if self.arm.public == "none" and self.arm.kind == "federation" and self.server.config.compresses:
            return ()
        return self.public_texts(self.arm.public)

    def sites(self) -> list[TokenRows]:
        """Training rows of each site; of the control, an equal deal of the public ones."""
        labels = self.tweets.labels
        if self.arm.kind == "control":
            rows = self.public("related", labels=self.arm.labels)
            return [rows.take(part) for part in deal(self.tweets.public_labels, self.seed, "iid")]
        parts = deal(labels, self.seed, "shard" if self.table == "generation" else "dirichlet")
        texts = self.tweets.texts
        balanced = self.server.config.balance  # off in the preset `released`
        return [self.rows(tuple(texts[i] for i in part), labels[part], balanced=balanced) for part in parts]


def run_arm(
    table: str, arm: Arm, seed: int, *, data: Path, work: Path, sizes: Sizes, model: str = "smollm2-135m"
) -> Metrics:
    """Run a line at a seed and score it.

    Args:
        table: `classification` or `generation`.
        arm: the line.
        seed: the seed.
        data: folder of the tweets.
        work: folder of what arms share.
        sizes: how many rows.
        model: the base model.
    """
    started = time.perf_counter()
    config = config_of(table, arm, model)
    tweets = read_tweets(data, sizes, seed)
    states = States(work / "states")
    server = Server(load_base(model, Path.home() / ".cache" / "llm-qfl" / "models"), config, states, seed=SERVER_SEED)
    job = Job(table, arm, seed, sizes, tweets, server, work, states)
    if arm.kind == "zero-shot":
        found = _zero_shot(job)
    elif arm.kind == "features":
        from experiments.tweets_features import score_features

        found = score_features(job)
    else:
        found = _federation(job, config)
    return {
        "table": table,
        "arm": arm.name,
        "seed": seed,
        "settings": settings_digest(table, arm, sizes),
        "public": arm.public,
        "public_labels": arm.labels,
        "test_rows": sizes.test if table == "classification" else sizes.written_test,
        **found,
        "seconds": time.perf_counter() - started,
    }


def config_of(table: str, arm: Arm, model: str) -> LanguageConfig:
    """The section `language` of a line."""
    calibrate = {"calibrate_steps": 60} if arm.calibrate and table == "classification" else {}
    return LanguageConfig(
        **{"model": model, "task": table, **COMMON, "batch_size": BATCH[table], **calibrate, **arm.config}
    )


def settings_digest(table: str, arm: Arm, sizes: Sizes) -> str:
    """Names what a line was made with, defaults included, its seed apart: lines of others stand in no table of it."""
    from experiments.tweets_features import LAYER, RUN

    own = (RUN, LAYER, RunConfig().flat()) if arm.kind == "features" else ()
    language = sorted(config_of(table, arm, "smollm2-135m").effective().model_dump().items())
    what = (arm.kind, arm.public, arm.labels, ROUNDS, STEPS, SITES, SERVER_SEED, sizes)
    text = repr((language, what, *own))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(job: Job) -> tuple[TokenRows | None, float | None]:
    """Public rows and the first alignment, where the arm has them: (rows, boundary loss of the last ten steps)."""
    if job.arm.public == "none" or job.arm.kind == "control":
        return None, None
    rows = job.public(job.arm.public)
    if job.server.emulator is None:
        return rows, None
    return rows, align_first(job.server, rows, job.work / "emulators")


def make_clients(job: Job, config: LanguageConfig) -> Iterator[Client]:
    """The sites' models, loaded from an export as sites do, the frozen weights shared in this process."""
    with tempfile.TemporaryDirectory() as folder:
        exported = job.server.export(Path(folder))
        model = load_compressed(exported.folder, exported.sha256)
    for copy in [share(model) for _ in range(SITES - 1)] + [model]:
        yield Client(copy, config, job.states)


def _federation(job: Job, config: LanguageConfig) -> Metrics:
    server, (public, loss) = job.server, prepare(job)
    sites = job.sites()
    clients = list(make_clients(job, config))
    who = [0] if config.one_site else list(range(SITES))
    total, up, down, seconds = ROUNDS * STEPS, 0, 0, 0.0
    own: list[Arrays] = []
    for number in range(1, ROUNDS + 1):
        answers = []
        for site in who:
            client = clients[site]
            # a site that is new to the emulator gets it with the adapter
            sent = server.broadcast(emulator=not client.holds(server.broadcast(emulator=False).emulator_digest))
            client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
            seed = seed_of(job.seed, f"site-{site}", number, "language-train")
            update = client.train(sites[site], seed=seed, offset=(number - 1) * STEPS, total=total)
            up, down, seconds = up + update.size, down + sent.size, seconds + update.report.step_seconds
            values = server.receive(update.arrays, sent.adapter_digest)
            answers.append((values, sent.adapter_digest, float(len(sites[site]))))
        if config.federated:
            server.aggregate(answers)
        else:
            own = [values for values, _, _ in answers]
        again = config.realigns and number % server.config.align_every == 0 and number < ROUNDS
        if again and public is not None:
            report = server.align(public, number)
            job.states.realigned()
            loss = float(np.mean(report.boundary_losses)) if report else loss
    found: Metrics = {"boundary_loss": loss, "rows": [len(rows) for rows in sites], "step_seconds": seconds}
    found |= {"bytes_up": up, "bytes_down": down}
    return found | _scores(job, own, public)


def _scores(job: Job, own: list[Arrays], public: TokenRows | None) -> Metrics:
    """AdapEmu and AdapFu; where nothing was averaged, the mean over the sites' own."""
    server, scorer = job.server, Scorer(job)
    kinds = ("adap-emu", "adap-fu") if server.config.compresses else ("adap-fu",)
    out: Metrics = {}
    if server.config.compresses:
        out["compressed-zero-shot"] = scorer(server.route("compressed-zero-shot"))
    for kind in kinds:
        each: list[Metrics] = []
        for arrays in own or [server.adapter_arrays()]:
            with server.using(arrays):
                each.append(scorer.plain_and_matched(kind) if kind == "adap-fu" else {kind: scorer(server.route(kind))})
        for name in each[0]:
            out[name] = {key: float(np.mean([one[name][key] for one in each])) for key in each[0][name]}
    if server.config.calibrate_steps and public is not None and server.emulator is not None and not own:
        server.calibrate(public, ROUNDS, [tokens[0] for tokens in job.words.tokens])
        out["adap-fu-calibrated"] = scorer(server.route("adap-fu"))
    return out


class Scorer:
    """Scores a way through the model on the test rows of the table.

    Args:
        job: what is run.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._tweets = job, job.tweets
        if job.table == "classification":
            prompts = questions(self._tweets.test, job.words, job.tokenizer)
            self._labels = LabelScorer(prompts, cache_of=job.states.of)
        else:
            some = slice(0, job.sizes.written_test)
            self._rows = requests(self._tweets.test[some], self._tweets.test_labels[some], job.tokenizer)

    def __call__(self, route: Route, calibration: Calibration | None = None) -> dict[str, float]:
        """Metrics of the test rows."""
        if self._job.table == "generation":
            cache = self._job.states.of(route, self._rows)
            written = written_scores(route, self._rows, self._job.tokenizer.eos_token_id, cache)
            return {"nll": _number(written.nll), "text": _number(written.text_nll), "end": _number(written.end_nll)}
        return self.of(self.likelihoods(route), calibration)

    def plain_and_matched(self, kind: str) -> Metrics:
        """A route as it answers and, in classification, with the biases that give it a flat prior on public prompts."""
        route, texts = self._job.server.route(kind), self._job.unlabelled()
        if self._job.table == "generation" or not texts:
            return {kind: self(route)}
        found = self.likelihoods(route)
        return {kind: self.of(found), f"{kind}, no labels": self.of(found, self.flat_prior(route, texts))}

    def flat_prior(self, route: Route, texts: tuple[str, ...]) -> Calibration:
        """Biases with which unlabelled prompts get every class equally often."""
        prompts = questions(texts, self._job.words, self._job.tokenizer)
        return match_prior(LabelScorer(prompts, cache_of=self._job.states.of).log_likelihoods(route))

    def likelihoods(self, route: Route) -> Array:
        """Log-likelihoods of the label words on the test rows."""
        return self._labels.log_likelihoods(route)

    def of(self, likelihoods: Array, calibration: Calibration | None = None) -> dict[str, float]:
        """Accuracy, macro-recall and NLL of log-likelihoods."""
        calibration = calibration or Calibration.none(len(WORDS))
        scores = calibration.scores(likelihoods, self._tweets.test_labels)
        return {
            "accuracy": _number(scores.accuracy),
            "recall": _number(scores.balanced_accuracy),
            "nll": _number(scores.loss),
        }


def _zero_shot(job: Job) -> Metrics:
    """The full model as it is; in classification also with biases fitted, with labels and without."""
    route, scorer = job.server.route("zero-shot"), Scorer(job)
    if job.table == "generation":
        return {"adap-fu": scorer(route)}
    test = scorer.likelihoods(route)
    out: Metrics = {"adap-fu": scorer.of(test)}
    train = questions(job.tweets.texts, job.words, job.tokenizer)
    labels = job.tweets.labels
    weights = class_weights(np.bincount(labels, minlength=len(WORDS)))  # as in the tail's own loss
    fitted = fit_bias_and_scale(LabelScorer(train, cache_of=job.states.of).log_likelihoods(route), labels, weights)
    matched = scorer.flat_prior(route, job.unlabelled())
    return out | {"biases, train labels": scorer.of(test, fitted), "biases, no labels": scorer.of(test, matched)}


def _number(value: float | None) -> float:
    if value is None:
        raise ValueError("a score of no rows")
    return float(value)
