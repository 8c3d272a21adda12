"""What `llm-qfl policy` does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent import SHIPPED
from agent.actions import FIELDS, SIZES, Action
from agent.choice import Trust, pick
from agent.online import Online
from agent.shield import allowed_of
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.settings import default_folder

if TYPE_CHECKING:
    from llm_qfl.language.policy import PolicyModel
    from llm_qfl.language.policy_file import PolicyFile
    from simulation.policy_learning import Recipe

Say = Callable[[str], None]
NEAR = 0.01  # probabilities of two machines: float32 sums in another order


def models() -> Path:
    """Where converted base models lie."""
    return default_folder() / "models"


def open_policy(path: Path | None) -> tuple[PolicyFile, PolicyModel]:
    """A policy file with its base model.

    Raises:
        LanguageError: no such file, or not of this release's actions, or its base model cannot be had.
    """
    from llm_qfl.language.models import load_base
    from llm_qfl.language.policy_file import read_policy

    file = read_policy(path or SHIPPED, SIZES)
    return file, file.load(load_base(file.base_name, models()))


def train_policy(folder: Path, recipe: Recipe, output: Path, *, minutes: float, say: Say) -> bool:
    """One slice of a training; writes the policy once all is done.

    Returns:
        Whether all is done.

    Raises:
        FederationError: the output has no folder.
    """
    if not output.parent.is_dir():
        raise FederationError(f"policy train: --output {output}: there is no folder {output.parent}; make it first")
    os.environ.setdefault("LLM_QFL_THREADS", "1")  # circuits of few rows: two threads are slower
    from simulation.policy_learning import Training

    training = Training(folder, recipe, models(), say)
    progress = training.go_on(minutes)
    if not progress.done:
        say(f"not done yet ({progress.stage}); the same command goes on")
        return False
    training.write(output, command_of(recipe))
    say(str(output))
    return True


def command_of(recipe: Recipe) -> str:
    """The command that makes the same policy."""
    return (
        f"llm-qfl policy train --model {recipe.model} --federations {recipe.federations} --epochs {recipe.epochs} "
        f"--groups {recipe.groups} --seed {recipe.seed}"
    )


def evaluate_policy(path: Path | None, folder: Path, federations: int, *, minutes: float, say: Say) -> None:
    """Judge a policy; one line a price list."""
    os.environ.setdefault("LLM_QFL_THREADS", "1")
    from simulation.lines import read_lines
    from simulation.policy_judging import dependence, interval, judge

    end = time.monotonic() + 60 * minutes
    file, policy = open_policy(path)
    learned = [line for line in read_lines(folder / "worlds.jsonl") if "refused" not in line]
    found = judge(
        policy,
        file.ranges,
        learned=learned,
        folder=folder,
        federations=federations,
        until=lambda: time.monotonic() >= end,
        say=say,
    )
    for name, one in found.items():
        telling = ", ".join(f"{field} {value:.3f}" for field, value in one.information.items() if value > 1e-6)
        ratio, low, high = np.exp(interval(one.beside))
        spread = f"95% {low:.2f} to {high:.2f}" if one.federations > 1 else "one federation has no interval"
        say(
            f"{name}: {one.federations} federations, cost {one.policy:.2f} of the best setting's (static-one "
            f"{one.static_one:.2f}: policy / static-one {ratio:.2f}, {spread}), "
            f"target reached {one.reached:.0%}, fallback {one.fallback_rate:.0%}, "
            f"I(state; option | mask) {telling or 'none'} nats, {one.milliseconds or 0:.0f} ms a decision"
        )
    shown = dependence(found.values())
    verdict = "static: nothing shows that its actions depend on its state to any use" if shown.static else "not static"
    test = (
        "no p: one federation, or no play that differs" if np.isnan(shown.p) else f"p {shown.p:.3f} (paired, one-sided)"
    )
    say(f"states shuffled: {shown.ratio:.2f} of the cost, {test}: {verdict}")


@dataclass(frozen=True)
class Again:
    """One decision, asked again.

    Attributes:
        server_round: its round.
        was, now: the options that were taken, and that would be; none where the policy was too unsure to decide.
        furthest: largest difference of a probability.
    """

    server_round: int
    was: Mapping[str, str] | None
    now: Mapping[str, str] | None
    furthest: float

    @property
    def same(self) -> bool:
        """The same options, with the same probabilities up to rounding."""
        return self.was == self.now and self.furthest <= NEAR


def replay_run(run: Path, path: Path | None, *, say: Say) -> bool:
    """Replay a run folder; whether every decision is the same.

    Raises:
        FederationError: no decisions of a policy.
    """
    _, policy = open_policy(path)
    replayed = replay_lines(read_decisions(run), policy, read_config(run))
    for one in replayed:
        was = "as it was" if one.was == one.now else f"was {_words(one.was)}"
        say(f"round {one.server_round}: {_words(one.now)}; {was}; probabilities within {one.furthest:.1e}")
    same = sum(one.same for one in replayed)
    say(f"{same} of {len(replayed)} decisions are the same")
    return same == len(replayed)


def _words(options: Mapping[str, str] | None) -> str:
    return "the rule" if options is None else " ".join(f"{name} {option}" for name, option in options.items())


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        FederationError: it cannot be read.
    """
    path = run / "config.json"
    try:
        return RunConfig.from_run_config(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(f"{path} cannot be read: {error}") from error


def read_decisions(run: Path) -> list[dict[str, Any]]:
    """Lines of `decisions.jsonl` that a policy was asked for.

    Raises:
        FederationError: there are none, or the file is damaged.
    """
    path = run / "decisions.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise FederationError(f"{path} cannot be read: {error}") from error
    asked = [line for line in lines if line.get("probabilities") and line.get("state")]
    if not asked:
        raise FederationError(f"{path}: the policy was asked in none of {len(lines)} decisions; nothing to replay")
    return asked


def replay_lines(lines: Sequence[Mapping[str, Any]], policy: PolicyModel, config: RunConfig) -> list[Again]:
    """Ask a policy in the states of these lines, under the masks and a bandit's preferences that they record.

    Args:
        lines: of `decisions.jsonl`.
        policy: to be asked.
        config: the run's: how sure the policy had to be, whether it drew, from which seed.
    """
    agent, found = config.agent, []
    trust = Trust(agent.max_entropy, agent.min_probability, agent.regress_rounds, agent.stop_tolerance)
    for line in lines:
        number, allowed = int(line["round"]), allowed_of(line["masked"])
        given = Online(preferences=line.get("preferences", {})).tilted(
            policy.probabilities(str(line["state"]), allowed)
        )
        furthest = 0.0
        for name, kind in FIELDS.items():
            before = np.array([line["probabilities"][name][str(option.value)] for option in kind])
            furthest = max(furthest, float(np.abs(given[name] - before).max()))
        draw = stream(config.server.seed, SERVER, number, "policy") if agent.choice == "sample" else None
        chosen = trust.doubts(given, allowed) or pick(given, draw)
        now = chosen.words() if isinstance(chosen, Action) else None
        found.append(Again(number, line["action"], now, furthest))
    return found
