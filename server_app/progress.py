"""What the next round of a run depends on, as parts of a checkpoint and back.

The optimizer of the server has no state (an average is the next state), the sites' optimizers start anew in every
round, and every generator is made from (seed, site, round, purpose): none of them needs a line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from agent.termination import Stop
from llm_qfl.federation.errors import RunFolderError
from llm_qfl.federation.records import Census, arrays_state, state_arrays
from llm_qfl.federation.records.fields import array_record
from llm_qfl.federation.types import NOTHING, ClientReport, GlobalState, RoundPlan, Scores, Spent
from server_app.checkpoint import Arrays, Json
from server_app.outstanding import Given, Held


@dataclass(frozen=True, eq=False)
class Progress:
    """A run after a closed round.

    Attributes:
        state: the global state; names the round.
        censuses: every site of the run by name; sites that joined are among them.
        open: site -> its task that is not answered; `Given.until` counts from the moment of the checkpoint.
        held: late replies, with the states that they answer to, that wait for the next average.
        seconds: wall time of the run so far.
        server_spent: shots and jobs of scoring on the server's own rows so far.
        stop: why the run takes no further round, or None.
        informed: sites that have the setup.
    """

    state: GlobalState
    censuses: Mapping[str, Census]
    open: Mapping[str, Given]
    held: Sequence[Held]
    seconds: float = 0.0
    server_spent: Spent = NOTHING
    stop: Stop | None = None
    informed: Sequence[str] = ()

    @property
    def server_round(self) -> int:
        """The last closed round; 0 before the first."""
        return self.state.server_round

    def documents(self) -> dict[str, Json]:
        """All but the arrays, by part."""
        return {
            "progress": {
                "round": self.server_round,
                "parameter_names": list(self.state.parameter_names),
                "seconds": self.seconds,
                "server_spent": asdict(self.server_spent),
                "stop": None if self.stop is None else asdict(self.stop),
                "open": {site: _given_json(task) for site, task in sorted(self.open.items())},
                "informed": sorted(self.informed),
                "held": [_report_json(report) for report, _ in self.held],
            },
            "sites": {site: census_json(census) for site, census in sorted(self.censuses.items())},
        }

    def arrays(self) -> dict[str, Arrays]:
        """Arrays by part: the global state, and the states and replies of tasks of earlier rounds."""
        earlier: dict[str, np.ndarray[Any, Any]] = {}
        states = [task.state for task in self.open.values()] + [sent for _, sent in self.held]
        for state in states:
            earlier |= {f"sent/{state.server_round}/{key}": value for key, value in state_arrays(state).items()}
        for number, (report, _) in enumerate(self.held):
            answer = GlobalState(report.server_round, report.theta, (), report.baselines)
            earlier |= {f"held/{number}/{key}": value for key, value in state_arrays(answer).items()}
        return {"state": state_arrays(self.state), "earlier": earlier}

    @classmethod
    def of(cls, documents: Mapping[str, Json], arrays: Mapping[str, Arrays]) -> Progress:
        """Read what `documents` and `arrays` gave.

        Raises:
            RunFolderError: something is missing or of another kind.
        """
        try:
            data, earlier = documents["progress"], arrays["earlier"]
            names = tuple(data["parameter_names"])
            held = [_held(n, one, earlier, names) for n, one in enumerate(data["held"])]
            stop = data["stop"]
            return cls(
                state=_state(arrays["state"], "", int(data["round"]), names),
                censuses={site: census_of(one) for site, one in documents["sites"].items()},
                open={site: _given(one, earlier, names) for site, one in data["open"].items()},
                held=held,
                seconds=float(data["seconds"]),
                server_spent=Spent(**data["server_spent"]),
                stop=None if stop is None else Stop(**stop),
                informed=tuple(data["informed"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"checkpoint: its progress cannot be read ({type(error).__name__}: {error}); go on with the release "
                "that wrote it, or start the run anew"
            ) from error


def census_json(census: Census) -> Json:
    """A site's answer to the query without the sums, which the feature map already holds."""
    found = {one.name: getattr(census, one.name) for one in fields(census) if one.name != "sums"}
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else dict(value) if isinstance(value, Mapping) else value
        for key, value in found.items()
    }


def census_of(data: Json) -> Census:
    """Read what `census_json` gave."""
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Census(**{**data, **lists, "class_counts": np.array(data["class_counts"], np.intp), "sums": None})


def _given_json(task: Given) -> Json:
    plan = task.plan
    return {
        "round": task.server_round,
        "plan": {**asdict(plan), "sites": list(plan.sites), "budgets": list(plan.budgets)},
        "left": task.until,
        "sendings": task.sendings,
    }


def _given(data: Json, earlier: Arrays, names: tuple[str, ...]) -> Given:
    """A task that was open: whoever worked on it answers to a server that is gone, so it counts as lost."""
    plan = data["plan"]
    number = int(data["round"])
    return Given(
        state=_state(earlier, f"sent/{number}/", number, names),
        plan=RoundPlan(**{**plan, "sites": tuple(plan["sites"]), "budgets": tuple(plan["budgets"])}),
        until=float(data["left"]),
        sendings=int(data["sendings"]),
        lost=True,
    )


def _state(arrays: Arrays, prefix: str, server_round: int, names: tuple[str, ...]) -> GlobalState:
    found = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    return arrays_state(array_record(found), server_round, names)


def _report_json(report: ClientReport) -> Json:
    """A late reply without its arrays; its language part was dropped when it came."""
    plain = ("site", "server_round", "num_examples", "train_loss_first", "train_loss_best", "seconds", "backend")
    return {
        **{key: getattr(report, key) for key in (*plain, "bytes_up", "distill_weight")},
        "spent": asdict(report.spent),
        "received": _scores_json(report.received),
        "trained": _scores_json(report.trained),
        "baseline_received": {name: _scores_json(one) for name, one in report.baseline_received.items()},
    }


def _held(number: int, data: Json, earlier: Arrays, names: tuple[str, ...]) -> Held:
    server_round = int(data["server_round"])
    answer = _state(earlier, f"held/{number}/", server_round, ())
    scores = {key: _scores(data[key]) for key in ("received", "trained")}
    baselines = {name: _scores(one) for name, one in data["baseline_received"].items()}
    rest = {**data, **scores, "baseline_received": baselines, "spent": Spent(**data["spent"])}
    report = ClientReport(theta=answer.theta, baselines=answer.baselines, **rest)
    return report, _state(earlier, f"sent/{server_round}/", server_round, names)


def _scores_json(scores: Scores) -> Json:
    return {"loss_sum": scores.loss_sum, "rows": scores.rows.tolist(), "correct": scores.correct.tolist()}


def _scores(data: Json) -> Scores:
    return Scores(float(data["loss_sum"]), np.array(data["rows"], np.intp), np.array(data["correct"], np.intp))
