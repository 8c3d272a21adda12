import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.cache import StateCache, cache_folder, drop_stale


def states_of(rows, calls):
    def compute(chosen):
        calls.append(list(chosen))
        out = torch.full((len(chosen), int(rows.lengths[chosen].max()), 3), -1.0)
        for k, row in enumerate(chosen):
            for t, token in enumerate(rows.ids[row]):
                out[k, t] = torch.tensor([row, t, int(token)])
        return out

    return compute


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back_as_they_were_computed(make_rows, tmp_path, on_disk, dtype) -> None:
    rows = make_rows(0, 40)
    folder = tmp_path / "states" if on_disk else None
    cache, calls = StateCache(rows, 3, dtype, "v", folder), []
    assert cache.fill([5, 2, 5, 31], states_of(rows, calls)) == 3
    assert cache.fill([2, 7], states_of(rows, calls)) == 1
    assert sorted(row for call in calls for row in call) == [2, 5, 7, 31]
    batch = cache.batch([31, 2, 31])
    assert batch.shape == (3, max(rows.lengths[31], rows.lengths[2]), 3)
    assert batch.dtype == dtype
    for k, row in enumerate((31, 2, 31)):
        length = rows.lengths[row]
        assert (batch[k, :length, 0] == row).all()
        assert batch[k, :length, 1].tolist() == list(range(length))
        assert (batch[k, length:] == 0).all()
    with pytest.raises(LanguageError, match=r"rows \[9\] were asked for before"):
        cache.batch([2, 9])
    assert cache.size == rows.lengths.sum() * 3 * dtype.itemsize


def test_the_file_is_found_again_and_belongs_to_one_version(make_rows, tmp_path) -> None:
    rows, calls = make_rows(0, 10), []
    StateCache(rows, 3, torch.float32, "v", tmp_path).fill([1, 4], states_of(rows, calls))
    again = StateCache(rows, 3, torch.float32, "v", tmp_path)
    assert again.fill([1, 4], states_of(rows, calls)) == 0
    assert again.batch([4])[0, 0, 0] == 4
    assert StateCache(rows, 3, torch.float32, "w", tmp_path).fill([1, 4], states_of(rows, calls)) == 2
    assert StateCache(make_rows(1, 10), 3, torch.float32, "v", tmp_path).fill([1], lambda c: torch.zeros(1, 30, 3)) == 1


def test_a_file_of_another_length_is_begun_again(make_rows, tmp_path) -> None:
    rows, calls = make_rows(0, 10), []
    StateCache(rows, 3, torch.float32, "v", tmp_path).fill([1], states_of(rows, calls))
    (path,) = tmp_path.glob("*.bin")
    path.write_bytes(path.read_bytes()[:-8])
    assert StateCache(rows, 3, torch.float32, "v", tmp_path).fill([1], states_of(rows, calls)) == 1


def test_a_note_that_is_none(make_rows, tmp_path) -> None:
    rows, calls = make_rows(0, 10), []
    StateCache(rows, 3, torch.float32, "v", tmp_path).fill([1], states_of(rows, calls))
    (note,) = tmp_path.glob("*.json")
    note.write_text("[1, 99]")
    with pytest.raises(LanguageError, match="cannot keep boundary states"):
        StateCache(rows, 3, torch.float32, "v", tmp_path)


def test_old_versions_go(make_rows, tmp_path) -> None:
    rows = make_rows(0, 3)
    for version in ("a" * 20, "b" * 20):
        StateCache(rows, 3, torch.float32, version, cache_folder(tmp_path, version))
    (tmp_path / "residual.safetensors").write_bytes(b"")
    drop_stale(tmp_path, "b" * 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"emulator-{'b' * 16}", "residual.safetensors"]
    drop_stale(tmp_path / "nowhere", "x")


def test_no_rows(make_rows, tmp_path) -> None:
    cache = StateCache(make_rows(0, 0), 3, torch.float32, "v")
    assert cache.fill(np.zeros(0, int), lambda c: torch.zeros(0)) == 0
