"""What the priced comparison needs once: `python -m experiments.priced_records [--cells ...] [--deals N]`.

3,000 rows of DNA in `dna.csv`, 3,000 tweets as numbers (mean hidden states, as `data.encoding = language` makes them
in a run) in `tweets.csv`, for every cell and deal a recording of the sites' language models (L_i, soft labels). What is
there already is not made again, so a killed run of it continues. It comes from private rows: keep the folder so.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ.setdefault("LLM_QFL_THREADS", "1")

from experiments.priced import Places
from experiments.priced_cells import CELLS, DATA, FIRST_SEED, Cell
from llm_qfl.federation.config import RunConfig, Scalar
from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.synthetic import write_csv
from simulation.policy_world import Case

TEXTS = "tweets-text.csv"
PICK_SEED = 7
AS_TEXT: dict[str, Scalar] = {"data.encoding": "language", "language.dtype": "float32"}
"""What a run says whose rows are texts: every site must get the same numbers for one."""


def write_dna(places: Places) -> None:
    """`dna.csv`: rows of the training file, drawn once."""
    path = places.work / "dna.csv"
    if path.exists():
        return
    places.work.mkdir(parents=True, exist_ok=True)
    with gzip.open(places.data / "human_or_worm_train.csv.gz", "rt", newline="") as file:
        header, *rows = csv.reader(file)
    write_csv(path, header, [rows[i] for i in _chosen(len(rows), DATA["dna"].rows)])


def _chosen(rows: int, wanted: int) -> list[int]:
    random = np.random.default_rng(PICK_SEED)
    return sorted(int(i) for i in random.permutation(rows)[:wanted])


def write_tweets(places: Places, model: str) -> None:
    """`tweets-text.csv` (rows as texts) and `tweets.csv` (the same rows as numbers), in one order.

    Args:
        places: folders.
        model: base language model.
    """
    from server_app.language import open_language

    texts_path, numbers_path = places.work / TEXTS, places.work / "tweets.csv"
    if numbers_path.exists():
        return
    places.work.mkdir(parents=True, exist_ok=True)
    table = load_table(f"csv:{places.data / 'tweet_sentiment_train.csv.gz'}")
    if table.texts is None:
        raise ValueError("priced: the tweets' file has no texts")
    chosen = _chosen(len(table.labels), DATA["tweets-pca"].rows)
    names = [table.class_names[table.labels[i]] for i in chosen]
    texts = [table.texts[i] for i in chosen]
    write_csv(texts_path, ["text", "label"], [list(pair) for pair in zip(texts, names, strict=True)])
    config = RunConfig.from_run_config(
        {**AS_TEXT, "data.source": f"csv:{texts_path}", "language.model": model, "agent.mode": "qfl"}
    )
    language = open_language(config, "priced", print)
    if language is None:
        raise ValueError("priced: language.model is none")
    numbers = language.features(texts)
    lines = [[*(f"{value:.6g}" for value in row), name] for row, name in zip(numbers, names, strict=True)]
    partial = numbers_path.with_suffix(".partial")
    write_csv(partial, [*(f"h{i}" for i in range(numbers.shape[1])), "label"], lines)
    partial.replace(numbers_path)


def recorded_case(cell: Cell, seed: int, places: Places) -> Case:
    """The federation that is recorded: of tweets the one whose rows are texts, dealt by the same labels."""
    case = cell.case(seed, places.data, places.work)
    if not cell.data.startswith("tweets"):
        return case
    return replace(case, source=f"csv:{places.work / TEXTS}", more=(*case.more, *AS_TEXT.items()))


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LLM_QFL_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("runs/priced-work"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="of the deals; kept lines need no recording")
    parser.add_argument("--deals", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=8, help="adapter steps of a language round")
    asked = parser.parse_args()
    if unknown := set(asked.cells) - set(CELLS):
        parser.error(f"no cell {sorted(unknown)}, expected some of {', '.join(CELLS)}")
    from simulation.policy_recorder import record

    places = Places(asked.data.resolve(), asked.work.resolve())
    if any(CELLS[name].data.startswith("tweets") for name in asked.cells):
        write_tweets(places, asked.model)
    if any(CELLS[name].data == "dna" for name in asked.cells):
        write_dna(places)
    language: dict[str, Scalar] = {"language.model": asked.model, "language.steps": asked.steps}
    for seed in range(asked.first, asked.first + asked.deals):
        for name in asked.cells:
            path = places.recording(CELLS[name], seed)
            if path.exists():
                continue
            print(f"recording {name}, seed {seed}", flush=True)
            record(recorded_case(CELLS[name], seed, places), language).write(path)


if __name__ == "__main__":
    main()
