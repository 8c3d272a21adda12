"""Training and judging a policy, in slices: whatever is done lies in a folder, and a run that was killed goes on.

worlds.jsonl      experience: federations, each played with every setting of a grid
clone.npz         checkpoint of the cloning; `clone.json` counts its passes
reference.npz     matrices of the finished clone, from which the policy gradient may not go far
gradient.npz      checkpoint of the policy gradient; `groups.jsonl` has a line for each group
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.actions import SIZES
from agent.choice import Scorer
from agent.prices import Prices
from agent.state import ranges_of
from llm_qfl.federation.errors import LanguageError
from simulation.lines import Json, mend, read_lines
from simulation.policy_arms import TRUSTED, First, Remembered, Sampled, scored
from simulation.policy_costs import held_back, taught
from simulation.policy_experience import draw_shares, gather
from simulation.policy_lessons import Lesson, lessons
from simulation.policy_states import prices_of, read_state
from simulation.policy_teachers import stand_in
from simulation.policy_world import Case, World, open_world

if TYPE_CHECKING:
    from llm_qfl.language.policy import PolicyModel
    from llm_qfl.language.policy_training import PolicyTrainer, Taken, Tried

Say = Callable[[str], None]
HELD_OUT = 100_000  # federations from this number on are never trained on


@dataclass(frozen=True)
class Recipe:
    """How a policy is trained; another recipe needs another folder.

    Attributes:
        model: base language model.
        federations: to gather experience from.
        prices, states: price lists a federation, states of each, for cloning.
        epochs: passes of the cloning.
        learning_rate: of the cloning; the policy gradient takes a fifth.
        groups: of the policy gradient; 0 leaves the clone.
        group: federations of a group.
        beta: weight of KL to the clone.
        seed: of all draws.
        rank, layers: of the adapter.
    """

    model: str = "smollm2-135m"
    federations: int = 200
    prices: int = 4
    states: int = 5
    epochs: int = 6
    learning_rate: float = 5e-4
    groups: int = 0
    group: int = 8
    beta: float = 0.05
    seed: int = 0
    rank: int = 8
    layers: int = 4


@dataclass(frozen=True)
class Progress:
    """What a slice of training left: the stage it is in, and whether all is done."""

    stage: str
    done: bool


class Training:
    """One training, in a folder.

    Args:
        folder: of the training.
        recipe: how.
        models: folder of converted base models.
        say: told what happens.

    Raises:
        LanguageError: the folder belongs to another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe, models: Path, say: Say) -> None:
        self.folder, self.recipe, self.models, self.say = folder, recipe, models, say
        note, mine = folder / "recipe.json", asdict(recipe)
        growing = ("federations", "groups", "epochs")  # more of these goes on from where it was
        if note.exists():
            theirs = json.loads(note.read_text())
            odd = [key for key, value in mine.items() if key not in growing and theirs.get(key) != value]
            if odd:
                raise LanguageError(f"{folder} belongs to another training ({', '.join(odd)} differ); take another one")

    def go_on(self, minutes: float) -> Progress:
        """Train until all is done or the time is over.

        Raises:
            LanguageError: the base model cannot be had, the adapter does not fit it, or the folder is further than what
                is asked for; nothing was played or written.
        """
        self._not_further()
        trainer = self._trainer(self.recipe.learning_rate)  # before half an hour of experience
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=1))
        end = time.monotonic() + 60 * minutes

        def over() -> bool:
            return time.monotonic() >= end

        count = gather(
            self.folder / "worlds.jsonl",
            range(self.recipe.federations),
            self.folder / "tables",
            until=over,
            say=self.say,
        )
        if count < self.recipe.federations:
            return Progress(f"{count} of {self.recipe.federations} federations", done=False)
        if not self._clone(trainer, over):
            return Progress("cloning", done=False)
        if self.recipe.groups and not self._improve(over):
            return Progress("policy gradient", done=False)
        return Progress("trained", done=True)

    def _not_further(self) -> None:
        """What went further than the recipe would be written as the recipe's, or be cloned anew over what is there."""
        note, recipe = self.folder / "clone.json", self.recipe
        told: Json = json.loads(note.read_text()) if note.exists() else {"losses": [], "federations": 0}
        there, groups = len(self.lines()), len(read_lines(self.folder / "groups.jsonl"))
        fewer = {"federations (that could be dealt)": (there, told["federations"])}
        if there == told["federations"]:  # with more of them it is cloned anew
            fewer["epochs"] = recipe.epochs, len(told["losses"])
        if recipe.groups:  # none: the clone, which is kept
            fewer["groups"] = recipe.groups, groups
        for name, (asked, done) in fewer.items():
            if asked < done:
                raise LanguageError(
                    f"{self.folder}: expected --{name} {done} or more, which are done there, got {asked}; take another "
                    "folder"
                )

    def lines(self) -> list[Json]:
        """Experience of the federations that were not refused."""
        there = read_lines(self.folder / "worlds.jsonl")
        return [line for line in there if "refused" not in line and line["number"] < self.recipe.federations]

    def lessons(self) -> list[Lesson]:
        """States of the experience at random prices, as they were played."""
        recipe, lines = self.recipe, self.lines()
        return lessons(lines, recipe.seed, prices=recipe.prices, states=recipe.states)

    def _clone(self, trainer: PolicyTrainer, over: Callable[[], bool]) -> bool:
        note, checkpoint = self.folder / "clone.json", self.folder / "clone.npz"
        federations = len(self.lines())
        told: Json = json.loads(note.read_text()) if note.exists() else {}
        if told.get("federations") != federations:  # more to learn from: cloned anew, so that all of it is
            told = {"losses": [], "federations": federations}
        if (self.folder / "gradient.npz").exists() and len(told["losses"]) < self.recipe.epochs:
            raise LanguageError(
                f"{self.folder}: its policy gradient began at another clone; take another folder, or delete "
                "gradient.npz and groups.jsonl there"
            )
        if told["losses"]:
            trainer.load(checkpoint)
        if len(told["losses"]) < self.recipe.epochs:
            train, held = taught(self.lines(), self.lessons(), self.recipe.seed)
        while len(told["losses"]) < self.recipe.epochs:
            if over():
                return False
            loss = trainer.clone(_tried(train), seed=self.recipe.seed + len(told["losses"]))
            beside = trainer.evaluate(_tried(held)) if held else float("nan")
            told["losses"].append([round(loss, 5), round(beside, 5)])
            told["states"] = len(train)
            trainer.save(checkpoint)
            note.write_text(json.dumps(told))
            self.say(f"cloning {len(told['losses'])}: {loss:.4f} nats a state, others {beside:.4f}")
        np.savez(self.folder / "reference.npz", **trainer.policy.adapter.arrays())  # type: ignore[arg-type]
        return True

    def _improve(self, over: Callable[[], bool]) -> bool:
        log, checkpoint = self.folder / "groups.jsonl", self.folder / "gradient.npz"
        trainer = self._trainer(self.recipe.learning_rate / 5)
        with np.load(self.folder / "reference.npz", allow_pickle=False) as data:
            reference = {key: np.array(data[key]) for key in data.files}
        trainer.policy.adapter.load(reference)
        if checkpoint.exists():
            trainer.load(checkpoint)
        lines = self.lines()
        mend(log)
        while trainer.updates < self.recipe.groups:
            if over():
                return False
            number = trainer.updates
            random = np.random.default_rng([self.recipe.seed, number])
            line = lines[int(random.integers(len(lines)))]
            taken, returns = roll_out(trainer.policy, line, random, self.recipe.group)
            if taken:
                step = trainer.improve(taken, reference, beta=self.recipe.beta)
            trainer.updates = number + 1
            trainer.save(checkpoint)
            told = {"group": number, "federation": line["number"], "returns": [round(one, 4) for one in returns]}
            told |= {key: round(value, 5) for key, value in asdict(step).items()} if taken else {}
            with log.open("a") as file:
                file.write(json.dumps(told) + "\n")
            self.say(f"group {number}: mean return {np.mean(returns):.3f}, {len(taken)} decisions")
        return True

    def _trainer(self, learning_rate: float) -> PolicyTrainer:
        from llm_qfl.language.policy_training import PolicyTrainer

        return PolicyTrainer(self.policy(), learning_rate=learning_rate, folder=self.folder / "states")

    def policy(self) -> PolicyModel:
        """A policy that has learned nothing yet, on the recipe's base model."""
        from llm_qfl.language.lora import LoraSpec
        from llm_qfl.language.models import load_base
        from llm_qfl.language.policy import PolicyModel

        recipe = self.recipe
        spec = LoraSpec(rank=recipe.rank, alpha=2.0 * recipe.rank, modules="all-linear")
        base = load_base(recipe.model, self.models)
        layers = min(recipe.layers, len(list(base.model.base_model.layers)))
        return PolicyModel.on(base, SIZES, spec=spec, layers=layers, seed=recipe.seed)

    def write(self, path: Path, command: str) -> None:
        """The policy as it stands, with what it is and what it learned from.

        Raises:
            LanguageError: nothing was trained yet.
        """
        from llm_qfl.language.policy_file import PolicyFile

        trainer = self._trainer(self.recipe.learning_rate)
        gradient, clone = self.folder / "gradient.npz", self.folder / "clone.npz"
        if not clone.exists():
            raise LanguageError(f"{self.folder}: no pass of the cloning is done; go on with the training")
        groups = len(read_lines(self.folder / "groups.jsonl")) if self.recipe.groups else 0
        trainer.load(gradient if groups else clone)
        told = json.loads((self.folder / "clone.json").read_text())
        states = [read_state(one.text) for one in self.lessons() if not held_back(one.number)]
        kind = f"clone, then {groups} groups of policy gradient" if groups else "clone only: no policy gradient yet"
        notes = {
            "kind": kind,
            "cloned from": "what trees say that settings cost, each federation by trees that never saw it",
            "learned from": "generated tables (gaussian, clusters, markov), iris, wine; none of a comparison's",
            "federations": str(told["federations"]),
            "states": str(told["states"]),
            "passes": str(len(told["losses"])),
            "loss, nats a state (trained on, held out)": str(told["losses"][-1]),
            "language model of the sites": "a linear stand-in, not recorded and not live",
            "seed": str(self.recipe.seed),
        }
        file = PolicyFile.of(trainer.policy, self.recipe.model, ranges=ranges_of(states), command=command, notes=notes)
        file.write(path)


def _tried(found: Sequence[Lesson]) -> list[Tried]:
    from llm_qfl.language.policy_training import Tried

    return [Tried(one.text, one.allowed, one.settings, one.regrets) for one in found]


def reopen(line: Json) -> World:
    """The federation of a line of experience."""
    case = Case.from_json(line["case"])
    return open_world(case, stand_in(line["quality"], seed=case.seed) if line["quality"] else None)


def roll_out(policy: Scorer, line: Json, random: np.random.Generator, group: int) -> tuple[list[Taken], list[float]]:
    """Play a federation at drawn prices as often as a group has members; advantages of all decisions.

    Args:
        policy: draws its options.
        line: the federation, with its target and its fixed plan's cost.
        random: generator.
        group: plays.

    Returns:
        The decisions (none where all plays earned the same), and every play's return.
    """
    from llm_qfl.language.policy_training import Taken, group_advantages

    world, prices = reopen(line), price_list(line, draw_shares(random))
    remembered, first = Remembered(policy), First(**line["first"])
    returns: list[float] = []
    drawn: list[Sampled] = []
    for _ in range(group):
        sampler = Sampled(remembered, np.random.default_rng(int(random.integers(2**63))))
        played = world.play(scored(sampler, prices, first=first, agent=TRUSTED), target=line["target"])
        full = float(line["case"]["rounds"])  # the fixed plan's: overspending is not divided by itself
        returns.append(played.rewarded(prices, line["target"], full).total)
        drawn.append(sampler)
    gains = group_advantages(returns)
    taken = [
        Taken(text, allowed, options, gain)
        for sampler, gain in zip(drawn, gains, strict=True)
        for text, allowed, options in sampler.taken
        if gain
    ]
    return taken, returns


def price_list(line: Json, shares: tuple[float, float, float]) -> Prices:
    """Prices at which a round of the federation's fixed plan costs 1."""
    return prices_of(shares, line["fixed"]["circuits"], line["fixed"]["bytes"])
