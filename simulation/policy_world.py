"""Federations by the thousand: the real strategy and the real client round, opened once and played again and again.

What is left out beside `simulation.run`: Flower's processes, baselines, and the tuning of a language model, whose L_i
and soft labels come from a `Teacher` (`simulation.policy_teachers`). Everything a decision touches is the real thing:
`QNNStrategy`, `Decider`, `local_round`, records, census, split table, feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from agent.decider import Decider
from agent.decisions import Decision
from agent.history import RoundRecord, record_of
from agent.means import Means
from agent.prices import Prices, Reached, cost_to_target
from agent.rewards import DEFAULT, Rewarded, rewards
from agent.state import Setting
from agent.termination import Stop
from client_app.data import census, site_partition
from client_app.round import SiteQNN, local_round
from llm_qfl.federation.config import RunConfig, Scalar, default_run_config
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.records import decode_query, decode_task, encode_census, encode_report, state_record
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import GlobalState, Partition, RoundSummary, Rows
from llm_qfl.quantum.model import QNNModel, get_model
from llm_qfl.quantum.scope import Scope
from server_app.grid import BoundedGrid
from server_app.policy import make_decider
from server_app.rows import server_rows
from server_app.session import Opened, initial_state, make_strategy, open_session
from simulation.grid import InMemoryGrid
from simulation.policy_teachers import NoTeacher, Teacher

TIMEOUT = 600.0


@dataclass(frozen=True)
class Case:
    """What a federation is, but for who decides and what things cost.

    Attributes:
        source: `data.source`.
        sites: N.
        alpha: of the Dirichlet partitioner.
        seed: `server.seed`.
        rounds: `server.rounds`.
        more: further keys of the run config.
        play_seed: of what is drawn once the rows are dealt (start, batches, draws of sites); None takes `seed`.
    """

    source: str
    sites: int = 10
    alpha: float = 0.5
    seed: int = 0
    rounds: int = 20
    more: tuple[tuple[str, Scalar], ...] = ()
    play_seed: int | None = None

    def config(self) -> RunConfig:
        """The run config: validation and test on the server, nothing beside the QNN."""
        return RunConfig.from_run_config(self.flat())

    def flat(self) -> dict[str, Scalar]:
        """Every key."""
        return {
            **default_run_config(),
            "language.model": "none",
            "agent.mode": "qfl",
            "data.source": self.source,
            "data.alpha": self.alpha,
            "data.validation": "server",
            "server.seed": self.seed,
            "server.rounds": self.rounds,
            **dict(self.more),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "more": [list(pair) for pair in self.more]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The inverse of `to_json`."""
        return cls(**{**data, "more": tuple((str(key), value) for key, value in data["more"])})


@dataclass(frozen=True, eq=False)
class Played:
    """One federation, as its decider made it.

    Attributes:
        losses: V_0, then validation loss after each round, nats.
        accuracies: validation accuracy after each round.
        circuits, bytes: of each round.
        decisions: of each round; empty for the fixed plan.
        test_accuracies: on test rows after each round, where they were asked for; nobody decides by them.
        evaluations: of all rounds.
        stop: why it ended before its last round, or None.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    circuits: tuple[int, ...]
    bytes: tuple[int, ...]
    decisions: tuple[Decision, ...]
    test_accuracies: tuple[float, ...]
    evaluations: int
    stop: Stop | None = None

    def costs(self, prices: Prices) -> list[float]:
        """Priced cost of each round."""
        return [prices.cost(c, 1, b) for c, b in zip(self.circuits, self.bytes, strict=True)]

    def to_target(self, prices: Prices, target: float, full: float) -> Reached:
        """Priced cost until validation accuracy has held the target for two rounds; `full` where it never did."""
        return cost_to_target(self.accuracies, self.costs(prices), target, full)

    def rewarded(self, prices: Prices, target: float, full: float) -> Rewarded:
        """The run's rewards, whose cost terms are the priced cost to the target.

        Rounds after the target was reached cost nothing, as in the figure; a run that never gets there pays in the
        end for what its full budget has beyond its rounds.
        """
        reached = self.to_target(prices, target, full)
        last = reached.server_round or len(self.accuracies)
        costs = self.costs(prices)[:last]
        edits = [bool(one.edits) and one.by == "policy" for one in self.decisions[:last]]
        edits += [False] * (last - len(edits))
        found = rewards(self.losses[: last + 1], costs, edits, cost_reference=full)
        if reached.server_round is None:
            missing = DEFAULT.cost * max(full - sum(costs), 0.0) / full
            found = replace(found, terminal=found.terminal - missing)
        return found


class Observed(Decider):
    """A decider that is given L_i from a teacher, may be told to end at a target, and passes rewards on.

    Args:
        agent, setting, means: as `Decider`.
        teacher: where L_i comes from.
        regulated: False withholds L_i: no rule moves a budget (static settings).
        learn: told each decision with its reward once it is known.
    """

    def __init__(
        self,
        agent: AgentConfig,
        setting: Setting,
        means: Means,
        *,
        teacher: Teacher,
        regulated: bool = True,
        learn: Callable[[Decision, float], None] | None = None,
    ) -> None:
        super().__init__(agent, setting, means)
        self._teacher, self._shows, self._learn = teacher, regulated, learn
        self.enough: Callable[[], Stop | None] = lambda: None
        """Asked before each round; a stop ends the play."""

    def decide(self, server_round: int, sites: Sequence[str]) -> Decision:
        """See Decider; or the end, where enough was seen."""
        if (stop := self.enough()) is None:
            return super().decide(server_round, sites)
        decision = Decision(server_round, "fixed", (), {}, 0.0, 0, stop, "all")
        self.decisions.append(decision)
        return decision

    def close_round(self, summary: RoundSummary) -> float | None:
        """See Decider; L_i and L_s are the teacher's, clipped as what sites report is."""
        if not self._shows:
            return super().close_round(summary)
        number = summary.server_round
        told = {report.site: self._teacher.loss(report.site, number) for report in summary.reports}
        server = self._teacher.server_loss(number)
        return self.close(record_of(summary, told, server, federated=self.setting.lag == 1))

    def close(self, record: RoundRecord) -> float | None:
        """See Decider."""
        reward = super().close(record)
        earned = self.reward_round
        if self._learn is not None and reward is not None and earned is not None:
            self._learn(next(one for one in self.decisions if one.server_round == earned), reward)
        return reward


MakeDecider = Callable[["World"], Observed | None]


@dataclass(eq=False)
class World:
    """A federation that is open: census taken, rows dealt, features mapped. Play it as often as you like."""

    case: Case
    opened: Opened
    app: ClientApp
    nodes: Mapping[int, Mapping[str, Scalar]]
    validation: Rows
    test: Rows
    teacher: Teacher
    partitions: Mapping[str, Partition] = field(default_factory=dict)

    @property
    def model(self) -> QNNModel:
        """The QNN on the exact engine."""
        return self.opened.model

    def base(self, agent: AgentConfig) -> Decider:
        """The decider that a run with this section would have; without any policy loaded.

        Raises:
            ValueError: mode `qfl` has none.
        """
        config = self.opened.config.model_copy(update={"agent": agent})
        classes = len(self.opened.setup.class_names)
        found = make_decider(config, self.model, classes, self.opened.roll.answers, None)
        if found is None:
            raise ValueError("mode qfl has no decider")
        return found

    def play(self, make: MakeDecider | None = None, *, target: float | None = None, tested: bool = False) -> Played:
        """One federation.

        Args:
            make: makes its decider; None plays the fixed plan.
            target: ends the play once validation accuracy has held it for two rounds; by default nothing does.
            tested: score every round's vector on the test rows, too.
        """
        opened, decider = self.opened, None if make is None else make(self)
        summaries: list[RoundSummary] = []
        states: list[GlobalState] = []

        def close(summary: RoundSummary, state: GlobalState) -> None:
            summaries.append(summary)
            states.append(state)

        def accuracies() -> list[float]:
            return [one.validation.accuracy or 0.0 for one in summaries if one.validation is not None]

        if decider is not None and target is not None:
            decider.enough = lambda: _held(accuracies(), target)
        strategy = make_strategy(replace(opened, decider=decider), close, Scope("play", "server"))
        grid = BoundedGrid(InMemoryGrid(self.app, self.nodes, self.case.flat()))
        start = initial_state(opened)
        strategy.start(grid, state_record(start), num_rounds=self.case.rounds, timeout=TIMEOUT)
        first = self.model.scores(start.theta, self.validation).loss or 0.0
        scored = [self.model.scores(state.theta, self.test).accuracy or 0.0 for state in states] if tested else []
        return Played(
            losses=(first, *(one.validation.loss or 0.0 for one in summaries if one.validation is not None)),
            accuracies=tuple(accuracies()),
            circuits=tuple(sum(report.spent.circuits for report in one.work) for one in summaries),
            bytes=tuple(one.bytes_up + one.bytes_down for one in summaries),
            decisions=() if decider is None else tuple(one for one in decider.decisions if one.stop is None),
            test_accuracies=tuple(scored),
            evaluations=sum(report.spent.evaluations for one in summaries for report in one.work),
            stop=strategy.stop,
        )


def _held(accuracies: Sequence[float], target: float) -> Stop | None:
    if len(accuracies) >= 2 and min(accuracies[-2:]) >= target:
        return Stop("target", f"validation accuracy has held {target:.4f} for two rounds")
    return None


def open_world(case: Case, teach: Callable[[World], Teacher] | None = None) -> World:
    """Take the census, deal the rows, fit the feature map.

    Args:
        case: the federation.
        teach: makes the teacher, given all sites' rows; None leaves the sites without a language model.

    Raises:
        LlmQflError: as a run does.
    """
    config = case.config()
    nodes: dict[int, dict[str, Scalar]] = {
        n + 1: {"partition-id": n, "num-partitions": case.sites} for n in range(case.sites)
    }
    app = ClientApp()
    grid = BoundedGrid(InMemoryGrid(app, nodes, case.flat()))
    settings = {site.site: site for site in (NodeSettings.from_node_config(node) for node in nodes.values())}

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """As the client app's; equal code on both sides needs no fingerprint."""
        own = NodeSettings.from_node_config(context.node_config)
        registered, _ = decode_query(message.content)
        return Message(encode_census(census(config, own, registered or own.site)), reply_to=message)

    opened = replace(open_session(grid, config), baselines={})
    validation, test = (server_rows(config, opened.setup, part) for part in ("validation", "test"))
    if validation is None or test is None:
        raise ValueError("a world holds validation and test rows on the server")
    digest = opened.setup.digest()
    partitions = {site: site_partition(config, own, site, opened.setup, digest) for site, own in settings.items()}
    seed = case.seed if case.play_seed is None else case.play_seed
    playing = config.model_copy(update={"server": config.server.model_copy(update={"seed": seed})})
    opened = replace(opened, config=playing)
    world = World(case, opened, app, nodes, validation, test, NoTeacher(), partitions)
    if teach is not None:
        world.teacher = teach(world)
    quantum = config.quantum.at_site(None)
    model = get_model(quantum, len(opened.setup.class_names))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """The client's local round on rows that are there already."""
        task = decode_task(message.content)
        if task.plan is None:
            raise ValueError("a train task without a plan")
        scope = Scope(task.run, task.site, task.state.server_round, "task", seed, task.plan.shots)
        soft = world.teacher.soft(task.site, task.plan.server_round) if task.plan.distill_weight else None
        qnn = SiteQNN(model, opened.model, scope)
        report = local_round(task.state, task.plan, partitions[task.site], qnn, {}, playing, soft)
        return Message(encode_report(report, model.parameter_names, task.fingerprint), reply_to=message)

    return world
