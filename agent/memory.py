"""What a `Decider` remembers, as JSON: for a checkpoint, so that a run that was killed decides as it would have.

Decisions themselves are in `decisions.jsonl`; here is only what the next one, and its line, depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.history import History, RoundRecord, SiteRecord, Task, Teachers
from agent.online import Online
from agent.rules import Regulated
from llm_qfl.federation.errors import FederationError

Json = dict[str, Any]


@dataclass(frozen=True)
class Memory:
    """The state of a run's decisions after a closed round.

    Attributes:
        history: closed rounds.
        budgets: evaluations that every site was given last.
        proposed: what the rule makes of them.
        waiting: evaluations of tasks that no accepted answer accounts for.
        teachers: the language model's losses as they stand.
        fired: what the rule did at each site that answered, round by round.
        online: what the run's rewards taught the bandit on top of the policy.
    """

    history: History = field(default_factory=History)
    budgets: Mapping[str, int] = field(default_factory=dict)
    proposed: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[Task, int] = field(default_factory=dict)
    teachers: Teachers = field(default_factory=Teachers)
    fired: tuple[Mapping[str, Regulated], ...] = ()
    online: Online = field(default_factory=Online)

    def to_json(self) -> Json:
        """Plain values; floats come back exactly."""
        return {
            "rounds": [asdict(record) for record in self.history.rounds],
            "budgets": dict(self.budgets),
            "proposed": dict(self.proposed),
            "waiting": [[number, site, most] for (number, site), most in self.waiting.items()],
            "teachers": {"sites": dict(self.teachers.sites), "server": self.teachers.server},
            "fired": [{site: asdict(one) for site, one in done.items()} for done in self.fired],
            "online": self.online.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        """Read `to_json`'s form.

        Raises:
            FederationError: a field is missing, unknown or of another kind.
        """
        try:
            rounds = tuple(_record(one) for one in data["rounds"])
            budgets, proposed = _budgets(data["budgets"]), _budgets(data["proposed"])
            waiting = {(int(number), str(site)): int(most) for number, site, most in data["waiting"]}
            teachers = _teachers(data["teachers"])
            fired = tuple({str(site): Regulated(**one) for site, one in done.items()} for done in data["fired"])
            online = Online.from_json(data["online"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FederationError(
                f"checkpoint: the memory of decisions cannot be read ({type(error).__name__}: {error}); "
                "start the run anew"
            ) from error
        return cls(History(rounds), budgets, proposed, waiting, teachers, fired, online)


def _record(data: Mapping[str, Any]) -> RoundRecord:
    sites = tuple(SiteRecord(**one) for one in data["sites"])
    settled = tuple((int(number), str(site)) for number, site in data["settled"])
    return RoundRecord(**{**data, "sites": sites, "asked": tuple(data["asked"]), "settled": settled})


def _budgets(data: Mapping[str, Any]) -> dict[str, int]:
    return {str(site): int(budget) for site, budget in data.items()}


def _teachers(data: Mapping[str, Any]) -> Teachers:
    server = data["server"]
    sites = {str(site): float(loss) for site, loss in data["sites"].items()}
    return Teachers(sites, None if server is None else float(server))
