"""Who decides the rounds of a run: its `Decider`, with the trained policy where the mode asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent import SHIPPED
from agent.actions import SIZES
from agent.budgets import StepCost
from agent.choice import Scorer
from agent.decider import Decider
from agent.means import Means
from agent.prices import Prices
from agent.shield import everything
from agent.state import Setting, State, noise_level
from llm_qfl.federation.backend_names import samples
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.config_agent import EMBEDDED_POLICY
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.records import Census
from llm_qfl.federation.settings import project_folder
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.training import round_budget
from server_app.language import LanguageSession

BYTES = 8  # of a number of theta on the wire


def make_decider(
    config: RunConfig, model: QNNModel, classes: int, censuses: Mapping[str, Census], language: LanguageSession | None
) -> Decider | None:
    """The decider of a run; None in mode `qfl`, whose rounds are all alike.

    Args:
        config: the run config.
        model: the QNN.
        classes: C.
        censuses: of the sites that take part.
        language: the language model beside the QNN.
    """
    agent = config.agent
    if not agent.regulates:
        return None
    budget = round_budget(model, config.training)
    backends = [census.backend for census in censuses.values()]
    setting = Setting(
        rounds=config.server.rounds,
        classes=classes,
        cost=StepCost.of(config.training.optimizer, model.gradient_cost, model.num_parameters),
        limit=agent.budget,
        prices=Prices.of(agent),
        round_circuits=budget * sum(_batch(config, census.rows["train"]) for census in censuses.values()),
        round_bytes=2 * len(censuses) * BYTES * model.num_parameters,  # theta alone, as in what the policy learned from
        noise=noise_level(backends),
        lag=int(config.data.validation == "federated"),
    )
    scorer, missing, ranges = load_policy(config, language) if agent.mode == "policy" else (None, "", {})
    means = Means(
        seed=config.server.seed,
        first_budget=budget,
        shots=config.quantum.shots,
        teaches=agent.distills and language is not None,
        samples=any(samples(backend) for backend in backends),
        scorer=scorer,
        missing=missing,
        ranges=ranges,
    )
    return Decider(agent, setting, means)


def _batch(config: RunConfig, rows: int) -> int:
    """Rows of one evaluation of the objective."""
    return min(config.training.batch_size or rows, rows)


def load_policy(
    config: RunConfig, language: LanguageSession | None
) -> tuple[Scorer | None, str, Mapping[str, tuple[int, int]]]:
    """The trained policy on the run's own base model, or why there is none.

    It scores an empty state once: what a first pass has to fetch is loading, and no decision's time.
    """
    name = config.agent.policy
    if name == "none" or language is None:
        return None, "agent.policy is none" if language is not None else "the run has no language model", {}
    from llm_qfl.language.policy_file import read_policy

    path = SHIPPED if name == EMBEDDED_POLICY else project_folder() / Path(name).expanduser()
    try:
        file = read_policy(path, SIZES)
        server = language.server
        policy: Scorer = file.load_on(server.stack, server.base.tokenizer, server.base.digest)
        policy.probabilities(State.empty().text(), everything())
    except (LanguageError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError
        return None, str(error), {}
    return policy, "", file.ranges
