"""The run config's section `agent`: who decides a round (LLM-QFL, arXiv 2505.18656), by which rule, at what prices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm_qfl.federation.config_language import EMBEDDED_MODEL, LanguageConfig
from llm_qfl.federation.section import PositiveInt, Section

Mode = Literal["auto", "qfl", "llm-qfl-all", "llm-qfl-selected", "policy"]
Rule = Literal["incremental", "dynamic", "logarithmic", "adaptive", "hybrid"]
Selection = Literal["all", "align", "oort", "random"]
Reference = Literal["server", "language"]
Direction = Literal["forward", "reverse"]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

EMBEDDED_POLICY = "embedded"


class AgentConfig(Section):
    """Local budgets, client selection, distillation and the moment to stop."""

    mode: Mode = "auto"
    """`auto` (`policy` where the language model is the one that the embedded policy was trained on, classifies, and
    `privacy.unit` is none; else `qfl`), `qfl` (every round alike), `llm-qfl-all` (regulated budgets, all sites),
    `llm-qfl-selected` (and a selection of the sites), `policy` (a language model decides, the ratio rule where it may
    not)."""
    policy: str = EMBEDDED_POLICY
    """The policy's weights: `embedded` (in the app), `none` (the ratio rule decides) or a file of `llm-qfl policy`."""
    rule: Rule = "adaptive"
    """How the budget follows the ratio of the QNN's loss to the language model's."""
    regulation: Literal["symmetric", "paper"] = "symmetric"
    """`paper`: the budget never falls. `symmetric`: where the QNN is the better one it falls as it would have risen."""
    from_round: Annotated[int, Field(ge=2)] = 2
    """First round with a regulated budget (paper: 3)."""
    dead_band: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """`symmetric`: ratios this near to 1 change nothing. `paper` has no such band."""
    min_steps: PositiveInt = 1
    """Fewest local optimizer steps a round; COBYLA needs P+2 evaluations whatever this says."""
    cap_steps: PositiveInt = 20
    """Most local optimizer steps a round (paper: 100 of COBYLA, one evaluation each; 100 of Adam drive unlike sites so
    far apart that their average guesses)."""
    increment_steps: PositiveInt = 20
    """Rule `hybrid`: most steps that a round adds (paper: 100)."""
    budget: Annotated[int, Field(ge=0)] = 0
    """Objective evaluations of all sites over the whole run, a task without an answer counted as used up; 0 sets no
    limit. Not in mode `qfl`, whose rounds are all alike."""
    distill_weight: Share = 0.0
    """Lambda: weight of the language model's soft labels in the QNN's loss (our reconstruction of the paper: .3;
    measured: no gain, and worse where the QNN is the better model); mode `qfl` has none, mode `policy` chooses."""
    distill_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Tau: both distributions are flattened by it; the term counts tau squared times."""
    distill_direction: Direction = "forward"
    """`forward`: KL(teacher || student); `reverse`: KL(student || teacher)."""
    select: Selection = "align"
    """`llm-qfl-selected`: `all`, `align` (nearest losses), `oort` (utility) or `random` (seeded). The first round of
    `policy` asks all sites, unless this is `random`."""
    align_to: Reference = "server"
    """`align`: distance of a site's loss to the server's, or to its own language model's."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the sites that is selected (paper: .1)."""
    min_clients: PositiveInt = 2
    """Fewest sites that are selected, where there are as many."""
    fairness_window: Annotated[int, Field(ge=0)] = 10
    """Every site is selected at least once in so many rounds; 0 promises nothing."""
    stop_align: NonNegative = 0.0
    """Stop where the server's loss and the language model's differ by less than this (nats; paper: .4, QPU .02); 0
    never, since a QNN that would pass its language model is stopped on the way."""
    stop_distance: NonNegative = 0.0
    """Stop where the sites' mean distance to the server moves by less than this (nats; the paper's second rule); 0
    never."""
    stop_plateau: NonNegative = 0.001
    """Stop where validation loss has not fallen by more than this below its best (nats); 0 never."""
    stop_patience: PositiveInt = 3
    """Rounds in a row in which a condition must hold (paper: 1)."""
    stop_after: PositiveInt = 5
    """No such stop before this round has closed."""
    stop_floor: Annotated[float, Field(gt=0)] = 0.95
    """Nor while validation loss is above this share of ln C, what guessing costs."""
    stop_tolerance: NonNegative = 0.02
    """Nor while it is worse than the run's best by more than this (nats)."""
    price_circuit: NonNegative = 1e-5
    """What a circuit costs, in any unit; only ratios of prices matter."""
    price_round: NonNegative = 1.0
    """What a round costs."""
    price_byte: NonNegative = 1e-6
    """What a byte costs, up or down."""
    choice: Literal["best", "sample"] = "best"
    """The policy takes its most probable options, or draws (seeded)."""
    online_rate: NonNegative = 0.0
    """Rate of a bandit on top of the policy, which learns from this run's own rewards while the language model stays
    frozen; 0 leaves the policy as it was trained."""
    decision_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Seconds that a decision may take before the rule decides; loading the model does not count."""
    max_entropy: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the largest possible entropy above which the rule decides."""
    min_probability: Share = 0.35
    """Least probability, as geometric mean over the fields, of the best options, or the rule decides."""
    regress_rounds: PositiveInt = 2
    """So many rounds in a row worse than the best by more than `stop-tolerance`, and the rule decides the next."""
    max_fallback: Share = 0.2
    """A run with a larger share of decisions by the rule is reported as the rule's."""

    @model_validator(mode="after")
    def _agrees(self) -> AgentConfig:
        problems = []
        if self.min_steps > self.cap_steps:
            problems.append(
                f"agent.min-steps: expected at most agent.cap-steps ({self.cap_steps}), got {self.min_steps}"
            )
        if not self.policy:
            problems.append("agent.policy: expected embedded, none or a file, got an empty string")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def regulates(self) -> bool:
        """Do budgets change from round to round?"""
        return self.mode not in ("auto", "qfl")

    @property
    def distills(self) -> bool:
        """May soft labels enter the QNN's loss (the policy may choose a weight of its own)?"""
        return self.mode == "policy" or (self.regulates and self.distill_weight > 0)

    @property
    def selection(self) -> Selection:
        """How the rule selects sites in this mode; behind the policy it takes all, but in a first round at `random`."""
        return self.select if self.mode == "llm-qfl-selected" else "all"


def resolved(agent: AgentConfig, language: LanguageConfig, *, private: bool) -> AgentConfig:
    """The section with the mode that `auto` stands for; where sites tell no losses, there is nothing to decide by."""
    if agent.mode != "auto":
        return agent
    able = language.model == EMBEDDED_MODEL and language.task == "classification" and not private
    return agent.model_copy(update={"mode": "policy" if able else "qfl"})


def agent_problems(agent: AgentConfig, language: LanguageConfig) -> list[str]:
    """Cross checks with the language model, one line per problem; of a section whose mode is no longer `auto`."""
    if not agent.regulates:
        if agent.budget:
            return [
                f"agent.budget: mode 'qfl' gives every round the same and keeps to no budget, got {agent.budget}; set "
                "server.rounds and training.steps, or take another agent.mode"
            ]
        return []
    if agent.mode == "policy" and agent.price_circuit == agent.price_round == agent.price_byte == 0:
        return ["agent.price-round: the policy weighs prices, expected one above 0, got three zeros"]
    if not language.enabled:
        return [f"agent.mode: {agent.mode!r} compares the QNN with a language model, language.model is none; take qfl"]
    if language.task != "classification":
        return [
            f"agent.mode: {agent.mode!r} compares losses on the same rows' classes, language.task is "
            f"{language.task!r}; take classification, or qfl"
        ]
    return []
