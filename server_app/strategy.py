"""The round loop as a Flower strategy: Strategy's hooks, implemented directly.

FedAvg is not inherited: it ends the run on one odd reply, waits for nodes for ever, samples from the global generator
and shares one mutable config between messages. Here each reply is decoded on its own and accepted, or rejected with
a reason; a round below quorum keeps the old model and the run goes on.

A site may need longer than a round, in the queue of a QPU. Its task stays valid (`server.patience`), it is given no
second one meanwhile, and its late reply enters the next average with a staleness weight (`server.late`). The quorum
then counts accepted replies, in time and late, against the sites of the round's plan and those late ones.

A task that is lost with its client, where jobs on IBM Quantum may have been paid for it, is sent again as it was
(`Outstanding`): its answer is a late reply. Other sites get a fresh task in the next round.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Container, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from llm_qfl.federation.aggregation import aggregate
from llm_qfl.federation.records import (
    Evaluation,
    arrays_state,
    state_record,
)
from llm_qfl.federation.types import NOTHING, ClientReport, GlobalState, RoundPlan, RoundSummary, Scores, Spent
from server_app.evaluation import Scorer, pool, read_evaluations
from server_app.grid import NOT_TAKEN, BoundedGrid
from server_app.outstanding import RESENDS, Given, Outstanding
from server_app.planner import plan_round
from server_app.post import Post
from server_app.roster import Roster
from server_app.terms import Terms

Close = Callable[[RoundSummary, GlobalState], None]
CLIENT_LOST = range(9)  # Flower's own error codes: no client of ours has answered


class QNNStrategy(Strategy):
    """Federated averaging of theta and the baselines, sites checked reply by reply.

    Args:
        terms: what stays the same.
        scorer: the server's own validation rows, or None: the sites' sums count.
        close: called once with each closed round and the state after it.
    """

    def __init__(self, terms: Terms, scorer: Scorer | None, close: Close) -> None:
        self._terms, self._scorer, self._close = terms, scorer, close
        self._roster = Roster(terms.config, terms.roster, terms.censuses)
        self._post = Post(terms, self._roster)
        self._open = Outstanding(self._roster.sites, len(terms.setup.class_names), terms.config.server.staleness)
        self._grid: BoundedGrid | None = None
        self._sent: GlobalState | None = None
        self._plan: RoundPlan | None = None
        self._absent: dict[str, str] = {}
        self._busy: tuple[str, ...] = ()
        self._again: frozenset[str] = frozenset()
        self._to_score: frozenset[str] | None = None
        self._started = 0.0
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

        Where sites are busy after the last round, a closing round without fresh tasks waits for them, up to the
        deadline; tasks that were lost are sent again before that.
        """
        result, arrays = Result(), initial_arrays
        number, waited = 0, False
        while number < num_rounds or self._open.lost or (self._open.busy and not waited):
            number += 1
            configure = self.configure_train if number <= num_rounds else self.configure_closing
            tasks = list(configure(number, arrays, ConfigRecord(), grid))
            waited = number > num_rounds and not tasks
            replies = grid.send_and_receive(tasks, timeout=timeout)
            new, metrics = self.aggregate_train(number, replies)
            arrays = arrays if new is None else new
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
        for _ in range(1 + RESENDS):
            tasks = list(self.configure_evaluate(num_rounds, arrays, ConfigRecord(), grid))
            self.aggregate_evaluate(num_rounds, grid.send_and_receive(tasks, timeout=timeout))
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
        sent, free = self._begin(server_round, arrays, grid)
        self._plan = plan_round(self._terms.config, server_round, sorted(free), self._terms.budget)
        server = self._terms.config.server
        # A train task outlives its round: what a site paid for is not lost with it.
        ttl = max(server.deadline, server.patience)
        for site in self._plan.sites:
            self._open.give(site, Given(sent, self._plan, self._now() + ttl))
        fresh = [self._post.message(MessageType.TRAIN, site, sent, self._plan, ttl) for site in self._plan.sites]
        return fresh + self._send_again()

    def configure_closing(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No fresh task: a last round that only takes late replies. Sites with a lost task are waited for."""
        if self._open.lost and isinstance(grid, BoundedGrid):
            grid.wait_until(lambda: set(self._open.lost) <= self._there(grid), self._terms.config.server.wait)
        self._begin(server_round, arrays, grid)
        self._plan = RoundPlan(server_round, (), 0, 0.0)
        for site, task in self._open.lost.items():
            if site in self._absent:
                self._absent[site] = f"not connected; task of round {task.server_round} given up, the run ends"
                self._open.close(site)
        return self._send_again()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Accept or reject each reply, average what counts, close the round."""
        sent, plan = self._required()
        server = self._terms.config.server
        accepted = self._open.accept(replies, server_round, hold=server.late == "weighted")
        reports, late = accepted.reports, accepted.late
        self._post.has_setup |= {report.site for report in reports + late}
        rejected = {**accepted.rejected, **self._absent, **self._unanswered(server_round)}
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
            bytes_down=self._post.bytes_down,
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
        self._started, self._post.bytes_down = time.monotonic(), 0
        there = self._there(grid)
        self._sent = self.state_of(arrays, server_round)
        self._absent = {site: "not connected" for site in self._terms.roster if site not in there}
        for site, task in self._open.lost.items():
            which = f"task of round {task.server_round}"
            if self._now() >= task.until:
                self._open.close(site)
                self._absent[site] = f"{which} given up: server.patience is over"
            elif site not in there:
                self._absent[site] = f"not connected; {which} waits to be sent again"
        taken = {*self._open.busy, *self._open.lost} & there
        self._busy = tuple(sorted(taken))
        return self._sent, there - taken

    def _send_again(self) -> list[Message]:
        """The lost tasks of sites that are there, as they were."""
        messages = []
        self._again = frozenset(self._open.lost) - set(self._absent)
        for site in sorted(self._again):
            task = self._open.again(site)
            left = task.until - self._now()
            messages.append(self._post.message(MessageType.TRAIN, site, task.state, task.plan, left))
        return messages

    def _unanswered(self, server_round: int) -> dict[str, str]:
        """Why sites gave no reply.

        Those whose task is still valid stay busy. A task that was lost is kept to be sent again, or closed.
        """
        valid = frozenset[int]() if self._grid is None else self._grid.busy
        reasons: dict[str, str] = {}
        for site, number in self._open.busy.items():
            waits = self._roster.nodes[site] in valid and site not in self._absent
            if waits and number != server_round and site not in self._again:
                continue
            (reason,) = self._failures({site}).values()
            which = f"task of round {number}"
            if number == server_round:
                text = reason
            elif site in self._again:
                text = f"{which}, sent again: {reason}"
            else:
                text = f"{which}: {self._absent.get(site, reason)}"
            if not waits:
                text += self._lose(site, which)
            reasons[site] = text
        return reasons

    def _lose(self, site: str, which: str) -> str:
        """Nobody works on the site's task any more; what becomes of it, in words that follow a reason."""
        if not self._may_have_paid(site):
            self._give_up(site)
            return ""
        if self._grid is not None:
            self._grid.forget([self._roster.nodes[site]])
        problem = self._open.lose(site, self._now())
        return f"; {which} is sent again" if problem is None else f"; {which} {problem}"

    def _may_have_paid(self, site: str) -> bool:
        """Did a task end, at a site that pays for jobs, without an answer of the site's own?"""
        if not self._keeps(site):
            return False
        # A task that the SuperLink did not take the second time is still the task that was paid for the first time.
        refused = site in self._again and self._error(site, [NOT_TAKEN])
        return site in self._absent or refused or self._error(site, CLIENT_LOST)

    def _keeps(self, site: str) -> bool:
        """Are this site's lost tasks sent again?"""
        return site in self._terms.paying and self._terms.config.server.late == "weighted"

    def _error(self, site: str, codes: Container[int]) -> bool:
        """Did the latest exchange bring one of these errors for a site?"""
        error = None if self._grid is None else self._grid.failed.get(self._roster.nodes[site])
        return error is not None and error.code in codes

    def _now(self) -> float:
        return time.monotonic() if self._grid is None else self._grid.now()

    def _give_up(self, site: str) -> None:
        self._open.close(site)
        if self._grid is not None:
            self._grid.forget([self._roster.nodes[site]])

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
        data, deadline = self._terms.config.data, self._terms.config.server.deadline
        there = self._there(grid)
        for site, number in self._open.busy.items():
            self.evaluation_failures[site] = f"still busy with the task of round {number}"
            self._give_up(site)
        if self._to_score is None:
            self._sent, self._post.bytes_down = self.state_of(arrays, server_round), 0
            self._to_score = frozenset(self._terms.roster) - set(self.evaluation_failures)
            if "federated" not in (data.validation, data.test):
                self._to_score = frozenset()
            self.evaluation_failures |= dict.fromkeys(sorted(self._to_score - there), "not connected")
        self._to_score &= there
        for site in self._to_score:
            self.evaluation_failures.pop(site, None)  # of an earlier try
        state, kind = self._sent or self.state_of(arrays, server_round), MessageType.EVALUATE
        return [self._post.message(kind, site, state, None, deadline) for site in sorted(self._to_score)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep the sites' sums in `evaluations`."""
        if self._sent is None or self._to_score is None:
            return None
        names, classes = tuple(self._sent.baselines), len(self._terms.setup.class_names)
        found, failures, up = read_evaluations(replies, self._roster.sites, names, classes)
        missing = self._to_score - set(found) - set(failures)
        self.evaluation_failures |= failures | self._failures(missing)
        self._to_score = frozenset(
            site for site in missing if site in self._terms.paying and self._error(site, CLIENT_LOST)
        )
        known = {evaluation.site: evaluation for evaluation in self.evaluations} | found
        self.evaluations = tuple(known[site] for site in sorted(known))
        self.evaluation_bytes = (self.evaluation_bytes[0] + up, self._post.bytes_down)
        return None

    def _required(self) -> tuple[GlobalState, RoundPlan]:
        if self._sent is None or self._plan is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        return self._sent, self._plan

    def _there(self, grid: Grid) -> set[str]:
        """Sites of the roster whose node is connected now."""
        self._grid = grid if isinstance(grid, BoundedGrid) else None
        if self._grid is not None:
            for site in self._roster.look(self._grid):
                self._post.has_setup.discard(site)
                # Nobody works on what the node before had; a site that pays is sent it again.
                if site in self._open.busy and (not self._keeps(site) or self._open.lose(site, self._now())):
                    self._open.close(site)
        connected = set(grid.get_node_ids())
        return {site for site, node in self._roster.nodes.items() if node in connected}

    def _failures(self, sites: Iterable[str]) -> dict[str, str]:
        """Why these sites gave no reply; they are sent the setup again next time."""
        errors = {} if self._grid is None else self._grid.failed
        reasons: dict[str, str] = {}
        for site in sites:
            error = errors.get(self._roster.nodes[site])
            reasons[site] = "no reply" if error is None else f"{error.reason or 'error'} (code {error.code})"
            self._post.has_setup.discard(site)
        return reasons
