"""The round loop as a Flower strategy: Strategy's hooks, implemented directly.

FedAvg is not inherited: it ends the run on one odd reply, waits for nodes for ever, samples from the global generator
and shares one mutable config between messages. Here each reply is decoded on its own and accepted, or rejected with
a reason; a round below quorum keeps the old model and the run goes on.

A site may need longer than a round, in the queue of a QPU. Its task stays valid (`server.patience`), it is given no
second one meanwhile, and its late reply enters the next average with a staleness weight (`server.late`). The quorum
then counts accepted replies, in time and late, against the sites of the round's plan and those late ones.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from llm_qfl.federation.aggregation import aggregate
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.records import (
    Evaluation,
    Task,
    arrays_state,
    content_bytes,
    encode_task,
    state_record,
)
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import NOTHING, ClientReport, GlobalState, RoundPlan, RoundSummary, Scores, Spent
from server_app.evaluation import Scorer, pool, read_evaluations
from server_app.grid import BoundedGrid
from server_app.outstanding import Outstanding
from server_app.planner import plan_round

Close = Callable[[RoundSummary, GlobalState], None]


@dataclass(frozen=True)
class Terms:
    """What stays the same for a whole run.

    Attributes:
        config: the run config.
        roster: site -> node id, from the census.
        setup: classes, encoding, feature map.
        fingerprint: this side's, with circuit and setup.
        parameter_names: names of theta's entries.
        budget: objective evaluations of a site's optimizer in a round.
        run: the run's id; jobs of a site belong to it.
    """

    config: RunConfig
    roster: Mapping[str, int]
    setup: Setup
    fingerprint: Mapping[str, str]
    parameter_names: tuple[str, ...]
    budget: int
    run: str = "local"


class QNNStrategy(Strategy):
    """Federated averaging of theta and the baselines, sites checked reply by reply.

    Args:
        terms: what stays the same.
        scorer: the server's own validation rows, or None: the sites' sums count.
        close: called once with each closed round and the state after it.
    """

    def __init__(self, terms: Terms, scorer: Scorer | None, close: Close) -> None:
        self._terms, self._scorer, self._close = terms, scorer, close
        self._setup_json, self._setup_digest = terms.setup.to_json(), terms.setup.digest()
        self._sites = {node: site for site, node in terms.roster.items()}
        self._open = Outstanding(self._sites, len(terms.setup.class_names), terms.config.server.staleness)
        self._has_setup: set[str] = set()
        self._grid: BoundedGrid | None = None
        self._sent: GlobalState | None = None
        self._plan: RoundPlan | None = None
        self._absent: dict[str, str] = {}
        self._busy: tuple[str, ...] = ()
        self._bytes_down, self._started = 0, 0.0
        self.evaluations: tuple[Evaluation, ...] = ()
        """The sites' scores of the final model, after the last exchange."""
        self.evaluation_failures: dict[str, str] = {}
        self.evaluation_bytes = (0, 0)
        """Bytes up and down of the last exchange."""

    @property
    def scoring(self) -> Spent:
        """What scoring on the server's own validation rows has cost."""
        return NOTHING if self._scorer is None else self._scorer.meter.spent

    def summary(self) -> None:
        """Nothing to log: the display shows the run."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Flower's loop without its log lines: train rounds, one evaluate exchange at the end.

        Where sites are busy after the last round, a closing round without tasks waits for them, up to the deadline.
        """
        result, arrays = Result(), initial_arrays
        for number in range(1, num_rounds + 2):
            if number > num_rounds and not self._open.busy:
                break
            configure = self.configure_train if number <= num_rounds else self.configure_closing
            tasks = configure(number, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(tasks, timeout=timeout)
            new, metrics = self.aggregate_train(number, replies)
            arrays = arrays if new is None else new
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
        tasks = self.configure_evaluate(num_rounds, arrays, ConfigRecord(), grid)
        self.aggregate_evaluate(num_rounds, grid.send_and_receive(tasks, timeout=timeout))
        result.arrays = arrays
        return result

    def state_of(self, arrays: ArrayRecord, server_round: int) -> GlobalState:
        """The state that an ArrayRecord of this strategy holds."""
        return arrays_state(arrays, server_round, self._terms.parameter_names)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One fresh task for each site of the plan; sites that are busy have no part in it."""
        sent, free = self._begin(server_round, arrays, grid)
        self._plan = plan_round(self._terms.config, server_round, sorted(free), self._terms.budget)
        for site in self._plan.sites:
            self._open.give(site, sent)
        return self._messages(MessageType.TRAIN, sent, self._plan, self._plan.sites)

    def configure_closing(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No task: a last round that only takes late replies."""
        self._begin(server_round, arrays, grid)
        self._plan, self._bytes_down = RoundPlan(server_round, (), 0, 0.0), 0
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Accept or reject each reply, average what counts, close the round."""
        sent, plan = self._required()
        server = self._terms.config.server
        accepted = self._open.accept(replies, server_round, hold=server.late == "weighted")
        reports, late = accepted.reports, accepted.late
        self._has_setup |= {report.site for report in reports + late}
        rejected = {**accepted.rejected, **self._absent, **self._lost(server_round)}
        due = self._open.due(server_round)
        came = len(reports) + len(due)
        enough = came > 0 and came >= math.ceil(server.quorum * (len(plan.sites) + len(due)))
        new = aggregate(sent, reports, weighting=server.weighting, late=due) if enough else sent
        if enough:
            self._open.entered()
        qnn, baselines = self._validation(new, reports)
        summary = RoundSummary(
            server_round=server_round,
            plan=plan,
            reports=reports,
            rejected=dict(sorted(rejected.items())),
            aggregated=enough,
            validation=qnn,
            baseline_validation=baselines,
            bytes_up=sum(report.bytes_up for report in reports + late),
            bytes_down=self._bytes_down,
            seconds=time.monotonic() - self._started,
            theta_digest=hashlib.sha256(new.theta.tobytes()).hexdigest()[:16],
            busy=self._busy,
            late=late,
            entered=tuple((one.report.site, one.report.server_round, one.factor) for one in due) if enough else (),
        )
        self._close(summary, new)
        metrics = MetricRecord({"num-examples": sum(report.num_examples for report in reports)})
        return (state_record(new) if enough else None), metrics

    def _begin(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> tuple[GlobalState, set[str]]:
        """The state of a round and the sites that are there and free."""
        self._started = time.monotonic()
        there = self._there(grid)
        self._sent = self.state_of(arrays, server_round)
        self._absent = {site: "not connected" for site in self._terms.roster if site not in there}
        self._busy = tuple(site for site in self._open.busy if site in there)
        return self._sent, there - set(self._busy)

    def _lost(self, server_round: int) -> dict[str, str]:
        """Why sites gave no reply; those whose task is still valid stay busy, the others' tasks are closed."""
        valid = frozenset[int]() if self._grid is None else self._grid.busy
        reasons: dict[str, str] = {}
        for site, number in self._open.busy.items():
            waits = self._terms.roster[site] in valid and site not in self._absent
            if number == server_round:
                reasons |= self._failures({site})
            elif not waits:
                (reason,) = self._failures({site}).values()
                reasons[site] = f"task of round {number}: {self._absent.get(site, reason)}"
            if not waits:
                self._give_up(site)
        return reasons

    def _give_up(self, site: str) -> None:
        self._open.close(site)
        if self._grid is not None:
            self._grid.forget([self._terms.roster[site]])

    def _validation(
        self, new: GlobalState, reports: tuple[ClientReport, ...]
    ) -> tuple[Scores | None, dict[str, Scores]]:
        """Of the new state on the server's rows, or of the sent one on the sites'.

        Late replies have no part in it: what they `received` is the vector of an earlier round.
        """
        if self._scorer is not None:
            return self._scorer.scores(new)
        names = list(new.baselines)
        together = pool([report.received for report in reports])
        baselines = {name: pool([report.baseline_received[name] for report in reports]) for name in names}
        return together, {name: scores for name, scores in baselines.items() if scores is not None}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One exchange at the end, where the sites hold validation or test rows that count.

        A site that is still busy is left out; what it works on stays in its own ledger of jobs.
        """
        data = self._terms.config.data
        there = self._there(grid)
        for site, number in self._open.busy.items():
            self.evaluation_failures[site] = f"still busy with the task of round {number}"
            self._give_up(site)
        there -= set(self.evaluation_failures)
        if "federated" not in (data.validation, data.test):
            return []
        self._sent = self.state_of(arrays, server_round)
        absent = set(self._terms.roster) - there - set(self.evaluation_failures)
        self.evaluation_failures |= dict.fromkeys(sorted(absent), "not connected")
        return self._messages(MessageType.EVALUATE, self._sent, None, tuple(sorted(there)))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep the sites' sums in `evaluations`."""
        if self._sent is None:
            return None
        names, classes = tuple(self._sent.baselines), len(self._terms.setup.class_names)
        found, failures, up = read_evaluations(replies, self._sites, names, classes)
        missing = set(self._terms.roster) - set(found) - set(failures) - set(self.evaluation_failures)
        self.evaluation_failures |= failures | self._failures(missing)
        self.evaluations = tuple(found[site] for site in sorted(found))
        self.evaluation_bytes = (up, self._bytes_down)
        return None

    def _required(self) -> tuple[GlobalState, RoundPlan]:
        if self._sent is None or self._plan is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        return self._sent, self._plan

    def _there(self, grid: Grid) -> set[str]:
        """Sites of the roster whose node is connected now."""
        self._grid = grid if isinstance(grid, BoundedGrid) else None
        connected = set(grid.get_node_ids())
        return {site for site, node in self._terms.roster.items() if node in connected}

    def _messages(self, kind: str, state: GlobalState, plan: RoundPlan | None, sites: tuple[str, ...]) -> list[Message]:
        messages, self._bytes_down = [], 0
        server = self._terms.config.server
        # A train task outlives its round: what a site paid for is not lost with it.
        ttl = server.deadline if plan is None else max(server.deadline, server.patience)
        for site in sites:
            text = None if site in self._has_setup else self._setup_json
            task = Task(site, state, plan, text, self._setup_digest, self._terms.fingerprint, self._terms.run)
            content = encode_task(task)
            self._bytes_down += content_bytes(content)
            node, group = self._terms.roster[site], str(state.server_round)
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl))
        return messages

    def _failures(self, sites: set[str]) -> dict[str, str]:
        """Why these sites gave no reply; they are sent the setup again next time."""
        errors = {} if self._grid is None else self._grid.failed
        reasons: dict[str, str] = {}
        for site in sites:
            error = errors.get(self._terms.roster[site])
            reasons[site] = "no reply" if error is None else f"{error.reason or 'error'} (code {error.code})"
            self._has_setup.discard(site)
        return reasons
