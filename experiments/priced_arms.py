"""Who decides in the priced comparison."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.prices import Prices
from agent.rules import RULES
from llm_qfl.federation.errors import FederationError
from llm_qfl.language.files import file_digest
from simulation.lines import Json, read_lines
from simulation.policy_arms import (
    TRUSTED,
    First,
    Remembered,
    Shuffled,
    Uniform,
    grid,
    rule,
    scored,
    static,
)
from simulation.policy_bandits import TPE, LinUCB
from simulation.policy_costs import LEAF, LISTS, SEEN, TREES, costs_of
from simulation.policy_world import MakeDecider, World

if TYPE_CHECKING:
    from agent.choice import Scorer
    from llm_qfl.language.policy import PolicyModel
    from llm_qfl.language.policy_file import PolicyFile

STATIC = {setting.name: setting for setting in grid()}
FIXED = tuple(name for name in STATIC if name.endswith("kall"))
"""Mode `qfl` at every budget: the tuned one of these is the arm `qfl`."""
RULE = {
    **{f"rule {name}": (name, False) for name in RULES},
    **{f"rule {name}, selected": (name, True) for name in RULES},
}
LEARNERS = ("random", "linucb", "tpe", "trees")
"""`trees` are fitted on the same experience as those that the policy is cloned from."""
POLICY = ("policy", "policy, shuffled state", "policy, random model", "policy, no shield", "policy, online bandit")
FREE = (*STATIC, *RULE)
"""Arms to which prices make no difference: played once for all price lists."""
PRICED = (*LEARNERS, *POLICY)
EXPERIENCED = ("linucb", "trees", "policy, shuffled state")
"""Arms that take something from the experience itself."""
RANGED = ("policy", "policy, shuffled state", "policy, online bandit")
"""Arms that ask the policy only in states of the kind that it was trained on."""
# A run that ends at a plateau can only miss the target that costs are counted to.
TO_THE_END: Mapping[str, Any] = {"stop_plateau": 0.0}
# Caps, smallest round, fairness and stops lifted, and no fallback. What stays masked is not there: five of four sites,
# soft labels of no teacher.
NO_SHIELD: Mapping[str, Any] = {
    **TRUSTED,
    "stop_after": 1,
    "stop_patience": 1,
    "stop_floor": 1e6,
    "stop_tolerance": 1e6,
    "cap_steps": 1000,
    "min_clients": 1,
    "fairness_window": 0,
}
KEYS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(RULE, TO_THE_END),
    "random": {**TRUSTED, **TO_THE_END, "choice": "sample"},
    "linucb": {**TRUSTED, **TO_THE_END},
    "tpe": {**TRUSTED, **TO_THE_END},
    "trees": {**TRUSTED, **TO_THE_END},
    "policy": TO_THE_END,
    "policy, shuffled state": TO_THE_END,
    "policy, random model": {**TRUSTED, **TO_THE_END},
    "policy, no shield": {**NO_SHIELD, **TO_THE_END},
    "policy, online bandit": {**TO_THE_END, "online_rate": 0.3},
}
"""Keys of `agent` that an arm is played with."""
WARM = 20  # federations from which LinUCB comes to the comparison


@dataclass(eq=False)
class Makers:
    """Makes the deciders.

    Attributes:
        policy: a policy file, or None where no arm needs one.
        experience: what the policy learned from (`worlds.jsonl`): LinUCB and the trees learn from it too, shuffled
            states are its.
        models: folder of converted base models.
        first: the first round of all that learn or were trained.
    """

    policy: Path | None
    experience: Path
    models: Path
    first: First = field(default_factory=First)

    def make(self, arm: str, prices: Prices, seed: int) -> MakeDecider:
        """The decider of an arm.

        Args:
            arm: its name.
            prices: of the run.
            seed: of the federation.

        Raises:
            FederationError: no such arm, or a policy is needed and none was given.
        """
        if arm in STATIC:
            return static(STATIC[arm])
        if arm in RULE:
            name, selected = RULE[arm]
            return rule(name, selected=selected, agent=KEYS[arm])
        if arm not in KEYS:
            raise FederationError(f"priced: no arm {arm!r}; expected one of {', '.join((*FREE, *PRICED))}")
        ranges = self.file.ranges if arm in RANGED else None
        return scored(self._scorer(arm, prices, seed), prices, first=self.first, ranges=ranges, agent=KEYS[arm])

    def _scorer(self, arm: str, prices: Prices, seed: int) -> Scorer | Callable[[World], Scorer]:
        if arm == "random":
            return Uniform()
        if arm == "linucb":
            return copy.deepcopy(self.linucb)
        if arm == "tpe":
            return lambda _: TPE(seed)
        if arm == "trees":
            return self.trees
        if arm == "policy, random model":
            return self.guessing
        if arm == "policy, shuffled state":
            # prices differ by cell and list: no two federations share a stream
            return Shuffled(
                self.remembered, self.texts, np.random.default_rng([seed, zlib.crc32(repr(prices).encode())])
            )
        return self.remembered

    def learned_from(self, arm: str) -> list[str]:
        """What an arm's decisions depend on: its keys, digests of the policy and of the experience."""
        keys = [repr((self.first, WARM, sorted(KEYS[arm].items())))] if arm in KEYS else []
        policy = [file_digest(self.policy)] if self.policy is not None and arm.startswith("policy") else []
        trees = [repr((TREES, LEAF, LISTS, SEEN))] if arm == "trees" else []
        return keys + policy + trees + ([self.experience_digest] if arm in EXPERIENCED else [])

    @cached_property
    def experience_digest(self) -> str:
        """Of the experience, wherever its tables lie; six digits of a number, since machines differ in the last."""
        total = hashlib.sha256()
        for line in self.lines:
            case = {**line["case"], "source": Path(str(line["case"]["source"])).name}
            text = json.dumps({**line, "case": case}, sort_keys=True)
            total.update(json.dumps(json.loads(text, parse_float=lambda number: f"{float(number):.6g}")).encode())
        return total.hexdigest()

    @cached_property
    def lines(self) -> Sequence[Json]:
        """Experience."""
        found = [line for line in read_lines(self.experience) if "refused" not in line]
        if not found:
            raise FederationError(f"priced: no experience in {self.experience}; run `llm-qfl policy train` first")
        return found

    @cached_property
    def texts(self) -> list[str]:
        """States at random prices, from the experience."""
        from simulation.policy_lessons import lessons

        return [one.text for one in lessons(self.lines, 1)]

    @cached_property
    def trees(self) -> Remembered:
        """What the policy was cloned from; equal questions are asked once."""
        return Remembered(costs_of(self.lines, 0))

    @cached_property
    def linucb(self) -> LinUCB:
        """LinUCB after some federations of the experience, at random prices."""
        from simulation.policy_experience import draw_shares
        from simulation.policy_learning import price_list, reopen

        learner, random = LinUCB(), np.random.default_rng(3)
        for line in self.lines[:WARM]:
            prices = price_list(line, draw_shares(random))
            reopen(line).play(scored(learner, prices, first=First(**line["first"]), agent=TRUSTED))
        return learner

    @cached_property
    def _opened(self) -> tuple[PolicyFile, PolicyModel]:
        from agent.actions import SIZES
        from llm_qfl.language.models import load_base
        from llm_qfl.language.policy_file import read_policy

        if self.policy is None:
            raise FederationError("priced: this arm needs a policy file; name it in --policy")
        file = read_policy(self.policy, SIZES)
        return file, file.load(load_base(file.base_name, self.models))

    @property
    def file(self) -> PolicyFile:
        """The policy's file."""
        return self._opened[0]

    @cached_property
    def remembered(self) -> Remembered:
        """The policy; equal questions are asked once."""
        return Remembered(self._opened[1])

    @cached_property
    def guessing(self) -> Remembered:
        """The same architecture with random weights that learned nothing."""
        import torch

        from agent.actions import SIZES
        from llm_qfl.language.models import BaseModel, load_base
        from llm_qfl.language.policy import PolicyModel

        base = load_base(self.file.base_name, self.models)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = type(base.model)(base.model.config).eval()
        random = BaseModel(base.name, model, base.tokenizer, "random")
        return Remembered(PolicyModel.on(random, SIZES, layers=1))
