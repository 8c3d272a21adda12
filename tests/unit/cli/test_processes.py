"""Children end, and so does what they started; nothing else does."""

import socket
import subprocess
import sys
import time

import psutil
import pytest
from living import alive

from llm_qfl.cli.processes import Processes, free_port
from llm_qfl.federation.errors import FederationError

# A child that starts a detached grandchild which ignores the request to end, says its id, and (with "leave") goes away.
STUBBORN = """
import os, signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
if sys.argv[1] == "leave":
    os._exit(0)
time.sleep(600)
"""


def wait_for_line(path, seconds=20):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.02)
    return path.read_text().split()[-1]


@pytest.mark.parametrize(
    "leave",
    [pytest.param("leave", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")), "stay"],
)
def test_detached_and_stubborn_grandchildren_are_ended(tmp_path, monkeypatch, leave):
    monkeypatch.setattr("llm_qfl.cli.processes.GRACE", 0.5)
    with Processes(tmp_path / "logs", {}, tmp_path) as processes:
        child = processes.start("child", [sys.executable, "-c", STUBBORN, leave])
        grandchild = psutil.Process(int(wait_for_line(processes.log("child"))))
        if leave == "leave":
            child.wait(timeout=20)
        assert grandchild.is_running()
    assert child.poll() is not None
    assert not alive(grandchild)


def test_children_of_others_are_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with Processes(tmp_path / "logs", {}, tmp_path):
            pass
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_child_that_died_is_named_with_its_last_words(tmp_path):
    with Processes(tmp_path / "logs", {}, tmp_path) as processes:
        processes.start("node", [sys.executable, "-c", "print('no such file'); raise SystemExit(3)"])
        with pytest.raises(FederationError, match=r"node ended with exit code 3.*\n.*no such file"):
            processes.wait_until(lambda: False, "it answers", 20)


def test_a_wait_is_bounded(tmp_path):
    with Processes(tmp_path / "logs", {}, tmp_path) as processes:
        processes.start("node", [sys.executable, "-c", "import time; time.sleep(600)"])
        with pytest.raises(FederationError, match=r"it answers: not after 0 s"):
            processes.wait_until(lambda: False, "it answers", 0.3)


def test_children_are_ended_when_the_body_raises(tmp_path):
    started = []

    def body():
        with Processes(tmp_path / "logs", {}, tmp_path) as processes:
            started.append(processes.start("node", [sys.executable, "-c", "import time; time.sleep(600)"]))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        body()
    assert started[0].poll() is not None


def test_free_ports_are_free_and_given_once(monkeypatch):
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(1024 < port < 32768 for port in ports)  # from there on Linux hands them out by itself
    with socket.create_server(("127.0.0.1", ports[0])):
        monkeypatch.setattr("llm_qfl.cli.processes._given", set())
        monkeypatch.setattr("llm_qfl.cli.processes.PORTS", range(ports[0], ports[0] + 1))
        with pytest.raises(FederationError, match="no free port"):
            free_port()
    assert free_port() == ports[0]
    with pytest.raises(FederationError, match="no free port"):
        free_port()
