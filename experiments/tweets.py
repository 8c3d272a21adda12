"""The README's tables of tweets: `python -m experiments.tweets [--seeds N] [--keep FILE] [--work FOLDER]`.

Table `classification` (negative, neutral, positive; four sites, Dirichlet 0.5) and table `generation` (the tweet after
`Write a {class} tweet.`; four sites, split by class). Every arm that tunes an adapter: the same rows, rounds and steps
a site, three seeds.
A killed run continues: every finished (table, arm, seed) is a line of the file that `--keep` names, and what arms
share (states of frozen layers, emulators) lies in the folder `--work`. It holds states of private rows: keep it so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path

from experiments.tweets_arms import TABLES, order
from experiments.tweets_data import Sizes
from experiments.tweets_table import print_tables
from simulation.lines import mend, read_lines


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; both by default")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LLM_QFL_DATA", "../shared/data")))
    parser.add_argument("--keep", type=Path, default=Path("runs/tweets.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("runs/tweets-work"))
    parser.add_argument("--arms", nargs="*", help="names of arms; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-rows", type=int, default=Sizes.test)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print-only", action="store_true")
    arguments = parser.parse_args()
    tables = tuple(arguments.tables or TABLES)
    if unknown := set(tables) - set(TABLES):
        parser.error(f"no table {sorted(unknown)}, expected some of {', '.join(TABLES)}")
    known = {arm.name for table in tables for arm in TABLES[table]}
    if unknown := set(arguments.arms or ()) - known:
        parser.error(f"no arm {sorted(unknown)}, expected some of {', '.join(sorted(known))}")
    found = list(read_lines(arguments.keep))
    if not arguments.print_only:
        _run(arguments, tables, found)
    mine = [row for row in found if _is_current(row, Sizes(test=arguments.test_rows))]
    if len(mine) < len(found):
        print(f"{len(found) - len(mine)} kept lines were made with other settings and stand in no table")
    print_tables(mine)


def _is_current(row: dict[str, object], sizes: Sizes) -> bool:
    from experiments.tweets_run import settings_digest

    arms = {arm.name: arm for arm in TABLES[str(row["table"])]}
    arm = arms.get(str(row["arm"]))
    return arm is not None and row.get("settings") == settings_digest(str(row["table"]), arm, sizes)


def _run(arguments: argparse.Namespace, tables: tuple[str, ...], found: list[dict[str, object]]) -> None:
    import torch

    from experiments.tweets_run import run_arm, settings_digest

    torch.set_num_threads(arguments.threads)
    mend(arguments.keep)
    have = {(row["table"], row["arm"], row["seed"]): row.get("settings") for row in found}
    sizes = Sizes(test=arguments.test_rows)
    with arguments.keep.open("a") as file:
        for table, arm, seed in order(arguments.seeds, tables, set(arguments.arms) if arguments.arms else None):
            settings = settings_digest(table, arm, sizes)
            if (table, arm.name, seed) in have:
                if have[table, arm.name, seed] != settings:
                    raise SystemExit(
                        f"{arguments.keep}: {table}, {arm.name}, seed {seed} was made with other settings; name "
                        "another file with --keep, or delete that line"
                    )
                continue
            print(f"{table}: {arm.name}, seed {seed}", flush=True)
            row = run_arm(table, arm, seed, data=arguments.data, work=arguments.work, sizes=sizes)
            print(json.dumps(row), flush=True)
            found.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            gc.collect()  # models hold themselves in circles


if __name__ == "__main__":
    main()
