import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.features import RouteStates, pooled_states
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.route import Route
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import tiny_model

STACK = Stack(tiny_model(4))
MODEL = RouteStates(Route(STACK, "tiny", (0, 1, 2), (3,), (), ()))


@torch.no_grad()
def plainly(ids, layer):
    states = STACK.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[layer][0].double().numpy()
    return states[1:].mean(axis=0) if len(ids) > 1 else states[0]


ROWS = TokenRows.of([[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9], [200, 3], [9, 9, 9, 9], [5, 6, 7]])


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_states_are_transformers_states_of_each_row_alone(layer):
    expected = [plainly(ids, layer) for ids in ROWS.ids]
    found = pooled_states(MODEL, ROWS, layer, batch_size=2)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=25), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_padding_and_batching_do_not_matter(ids, size):
    together = pooled_states(MODEL, TokenRows.of(ids), 2, batch_size=size)
    alone = [pooled_states(MODEL, TokenRows.of([row]), 2)[0] for row in ids]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together, pooled_states(MODEL, TokenRows.of(ids), 2, batch_size=size))


class Loud:
    """Hidden states that are the tokens, and not a number at padding."""

    width, depth = 1, 2

    def __init__(self, lengths):
        self.lengths = lengths

    def version(self, layer):
        return f"loud {layer}"

    def hidden_states(self, ids, layer):
        out = ids.float()[:, :, None] * layer
        for row, length in enumerate(self.lengths):
            out[row, length:] = torch.nan
        return out


def test_neither_padding_nor_position_0_enters_the_mean():
    rows = TokenRows.of([[100, 1, 2], [100, 1, 2, 3, 4]])
    np.testing.assert_allclose(pooled_states(Loud([3, 5]), rows, 2)[:, 0], [3.0, 5.0])
    single = TokenRows((np.array([7, 8]),), np.array([1]), np.ones(1))
    np.testing.assert_allclose(pooled_states(Loud([2]), single, 1), [[8.0]])


def test_answers_are_kept_by_content_and_for_the_owner_alone(tmp_path):
    first = pooled_states(MODEL, ROWS, 2, folder=tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    np.savez(path, states=first + 1)
    np.testing.assert_array_equal(pooled_states(MODEL, ROWS, 2, folder=tmp_path / "cache"), first + 1)
    pooled_states(MODEL, ROWS, 1, folder=tmp_path / "cache")
    pooled_states(MODEL, ROWS.take([0, 1]), 2, folder=tmp_path / "cache")
    pooled_states(RouteStates(Route(STACK, "other", (0, 1, 2), (3,), (), ())), ROWS, 2, folder=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_an_update_on_the_layers_is_another_model(shake):
    stack = Stack(tiny_model(3))
    update = LoraAdapter(stack, "emulator", {0: 0, 2: 2}, LoraSpec(2, 4), seed=1)
    shake(update)
    with_update = RouteStates(Route(stack, "tiny", (0, 1), (2,), (update,), (update,)))
    without = RouteStates(Route(stack, "tiny", (0, 1), (2,), (update,), ()))
    assert with_update.version(1) != without.version(1)
    assert np.abs(pooled_states(with_update, ROWS, 1) - pooled_states(without, ROWS, 1)).max() > 1e-3
    np.testing.assert_allclose(pooled_states(without, ROWS, 1), pooled_states(
        RouteStates(Route(Stack(tiny_model(3)), "tiny", (0, 1), (2,), (), ())), ROWS, 1), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_file_is_named(tmp_path, content):
    pooled_states(MODEL, ROWS, 2, folder=tmp_path)
    [path] = tmp_path.iterdir()
    if content is None:
        np.savez(path, states=np.zeros((2, 2)))
    else:
        path.write_bytes(content)
    with pytest.raises(LanguageError, match="delete the file"):
        pooled_states(MODEL, ROWS, 2, folder=tmp_path)


def test_layers_that_are_not_there_and_no_rows():
    for layer in (0, 5):
        with pytest.raises(LanguageError, match="a layer from 1 to 4"):
            pooled_states(MODEL, ROWS, layer)
    assert pooled_states(MODEL, TokenRows.of([]), 2).shape == (0, 32)


def test_no_room_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(LanguageError, match="no room on disk for language features"):
        pooled_states(MODEL, ROWS, 2, folder=tmp_path)
