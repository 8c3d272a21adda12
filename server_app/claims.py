"""What a reply claims, held against what the server knows: the task, the census, what an optimizer can do.

`decode_report` has checked names, shapes and finiteness. Here a reply is refused where no honest site could have made
it: rows that its census did not have, more work than the task allowed, an update longer than the steps reach. Numbers
that only the site can know (losses, seconds, shots) are held within limits before they reach an average, a selection
or a policy: one site's claim must not drown the others' or overflow a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import RecordDict

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import Census
from llm_qfl.federation.records.fields import read_strings
from llm_qfl.federation.types import Array, ClientReport, GlobalState, LanguageAnswer, RoundPlan, Scores, Spent

MAX_LOSS = 50.0
"""Nats a row. Right answers of probability 2e-22 cost as much: a model that guesses pays ln C."""
MOST_SECONDS = 1e9
MOST_EPSILON = 1e6
MOST_COUNT = 2**48  # of shots, jobs, simulated circuits: more than a run can hold
ADAM_REACH = 2.5
"""Adam's moves are at most this many learning rates a step: sqrt(sum of w1^2 / w2) over the weights w1 and w2 that the
moments give to past gradients is at most 2.35 for (.9, .99), by Cauchy and Schwarz."""
COBYLA_REACH = 8.0
"""COBYLA's trust region may grow; eight times its first size an evaluation is out of reach."""

Check = Callable[[str, RecordDict, ClientReport, GlobalState, RoundPlan], ClientReport]


@dataclass(frozen=True)
class Claims:
    """Checks the accepted part of a reply.

    Attributes:
        config: the run config.
        fingerprint: of the run.
        censuses: site -> what it said before the first round; sites that are missing are not held to it.
        budget: evaluations of `training.steps`.
    """

    config: RunConfig
    fingerprint: Mapping[str, str]
    censuses: Mapping[str, Census]
    budget: int

    def check(
        self, site: str, content: RecordDict, report: ClientReport, sent: GlobalState, plan: RoundPlan
    ) -> ClientReport:
        """The report with its claims held within limits.

        Args:
            site: who was asked.
            content: the whole reply.
            report: what was read from it.
            sent: the state that the site was given.
            plan: of the task.

        Raises:
            RecordError: what no honest site can have sent.
        """
        if read_strings(content, "fingerprint") != dict(self.fingerprint):
            raise RecordError("fingerprint: the reply's differs from the task's")
        census = self.censuses.get(site)
        if census is not None:
            self._check_rows(report, census)
        self._check_told(report)
        self._check_work(report, plan.budget_of(site))
        self._check_reach(report, sent, plan, plan.budget_of(site))
        language = report.language
        if language is not None:
            self._check_language(language)
        return replace(
            report,
            received=_limited(report.received),
            trained=_limited(report.trained),
            teacher=None if report.teacher is None else _limited(report.teacher),
            train_loss_first=_loss(report.train_loss_first),
            train_loss_best=_loss(report.train_loss_best),
            baseline_received={name: _limited(scores) for name, scores in report.baseline_received.items()},
            spent=_spent(report.spent),
            seconds=_between(report.seconds, MOST_SECONDS),
            distill_weight=_between(report.distill_weight, 1.0),
            epsilon=None if report.epsilon is None else _between(report.epsilon, MOST_EPSILON),
            language=None if language is None else _language(language, census),
        )

    def _check_language(self, answer: LanguageAnswer) -> None:
        """The language part of a private run tells no losses and no scores; any other tells losses."""
        private = self.config.privacy.on
        for name, value in (("first", answer.train_loss_first), ("last", answer.train_loss_last)):
            if (value is None) != private:
                raise RecordError(
                    f"language: train-loss-{name}: expected {'none' if private else 'a number'}, got {value!r}"
                )
        if private and (told := answer.received.count + answer.trained.count):
            raise RecordError(f"language: expected no scores with privacy.unit, got those of {told} rows")

    def _check_rows(self, report: ClientReport, census: Census) -> None:
        """Rows are those of the census: a site's rows do not change while a run goes on."""
        if report.num_examples != census.rows["train"]:
            raise RecordError(f"num-examples: the census said {census.rows['train']}, got {report.num_examples}")
        rows = 0 if self.config.privacy.on else census.rows["validation"]
        scores = {"received": report.received, "trained": report.trained}
        scores |= {f"baseline {name}": found for name, found in report.baseline_received.items()}
        for name, found in scores.items():
            if found.count != rows:
                raise RecordError(f"{name}: expected scores of {rows} validation rows, got {found.count}")

    def _check_told(self, report: ClientReport) -> None:
        """A private run tells no losses and names its epsilon; any other tells them."""
        privacy = self.config.privacy
        losses = {"train-loss-first": report.train_loss_first, "train-loss-best": report.train_loss_best}
        for name, value in losses.items():
            if (value is None) != privacy.on:
                raise RecordError(f"{name}: expected {'none' if privacy.on else 'a number'}, got {value!r}")
        named = privacy.unit in ("record", "client-local")
        if (report.epsilon is not None) != named:
            raise RecordError(f"epsilon: expected {'a number' if named else 'none'}, got {report.epsilon!r}")

    def _check_work(self, report: ClientReport, budget: int) -> None:
        spent = report.spent
        if spent.evaluations > budget:
            raise RecordError(f"evaluations: the task allowed {budget}, got {spent.evaluations}")
        if spent.circuits > spent.evaluations * report.num_examples:
            raise RecordError(
                f"circuits: {spent.evaluations} evaluations of {report.num_examples} rows, got {spent.circuits}"
            )

    def _check_reach(self, report: ClientReport, sent: GlobalState, plan: RoundPlan, budget: int) -> None:
        """No coordinate is further from where it was sent than the optimizer's steps reach."""
        training, privacy = self.config.training, self.config.privacy
        if privacy.unit == "client-local":
            return  # the site's noise has no bound; what enters the average is its doing
        cost = max(1, (self.budget - 1) // training.steps)
        if training.optimizer == "adam":
            reach = ADAM_REACH * max(1, -(-(budget - 1) // cost))
        elif training.optimizer == "spsa":
            reach = max(1.0, budget / 2)
        else:
            reach = COBYLA_REACH * max(1, budget)
        _within("theta", report.theta, sent.theta, reach * plan.learning_rate)
        ratio = plan.learning_rate / training.learning_rate
        rate = self.config.baselines.learning_rate * ratio * ADAM_REACH * training.steps
        for name, arrays in report.baselines.items():
            for key, array in arrays.items():
                _within(f"baseline {name}/{key}", array, sent.baselines[name][key], rate)


def _within(name: str, got: Array, sent: Array, reach: float) -> None:
    # Compared by coordinate: a norm of huge numbers overflows.
    furthest = float(np.max(np.abs(got - sent), initial=0.0))
    if not furthest <= reach * (1 + 1e-6) + 1e-9:
        raise RecordError(f"{name}: moved by {furthest:.3g}, the task's steps reach {reach:.3g}")


def _limited(scores: Scores) -> Scores:
    return replace(scores, loss_sum=min(scores.loss_sum, MAX_LOSS * scores.count))


def _loss(value: float | None) -> float | None:
    # The pull of training.l2 is in it; both limits are far from what training gives.
    return None if value is None else _between(value, 2 * MAX_LOSS)


def _language_loss(value: float | None) -> float | None:
    return None if value is None else _between(value, MAX_LOSS)


def _between(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


def _spent(spent: Spent) -> Spent:
    return replace(
        spent,
        shots=min(spent.shots, MOST_COUNT),
        jobs=min(spent.jobs, MOST_COUNT),
        validation_circuits=min(spent.validation_circuits, MOST_COUNT),
        simulated_circuits=min(spent.simulated_circuits, MOST_COUNT),
        qpu_seconds=_between(spent.qpu_seconds, MOST_SECONDS),
        queue_seconds=_between(spent.queue_seconds, MOST_SECONDS),
        qpu_seconds_estimated=_between(spent.qpu_seconds_estimated, MOST_SECONDS),
    )


def _language(answer: LanguageAnswer, census: Census | None) -> LanguageAnswer:
    rows = answer.num_examples if census is None else min(answer.num_examples, census.rows["train"])
    return replace(
        answer,
        num_examples=rows,
        received=_limited(answer.received),
        trained=_limited(answer.trained),
        train_loss_first=_language_loss(answer.train_loss_first),
        train_loss_last=_language_loss(answer.train_loss_last),
        steps=min(answer.steps, MOST_COUNT),
        computed=min(answer.computed, MOST_COUNT),
        fill_seconds=_between(answer.fill_seconds, MOST_SECONDS),
        step_seconds=_between(answer.step_seconds, MOST_SECONDS),
        seconds=_between(answer.seconds, MOST_SECONDS),
        peak_bytes=min(answer.peak_bytes, MOST_COUNT),
    )
