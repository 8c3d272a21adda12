"""Whoever is not known stays outside: real processes on loopback, set up as `llm-qfl deploy` sets them up.

What a site's network cannot reach of the server (the control interface) is the proxy's matter: test_compose.py.
"""

import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm_qfl.cli import deploy_folders as folders
from llm_qfl.cli import deploy_nodes
from llm_qfl.cli import deploy_pki as pki
from llm_qfl.cli.deploy_nodes import SuperLink
from llm_qfl.cli.flower import environment
from llm_qfl.cli.processes import Processes, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROJECT = Path(__file__).parents[2]
HOST = "127.0.0.1"
KNOWN, REVOKED = "alpha", "mallory"


def site(folder, name):
    list(folders.init_site(folder / "sites" / name, name, [HOST], folders.Terms()))
    return folder / "sites" / name / "node"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A SuperLink that knows alpha (online) and has revoked mallory."""
    folder = tmp_path_factory.mktemp("deploy")
    list(folders.init_server(folder, [HOST], [], folders.Terms()))
    for name in (KNOWN, REVOKED):
        site(folder, name)
        list(folders.offer(folder, name))
    list(folders.trust(folder))
    home = tmp_path_factory.mktemp("home")
    with Processes(home / "logs", environment(home, PROJECT), PROJECT) as processes:
        found = Federation(folder, processes)
        found.start_superlink("superlink", folder / "superlink")
        list(deploy_nodes.register(found.link, folder / "operator" / "nodes"))
        deploy_nodes.revoke(found.link, REVOKED, None)
        found.start_node(KNOWN)
        processes.wait_until(lambda: found.online() == [KNOWN], "alpha is online", 60)
        yield found


class Federation:
    """Real processes, and what they say."""

    def __init__(self, folder, processes):
        self.folder, self.processes, self.port = folder, processes, free_port()
        self.link = SuperLink(f"{HOST}:{self.port}", folder / "operator" / "ca.crt")

    def start_superlink(self, name, role, port=None):
        command = [
            "flower-superlink", "--host", HOST, "--port", port or self.port, "--isolation", "process",
            "--database", self.folder / f"{name}.db", "--enable-supernode-auth",
            "--superexec-auth-secret-file", self.folder / "superlink" / "superexec.secret",
            "--ssl-ca-certfile", role / "ca.crt", "--ssl-certfile", role / "tls.crt", "--ssl-keyfile", role / "tls.key",
        ]  # fmt: skip
        self.processes.start(name, command)
        link = SuperLink(f"{HOST}:{port or self.port}", None)
        self.processes.wait_until(lambda: listening(link.address), f"{name} listens", 60)

    def start_node(self, name, *, key=None, options=None, port=None):
        """A SuperNode that gives up soon."""
        node = self.folder / "sites" / (KNOWN if key is None else key) / "node"
        command = [
            "flower-supernode", "--superlink", f"{HOST}:{port or self.port}", "--isolation", "process",
            "--host", HOST, "--port", free_port(), "--superexec-auth-secret-file", node / "superexec.secret",
            "--node-config", f'site="{name}" data-path="/nowhere.csv"', "--max-retries", 2, "--max-wait-time", 10,
        ]  # fmt: skip
        if options is None:
            options = ["--root-certificates", node / "ca.crt", "--auth-supernode-private-key", node / "node.key"]
            options += ["--ssl-ca-certfile", node / "runtime-ca.crt", "--ssl-certfile", node / "runtime.crt"]
            options += ["--ssl-keyfile", node / "runtime.key"]
        return self.processes.start(name, [*command, *options])

    def refused(self, child, name, seconds=60):
        """The log of a SuperNode that must end by itself, unhappy."""
        end = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        ended = child.poll()
        self.end(child, name)
        log = self.processes.log(name).read_text()
        assert ended not in (None, 0), f"{name} went on or ended well: {log[-2000:]}"
        return log

    def end(self, child, name):
        """Its end is what is tested, not a fault of the federation."""
        self.processes._started.pop(name)
        if child.poll() is None:
            child.kill()
        child.wait(10)

    def online(self):
        return sorted(node.name for node in deploy_nodes.nodes(self.link) if node.status == "online")

    def log(self, name="superlink"):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.processes.log(name).read_text())


def listening(address):
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


@contextmanager
def told(federation, pattern, seconds=12.0):
    """Within, or soon after: the SuperLink's log gets a line like this."""
    before, end = len(federation.log()), time.monotonic() + seconds
    yield
    while not re.search(pattern, federation.log()[before:]):
        assert time.monotonic() < end, federation.log()[before:]
        time.sleep(0.2)


def test_a_node_without_a_key_is_refused(federation):
    options = ["--root-certificates", federation.folder / "operator" / "ca.crt"]
    options += ["--ssl-ca-certfile", federation.folder / "sites" / KNOWN / "node" / "runtime-ca.crt"]
    options += ["--ssl-certfile", federation.folder / "sites" / KNOWN / "node" / "runtime.crt"]
    options += ["--ssl-keyfile", federation.folder / "sites" / KNOWN / "node" / "runtime.key"]
    with told(federation, r'"POST /v1/fleet/\S+ HTTP/1.1" 4\d\d'):
        federation.refused(federation.start_node("keyless", options=options), "keyless")
    assert federation.online() == [KNOWN]


def test_a_node_with_a_key_that_nobody_registered_is_refused(federation):
    site(federation.folder, "wrong")
    (federation.folder / "sites" / "wrong" / "node" / "ca.crt").write_bytes(
        (federation.folder / "operator" / "ca.crt").read_bytes()
    )
    with told(federation, r'"POST /v1/fleet/\S+ HTTP/1.1" 4\d\d'):
        federation.refused(federation.start_node("wrong", key="wrong"), "wrong")
    assert federation.online() == [KNOWN]


def test_a_node_whose_key_was_revoked_is_refused(federation):
    with told(federation, r'"POST /v1/fleet/\S+ HTTP/1.1" 4\d\d'):
        federation.refused(federation.start_node(REVOKED, key=REVOKED), REVOKED)
    assert federation.online() == [KNOWN]


def test_a_node_that_is_revoked_while_it_is_online_is_out(federation):
    name = "leaver"
    site(federation.folder, name)
    list(folders.offer(federation.folder, name))
    list(folders.trust(federation.folder))
    (federation.folder / "operator" / "nodes" / f"{REVOKED}.pub").unlink(missing_ok=True)
    list(deploy_nodes.register(federation.link, federation.folder / "operator" / "nodes"))
    child = federation.start_node(name, key=name)
    federation.processes.wait_until(lambda: name in federation.online(), "the leaver is online", 60)
    with told(federation, r'"POST /v1/fleet/\S+ HTTP/1.1" 401'):
        deploy_nodes.revoke(federation.link, name, None)
        assert federation.online() == [KNOWN]  # it polls every 3 s
    assert federation.online() == [KNOWN]
    (federation.folder / "operator" / "nodes" / f"{name}.pub").unlink()
    federation.end(child, name)


def test_plain_text_to_the_tls_port_gets_nothing(federation):
    options = ["--insecure", "--auth-supernode-private-key", federation.folder / "sites" / KNOWN / "node" / "node.key"]
    federation.refused(federation.start_node("plain", options=options), "plain")
    with pytest.raises((urllib.error.URLError, OSError)):
        urllib.request.urlopen(f"http://{federation.link.address}/health", timeout=5)
    assert federation.online() == [KNOWN]


def test_a_node_does_not_speak_to_a_server_whose_certificate_has_ended(federation, monkeypatch):
    past = datetime.now(UTC) - timedelta(days=400)
    moved = type("Before", (datetime,), {"now": classmethod(lambda cls, zone=None: past)})
    monkeypatch.setattr(pki, "datetime", moved)
    authority = pki.read_authority(federation.folder / "ca" / "ca.crt", federation.folder / "ca" / "ca.key")
    certificate, key = pki.issue(authority, [HOST], 397)
    monkeypatch.undo()
    role = federation.folder / "expired"
    pki.write(role / "tls.crt", certificate, pki.PUBLIC)
    pki.write(role / "tls.key", key, pki.PRIVATE)
    pki.write(role / "ca.crt", (federation.folder / "ca" / "ca.crt").read_bytes(), pki.PUBLIC)
    port = free_port()
    federation.start_superlink("expired", role, port)
    log = federation.refused(federation.start_node("careful", port=port), "careful")
    assert "certificate has expired" in log
    assert "certificate has expired" in str(SuperLink(f"{HOST}:{port}", federation.folder / "ca" / "ca.crt").healthy())
    calls = re.findall(r'"[A-Z]+ (\S+) HTTP/1.1" (\d+)', federation.log("expired"))
    assert [path for path, status in calls if status == "200" and path != "/health"] == []


def test_a_node_does_not_speak_to_a_server_of_another_authority(federation, tmp_path):
    list(folders.init_server(tmp_path, [HOST], [], folders.Terms()))
    port = free_port()
    federation.start_superlink("impostor", tmp_path / "superlink", port)
    log = federation.refused(federation.start_node("trusting", port=port), "trusting")
    assert "certificate verify failed" in log


@pytest.mark.parametrize("secret", [None, b"0" * 64])
def test_an_executor_without_the_secret_gets_no_work(federation, secret, tmp_path):
    name = "thief" if secret is None else "guesser"
    command = ["flower-superexec", "--runtime-api-address", federation.link.address]
    command += ["--root-certificates", federation.folder / "operator" / "ca.crt"]
    if secret is not None:
        pki.write(tmp_path / "secret", secret, pki.PRIVATE)
        command += ["--superexec-auth-secret-file", tmp_path / "secret"]
    child = federation.processes.start(name, command)
    with told(federation, r'"POST /v1/runtime/\S+ HTTP/1.1" 401', seconds=45):
        pass
    federation.end(child, name)


def test_old_tls_is_not_spoken(federation):
    context = ssl.create_default_context(cafile=federation.folder / "operator" / "ca.crt")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    host, port = federation.link.address.split(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        assert tls.version() == "TLSv1.3"
