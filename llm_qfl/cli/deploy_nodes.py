"""The nodes that a SuperLink knows: register, list, revoke. A node is its public key; its name is what the run sees."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_qfl.cli import deploy_pki as pki
from llm_qfl.cli.deploy_folders import OPERATOR, SITES, check_site, forget_site
from llm_qfl.federation.errors import ConfigError, FederationError

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

REVOKED = "unregistered"  # Flower's word; the key stays in its database and is never taken again


@dataclass(frozen=True)
class SuperLink:
    """Where to ask.

    Attributes:
        address: host:port of the control interface (not the proxy's: sites reach that one).
        ca: file of the authority's certificate; None without TLS.
    """

    address: str
    ca: Path | None

    def healthy(self) -> str | None:
        """None where it answers, else what was in the way."""
        scheme = "http" if self.ca is None else "https"
        context = None if self.ca is None else ssl.create_default_context(cafile=self.ca)
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        try:
            with urllib.request.build_opener(*handlers).open(f"{scheme}://{self.address}/health", timeout=5) as answer:
                return None if answer.status == 200 else f"status {answer.status}"
        except (urllib.error.URLError, OSError, ValueError) as error:
            return str(getattr(error, "reason", None) or error)

    def wait(self, seconds: float) -> None:
        """Return once it answers.

        Raises:
            FederationError: it does not in that time.
        """
        end = time.monotonic() + seconds
        while problem := self.healthy():
            if time.monotonic() > end:
                raise FederationError(
                    f"the SuperLink at {self.address} did not answer within {seconds:.0f} s ({problem}); is it "
                    "running, is the address in its certificate, and is ca.crt its authority's?"
                )
            time.sleep(0.5)


@dataclass(frozen=True)
class Node:
    """A node that the SuperLink knows.

    Attributes:
        node_id: Flower's number.
        name: of the site; empty where it was registered without.
        status: Flower's word: registered, online, offline, unregistered.
        key: its public key.
    """

    node_id: int
    name: str
    status: str
    key: bytes


def nodes(link: SuperLink) -> list[Node]:
    """All nodes, those revoked too.

    Raises:
        FederationError: the SuperLink does not answer as expected.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with _client(link) as client:
        found = client.ListNodes(ListNodesRequest()).nodes_info
    return [Node(one.node_id, one.name, one.status, bytes(one.public_key)) for one in found]


def register(link: SuperLink, folder: Path) -> Iterator[str]:
    """Register every public key of `folder` that the SuperLink does not know, under the name of its file.

    Args:
        link: the SuperLink.
        folder: holds `<site>.pub`.

    Yields:
        What was done.

    Raises:
        ConfigError: there is no key, one cannot be read, or two sites share one.
        FederationError: a key was revoked, or another key has the name.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    keys = {path.stem: pki.read_public(path) for path in sorted(folder.glob("*.pub"))}
    if not keys:
        raise ConfigError(f"expected public keys of nodes (<site>.pub) in {folder}, got none")
    if len(set(keys.values())) < len(keys):
        raise ConfigError(f"{folder}: two sites have the same key; each site makes its own: `llm-qfl deploy site`")
    known = nodes(link)
    for site, key in keys.items():
        check_site(site)
        same = next((node for node in known if node.key == key), None)
        if same is None:
            _refuse_name(known, site)
            with _client(link) as client:
                answer = client.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
            yield f"{site}: registered as node {answer.node_id}"
        elif same.status == REVOKED:
            raise FederationError(
                f"{site}: this key was revoked, and a revoked key is never taken again; the site makes a new one (move "
                "node.key and node.pub away, then `llm-qfl deploy site`) and sends its node.pub"
            )
        elif same.name != site:
            raise FederationError(f"{site}: its key is registered as {same.name!r}; use that name, or revoke it first")
        else:
            yield f"{site}: known as node {same.node_id} ({same.status})"


def revoke(link: SuperLink, site: str, folder: Path | None) -> str:
    """Never take this site's key again; what it sends from now on is refused.

    Args:
        link: the SuperLink.
        site: its name.
        folder: of the deployment: what it holds of the site goes too.

    Returns:
        What was done.

    Raises:
        FederationError: no node has this name.
    """
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    known = nodes(link)
    living = [node for node in known if node.name == site and node.status != REVOKED]
    if not living:
        names = ", ".join(sorted({node.name for node in known if node.status != REVOKED})) or "none"
        raise FederationError(f"no node is registered as {site!r}; there are: {names}")
    for node in living:
        with _client(link) as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
    if folder is not None and (folder / OPERATOR).is_dir():
        forget_site(folder, site)
    return f"{site}: revoked; stop its SuperNode, and delete its node.key ({SITES}/{site} in this folder is gone)"


def _refuse_name(known: list[Node], site: str) -> None:
    if any(node.name == site and node.status != REVOKED for node in known):
        raise FederationError(
            f"{site}: another key is registered under this name; `llm-qfl deploy revoke {site}` first if the site has "
            "a new key, else choose another name"
        )


@contextmanager
def _client(link: SuperLink) -> Iterator[ControlHttpClient]:
    """Flower's client of the control interface; its command line shows no names and no keys.

    Raises:
        FederationError: whatever the SuperLink refuses.
    """
    import click
    from flwr.cli.typing import SuperLinkConnection
    from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection

    ca = None if link.ca is None else str(link.ca.resolve())
    connection = SuperLinkConnection(
        "deployment", address=link.address, root_certificates=ca, insecure=True if ca is None else None
    )
    try:
        with _quiet():
            client = init_http_client_from_connection(connection)
        try:
            with flwr_cli_exc_handler():
                yield client
        finally:
            client.close()
    except click.ClickException as error:
        raise FederationError(f"the SuperLink at {link.address}: {error.format_message()}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's client says on standard output where it connects to."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
