"""Who may decide a federation, behind one protocol: every arm is a `Decider`, most are scorers inside one.

Scorers share the policy's states, actions, masks and shield; what differs is where the probabilities come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent.actions import FIELDS, SIZES, Budget, Clients, Halt, Lambda, Select, Shots
from agent.choice import Probabilities, Scorer
from agent.prices import Prices
from agent.shield import Mask
from llm_qfl.federation.config_agent import AgentConfig, Rule, Selection
from llm_qfl.federation.types import Array
from simulation.policy_states import at_prices_of, read_state
from simulation.policy_world import MakeDecider, Observed, World

STEPS = (Budget.STEPS_1, Budget.STEPS_2, Budget.STEPS_5, Budget.STEPS_10, Budget.STEPS_20)
COUNTS = (Clients.TWO, Clients.THREE, Clients.FIVE, Clients.ALL)
Options = Mapping[str, Any]
DEFAULT: Options = {
    "budget": Budget.STEPS_10,
    "clients": Clients.FIVE,
    "select": Select.RANDOM,
    "weight": Lambda.NONE,
    "shots": Shots.CONFIGURED,
    "stop": Halt.GO_ON,
}
# What an arm that explores must not be doubted for; the shield stays.
TRUSTED: Mapping[str, Any] = {"max_entropy": 1.0, "min_probability": 0.0, "regress_rounds": 10**6}


@dataclass(frozen=True)
class Setting:
    """One static choice: steps of every site, sites a round, how they are chosen, lambda."""

    steps: int
    clients: Clients
    select: Selection = "random"
    weight: float = 0.0

    @property
    def name(self) -> str:
        """`m5 k2`, and what else differs from the plainest."""
        more = "" if self.select == "random" else f" {self.select}"
        return f"m{self.steps} k{self.clients.value}{more}" + (f" l{self.weight:g}" if self.weight else "")


def grid() -> list[Setting]:
    """Every budget with every number of sites."""
    return [Setting(budget.steps or 1, count) for budget in STEPS for count in COUNTS]


def static(setting: Setting) -> MakeDecider:
    """The same in every round, the first one included; no early stop."""

    def make(world: World) -> Observed:
        sites = world.case.sites
        share = setting.clients.count(sites) / sites
        agent = AgentConfig(
            mode="llm-qfl-selected",
            select=setting.select,
            fraction=min(share, 1.0),
            distill_weight=setting.weight,
            cap_steps=max(setting.steps, AgentConfig().cap_steps),
            stop_plateau=0.0,
        )
        base = world.base(agent)
        first = base.setting.cost.evaluations(setting.steps)
        means = replace(base.means, first_budget=first, teaches=world.teacher.kind != "none")
        return Observed(agent, base.setting, means, teacher=world.teacher, regulated=False)

    return make


def rule(name: Rule, *, selected: bool = False, agent: Mapping[str, Any] | None = None) -> MakeDecider:
    """One of the five rules, all sites or a selection, from the configured budget on.

    Args:
        name: the rule.
        selected: does it select sites?
        agent: further keys of `agent`.
    """
    mode = "llm-qfl-selected" if selected else "llm-qfl-all"

    def make(world: World) -> Observed:
        config = AgentConfig.model_validate({"mode": mode, "rule": name, **(agent or {})})
        base = world.base(config)
        means = replace(base.means, teaches=world.teacher.kind != "none")
        return Observed(config, base.setting, means, teacher=world.teacher)

    return make


@dataclass(frozen=True)
class First:
    """The first round, before which nothing is known, of all that learn or were trained.

    A run of the product begins with the run config's own budget at all sites.
    """

    steps: int = 2
    fraction: float = 0.2


def policy_keys(prices: Prices, first: First, agent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keys of the section `agent` with which a scorer decides.

    Args:
        prices: of the run.
        first: plan of the first round; its steps are `training.steps` and no key of this section.
        agent: further keys.
    """
    return {
        "mode": "policy",
        "price_circuit": prices.circuit,
        "price_round": prices.round,
        "price_byte": prices.byte,
        "fraction": first.fraction,
        "select": "random",
        "decision_timeout": 600.0,
        **(agent or {}),
    }


def scored(
    scorer: Scorer | Callable[[World], Scorer],
    prices: Prices,
    *,
    first: First | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    agent: Mapping[str, Any] | None = None,
) -> MakeDecider:
    """A scorer in mode `policy`, from the second round on.

    Args:
        scorer: it, or what makes one for a world.
        prices: of the run.
        first: plan of the first round.
        ranges: the state's buckets that it knows.
        agent: keys of `agent`, `TRUSTED` for arms that explore.
    """
    begin = first or First()

    def make(world: World) -> Observed:
        who = scorer(world) if callable(scorer) else scorer
        config = AgentConfig.model_validate(policy_keys(prices, begin, agent))
        base = world.base(config)
        cost = base.setting.cost
        means = replace(
            base.means,
            first_budget=cost.evaluations(begin.steps),
            teaches=world.teacher.kind != "none",
            scorer=who,
            ranges=ranges,
        )
        learn = getattr(who, "learn", None)
        return Observed(config, base.setting, means, teacher=world.teacher, learn=learn)

    return make


def one_hot(options: Options, allowed: Mask) -> dict[str, Array]:
    """All weight on these options; where one is masked, on the last allowed one before it, or the first after it."""
    found: dict[str, Array] = {}
    for name, kind in FIELDS.items():
        flags = np.array(allowed[name])
        wanted = list(kind).index(options[name])
        there = np.flatnonzero(flags)
        below = there[there <= wanted]
        found[name] = np.zeros(SIZES[name])
        if name == "clients" and not flags[wanted]:  # fewer sites are there than that: all of them
            found[name][there[-1]] = 1.0
        else:
            found[name][below[-1] if len(below) else there[0]] = 1.0
    return found


@dataclass(eq=False)
class Scripted:
    """What was done elsewhere, one action a question, then one setting for good.

    Attributes:
        script: options of the first questions, in their order.
        then: options of all later ones.
    """

    script: Sequence[Options]
    then: Options
    asked: int = 0

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        options = self.script[self.asked] if self.asked < len(self.script) else self.then
        self.asked += 1
        return one_hot({**DEFAULT, **options}, allowed)


class Uniform:
    """Every allowed option alike, but that it never stops; take it with `choice = sample`."""

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        found = {name: np.array(flags, np.float64) / sum(flags) for name, flags in allowed.items()}
        found["stop"] = one_hot(DEFAULT, allowed)["stop"]
        return found


@dataclass(eq=False)
class Remembered:
    """A scorer whose answers are kept: equal questions are asked once."""

    inner: Scorer
    kept: dict[tuple[str, str], Probabilities] = field(default_factory=dict)

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        key = (text, repr(sorted(allowed.items())))
        if key not in self.kept:
            self.kept[key] = self.inner.probabilities(text, allowed)
        return self.kept[key]


@dataclass(eq=False)
class Shuffled:
    """Ablation: the policy is shown another state, drawn from those it met elsewhere; masks are the true ones.

    A run's prices stay what they are: with them shuffled, a policy that reads nothing else would seem to read states.

    Attributes:
        inner: the policy.
        texts: states to draw from.
        random: generator.
    """

    inner: Scorer
    texts: list[str]
    random: np.random.Generator

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        drawn = read_state(self.texts[int(self.random.integers(len(self.texts)))])
        return self.inner.probabilities(at_prices_of(drawn, read_state(text)).text(), allowed)


@dataclass(eq=False)
class Sampled:
    """Draws options from a policy and notes what was drawn: rollouts for the policy gradient.

    Attributes:
        inner: the policy.
        random: generator.
        taken: (text, mask, option numbers), in the order of the decisions.
    """

    inner: Scorer
    random: np.random.Generator
    taken: list[tuple[str, Mask, dict[str, int]]] = field(default_factory=list)

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        given = self.inner.probabilities(text, allowed)
        options = {name: int(self.random.choice(len(value), p=value / value.sum())) for name, value in given.items()}
        self.taken.append((text, allowed, options))
        return {name: np.eye(SIZES[name])[number] for name, number in options.items()}
