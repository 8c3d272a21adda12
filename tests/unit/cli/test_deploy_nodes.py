"""Registration against a SuperLink of this process' test: Flower's own state, no network in between."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llm_qfl.cli import deploy_nodes
from llm_qfl.cli.deploy_commands import _link
from llm_qfl.cli.deploy_folders import OPERATOR, Terms, init_site, offer
from llm_qfl.cli.deploy_nodes import SuperLink
from llm_qfl.federation.errors import ConfigError, FederationError

LINK = SuperLink("superlink:8000", None)


def ed25519_line():
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


class Control:
    """What the control interface does with nodes, on Flower's own state in memory."""

    def __init__(self):
        from flwr.server.superlink.linkstate import LinkStateFactory
        from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.superlink.federation import NoOpFederationManager

        self.state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()).state()

    def RegisterNode(self, request):
        node_id = self.state.create_node("owner", "name", request.public_key, 30.0, name=request.name)
        return SimpleNamespace(node_id=node_id)

    def UnregisterNode(self, request):
        self.state.delete_node("owner", request.node_id)

    def ListNodes(self, request):
        return SimpleNamespace(nodes_info=self.state.get_node_info(owner_aids=["owner"]))


@pytest.fixture
def control(monkeypatch):
    found = Control()

    @contextmanager
    def client(link):
        assert link is LINK
        yield found

    monkeypatch.setattr(deploy_nodes, "_client", client)
    return found


@pytest.fixture
def folder(tmp_path):
    for site in ("clinic-a", "clinic-b"):
        list(init_site(tmp_path / "sites" / site, site, ["127.0.0.1"], Terms()))
        list(offer(tmp_path, site))
    return tmp_path


def register(folder):
    return list(deploy_nodes.register(LINK, folder / OPERATOR / "nodes"))


def test_sites_are_registered_once_under_their_names(control, folder):
    first = register(folder)
    assert [line.split(" as ")[0] for line in first] == ["clinic-a: registered", "clinic-b: registered"]
    assert [line.split(" node ")[0] for line in register(folder)] == ["clinic-a: known as", "clinic-b: known as"]
    assert {node.name: node.status for node in deploy_nodes.nodes(LINK)} == {
        "clinic-a": "registered", "clinic-b": "registered",
    }  # fmt: skip


def test_a_revoked_key_never_comes_back(control, folder):
    register(folder)
    key = folder / OPERATOR / "nodes" / "clinic-a.pub"
    kept = key.read_bytes()
    assert "revoked" in deploy_nodes.revoke(LINK, "clinic-a", folder)
    assert not key.exists()
    assert not (folder / "sites" / "clinic-a").exists()
    assert [line.split(" node ")[0] for line in register(folder)] == ["clinic-b: known as"]
    key.write_bytes(kept)
    with pytest.raises(FederationError, match="a revoked key is never taken again"):
        register(folder)
    with pytest.raises(FederationError, match=r"no node is registered as 'clinic-a'; there are: clinic-b"):
        deploy_nodes.revoke(LINK, "clinic-a", folder)
    # A new key under the old name is another node.
    key.unlink()
    list(init_site(folder / "sites" / "clinic-a", "clinic-a", ["127.0.0.1"], Terms()))
    list(offer(folder, "clinic-a"))
    assert [line.split(" ")[1] for line in register(folder)] == ["registered", "known"]


def test_a_name_or_a_key_that_is_taken_is_refused(control, folder):
    register(folder)
    keys = folder / OPERATOR / "nodes"
    (keys / "clinic-c.pub").write_bytes((keys / "clinic-a.pub").read_bytes())
    with pytest.raises(ConfigError, match="two sites have the same key"):
        register(folder)
    (keys / "clinic-a.pub").unlink()
    with pytest.raises(FederationError, match="registered as 'clinic-a'"):
        register(folder)
    (keys / "clinic-c.pub").rename(keys / "clinic-a.pub")
    (keys / "clinic-b.pub").unlink()
    list(init_site(folder / "other", "clinic-b", ["127.0.0.1"], Terms()))
    (keys / "clinic-b.pub").write_bytes((folder / "other" / "node" / "node.pub").read_bytes())
    with pytest.raises(FederationError, match="another key is registered under this name"):
        register(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ed25519_line(),
            "expected an ECDSA key",
        ),
        (b"not a key", "expected a node's public key"),
    ],
)
def test_what_is_no_key_of_a_node_is_refused(control, folder, line, message):
    (folder / OPERATOR / "nodes" / "clinic-c.pub").write_bytes(line)
    with pytest.raises(ConfigError, match=message):
        register(folder)
    assert deploy_nodes.nodes(LINK) == []


def test_an_empty_folder_and_a_missing_authority_are_told(control, tmp_path):
    with pytest.raises(ConfigError, match="got none"):
        register(tmp_path)
    with pytest.raises(ConfigError, match=r"operator/ca.crt; name it with --ca"):
        _link("superlink:8000", tmp_path, None, insecure=False)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        _link("superlink", tmp_path, None, insecure=True)


def test_a_superlink_that_does_not_answer_is_named():
    with pytest.raises(FederationError, match=r"127.0.0.1:9 did not answer within 0 s"):
        SuperLink("127.0.0.1:9", None).wait(0.0)
