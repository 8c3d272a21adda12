"""The round loop as a Flower strategy: Strategy's hooks, implemented directly.

FedAvg is not inherited: it ends the run on one odd reply, waits for nodes for ever, samples from the global generator
and shares one mutable config between messages. Here each reply is decoded on its own and accepted, or rejected with
a reason; a round below quorum keeps the old model and the run goes on.

A site may need longer than a round, in the queue of a QPU. Its task stays valid (`server.patience`), it is given no
second one meanwhile, and its late reply enters the next average with a staleness weight (`server.late`). The quorum
then counts accepted replies, in time and late, against the sites of the round's plan and those late ones.

A task that is lost with its client, where jobs on IBM Quantum may have been paid for it, is sent again as it was
(`Tasks`): its answer is a late reply. Other sites get a fresh task in the next round.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from agent.decider import Decider
from agent.decisions import Decision
from agent.termination import Stop
from llm_qfl.federation.combine import Combined, combine
from llm_qfl.federation.records import (
    Evaluation,
    arrays_state,
    state_record,
)
from llm_qfl.federation.robust import least_replies
from llm_qfl.federation.types import NOTHING, ClientReport, GlobalState, RoundPlan, RoundSummary, Scores, Spent
from server_app.evaluation import Scorer, pool, read_evaluations
from server_app.outstanding import RESENDS
from server_app.planner import decided_round, plan_round
from server_app.privacy import CentralNoise
from server_app.progress import Progress
from server_app.tasks import Tasks
from server_app.terms import Terms

Tell = Callable[[Decision, float | None, int | None], None]
Close = Callable[[RoundSummary, GlobalState], None]


class QNNStrategy(Strategy):
    """Federated averaging of theta and the baselines, sites checked reply by reply.

    Args:
        terms: what stays the same.
        scorer: the server's own validation rows, or None: the sites' sums count.
        close: called once with each closed round and the state after it.
        decider: plans the rounds; None takes every round alike.
        told: called once with each decision, after its round has closed, and the newest reward with its round.
    """

    def __init__(
        self,
        terms: Terms,
        scorer: Scorer | None,
        close: Close,
        decider: Decider | None = None,
        told: Tell | None = None,
    ) -> None:
        self._terms, self._scorer, self._close = terms, scorer, close
        self._decider, self._tell = decider, told
        self.stop: Stop | None = None
        """Why the run ended before its last round, or None."""
        self._tasks = Tasks(terms)
        self._noise = CentralNoise(terms.config) if terms.config.privacy.unit == "client-central" else None
        self._sent: GlobalState | None = None
        self._plan: RoundPlan | None = None
        self._to_score: frozenset[str] | None = None
        self._started = 0.0
        self.note: Callable[[str], None] = lambda text: None
        """Told what a round waits for."""
        self.record: Callable[[Decision], None] = lambda decision: None
        """Called with a decision before anybody is told of it."""
        self.settle: Callable[[GlobalState], None] = lambda state: None
        """Called last of all when a round has closed, with the state after it."""
        self._closed = 0
        self.evaluations: tuple[Evaluation, ...] = ()
        """The sites' scores of the final model, after the last exchange."""
        self.evaluation_failures: dict[str, str] = {}
        self.evaluation_bytes = (0, 0)
        """Bytes up and down of the last exchange."""

    @property
    def joined(self) -> tuple[str, ...]:
        """Sites that came after the census, sorted."""
        return tuple(sorted(self._tasks.roster.joined))

    @property
    def scoring(self) -> Spent:
        """What scoring on the server's own validation rows has cost."""
        return NOTHING if self._scorer is None else self._scorer.meter.spent

    def progress(self, state: GlobalState) -> Progress:
        """What the next round depends on, beside what decides and what language the run has.

        Args:
            state: after the round that has closed.
        """
        given, held = self._tasks.memory()
        informed = tuple(self._tasks.post.has_setup)
        return Progress(state, self._tasks.roster.censuses, given, held, stop=self.stop, informed=informed)

    def go_on(self, before: Progress) -> None:
        """Start after a round that was closed, and with the tasks that were open then."""
        self._closed, self.stop = before.server_round, before.stop
        self._tasks.remember(before.open, before.held)
        self._tasks.post.has_setup = set(before.informed)

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

        Where sites are busy after the last round, a closing round without fresh tasks waits for them, up to the
        deadline, and more of them for sites that may have paid, until their tasks end (`server.patience`); tasks that
        were lost are sent again before that.
        """
        result, arrays = Result(), initial_arrays
        number, waited = self._closed, False
        if self.stop is not None:
            num_rounds = min(num_rounds, number)
        while number < num_rounds or self._tasks.lost or (self._tasks.busy and not waited) or self._tasks.paid_for:
            number += 1
            limit = max(timeout, self._tasks.keep_paid_for()) if waited else timeout
            configure = self.configure_train if number <= num_rounds else self.configure_closing
            tasks = list(configure(number, arrays, ConfigRecord(), grid))
            if self.stop is not None and number <= num_rounds:
                num_rounds = number - 1  # what still runs is waited for, in this round, as after a last one
                if not (tasks or self._tasks.busy or self._tasks.paid_for):
                    break
            waited = number > num_rounds and not tasks
            replies = grid.send_and_receive(tasks, timeout=limit)
            new, metrics = self.aggregate_train(number, replies)
            arrays = arrays if new is None else new
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
        for _ in range(1 + RESENDS):
            tasks = list(self.configure_evaluate(num_rounds, arrays, ConfigRecord(), grid))
            limit = max([timeout, *(task.metadata.ttl for task in tasks)])
            self.aggregate_evaluate(num_rounds, grid.send_and_receive(tasks, timeout=limit))
            if not self._to_score:
                break
        result.arrays = arrays
        return result

    def state_of(self, arrays: ArrayRecord, server_round: int) -> GlobalState:
        """The state that an ArrayRecord of this strategy holds."""
        return arrays_state(arrays, server_round, self._terms.parameter_names)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One fresh task for each site of the plan, and lost ones again; sites with an open task get no second one."""
        self._tasks.wait_for_sites(grid, self.note)
        sent, free = self._begin(server_round, arrays, grid)
        if self._decider is None:
            self._plan = plan_round(self._terms.config, server_round, sorted(free), self._terms.budget)
        else:
            self._plan = decided_round(self._terms.config, self._decider, server_round, sorted(free))
            self.record(self._decider.decisions[-1])
            self.stop = self._decider.decisions[-1].stop
            if self.stop is not None and self._tell is not None:
                self._tell(self._decider.decisions[-1], None, None)
        return self._tasks.fresh(sent, self._plan) + self._tasks.again()

    def configure_closing(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No fresh task: a last round that only takes late replies. Sites with a lost task are waited for."""
        self._tasks.wait_for_lost(grid)
        self._begin(server_round, arrays, grid)
        self._plan = RoundPlan(server_round, (), 0, 0.0)
        self._tasks.give_up_absent("the run ends")
        return self._tasks.again()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Accept or reject each reply, average what counts, close the round."""
        sent, plan = self._required()
        server = self._terms.config.server
        accepted = self._tasks.accept(replies, server_round)
        reports, late = accepted.reports, accepted.late
        due = self._tasks.open.due(server_round)
        came = len(reports) + len(due)
        enough = came > 0 and came >= math.ceil(server.quorum * (len(plan.sites) + len(due)))
        enough = enough and came >= least_replies(server.aggregation)
        combined = Combined(sent, {})
        if enough:
            if self._noise is not None:
                combined = self._noise.combine(sent, reports, len(plan.sites))
            else:
                combined = combine(sent, reports, server, weighting=server.weighting, late=due)
            self._tasks.open.entered()
        new = combined.state
        qnn, baselines = self._validation(new, reports)
        beside = self._terms.language
        language = None if beside is None else beside.exchange.close_round(server_round, reports, late)
        summary = RoundSummary(
            server_round=server_round,
            plan=plan,
            reports=reports,
            rejected=accepted.rejected,
            aggregated=enough,
            validation=qnn,
            baseline_validation=baselines,
            bytes_up=sum(report.bytes_up for report in reports + late),
            bytes_down=self._tasks.post.bytes_down,
            seconds=time.monotonic() - self._started,
            theta_digest=hashlib.sha256(new.theta.tobytes()).hexdigest()[:16],
            busy=self._tasks.working,
            late=late,
            entered=tuple((one.report.site, one.report.server_round, one.factor) for one in due) if enough else (),
            language=language,
            joined=self._tasks.roster.new(),
            updates=combined.stats,
        )
        reward = None if self._decider is None else self._decider.close_round(summary)
        self._close(summary, new)
        self._decided(server_round, reward)
        self.settle(new)
        metrics = MetricRecord({"num-examples": sum(report.num_examples for report in reports)})
        return (state_record(new) if enough else None), metrics

    def _decided(self, server_round: int, reward: float | None) -> None:
        """A decision is told when its round has closed; a closing round has none."""
        if self._decider is None or self._tell is None or not self._decider.decisions:
            return
        decision = self._decider.decisions[-1]
        if decision.stop is None and decision.server_round == server_round:
            self._tell(decision, reward, self._decider.reward_round)

    def _begin(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> tuple[GlobalState, set[str]]:
        """The state of a round and the sites that are there and free."""
        self._started, self._sent = time.monotonic(), self.state_of(arrays, server_round)
        if self._terms.language is not None:
            self._terms.language.exchange.open_round(server_round)
        return self._sent, self._tasks.begin(grid)

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

        A site that is still busy is left out; what it works on stays in its own ledger of jobs. Asked once more are
        only the sites that may have paid for scores which were lost.
        """
        data = self._terms.config.data
        there, post = self._tasks.connect(grid), self._tasks.post
        for site, number in self._tasks.busy.items():
            self.evaluation_failures[site] = f"still busy with the task of round {number}"
            self._tasks.give_up(site)
        if self._to_score is None:
            self._sent, post.bytes_down = self.state_of(arrays, server_round), 0
            self._to_score = frozenset(self._tasks.roster.nodes) - set(self.evaluation_failures)
            if "federated" not in (data.validation, data.test):
                self._to_score = frozenset()
            self.evaluation_failures |= dict.fromkeys(sorted(self._to_score - there), "not connected")
        self._to_score &= there
        for site in self._to_score:
            self.evaluation_failures.pop(site, None)  # of an earlier try
        state, kind = self._sent or self.state_of(arrays, server_round), MessageType.EVALUATE
        return [post.message(kind, site, state, None, self._tasks.scoring_ttl(site)) for site in sorted(self._to_score)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep the sites' sums in `evaluations`."""
        if self._sent is None or self._to_score is None:
            return None
        names, classes = tuple(self._sent.baselines), len(self._terms.setup.class_names)
        counts = 0 if self._terms.language is None else self._terms.language.counts
        found, failures, up = read_evaluations(replies, self._tasks.roster.sites, names, classes, counts)
        missing = self._to_score - set(found) - set(failures)
        self.evaluation_failures |= failures | self._tasks.failures(missing)
        self._to_score = frozenset(site for site in missing if self._tasks.lost_scores(site))
        known = {evaluation.site: evaluation for evaluation in self.evaluations} | found
        self.evaluations = tuple(known[site] for site in sorted(known))
        self.evaluation_bytes = (self.evaluation_bytes[0] + up, self._tasks.post.bytes_down)
        return None

    def _required(self) -> tuple[GlobalState, RoundPlan]:
        if self._sent is None or self._plan is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        return self._sent, self._plan
