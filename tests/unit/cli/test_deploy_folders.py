"""Certificates, keys and secrets of a deployment: who holds what, what is made again, what is refused."""

import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from typer.testing import CliRunner

from llm_qfl.cli import deploy_folders as folders
from llm_qfl.cli import deploy_pki as pki
from llm_qfl.cli.main import app
from llm_qfl.federation.errors import ConfigError

NAMES = ("link.example.org", "10.0.0.7")


def make(folder, *arguments):
    options = [item for name in NAMES for item in ("--name", name)]
    return run("init", "--folder", folder, *options, "--proxy-name", "proxy.example.org", *arguments)


def run(*arguments):
    result = CliRunner().invoke(app, ["deploy", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def deployment(tmp_path):
    result = make(tmp_path / "deploy", "--site", "clinic-a=supernode-1", "--site", "clinic-b")
    assert result.exit_code == 0, result.output
    return tmp_path / "deploy"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(path):
    return pki.read_certificates(path)[0]


def test_every_role_gets_what_it_needs_and_no_more(deployment):
    held = {path.parent.name: set() for path in deployment.rglob("*") if path.is_file()}
    for path in deployment.rglob("*"):
        if path.is_file():
            held[path.parent.name].add(path.name)
    assert held["ca"] == {"ca.crt", "ca.key"}
    assert held["superlink"] == {"ca.crt", "tls.crt", "tls.key", "superexec.secret"}
    assert held["proxy"] == {"ca.crt", "tls.crt", "tls.key"}
    assert held["executor"] == {"ca.crt", "superexec.secret", "runtime-ca.crt"}  # the last at sites alone
    assert not (deployment / "executor" / "runtime-ca.crt").exists()
    assert held["nodes"] == {"clinic-a.pub", "clinic-b.pub"}
    secret = {path: path.read_bytes() for path in deployment.rglob("superexec.secret")}
    assert len(set(secret.values())) == 3  # the server's, and one of each site
    assert all(len(value) == 64 and not value.endswith(b"\n") for value in secret.values())


def test_nobody_else_can_read_what_is_private(deployment):
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in deployment.rglob("*") if path.is_file()}
    private = {path for path in modes if path.suffix in (".key", ".secret")}
    assert {modes[path] for path in private} == {0o600}
    assert {modes[path] for path in modes.keys() - private} == {0o644}


def test_a_node_key_is_what_flower_takes(deployment):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

    node = deployment / "sites" / "clinic-a" / "node"
    key = load_ssh_private_key((node / "node.key").read_bytes(), None)
    assert key.curve.name == "secp384r1"
    assert uses_nist_ec_curve(key.public_key())
    registered = deployment / "operator" / "nodes" / "clinic-a.pub"
    assert try_load_public_key(registered) == pki.read_public(registered)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize(
    ("server", "trusted"),
    [
        ("superlink/tls.crt", "ca/ca.crt"),
        ("proxy/tls.crt", "operator/ca.crt"),
        ("sites/clinic-a/node/runtime.crt", "sites/clinic-a/executor/runtime-ca.crt"),
    ],
)
def test_openssl_accepts_the_certificates_at_its_strictest(deployment, server, trusted):
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", deployment / trusted]
    done = subprocess.run([*command, deployment / server], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def handshake(server, trusted, name):
    """TLS over a pair of sockets; returns what the client said."""
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(server.with_suffix(".crt"), server.with_suffix(".key"))
    here = ssl.create_default_context(cafile=trusted)
    left, right = socket.socketpair()

    def serve():
        try:
            there.wrap_socket(left, server_side=True).close()
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here.wrap_socket(right, server_hostname=name):
            return "accepted"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        right.close()
        thread.join(10)


def test_clients_accept_the_names_and_addresses_and_nothing_else(deployment):
    server, ca = deployment / "superlink" / "tls", deployment / "operator" / "ca.crt"
    assert [handshake(server, ca, name) for name in NAMES] == ["accepted", "accepted"]
    assert "Hostname mismatch" in handshake(server, ca, "other.example.org")
    other = deployment / "sites" / "clinic-a" / "node" / "runtime-ca.crt"
    assert "unable to get local issuer" in handshake(server, other, NAMES[0])


def test_a_second_time_changes_nothing(deployment):
    before = contents(deployment)
    result = make(deployment, "--site", "clinic-a=supernode-1", "--site", "clinic-b")
    assert result.output.splitlines() == [f"{deployment}: complete"]
    assert contents(deployment) == before


def test_a_lost_file_is_made_again_and_the_rest_stays(deployment):
    before = contents(deployment)
    (deployment / "proxy" / "tls.key").unlink()
    (deployment / "executor" / "superexec.secret").unlink()
    (deployment / "sites" / "clinic-b" / "executor" / "ca.crt").unlink()
    assert make(deployment).exit_code == 0
    changed = {str(path) for path, content in contents(deployment).items() if content != before[path]}
    assert changed == {"proxy/tls.key", "proxy/tls.crt"}


def test_other_names_make_another_certificate(deployment):
    result = run("init", "--folder", deployment, "--name", "new.example.org", "--name", NAMES[0])
    assert "superlink: made a certificate for new.example.org, link.example.org" in result.output
    assert "is not for new.example.org" in result.output
    assert pki.names_of(certificate(deployment / "superlink" / "tls.crt")) == ("new.example.org", NAMES[0])


def test_what_ends_soon_is_renewed_and_keys_of_nodes_stay(deployment, monkeypatch):
    before = contents(deployment)
    assert run("renew", "--folder", deployment).output == f"{deployment}: nothing ends within 30 days\n"
    assert run("status", "--folder", deployment).exit_code == 0

    now = datetime.now(UTC) + timedelta(days=370)
    moved = type("Later", (datetime,), {"now": classmethod(lambda cls, zone=None: now)})
    monkeypatch.setattr(pki, "datetime", moved)
    monkeypatch.setattr(folders, "datetime", moved)
    listed = run("status", "--folder", deployment)
    assert listed.exit_code == 1
    assert listed.output.count("<- soon") == 6  # SuperLink, proxy, and of each site the port's and its authority's
    done = run("renew", "--folder", deployment)
    assert done.output.count("expires in 26 days") == 4
    after = contents(deployment)
    changed = {str(path) for path in before if after[path] != before[path]}
    assert changed == {
        *(f"{role}/tls.{kind}" for role in ("superlink", "proxy") for kind in ("crt", "key")),
        *(f"sites/{site}/node/runtime.{kind}" for site in ("clinic-a", "clinic-b") for kind in ("crt", "key")),
        *(f"sites/{s}/{role}/runtime-ca.crt" for s in ("clinic-a", "clinic-b") for role in ("node", "executor")),
    }
    assert pki.names_of(certificate(deployment / "superlink" / "tls.crt")) == NAMES
    assert run("status", "--folder", deployment).exit_code == 0


def test_an_expired_certificate_is_told_and_replaced(tmp_path, monkeypatch):
    past = datetime.now(UTC) - timedelta(days=400)
    moved = type("Before", (datetime,), {"now": classmethod(lambda cls, zone=None: past)})
    monkeypatch.setattr(pki, "datetime", moved)
    assert make(tmp_path).exit_code == 0
    monkeypatch.undo()
    assert "has expired" in handshake(tmp_path / "superlink" / "tls", tmp_path / "ca" / "ca.crt", NAMES[0])
    assert "<- ended" in run("status", "--folder", tmp_path).output
    assert "the old one has expired" in make(tmp_path).output
    assert handshake(tmp_path / "superlink" / "tls", tmp_path / "ca" / "ca.crt", NAMES[0]) == "accepted"


def test_an_authority_is_replaced_without_a_day_on_which_a_site_trusts_nobody(deployment):
    server, old = deployment / "superlink" / "tls", (deployment / "operator" / "ca.crt").read_bytes()
    behind = deployment.parent / "old-ca.crt"
    behind.write_bytes(old)
    result = run("renew", "--folder", deployment, "--ca")
    assert "every site takes the new ca.crt" in result.output
    both = deployment / "sites" / "clinic-a" / "node" / "ca.crt"
    assert len(x509.load_pem_x509_certificates(both.read_bytes())) == 2
    # The certificates are still the old authority's: who is behind and who is ahead both accept them.
    assert [handshake(server, ca, NAMES[0]) for ca in (behind, both)] == ["accepted", "accepted"]
    assert "nothing ends" in run("renew", "--folder", deployment).output
    assert run("renew", "--folder", deployment, "--force").exit_code == 0
    assert handshake(server, both, NAMES[0]) == "accepted"
    assert handshake(server, behind, NAMES[0]) != "accepted"


def test_a_site_makes_its_own_and_only_the_public_half_is_for_others(tmp_path):
    folder = tmp_path / "site"
    result = run("site", "clinic-c", "--folder", folder)
    assert result.exit_code == 0
    assert f"send {folder / 'node' / 'node.pub'}" in result.output
    assert {path.name for path in (folder / "executor").iterdir()} == {"runtime-ca.crt", "superexec.secret"}
    assert handshake(folder / "node" / "runtime", folder / "executor" / "runtime-ca.crt", "127.0.0.1") == "accepted"
    before = contents(folder)
    assert run("site", "clinic-c", "--folder", folder).exit_code == 0
    assert contents(folder) == before
    (folder / "node" / "node.pub").unlink()
    assert run("site", "clinic-c", "--folder", folder).exit_code == 0
    assert contents(folder) == before
    assert "clinic-c" not in run("renew", "--folder", folder).output  # nothing ends
    assert run("renew", "--folder", folder, "--force").exit_code == 0
    assert (
        contents(folder)[folder.relative_to(folder) / "node" / "node.key"]
        == before[folder.relative_to(folder) / "node" / "node.key"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "link:8000"], "expected a host name or an IP address without a port, got 'link:8000'"),
        (["--name", "-x.org"], "got '-x.org'"),
        (["--name", "a", "--site", "../x"], "a site's name: expected letters"),
        (["--name", "a", "--site", "a=b:1"], "got 'b:1'"),
        (["--name", "a", "--days", "20"], "--within < --days"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    result = run("init", "--folder", tmp_path / "deploy", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.rglob("*.key"))


def test_a_key_without_its_certificate_s_pair_is_refused(deployment):
    key = deployment / "ca" / "ca.key"
    kept = key.read_bytes()
    key.write_bytes((deployment / "proxy" / "tls.key").read_bytes())
    result = run("renew", "--folder", deployment, "--force")
    assert result.exit_code == 2
    assert "is not the key of the first certificate" in result.output
    key.unlink()
    assert "bring the key back" in make(deployment).output
    key.write_bytes(kept)
    (deployment / "superlink" / "tls.crt").write_text("not a certificate")
    assert re.search(r"expected certificates \(PEM\) in .*superlink/tls.crt", make(deployment).output)


def test_another_key_under_a_known_name_is_not_taken_over(deployment):
    (deployment / "sites" / "clinic-a" / "node" / "node.key").unlink()
    result = make(deployment, "--site", "clinic-a=supernode-1")
    assert result.exit_code == 2
    assert "deploy revoke clinic-a" in result.output


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "deploy").write_text("a file")
    assert "cannot write" in make(tmp_path / "deploy").output
    with pytest.raises(ConfigError, match="no certificates"):
        list(folders.renew(tmp_path, folders.Terms()))
