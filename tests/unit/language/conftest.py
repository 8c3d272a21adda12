"""Tiny models: one torch thread (two that wait for a busy core are a hundred times slower), seeded rows."""

from collections.abc import Callable

import numpy as np
import pytest

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import CompressedModel, load_compressed
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_torch_thread: None) -> None:
    """In every module here."""


def random_rows(seed: int, rows: int, *, low: int = 6, high: int = 20, prompt: int = 3) -> TokenRows:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 256, rng.integers(low, high)) for _ in range(rows)]
    return TokenRows.of(ids, [prompt] * rows, rng.uniform(0.5, 2, rows))


@pytest.fixture
def make_rows() -> Callable[..., TokenRows]:
    return random_rows


@pytest.fixture
def make_config() -> Callable[..., LanguageConfig]:
    def make(**changes: object) -> LanguageConfig:
        values = {"model": "tiny-6", "beta": 0.5, "adapter_layers": 2, "dtype": "float32", "device": "cpu"}
        values |= {"steps": 3, "batch_size": 4, "align_batch": 4, "align_first": 4, "rank": 3, "emulator_rank": 4}
        return LanguageConfig(**{**values, **changes})

    return make


@pytest.fixture
def make_server(tmp_path, make_config) -> Callable[..., ServerLanguage]:
    def make(seed: int = 7, **changes: object) -> ServerLanguage:
        config = make_config(**changes)
        return ServerLanguage(load_base(config.model, tmp_path), config, seed=seed)

    return make


@pytest.fixture
def make_client(tmp_path) -> Callable[..., ClientLanguage]:
    def make(server: ServerLanguage, folder: str | None = None) -> ClientLanguage:
        exported = server.export(tmp_path / "models")
        model: CompressedModel = load_compressed(exported.folder, exported.sha256)
        return ClientLanguage(model, server.config, folder=tmp_path / folder if folder else None)

    return make


@pytest.fixture
def shake() -> Callable[..., None]:
    """Give an adapter values away from zero, so that its update is felt."""

    def give(adapter, seed: int = 0, size: float = 0.2) -> None:
        rng = np.random.default_rng(seed)
        adapter.load({k: (v + size * rng.normal(size=v.shape)).astype(np.float32) for k, v in adapter.arrays().items()})

    return give
