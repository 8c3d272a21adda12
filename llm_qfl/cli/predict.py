"""`llm-qfl predict`: from a run folder and a CSV to classes and probabilities, with the QNN or the language model."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from llm_qfl.federation.data.encodings import encode
from llm_qfl.federation.data.frame import table_from_columns, to_numbers
from llm_qfl.federation.data.table import Table, Wanted
from llm_qfl.federation.errors import DataError, RecordError, RunFolderError
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array

Model = Literal["qnn", "language"]


def predict_csv(
    run: Path, data: Path, *, model: Model = "qnn", base: str | None = None, flat_prior: bool = False
) -> str:
    """Predictions as CSV: `prediction`, then a column `probability_<class>` for each class, a line per row.

    Args:
        run: a run folder; its `model/` is read, for `language` its `adapter/` and `config.json`, too.
        data: a CSV file (also `.gz`) with the run's columns, in any order; further columns are not read.
        model: `qnn`, or `language`: the full language model with the run's adapter.
        base: the base language model's folder, hub id or name, where one is needed; default: what the run had.
        flat_prior: of `language`: with the class prior that the run measured on public text divided out.

    Raises:
        RunFolderError: a folder is missing or damaged, or an option does not go with the model.
        DataError: columns are missing, or rows are not what the run had.
        LanguageError: the language model cannot be had, or is not the one that the adapter was made for.
    """
    probabilities, class_names = predict_rows(run, data, model=model, base=base, flat_prior=flat_prior)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prediction", *(f"probability_{name}" for name in class_names)])
    for row in probabilities:
        writer.writerow([class_names[int(np.argmax(row))], *(f"{p:.9g}" for p in row)])
    return out.getvalue()


def predict_rows(
    run: Path, data: Path, *, model: Model = "qnn", base: str | None = None, flat_prior: bool = False
) -> tuple[Array, tuple[str, ...]]:
    """Probabilities (N, C) and class names.

    Raises:
        RunFolderError, DataError, LanguageError: as `predict_csv`.
    """
    if not (run / "model" / "features.json").is_file():
        raise RunFolderError(f"{run}: no model/features.json in it; expected the folder of a finished run")
    if model == "language":
        from llm_qfl.cli.predict_language import language_probabilities

        setup = _read_setup(run / "model" / "features.json")
        rows = read_rows(data, setup)
        return language_probabilities(run, rows, setup, base, flat_prior=flat_prior), setup.class_names
    if flat_prior:
        raise RunFolderError("--flat-prior is about the language model's label words; it goes with --with language")
    from llm_qfl.quantum.folder import load_model

    qnn, theta, about = load_model(run / "model")
    setup = Setup.from_json(json.dumps(about))
    table = read_rows(data, setup)
    if setup.encoding == "language":
        from llm_qfl.cli.predict_language import hidden_states

        numbers = hidden_states(run, table, base)
    elif base is not None:
        raise RunFolderError(
            "--base names a language model; it goes with --with language, or with a QNN that reads language features"
        )
    else:
        numbers, _ = encode(table, setup.encoding, k=setup.k)
    return np.exp(qnn.log_probabilities(theta, setup.feature_map.transform(numbers))), setup.class_names


def _read_setup(path: Path) -> Setup:
    try:
        return Setup.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecordError) as error:
        raise RunFolderError(f"{path}: cannot be read as a run's ({error}); copy it again") from error


def read_rows(data: Path, setup: Setup) -> Table:
    """The rows of a CSV without labels, in the run's columns.

    Raises:
        DataError: the file cannot be read, or misses columns, or holds what is no number or base.
    """
    wanted = Wanted(label_column="", classes=setup.class_names, role="fixed", labelled=False)
    if setup.encoding == "language":
        wanted = replace(wanted, text_column=setup.columns[0])
    try:
        with _open(data) as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = _places(header, setup.columns, data)
            rows = [row for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"{data}: no such file; check the path") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{data}: cannot be read as UTF-8 CSV ({error}); expected commas and a header line") from error
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(f"{data}: data row {number} has {len(row)} fields, the header has {len(header)}")
    cells = {name: [row[at] for row in rows] for name, at in places.items()}
    if setup.encoding == "columns":
        numbers = {name: to_numbers(values, name, str(data)) for name, values in cells.items()}
        return table_from_columns(setup.columns, numbers, {}, wanted, str(data))
    return table_from_columns(setup.columns, {}, cells, wanted, str(data))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _places(header: Sequence[str], columns: Sequence[str], data: Path) -> dict[str, int]:
    missing = [name for name in columns if name not in header]
    if missing:
        shown = ", ".join(missing[:6]) + (f", ... ({len(missing)})" if len(missing) > 6 else "")
        raise DataError(
            f"{data}: missing columns: {shown}; the model needs {len(columns)}, the file has {len(header)}; "
            "bring the columns under the names of the run"
        )
    twice = sorted({name for name in columns if header.count(name) > 1})
    if twice:
        raise DataError(f"{data}: two columns of one name: {', '.join(twice)}; rename or drop one")
    return {name: header.index(name) for name in columns}


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
