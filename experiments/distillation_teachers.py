"""Teachers of the distillation table: every site's tuned language model, and what it says of the site's rows.

The language part of a run through its own classes (server, exported model, sites; as in the tweet tables): a few
rounds of tuning and averaging before the QNN's first round. What a site's own adapter says when it has just been tuned
is the teacher of a run; what the average of the last round says is kept beside it. States of frozen layers lie in the
folder `states` and come from private rows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client_app.data import site_texts
from experiments.distillation_tasks import AVERAGED, OWN, Task, Tuning, metrics
from experiments.tweets_data import FILES, WORDS
from experiments.tweets_states import Client, Server, States
from llm_qfl.federation.data.prompts import read_strings
from llm_qfl.federation.data.sums import FeatureSums, combine
from llm_qfl.federation.data.synthetic import write_csv
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.seeding import seed_of
from llm_qfl.federation.settings import NodeSettings, default_folder
from llm_qfl.federation.types import Array, Labels, Scores
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.cache import StateCache
from llm_qfl.language.client import share
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.models import load_base
from llm_qfl.language.route import Route
from llm_qfl.language.soft_labels import soft_labels
from llm_qfl.language.task import TaskView, text_features, text_plan
from llm_qfl.language.tokens import ClassRows
from server_app.language_scores import server_texts
from simulation.policy_teachers import Recording
from simulation.policy_world import World

if TYPE_CHECKING:
    from torch import Tensor

PICK_SEED = 7
Texts = tuple[tuple[str, ...], Labels]


class SharedStates(States):
    """Boundary states of all rows of a task in one file; a site's rows are looked up in it.

    Args:
        folder: where the file lies.
        rows: every row of the task with every answer that is scored.
    """

    def __init__(self, folder: Path, rows: ClassRows) -> None:
        super().__init__(folder)
        unique = {key_of(ids): ids for word in range(len(rows.words.tokens)) for ids in rows.with_word(word).ids}
        self._all = TokenRows.of(list(unique.values()))
        self._number = {key: number for number, key in enumerate(unique)}
        self._caches: dict[tuple[str, str], StateCache] = {}

    def of(self, route: Route, rows: TokenRows) -> StateCache | None:
        """See States."""
        master = super().of(route, self._all)
        if master is None:
            return None
        key = (route.version(), rows.digest())
        if key not in self._caches:
            numbers = np.array([self._number[key_of(ids)] for ids in rows.ids])

            def look_up(part: np.ndarray) -> Tensor:
                route.fill(master, numbers[part])
                return master.batch(numbers[part])

            self._caches[key] = route.cache(rows)
            self._caches[key].fill(np.arange(len(rows)), look_up)
        return self._caches[key]


def key_of(ids: np.ndarray) -> bytes:
    """A row without its last token, whose state predicts nothing."""
    return ids[:-1].tobytes()


def write_tweets(data: Path, work: Path, tuning: Tuning) -> None:
    """Tweets as texts and, in the same order, as numbers: mean states of the full model's middle layer."""
    work.mkdir(parents=True, exist_ok=True)
    config = tuning.config("tweets")
    server = Server(load_base(tuning.model, default_folder() / "models"), config, States(work / "states"), seed=0)
    for kind, count in (("train", tuning.train), ("test", tuning.test)):
        if (done := work / f"tweets-{kind}-numbers.csv").exists():
            continue
        texts, labels = read_strings(data / FILES[kind], ("text", "label"))
        order = np.random.default_rng(PICK_SEED).permutation(len(texts)) if kind == "train" else np.arange(len(texts))
        chosen = np.sort(order[:count])
        names = [WORDS[int(labels[i])] for i in chosen]
        picked = [texts[i] for i in chosen]
        pairs = [list(pair) for pair in zip(picked, names, strict=True)]
        write_csv(work / f"tweets-{kind}-texts.csv", ["text", "label"], pairs)
        with server.distributed() as route:
            numbers = text_features(route, picked, server.base.tokenizer, config, 0)
        lines = [[*(f"{value:.6g}" for value in row), name] for row, name in zip(numbers, names, strict=True)]
        partial = work / f"tweets-{kind}-numbers.partial"
        write_csv(partial, [*(f"h{i}" for i in range(numbers.shape[1])), "label"], lines)
        partial.replace(done)


@dataclass(frozen=True, eq=False)
class Reading:
    """A task's rows as the language model reads them.

    Attributes:
        view: prompts and label words.
        sites: texts and classes by site and part.
        test: of the server's test rows.
    """

    view: TaskView
    sites: Mapping[str, Mapping[str, Texts]]
    test: Texts

    def prompts(self) -> ClassRows:
        """Every row's prompt."""
        rows = [self.test, *(texts for parts in self.sites.values() for texts in parts.values())]
        made = [self.view.prompts(texts) for texts, _ in rows]
        return ClassRows(tuple(prompt for one in made for prompt in one.prompts), made[0].words)


def read_rows(task: Task, world: World, work: Path, server: Server) -> Reading:
    """The rows of a federation as texts.

    Raises:
        FederationError: texts and numbers are not of the same rows.
    """
    opened, config = world.opened, task.text_config(world.case.seed, work)
    setup = task.text_setup(opened.setup)
    sums = [
        (site, FeatureSums.from_arrays(one.sums, classes=one.class_names, reduction=task.reduction))
        for site, one in opened.roll.answers.items()
        if one.sums is not None
    ]
    names = () if task.rows == "tweets" else next(iter(opened.roll.answers.values())).columns
    total = combine(sums, setup.class_names) if names else None
    tokenizer = server.base.tokenizer
    plan = text_plan(server.config, setup.encoding, names, setup.class_names, total, tokenizer)
    setup = replace(setup, text=plan)
    sites: dict[str, dict[str, Texts]] = {}
    for node in world.nodes.values():
        own = NodeSettings.from_node_config(node)
        numbers, sites[own.site] = world.partitions[own.site], {}
        for name, rows in (("train", numbers.train), ("validation", numbers.validation)):
            texts, labels, _ = site_texts(config, own, own.site, setup, name)
            if not np.array_equal(labels, rows.y):
                raise FederationError(f"distillation: {own.site}'s {name} texts are of other rows than its numbers")
            sites[own.site][name] = (texts, labels)
    held = server_texts(config, setup)
    if "test" not in held:
        raise FederationError("distillation: the server holds no test rows")
    test = held["test"][:2]
    return Reading(TaskView.of(plan, server.config, tokenizer), sites, test)


def record_teachers(task: Task, world: World, work: Path, tuning: Tuning) -> Recording:
    """Tune every site's language model; what each says in the end.

    Args:
        task: the task.
        world: its federation on a split.
        work: folder of rows and states.
        tuning: how long.

    Raises:
        FederationError: texts and numbers are not of the same rows.
    """
    config, split = tuning.config(task.rows), world.case.seed
    server = Server(load_base(tuning.model, default_folder() / "models"), config, States(work / "states"), seed=split)
    reading = read_rows(task, world, work, server)
    clients = make_clients(server, SharedStates(work / "states", reading.prompts()), sorted(reading.sites))
    rows = {site: reading.view.training(*parts["train"]) for site, parts in reading.sites.items()}
    for number in range(1, tuning.rounds + 1):
        answers = []
        for site, client in clients.items():
            sent = server.broadcast(emulator=False)
            client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
            seed = seed_of(split, site, number, "language")
            done, total = (number - 1) * tuning.steps, tuning.rounds * tuning.steps
            update = client.train(rows[site], seed=seed, offset=done, total=total)
            values = server.receive(update.arrays, sent.adapter_digest)
            answers.append((values, sent.adapter_digest, float(len(rows[site]))))
        server.aggregate(answers)
    own = _said(clients, reading)
    sent = server.broadcast(emulator=False)
    for client in clients.values():
        client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    averaged = _said(clients, reading)
    parts = {OWN: own, AVERAGED: averaged}
    about = {"tuning": tuning.name, "rows": task.rows, "split": str(split)}
    return Recording(
        {part: said.losses for part, said in parts.items()},
        {part: said.labels for part, said in parts.items()},
        {**about, "own": json.dumps(own.scores), "averaged": json.dumps(averaged.scores)},
    )


def make_clients(server: Server, states: SharedStates, sites: list[str]) -> dict[str, Client]:
    """The sites' models, loaded from an export as sites do, the frozen weights shared in this process."""
    with tempfile.TemporaryDirectory() as folder:
        exported = server.export(Path(folder))
        model = load_compressed(exported.folder, exported.sha256)
    copies = [share(model) for _ in sites[1:]] + [model]
    return {site: Client(copy, server.config, states) for site, copy in zip(sites, copies, strict=True)}


@dataclass(frozen=True, eq=False)
class Said:
    """What the sites' language models say at one moment.

    Attributes:
        losses: L_i by site, nats.
        labels: soft labels of the training rows by site.
        scores: metrics of the sites' validation rows, and of the test rows, which every site's model scores.
    """

    losses: Mapping[str, float]
    labels: Mapping[str, Array]
    scores: Mapping[str, Mapping[str, float | None]]


def _said(clients: Mapping[str, Client], reading: Reading) -> Said:
    losses: dict[str, float] = {}
    labels: dict[str, Array] = {}
    found: dict[str, Scores] = {}
    for site, client in clients.items():
        route, parts = client.route(), reading.sites[site]
        prompts = reading.view.prompts(parts["train"][0])
        labels[site] = soft_labels(route, prompts, cache_of=client.cache_of).probabilities
        for name, (texts, y) in (("validation", parts["validation"]), ("test", reading.test)):
            scores = reading.view.held_out(texts, y, cache_of=client.cache_of).scores(route)
            found[name] = found[name] + scores if name in found else scores
            if name == "validation" and scores.loss is not None:
                losses[site] = scores.loss
    return Said(losses, labels, {name: metrics(scores) for name, scores in found.items()})
