"""The ledger: durable, all or nothing, and never a reason to submit when it is damaged."""

import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest

from llm_qfl.quantum.ibm.budget import Budgets
from llm_qfl.quantum.ibm.errors import BudgetError, LedgerError
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger, digest_array

INTENT = Intent("run", "site", 1, "train/0", "c", "p", "o", "ibm:x")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "jobs")


def test_what_is_put_is_read_again(ledger):
    entry = Entry(INTENT, "submitted", 3.5, job_id="j1", calibration={"qubits": {"0": {"t1": 1e-4}}}, previous=("j0",))
    ledger.put(entry)
    assert Ledger(ledger.folder).get(INTENT.key) == entry
    assert ledger.get("0" * 40) is None
    assert ledger.entries() == [entry]


def test_every_field_of_an_intent_is_part_of_its_key():
    changed = [replace(INTENT, **{name: 2 if name == "round" else "other"}) for name in INTENT.__dataclass_fields__]
    assert len({intent.key for intent in [INTENT, *changed]}) == 9


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(ledger, monkeypatch):
    seen = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append("folder" if is_folder(fd) else "file"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("rename"), rename(*paths))[1])
    ledger.put(Entry(INTENT))
    assert seen == ["file", "rename", "folder"]


def is_folder(fd):
    return os.path.isdir(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b'"submitted"', b'"intent"'),
        lambda data: data.replace(b'"version": 1', b'"version": 2'),
        lambda data: b"\xff" + data,
        lambda data: b"[]",
    ],
)
def test_a_damaged_file_is_an_error(ledger, spoil):
    ledger.put(Entry(INTENT, "submitted", job_id="j"))
    path = ledger.folder / f"{INTENT.key}.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LedgerError, match=r"damaged.*nothing was submitted"):
        ledger.get(INTENT.key)
    with pytest.raises(LedgerError, match="damaged"):
        ledger.spent()


def test_an_entry_under_another_name_is_an_error(ledger):
    ledger.put(Entry(INTENT))
    (ledger.folder / f"{INTENT.key}.json").rename(ledger.folder / f"{'a' * 40}.json")
    with pytest.raises(LedgerError, match="damaged"):
        ledger.get("a" * 40)


def test_a_result_that_is_damaged_or_gone_is_fetched_again(ledger):
    values = {"evs": np.arange(6.0).reshape(2, 3)}
    entry = ledger.put_result(Entry(INTENT, "submitted", job_id="j"), values, {"qpu_seconds": 1.0})
    assert entry.state == "done"
    np.testing.assert_array_equal(ledger.result(entry)["evs"], values["evs"])
    path = ledger.folder / f"{INTENT.key}-0.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert ledger.result(entry) is None
    path.unlink()
    assert ledger.result(entry) is None


def test_the_lock_is_another_process_s_until_it_dies(ledger):
    def hold(pipe):
        with ledger.lock(INTENT.key):
            pipe.send(None)
            pipe.recv()

    ours, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(theirs,))
    holder.start()
    ours.recv()
    ledger.put(Entry(INTENT, "intent", estimate=5.0))
    with pytest.raises(LedgerError, match="another process"), ledger.lock(INTENT.key):
        pass
    assert ledger.spent() == 5.0  # let through by a process that is about to submit
    assert ledger.spent(own={INTENT.key}) == 0.0
    with pytest.raises(BudgetError, match=r"5\.0 s spent or under way \+ 2\.0 s estimated = 7\.0 s"):
        Budgets(site=6.0).check(ledger, "other", 2.0)
    Budgets(run=6.0).check(ledger, "other", 2.0)
    holder.kill()
    holder.join()
    assert ledger.spent() == 0.0
    with ledger.lock(INTENT.key):
        pass


def test_spent_counts_estimates_until_the_service_tells(ledger):
    ledger.put(Entry(INTENT, "submitting", 3.0))
    assert ledger.spent("run") == 3.0
    ledger.put(Entry(INTENT, "done", 3.0, job_id="j", metrics={"qpu_seconds": 2.5}))
    assert ledger.spent() == 2.5
    assert ledger.spent("other") == 0.0


def test_only_what_ended_badly_is_run_again_with_a_new_tag(ledger):
    ledger.put(Entry(INTENT, "failed", 3.0, job_id="j1", metrics={"qpu_seconds": 2.0}))
    before = ledger.get(INTENT.key).tag
    entry = ledger.again(INTENT.key)
    assert (entry.state, entry.attempt, entry.previous, entry.job_id) == ("intent", 1, ("j1",), None)
    assert entry.tag != before
    assert ledger.spent() == 2.0
    with pytest.raises(LedgerError, match="cannot be run again"):
        ledger.again(INTENT.key)
    with pytest.raises(LedgerError, match="no such entry"):
        ledger.again("0" * 40)


def test_a_disk_that_takes_nothing_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot make"):
        Ledger(tmp_path / "file" / "jobs")


def test_the_digest_of_numbers_knows_shape_and_bits():
    a = np.arange(6.0)
    assert digest_array(a) == digest_array(a.astype(">f8"))
    assert len({digest_array(a), digest_array(a.reshape(2, 3)), digest_array(np.nextafter(a, 9))}) == 3
