"""`llm-qfl doctor` where an operator runs it: read-only root, another user, volumes, certificates that end."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_qfl.cli.doctor import container, machine
from llm_qfl.cli.doctor.run import read_node
from llm_qfl.cli.main import app

PROJECT = Path(__file__).parents[3]


def node(more="", config=()):
    found, lines = read_node(more, list(config))
    assert found is not None, lines
    return found


def site(tmp_path, more=""):
    return node(f'site="a" data-path="{tmp_path / "rows.csv"}" folder="{tmp_path / "node"}" {more}')


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    arguments = ["deploy", "site", "clinic-a", "--folder", str(folder), "--days", "100"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


# Certificates and private files


def test_the_first_certificate_to_end_is_told(keys):
    certificates, private = container.check_keys(keys, 30)
    assert certificates.status == private.status == "ok"
    end = datetime.now(UTC) + timedelta(days=100)
    assert f"{end:%Y-%m-%d}" in certificates.found
    assert "in 99 days" in certificates.found
    assert "runtime" in certificates.found
    assert private.found.startswith("4 in ")  # node.key, runtime.key, and the secret that node and executor share


@pytest.mark.parametrize(
    ("days", "status", "word"), [(69, "ok", "in 30"), (80, "warn", "in 19"), (102, "fail", "days ago")]
)
def test_what_ends_soon_or_has_ended(keys, monkeypatch, days, status, word):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(container, "datetime", Later)
    check = container.check_keys(keys, 29)[0]
    assert (check.status, word in check.found) == (status, True), check
    assert bool(check.advice) == (status != "ok")


def test_a_clock_that_is_slow_is_told(keys, monkeypatch):
    class Before(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr(container, "datetime", Before)
    check = container.check_keys(keys, 30)[0]
    assert (check.status, "not valid yet" in check.found, "clock" in check.advice) == ("fail", True, True)


def test_a_damaged_certificate_is_red_and_what_is_in_it_is_not_shown(keys):
    (keys / "node" / "runtime.crt").write_text("BEGIN secret")
    result = CliRunner().invoke(app, ["doctor", "--offline", "--json", "--keys", str(keys)])
    lines = {line["name"]: line for line in json.loads(result.stdout)["checks"]}
    assert lines["certificates"]["status"] == "fail"
    assert "runtime.crt" in lines["certificates"]["found"]
    assert "secret" not in lines["certificates"]["found"]


def test_private_files_that_others_can_read_are_told(keys):
    (keys / "node" / "node.key").chmod(0o640)
    check = container.check_keys(keys, 30)[1]
    assert (check.status, "node.key" in check.found, check.advice) == ("warn", True, "chmod 600")


def test_no_keys_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(container, "PLACES", (Path("deploy"),))
    (skipped,) = container.check_keys(None, 30)
    assert (skipped.status, "--keys" in skipped.found) == ("skipped", True)
    (tmp_path / "deploy").mkdir()
    assert [check.status for check in container.check_keys(None, 30)] == ["skipped", "skipped"]
    assert container.check_keys(tmp_path / "nowhere", 30)[0].status == "fail"


# User, temporary files, volumes


@pytest.mark.parametrize(("uid", "status"), [(0, "warn"), (10001, "ok")])
def test_root_is_told(monkeypatch, tmp_path, uid, status):
    report = tmp_path / "status"
    report.write_text("Name:\tpython\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n")
    monkeypatch.setattr(container, "_STATUS", report)
    monkeypatch.setattr(container.os, "geteuid", lambda: uid)
    monkeypatch.setattr(container, "read_only", lambda _: True)
    check = container.check_user()
    assert check.status == status
    assert f"uid {uid}" in check.found
    assert "; no capability, none can be gained; the root file system is read-only" in check.found


def test_without_a_place_for_temporary_files_it_is_red(monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(container.tempfile, "gettempdir", nowhere)
    check = container.check_temporary()
    assert (check.status, "tmpfs" in check.advice) == ("fail", True)


@pytest.mark.parametrize(("free", "status"), [(2**20, "warn"), (2**30, "ok")])
def test_a_small_tmpfs_is_told(monkeypatch, free, status):
    monkeypatch.setattr(container.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 0, free))
    assert container.check_temporary().status == status


@pytest.mark.parametrize(
    ("kind", "inside", "status"),
    [("ext4", True, "ok"), ("tmpfs", False, "warn"), ("overlay", True, "warn"), ("overlay", False, "ok")],
)
def test_a_node_folder_that_goes_with_the_container_is_told(tmp_path, monkeypatch, kind, inside, status):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none / rootfs rw 0 0\nnone / {kind} rw 0 0\n")
    monkeypatch.setattr(container, "_MOUNTS", mounts)
    monkeypatch.setattr(container, "_mount_of", lambda _: Path("/"))
    monkeypatch.setattr(container, "in_container", lambda: inside)
    check = container.check_node_folder(site(tmp_path))
    assert (check.status, kind in check.found) == (status, True)


def test_where_rows_lie_is_told_and_no_row(tmp_path, monkeypatch):
    assert container.check_volume(site(tmp_path)).status == "skipped"
    (tmp_path / "rows.csv").write_text("a,label\n" + "Meier,1\n" * 500)
    check = container.check_volume(site(tmp_path))
    assert check.status == "ok"
    assert "4.0 kB" in check.found
    assert "Meier" not in check.found
    monkeypatch.setattr(container, "read_only", lambda _: True)
    assert container.check_volume(site(tmp_path)).found.endswith("read-only")


def test_models_of_a_site_and_of_the_server(tmp_path, monkeypatch):
    assert "none yet" in container.check_models(site(tmp_path)).found
    model = tmp_path / "node" / "models" / ("ab" * 32)
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"x" * 2_000_000)
    assert "1 compressed models, 2 MB" in container.check_models(site(tmp_path)).found
    assert container.check_models(site(tmp_path, 'language="no"')).status == "skipped"
    assert container.check_models(node(config=['language.model="none"'])).status == "skipped"
    monkeypatch.setattr(container, "find_spec", lambda _: None)
    assert container.check_models(node()).status == "warn"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.crt"))
    served, _ = read_node(f'site="a" data-path="x" folder="{tmp_path}"', ['language.models-url="https://proxy/models"'])
    assert container.check_models(served).status == "fail"


# The limits of a container


GIB = 2**30


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_s_limits_are_those_that_count(tmp_path, monkeypatch, version):
    """4 GiB, of which 3 are in use, 2 of these by files that are dropped when room is wanted; half a processor."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    if machine.available_memory()[0] < 5 * GIB:
        pytest.skip("this machine has less than the container")
    files = {
        1: {
            "memory/memory.limit_in_bytes": 4 * GIB,
            "memory/memory.usage_in_bytes": 3 * GIB,
            "memory/memory.stat": f"cache 1\ninactive_file 5\ntotal_inactive_file {2 * GIB}\n",
            "cpu/cpu.cfs_quota_us": 50000,
            "cpu/cpu.cfs_period_us": 100000,
        },
        2: {
            "memory.max": 4 * GIB,
            "memory.current": 3 * GIB,
            "memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
            "cpu.max": "50000 100000",
        },
    }[version]
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert machine.available_memory() == (3 * GIB, 4 * GIB)
    assert machine.cpu_quota() == 0.5
    assert "for 0.5 of their time" in machine.check_cores().found


@pytest.mark.parametrize(
    "files",
    [{"memory.max": "max", "cpu.max": "max 100000"}, {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 1}, {}],
)
def test_without_limits_the_machine_counts(tmp_path, monkeypatch, files):
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.cpu_quota() is None
    assert machine.available_memory()[1] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# The whole, as a container runs it


UNSHARE = shutil.which("unshare") and shutil.which("setpriv") and os.geteuid() == 0


@pytest.mark.slow  # the other user's interpreter finds no compiled kernels: it makes its own
@pytest.mark.skipif(not UNSHARE, reason="a mount namespace needs root")
def test_with_a_read_only_root_and_without_root_all_is_looked_at(tmp_path):
    """A mount namespace of its own: everything read-only but a node folder and /tmp, uid 10001, no capability."""
    if PROJECT.is_relative_to("/tmp"):
        pytest.skip("the project lies in /tmp, which is hidden here")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as given:
        place = Path(given)
        place.chmod(0o755)
        state = place / "state"
        state.mkdir()
        os.chown(state, 10001, 10001)
        rows = [f"{n},{n % 7},{'sick' if n % 2 else 'well'}" for n in range(40)]
        (place / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
        interpreter = sys.executable
        if subprocess.run(
            ["setpriv", "--reuid=10001", "--clear-groups", interpreter, "-c", ""], check=False
        ).returncode:
            pytest.skip("this interpreter cannot be run by another user")
        inside = f"""
set -e
mount --bind {state} {state}
mount -o remount,bind,ro /
mount -t tmpfs none /tmp
export HOME=/tmp FLWR_HOME={state}/flwr PYTHONPATH={PROJECT}
cd {PROJECT}
exec setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \\
    {interpreter} -m llm_qfl.cli.main doctor --offline --json \\
    --node-config 'site="a" data-path="{place}/rows.csv" language="no"' -c 'data.test="federated" quantum.qubits=2'
"""
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", inside],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    lines = {line["name"]: line for line in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, (done.stderr, lines)
    assert {line["status"] for line in lines.values()} == {"ok", "skipped"}, lines
    assert lines["user"]["found"].startswith("uid 10001, gid 10001")
    assert "no capability, none can be gained; the root file system is read-only" in lines["user"]["found"]
    assert lines["data volume"]["found"].endswith("read-only")
