"""The priced comparison: `python -m experiments.priced [--seeds N] [--keep FILE] [--cells ...] [--print-only]`.

What a federation costs until its validation accuracy has held 98% of the tuned fixed plan's for two rounds, at three
price lists: the fixed plan, the five rules, static settings, random, LinUCB, TPE, the trained policy with its
ablations, and the trees that it was cloned from. A killed run continues: every finished (cell, seed, arm, prices) is a
line of the file that `--keep` names. The first 20 seeds are played on the first deal, the next on the second. What the
README shows is in the repository: `--print-only --keep experiments/kept/priced.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("LLM_QFL_THREADS", "1")

from experiments.priced_arms import FREE, PRICED, STATIC, Makers
from experiments.priced_cells import CELLS, FIRST_SEED, PRICES, ROUNDS, Cell, split_of, unit
from experiments.priced_figures import comparisons
from experiments.priced_overview import miss_lines, overview_lines
from experiments.priced_table import table_lines
from llm_qfl.federation.errors import FederationError, LlmQflError
from llm_qfl.federation.fingerprint import digest_of
from llm_qfl.language.files import file_digest
from simulation.lines import mend, read_lines
from simulation.policy_states import prices_of
from simulation.policy_teachers import Teacher, check_recording, read_recording, stand_in
from simulation.policy_world import MakeDecider, Observed, World, open_world

Json = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Folders: data files, what was made for the comparison, recordings of language models."""

    data: Path
    work: Path

    def recording(self, cell: Cell, seed: int) -> Path:
        """Of one federation; the two reductions of one data set share it."""
        return self.work / "recordings" / f"{cell.data.split('-')[0]}-{cell.alpha:g}-{seed}.npz"


def open_cell(cell: Cell, seed: int, split: int, places: Places, teacher: str) -> World:
    """The federation of a cell and seed.

    Args:
        cell: data set and how it is dealt.
        seed: of the QNN's start, batches and draws of sites.
        split: seed of the deal, and of what the language models did on it.
        places: folders.
        teacher: recorded, stand-in or none.

    Raises:
        LanguageError: a recording is asked for and missing, or of other rows.
    """
    case = cell.case(split, places.data, places.work, play_seed=seed)
    if teacher == "none":
        return open_world(case)
    if teacher == "stand-in":
        return open_world(case, stand_in(1.0, seed=split))

    def recorded(world: World) -> Teacher:
        found = read_recording(places.recording(cell, split))
        rows = {site: len(part.train) for site, part in world.partitions.items()}
        check_recording(found, rows, len(world.opened.setup.class_names))
        return found

    return open_world(case, recorded)


def run_one(world: World, make: MakeDecider, *, states: bool = False) -> Json:
    """One federation as a line's figures; `states`: with pi(.|s) of every state that was asked."""
    holder: list[Observed] = []

    def kept(of: World) -> Observed | None:
        decider = make(of)
        if decider is not None:
            holder.append(decider)
        return decider

    started = time.process_time()
    played = world.play(kept, tested=True)
    decider = holder[0]
    asked = [one.probabilities for one in played.decisions if one.probabilities]
    counted = [one for one in played.decisions if one.fallback is None or one.fallback.counts]
    fallen = [one for one in counted if one.fallback is not None]
    return {
        "accuracies": [round(value, 6) for value in played.accuracies],
        "circuits": list(played.circuits),
        "bytes": list(played.bytes),
        "tests": [round(value, 6) for value in played.test_accuracies],
        "evaluations": played.evaluations,
        "stop": None if played.stop is None else played.stop.rule,
        "grew": decider.fired.grew,
        "fallback_rate": len(fallen) / len(counted) if counted else 0.0,
        "probabilities": {
            name: [[round(float(p), 4) for p in one[name]] for one in asked]
            for name in (asked[0] if states and asked else ())
        },
        "milliseconds": round(float(np.median([one.milliseconds for one in played.decisions] or [0.0])), 2),
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def jobs(cells: Sequence[str], seeds: int, arms: Sequence[str]) -> Iterator[tuple[str, int, str, str]]:
    """(cell, seed, arm, prices) in the order of running: whole federations first, so that a part is a table too."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for cell in cells:
            yield from ((cell, seed, arm, "any") for arm in FREE if arm in arms)
            yield from ((cell, seed, arm, prices) for arm in PRICED if arm in arms for prices in PRICES)


def run_missing(
    wanted: Sequence[tuple[str, int, str, str]],
    keep: Path,
    places: Places,
    makers: Makers,
    teacher: str,
    each: int,
) -> None:
    """Run what the file does not hold yet, a line each; `each`: seeds on a deal."""
    mend(keep)
    have = {(row["cell"], row["seed"], row["arm"], row["prices"]): row for row in read_lines(keep)}
    missing = [key for key in wanted if key not in have]
    if teacher == "recorded":
        check_recordings({(cell, split_of(seed, each)) for cell, seed, _, _ in missing}, places)
    setting = static_one(makers) if missing else ""
    opened: tuple[str, int] | None = None
    world: World | None = None
    with keep.open("a") as file:
        for key in wanted:
            cell, seed, arm, prices = key
            made, split = made_with(makers.learned_from(arm), teacher), split_of(seed, each)
            recording = places.recording(CELLS[cell], split) if teacher == "recorded" else None
            heard = file_digest(recording)[:16] if recording is not None and recording.exists() else None
            if key in have:
                # a recording that is not at hand cannot be compared, and need not be: nothing is played with it
                if (have[key]["made"], have[key]["split"]) != (made, split) or (
                    heard is not None and have[key]["recording"] != heard
                ):
                    raise FederationError(
                        f"{keep}: {', '.join(map(str, key))} was made with another policy, experience, split, "
                        "recording, keys or number of rounds; name another file with --keep, or delete its lines"
                    )
                continue
            if opened != (cell, seed) or world is None:
                world, opened = open_cell(CELLS[cell], seed, split, places, teacher), (cell, seed)
            costs = prices_of(PRICES.get(prices, PRICES["mixed"]), *unit(world))
            found = run_one(world, makers.make(arm, costs, seed), states=arm == "policy")
            about = {
                "cell": cell,
                "seed": seed,
                "split": split,
                "arm": arm,
                "prices": prices,
                "teacher": world.teacher.kind,
                "made": made,
                "recording": heard,
                "static_one": setting,
            }
            file.write(json.dumps({**about, "unit": list(unit(world)), **found}) + "\n")
            file.flush()
            print(f"{cell}, seed {seed}, {arm}, {prices}: {found['cpu_seconds']} s", flush=True)


def check_recordings(deals: Set[tuple[str, int]], places: Places) -> None:
    """Before hours of plays: is every recording there?

    Raises:
        FederationError: some are not.
    """
    absent = [(cell, split) for cell, split in deals if not places.recording(CELLS[cell], split).exists()]
    if absent:
        first, last = min(split for _, split in absent), max(split for _, split in absent)
        names = "; ".join(f"{cell}, deal {split}" for cell, split in sorted(absent))
        raise FederationError(
            f"{places.work}: no recording of {names}; make them with `python -m experiments.priced_records "
            f"--first {first} --deals {last - first + 1} --work {places.work}`, or take --teacher none"
        )


def made_with(learned: Sequence[str], teacher: str) -> str:
    """Digest of what a line depends on besides its key and its recording: what its arm learned from, the rounds."""
    return digest_of(repr((teacher, ROUNDS, list(learned))))[:16]


def static_one(makers: Makers) -> str:
    """The one setting that was best on what the policy learned from, as an arm's name."""
    from simulation.policy_judging import best_setting

    words = dict(part.split("=") for part in best_setting(makers.lines).split())
    name = f"m{words['budget']} k{words['clients']}"
    if name not in STATIC:
        raise FederationError(f"priced: the best setting of the experience, {name!r}, is none of {', '.join(STATIC)}")
    return name


def setting_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The arm that `static-one` is, as the lines say.

    Raises:
        FederationError: there are no lines, or they do not agree.
    """
    names = sorted({row["static_one"] for row in rows})
    if len(names) != 1:
        raise FederationError(f"priced: expected lines with one static-one, got {names or 'no lines'}")
    return names[0]


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the lines come to, as Markdown."""
    setting = setting_of(rows)
    found = comparisons(rows, setting)
    return "\n".join([*overview_lines(found), *miss_lines(found), "", *table_lines(rows, setting)])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    found.add_argument("--data", type=Path, default=Path(os.environ.get("LLM_QFL_DATA", "../shared/data")))
    found.add_argument("--keep", type=Path, default=Path("runs/priced.jsonl"))
    found.add_argument("--work", type=Path, default=Path("runs/priced-work"), help="tweets' states, recordings")
    found.add_argument("--policy", type=Path, default=Path("agent/policy.json"))
    found.add_argument("--training", type=Path, default=Path("policy-training"), help="folder of `policy train`")
    found.add_argument("--cells", nargs="*", default=list(CELLS), help=f"of {', '.join(CELLS)}")
    found.add_argument("--arms", nargs="*", default=[*FREE, *PRICED], help="all by default")
    found.add_argument("--seeds", type=int, default=20)
    found.add_argument("--seeds-per-deal", type=int, default=20, help="then the next deal, with its own recording")
    found.add_argument("--teacher", choices=("recorded", "stand-in", "none"), default="recorded")
    found.add_argument("--print-only", action="store_true")
    return found


def main() -> None:
    """Run what is missing, then print."""
    from llm_qfl.federation.settings import default_folder

    line = parser()
    asked = line.parse_args()
    if unknown := (set(asked.cells) - set(CELLS)) | (set(asked.arms) - {*FREE, *PRICED}):
        line.error(f"neither cell nor arm: {sorted(unknown)}")
    if asked.seeds_per_deal < 1:
        line.error(f"--seeds-per-deal: expected 1 or more, got {asked.seeds_per_deal}")
    makers = Makers(asked.policy, asked.training / "worlds.jsonl", default_folder() / "models")
    try:
        if not asked.print_only:
            places = Places(asked.data.resolve(), asked.work.resolve())
            wanted = list(jobs(asked.cells, asked.seeds, asked.arms))
            run_missing(wanted, asked.keep, places, makers, asked.teacher, asked.seeds_per_deal)
        rows = [row for row in read_lines(asked.keep) if row["cell"] in asked.cells]
        print(tables(rows))
    except LlmQflError as error:
        line.exit(2, f"priced: {error}\n")


if __name__ == "__main__":
    main()
