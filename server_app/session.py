"""One run of the server: census -> setup -> rounds -> test -> summary. Input and output at the edge (`Book`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.serverapp import Grid

from agent.decider import Decider
from agent.decisions import Decision
from agent.termination import Stop
from llm_qfl.baselines import Baseline, make_baselines
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.pool import read_pool
from llm_qfl.federation.fingerprint import fingerprint
from llm_qfl.federation.records import Evaluation, state_record
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import NOTHING, GlobalState, RoundSummary, Scores, Spent
from llm_qfl.quantum.exact.engine import DEFAULT_MEMORY_BUDGET, check_memory
from llm_qfl.quantum.model import QNNModel, get_model
from llm_qfl.quantum.scope import Scope
from llm_qfl.quantum.training import round_budget
from server_app.census import Roll, make_setup, take_census
from server_app.checkpoint import Json
from server_app.evaluation import Scorer, pool
from server_app.grid import BoundedGrid
from server_app.language import LanguageSession, open_language
from server_app.language_end import finish as finish_language
from server_app.policy import make_decider
from server_app.privacy import privacy_notes
from server_app.progress import Progress
from server_app.resume import Resumed
from server_app.rows import server_rows
from server_app.strategy import Close, QNNStrategy, Tell
from server_app.terms import Terms


class Book(Protocol):
    """Who is told what happens: the run folder and the terminal, or a test's memory.

    Attributes:
        run_id: of the run; the sites' jobs belong to it.
    """

    run_id: str

    def note(self, text: str) -> None:
        """Something that takes long begins or is done."""

    def begin(self, opened: Opened) -> None:
        """The census is closed and the setup fixed."""

    def close_round(self, summary: RoundSummary, state: GlobalState) -> None:
        """A round is closed."""

    def decided(self, decision: Decision, reward: float | None, reward_round: int | None) -> None:
        """A decision was carried out; the newest reward that is known, and the round that earned it."""

    def checkpoint(self, progress: Progress) -> None:
        """All that was told so far counts; the run could go on from here."""

    def record(self, decision: Decision) -> None:
        """A decision that is about to be carried out: should the server die now, it stands."""


@dataclass(frozen=True, eq=False)
class Opened:
    """What is known before the first round; `model` is on the exact backend, for the server trains nothing."""

    config: RunConfig
    roll: Roll
    setup: Setup
    model: QNNModel
    baselines: Mapping[str, Baseline]
    fingerprint: Mapping[str, str]
    language: LanguageSession | None = None
    """The language model beside the QNN; it changes as the run goes on."""
    decider: Decider | None = None
    """Decides the rounds; None where all are alike. It changes as the run goes on."""
    resumed: Resumed | None = None
    """What an earlier server left of this run."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What a run leaves.

    Attributes:
        opened: what was known before the first round.
        state: the final state.
        rounds: every round that was closed since the run began or went on.
        validation: of the final state: sums for `qnn` and each baseline; empty where nobody has validation rows.
        test: the same for the test rows, touched once.
        bytes_up: bytes of all answers, census and last exchange included; without the baselines'.
        bytes_down: bytes of all tasks, likewise.
        left_out: site -> why it has no part in the last exchange.
        scoring: the sites' answers of the last exchange: what it cost them.
        seconds: wall time from the census to the test.
        server_spent: shots and jobs of scoring on the server's own rows.
        stop: why the run ended before its last round, or None.
        past: the ledger's lines of the rounds before an interruption.
        joined: sites that came after the census.
        resumed_after: closed rounds after which the run went on.
    """

    opened: Opened
    state: GlobalState
    rounds: tuple[RoundSummary, ...]
    validation: Mapping[str, Scores]
    test: Mapping[str, Scores]
    bytes_up: int
    bytes_down: int
    left_out: Mapping[str, str]
    scoring: tuple[Evaluation, ...]
    seconds: float
    server_spent: Spent = NOTHING
    stop: Stop | None = None
    past: tuple[Json, ...] = ()
    joined: tuple[str, ...] = ()
    resumed_after: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Closed:
    """A run whose last round is closed and whose model has not been scored on test rows."""

    opened: Opened
    strategy: QNNStrategy
    state: GlobalState
    rounds: tuple[RoundSummary, ...]
    before: Progress
    scope: Scope
    started: float


def run_session(grid: Grid, config: RunConfig, book: Book, resumed: Resumed | None = None) -> Finished:
    """The whole run over a Flower grid.

    Args:
        grid: the nodes.
        config: the run config.
        book: who is told.
        resumed: what an earlier server left of this run; None begins a new one.

    Raises:
        ConfigError, DataError, CircuitError, LanguageError, FederationError: before the first round, with what to do.
    """
    closed = run_rounds(grid, config, book, resumed)
    opened, strategy, rounds = closed.opened, closed.strategy, closed.rounds
    validation, test, spent = _final_scores(opened, strategy, closed.state, closed.scope)
    if opened.language is not None:
        finish_language(opened.language, strategy.evaluations)
    up, down = strategy.evaluation_bytes
    past = () if resumed is None else resumed.lines
    return Finished(
        opened=opened,
        state=closed.state,
        rounds=rounds,
        validation=validation,
        test=test,
        bytes_up=opened.roll.bytes_up + sum(r.bytes_up for r in rounds) + sum(r["bytes_up"] for r in past) + up,
        bytes_down=opened.roll.bytes_down
        + sum(r.bytes_down for r in rounds)
        + sum(r["bytes_down"] for r in past)
        + down,
        left_out=strategy.evaluation_failures,
        scoring=strategy.evaluations,
        seconds=closed.before.seconds + time.monotonic() - closed.started,
        server_spent=closed.before.server_spent + spent + strategy.scoring,
        stop=strategy.stop,
        past=past,
        joined=strategy.joined,
        resumed_after=() if resumed is None else resumed.after,
    )


def run_rounds(grid: Grid, config: RunConfig, book: Book, resumed: Resumed | None = None) -> Closed:
    """All of a run but its last scores; see `run_session`."""
    started = time.monotonic()
    preflight(config)  # before a model is loaded
    bounded = BoundedGrid(grid)
    language = open_language(config, book.run_id, book.note, None if resumed is None else resumed.language)
    awaited = max(1, config.server.sites)
    if (there := len(list(bounded.get_node_ids()))) < awaited:
        book.note(f"{there} of {awaited} sites are there: waiting, {config.server.wait:.0f} s at most (server.wait)")
    opened = open_session(bounded, config, language, resumed)
    book.begin(opened)
    for note in privacy_notes(config, {site: one.rows["train"] for site, one in opened.roll.answers.items()}):
        book.note(note)
    if resumed is not None:
        book.note(f"the run goes on after round {resumed.progress.server_round}")
        if changed := resumed.check_fingerprint(opened.fingerprint):
            book.note(changed)
    rounds: list[RoundSummary] = []

    def close(summary: RoundSummary, state: GlobalState) -> None:
        rounds.append(summary)
        book.close_round(summary, state)

    scope = Scope(book.run_id, SERVER, seed=config.server.seed, shots=config.quantum.shots)
    strategy = make_strategy(opened, close, scope, book.decided)
    before = Progress(initial_state(opened), opened.roll.answers, {}, ()) if resumed is None else resumed.progress

    def settle(state: GlobalState) -> None:
        spent, seconds = before.server_spent + strategy.scoring, before.seconds + time.monotonic() - started
        book.checkpoint(replace(strategy.progress(state), seconds=seconds, server_spent=spent))

    strategy.settle, strategy.record, strategy.note = settle, book.record, book.note
    strategy.go_on(before)
    settle(before.state)
    deadline, count = config.server.deadline, config.server.rounds
    result = strategy.start(bounded, state_record(before.state), num_rounds=count, timeout=deadline)
    return Closed(opened, strategy, strategy.state_of(result.arrays, count), tuple(rounds), before, scope, started)


def open_session(
    grid: BoundedGrid, config: RunConfig, language: LanguageSession | None = None, resumed: Resumed | None = None
) -> Opened:
    """Census, setup and models; what can be refused before any site is asked is refused first."""
    preflight(config)
    offer, mark = None if language is None else language.offer(), fingerprint(config)
    if resumed is None:
        roll = take_census(grid, config, mark, offer)
        setup = make_setup(roll, config, language)
    else:
        roll, setup = resumed.take_roll(grid, config, mark, offer), resumed.setup
    classes = len(setup.class_names)
    model = get_model(config.quantum.at_site("exact"), classes)
    if not {config.data.test, config.data.validation} <= {"federated"}:
        get_model(config.quantum.scoring, classes)  # a device that is not there is said before any site works
    # What baselines learn is not covered by `privacy.unit`: with it there are none.
    baselines: Mapping[str, Baseline] = {}
    if not config.privacy.on:
        baselines = make_baselines(config.quantum.qubits, classes, model.num_parameters, config.baselines)
    mark = fingerprint(config, circuit=model.circuit.digest(), setup=setup.digest())
    if language is not None:
        language.begin(setup, roll.answers)
    decider = make_decider(config, model, classes, roll.answers, language)
    if resumed is not None:
        resumed.check_fingerprint(mark)
        if decider is not None and resumed.decider is not None:
            decider.remember(resumed.decider, resumed.decisions)
            if resumed.timed_out is not None:
                decider.asking.replay(resumed.progress.server_round + 1, resumed.timed_out)
    return Opened(config, roll, setup, model, baselines, mark, language, decider, resumed)


def preflight(config: RunConfig) -> None:
    """Fail before any site has worked.

    Raises:
        CircuitError: the simulator's memory does not take the qubits.
        DataError: a file or pool from which the server takes rows cannot be read.
    """
    check_memory(config.quantum.qubits, config.quantum.precision, DEFAULT_MEMORY_BUDGET)
    for source in (config.data.test, config.data.validation):
        if source == "server":
            read_pool(config.data.source, config.data)
        elif source != "federated":
            read_pool(source, config.data, role="site")


def initial_state(opened: Opened) -> GlobalState:
    """Theta and the baselines' arrays before the first round, from the run's seed."""
    seed = opened.config.server.seed
    theta = opened.model.initial_theta(stream(seed, SERVER, 0, "theta"))
    baselines = {name: b.initial(stream(seed, SERVER, 0, f"baseline/{name}")) for name, b in opened.baselines.items()}
    return GlobalState(0, theta, opened.model.parameter_names, baselines)


def make_strategy(opened: Opened, close: Close, scope: Scope | None = None, told: Tell | None = None) -> QNNStrategy:
    """The strategy of a run; `scope` names the run."""
    config, scope = opened.config, scope or Scope()
    scorer = _scorer(opened, "validation", scope)
    budget = round_budget(opened.model, config.training)
    names, roll = opened.model.parameter_names, opened.roll
    mark, language = opened.fingerprint, opened.language
    terms = Terms(config, roll.nodes, opened.setup, mark, names, budget, scope.run, roll.answers, language)
    return QNNStrategy(terms, scorer, close, opened.decider, told)


def _scorer(opened: Opened, part: str, scope: Scope) -> Scorer | None:
    """Of the server's own rows of this part, if it has any."""
    language = opened.language
    features = language.features if language is not None and language.makes_features else None
    rows = server_rows(opened.config, opened.setup, part, features)
    if rows is None:
        return None
    model = get_model(opened.config.quantum.scoring, len(opened.setup.class_names))
    return Scorer(model, opened.baselines, rows, replace(scope, purpose=part))


def _final_scores(
    opened: Opened, strategy: QNNStrategy, state: GlobalState, scope: Scope
) -> tuple[dict[str, Scores], dict[str, Scores], Spent]:
    """Validation and test of the final state, for `qnn` and each baseline, and what the server's part of it cost."""
    spent = NOTHING
    found: dict[str, dict[str, Scores]] = {}
    for part, source in (("validation", opened.config.data.validation), ("test", opened.config.data.test)):
        if source == "federated":
            named = {"qnn": pool([e.qnn[part] for e in strategy.evaluations])}
            for name in opened.baselines:
                named[name] = pool([e.baselines[name][part] for e in strategy.evaluations])
            found[part] = {name: scores for name, scores in named.items() if scores is not None}
        else:
            scorer = _scorer(opened, f"{part}", scope)
            if scorer is None:
                raise RuntimeError(f"the server holds no {part} rows although data.{part} is {source!r}")
            qnn, baselines = scorer.scores(state)
            found[part], spent = {"qnn": qnn, **baselines}, spent + scorer.meter.spent
    return found["validation"], found["test"], spent
