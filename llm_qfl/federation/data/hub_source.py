"""`hub:<dataset>[:<config>][#<split>]`: a data set of the Hugging Face hub, or a folder of one on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.data.frame import table_from_columns, to_numbers, used_columns
from llm_qfl.federation.data.table import Table, Wanted
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(name: str, wanted: Wanted) -> Table:
    """Load one split (`train` unless named) through flwr-datasets and check it.

    A folder is read from disk; a name is looked up in the local cache and on the hub. Flower's usage report is not
    sent: `FederatedDataset.partitioners` loads the same split as `load_partition` does, without the report.

    Raises:
        DataError: no such data set, config or split, or its rows are not what is wanted.
    """
    where = f"hub:{name}"
    rows = _load(*_parse(name))
    header = [str(column) for column in rows.column_names]
    try:
        number_names, string_names = used_columns(header, wanted)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    arrow = rows.with_format("arrow")[:]
    strings = {c: ["" if v is None else str(v) for v in arrow.column(c).to_pylist()] for c in string_names}
    numbers = {column: _numbers(arrow.column(column).to_numpy(), column, where) for column in number_names}
    return table_from_columns(header, numbers, strings, wanted, where)


def _numbers(values: np.ndarray[Any, np.dtype[Any]], column: str, where: str) -> Array:
    if values.dtype.kind in "iufb":
        return np.array(values, np.float64)
    return to_numbers(["" if value is None else str(value) for value in values], column, where)


def _parse(name: str) -> tuple[str, str | None, str]:
    rest, _, split = name.partition("#")
    dataset, _, config = rest.partition(":")
    return dataset, config or None, split or "train"


def _load(dataset: str, config: str | None, split: str) -> Dataset:
    from datasets.exceptions import DatasetNotFoundError
    from flwr_datasets import FederatedDataset
    from flwr_datasets.partitioner import IidPartitioner

    folder = Path(dataset).expanduser()
    looks_local = dataset.startswith((".", "/", "~"))
    if looks_local and not folder.is_dir():
        raise DataError(f"hub:{dataset}: no such folder; check the path (relative paths start at {Path.cwd()})")
    path = str(folder) if looks_local else dataset
    federated = FederatedDataset(
        dataset=path, subset=config, partitioners={split: IidPartitioner(num_partitions=1)}, shuffle=False
    )
    try:
        return federated.partitioners[split].dataset
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise DataError(
            f"hub:{dataset}: cannot be found on the hub or in its cache ({error}); check the name and the network, "
            "or give a folder that holds the data set (hub:./folder)"
        ) from error
    except ValueError as error:  # unknown config or split
        raise DataError(f"hub:{dataset}: config {config!r}, split {split!r}: {error}") from error
