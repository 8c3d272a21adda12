"""Does distillation help? `python -m experiments.distillation [--seeds N] [--keep FILE] [--tasks ...] [--print-only]`.

Lambda 0, .1, .3, .5 with the site's own tuned language model as teacher, with the federation's, with soft labels
shuffled over the site's rows, and with uniform ones: the real strategy and the real client round, a fixed plan of equal
evaluations for all, on tweets, where the teacher knows more than the QNN, and on breast-cancer, where it knows less. A
killed run continues: every finished (task, seed, arm) is a line of the file that `--keep` names; rows and recordings
lie in the folder `--work`. They come from private rows: keep it so.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("LLM_QFL_THREADS", "1")

from agent.actions import Clients
from experiments.distillation_table import table_lines
from experiments.distillation_tasks import (
    ARMS,
    FIRST_SEED,
    NONE,
    STEPS,
    TASKS,
    TWEETS,
    Arm,
    Tuning,
    metrics,
    split_of,
    taught,
)
from llm_qfl.federation.errors import FederationError, LanguageError, LlmQflError
from llm_qfl.federation.records import state_record
from llm_qfl.federation.types import GlobalState, RoundSummary
from llm_qfl.quantum.scope import Scope
from server_app.grid import BoundedGrid
from server_app.session import initial_state, make_strategy
from simulation.grid import InMemoryGrid
from simulation.lines import mend, read_lines
from simulation.policy_arms import Setting, static
from simulation.policy_teachers import NoTeacher, Recording, check_recording, read_recording
from simulation.policy_world import TIMEOUT, World, open_world

Json = dict[str, Any]


def play(world: World, weight: float, seed: int) -> tuple[GlobalState, list[RoundSummary]]:
    """One federation: all sites, the same steps in every round, no early stop.

    Args:
        world: the rows and the teacher.
        weight: lambda.
        seed: of the start vector; batches are all of a site's rows, so nothing else is drawn.
    """
    summaries: list[RoundSummary] = []
    states: list[GlobalState] = []

    def close(summary: RoundSummary, state: GlobalState) -> None:
        summaries.append(summary)
        states.append(state)

    decider = static(Setting(STEPS, Clients.ALL, weight=weight))(world)
    opened, config = replace(world.opened, decider=decider), world.opened.config
    server = config.server.model_copy(update={"seed": seed})
    start = initial_state(replace(opened, config=config.model_copy(update={"server": server})))
    grid = BoundedGrid(InMemoryGrid(world.app, world.nodes, world.case.flat()))
    strategy = make_strategy(opened, close, Scope("play", "server"))
    strategy.start(grid, state_record(start), num_rounds=world.case.rounds, timeout=TIMEOUT)
    return states[-1], summaries


def run_one(world: World, recording: Recording, arm: Arm, seed: int) -> Json:
    """One federation as a line's figures.

    Raises:
        FederationError: the sites did not train with this lambda.
    """
    started = time.process_time()
    world.teacher = NoTeacher() if arm == NONE else taught(recording, arm.kind, seed)
    state, summaries = play(world, arm.weight, seed)
    work = [report for summary in summaries for report in summary.work]
    if (used := {report.distill_weight for report in work}) != {arm.weight}:
        raise FederationError(f"distillation: expected lambda {arm.weight} at every site, the reports say {used}")
    mine = [world.model.scores(state.theta, part.validation) for part in world.partitions.values()]
    return {
        "test": metrics(world.model.scores(state.theta, world.test)),
        "validation": metrics(sum(mine[1:], mine[0])),
        "evaluations": sum(report.spent.evaluations for report in work),
        "circuits": sum(report.spent.circuits for report in work),
        "rounds": len(summaries),
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def jobs(tasks: Sequence[str], seeds: int) -> Iterator[tuple[str, int, Arm]]:
    """(task, seed, arm) in the order of running: whole seeds first, so that a part is a table too."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for task in tasks:
            yield from ((task, seed, arm) for arm in ARMS)


@dataclass(frozen=True)
class Places:
    """Folders, and how teachers that are missing are tuned."""

    data: Path
    work: Path
    tuning: Tuning

    def open(self, name: str, split: int) -> tuple[World, Recording]:
        """The federation of a task on a split, with what its language models said; what is missing is recorded.

        Raises:
            LanguageError: a recording of other rows, or of another tuning.
        """
        task = TASKS[name]
        path = task.recording(split, self.work)
        if task.rows == "tweets" and not (self.work / TWEETS).exists():
            from experiments.distillation_teachers import write_tweets  # brings torch

            write_tweets(self.data, self.work, self.tuning)
        world = open_world(task.case(split, self.work))
        if not path.exists():
            print(f"recording {task.rows}, split {split}", flush=True)
            from experiments.distillation_teachers import record_teachers

            record_teachers(task, world, self.work, self.tuning).write(path)
        recording = read_recording(path)
        if (made := recording.about.get("tuning")) != self.tuning.name:
            raise LanguageError(
                f"distillation: {path} is of {made}, asked for is {self.tuning.name}; take another --work"
            )
        rows = {site: len(part.train) for site, part in world.partitions.items()}
        check_recording(recording, rows, len(world.opened.setup.class_names))
        return world, recording


def run_missing(wanted: Sequence[tuple[str, int, Arm]], keep: Path, places: Places, splits: int) -> None:
    """Run what the file does not hold yet, a line each."""
    mend(keep)
    kept = [row for row in read_lines(keep) if row["tuning"] == places.tuning.name]
    have = {(row["task"], row["seed"], row["split"], row["arm"]) for row in kept}
    open_once = lru_cache(maxsize=None)(places.open)
    with keep.open("a") as file:
        for name, seed, arm in wanted:
            split = split_of(seed, splits)
            if (name, seed, split, arm.name) in have:
                continue
            world, recording = open_once(name, split)
            found = run_one(world, recording, arm, seed)
            told = {who: json.loads(recording.about[who]) for who in ("own", "averaged")}
            about = {"task": name, "seed": seed, "split": split, "arm": arm.name, "tuning": places.tuning.name}
            file.write(json.dumps({**about, **found, "teacher": told}) + "\n")
            file.flush()
            print(f"{name}, seed {seed}, {arm.name}: {found['cpu_seconds']} s", flush=True)


def chosen(rows: Sequence[Mapping[str, Any]], splits: int, tuning: Tuning) -> list[Mapping[str, Any]]:
    """Lines of this tuning, whose seeds take turns on so many splits."""
    mine = [row for row in rows if row["tuning"] == tuning.name]
    return [row for row in mine if row["split"] == split_of(row["seed"], splits)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    found.add_argument("--data", type=Path, default=Path(os.environ.get("LLM_QFL_DATA", "../shared/data")))
    found.add_argument("--keep", type=Path, default=Path("runs/distillation.jsonl"))
    found.add_argument("--work", type=Path, default=Path("runs/distillation-work"), help="rows, states, recordings")
    found.add_argument("--tasks", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    found.add_argument("--seeds", type=int, default=10)
    found.add_argument("--splits", type=int, default=10, help="deals, each with its own recording; seeds take turns")
    found.add_argument("--model", default=Tuning.model)
    found.add_argument("--language-rounds", type=int, default=Tuning.rounds)
    found.add_argument("--language-steps", type=int, default=Tuning.steps, help="of a site in a language round")
    found.add_argument("--print-only", action="store_true")
    return found


def main() -> None:
    """Run what is missing, then print."""
    line = parser()
    asked = line.parse_args()
    if unknown := set(asked.tasks) - set(TASKS):
        line.error(f"no task {sorted(unknown)}, expected some of {', '.join(TASKS)}")
    tuning = Tuning(asked.model, asked.language_rounds, asked.language_steps)
    try:
        if not asked.print_only:
            places = Places(asked.data.resolve(), asked.work.resolve(), tuning)
            run_missing(list(jobs(asked.tasks, asked.seeds)), asked.keep, places, asked.splits)
        rows = [row for row in read_lines(asked.keep) if row["task"] in asked.tasks]
        print("\n".join(table_lines(chosen(rows, asked.splits, tuning))))
    except LlmQflError as error:
        line.exit(2, f"distillation: {error}\n")


if __name__ == "__main__":
    main()
