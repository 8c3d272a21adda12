"""`hub:<dataset>[:<config>][#<split>]`: a data set of the Hugging Face hub, or a folder of one on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_qfl.federation.data.frame import string_columns, table_from_frame
from llm_qfl.federation.data.table import Table, Wanted
from llm_qfl.federation.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(name: str, wanted: Wanted) -> Table:
    """Load one split (`train` unless named) through flwr-datasets and check it.

    A folder is read from disk; a name is looked up in the local cache and on the hub. Flower's usage report is not
    sent: `FederatedDataset.partitioners` loads the same split as `load_partition` does, without the report.

    Raises:
        DataError: no such data set, config or split, or its rows are not what is wanted.
    """
    dataset, config, split = _parse(name)
    rows = _load(dataset, config, split)
    for column, feature in rows.features.items():
        if column != wanted.label_column and not hasattr(feature, "dtype"):
            raise DataError(f"hub:{name}: column {column!r} holds {feature}, expected numbers or strings")
    frame = rows.to_pandas()
    for column in string_columns([str(c) for c in frame.columns], wanted):
        frame[column] = frame[column].map(lambda value: "" if value is None or value != value else str(value))
    return table_from_frame(frame, wanted, f"hub:{name}")


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
