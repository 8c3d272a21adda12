"""Who holds what in a deployment: a folder for each role, which is all that its container or machine is given.

    ca/                    ca.crt ca.key           whoever has the key can be the server: on the server alone
    superlink/             ca.crt tls.crt tls.key superexec.secret
    executor/              ca.crt superexec.secret                  of the SuperLink, runs ServerApps
    proxy/                 ca.crt tls.crt tls.key
    operator/              ca.crt nodes/<site>.pub                  registers nodes, submits runs
    sites/<site>/node/     ca.crt node.key runtime-ca.crt runtime.crt runtime.key superexec.secret
    sites/<site>/executor/ ca.crt runtime-ca.crt superexec.secret   of the SuperNode, runs ClientApps

An executor runs the app's code, so it holds neither a node's nor a server's private key. A site's own port (its
SuperNode's, for its executor alone) is certified by an authority of the site, whose key is thrown away: no secret of a
site need be made by, or known to, the server. What is there and good stays as it is; every step says what it did.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llm_qfl.cli import deploy_pki as pki
from llm_qfl.federation.errors import ConfigError

CA, SUPERLINK, EXECUTOR, PROXY, OPERATOR, SITES = "ca", "superlink", "executor", "proxy", "operator", "sites"
NODE = "node"
SECRET = "superexec.secret"
RENEW_WITHIN = 30  # days
CERTIFICATE_DAYS, AUTHORITY_DAYS = 397, 3650
_SITE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Terms:
    """How long things last.

    Attributes:
        days: a certificate is valid.
        authority_days: the authority is.
        within: days before its end in which a certificate is made anew.
        force: make all certificates anew.
    """

    days: int = CERTIFICATE_DAYS
    authority_days: int = AUTHORITY_DAYS
    within: int = RENEW_WITHIN
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.within < self.days <= self.authority_days:
            raise ConfigError(
                f"expected 0 <= --within < --days <= --ca-days, got {self.within}, {self.days}, {self.authority_days}"
            )


@dataclass(frozen=True)
class Held:
    """A certificate of a deployment.

    Attributes:
        path: its file.
        names: under which it is valid; empty for an authority.
        end: when it ends.
    """

    path: Path
    names: tuple[str, ...]
    end: datetime

    @property
    def days(self) -> int:
        """Whole days that are left; negative: it has ended."""
        return (self.end - datetime.now(UTC)).days


def init_server(folder: Path, names: Sequence[str], proxy_names: Sequence[str], terms: Terms) -> Iterator[str]:
    """The server's side: authority, certificates of SuperLink and proxy, the executor's secret.

    Args:
        folder: of the deployment.
        names: under which the SuperLink is reached.
        proxy_names: under which sites reach the proxy; empty where there is none.
        terms: how long they last.

    Yields:
        What was done.

    Raises:
        ConfigError: a name cannot be in a certificate, or a file is not what it should be.
    """
    names, proxy_names = pki.check_names(names), pki.check_names(proxy_names) if proxy_names else ()
    yield from _authority(folder / CA, terms)
    roles = {SUPERLINK: names, **({PROXY: proxy_names} if proxy_names else {})}
    for role, reached in roles.items():
        yield from _server_certificate(folder, role, reached, terms)
    yield from _secret(folder / SUPERLINK, folder / EXECUTOR)
    yield from trust(folder)


def trust(folder: Path) -> Iterator[str]:
    """The authority's certificates go to everyone in this folder.

    Yields:
        Who got them.
    """
    content = (folder / CA / "ca.crt").read_bytes()
    roles = [
        folder / role for role in (SUPERLINK, EXECUTOR, PROXY, OPERATOR) if role != PROXY or (folder / PROXY).is_dir()
    ]
    sites = sorted(path for path in (folder / SITES).glob("*/*") if path.is_dir())
    for role in (*roles, *sites):
        if not _same(role / "ca.crt", content):
            pki.write(role / "ca.crt", content, pki.PUBLIC)
            yield f"{role.relative_to(folder)}: got the authority's certificate"


def init_site(folder: Path, site: str, names: Sequence[str], terms: Terms) -> Iterator[str]:
    """A site's side: its node key, the certificate of its SuperNode's own port, its executor's secret.

    Args:
        folder: of the site; holds `node/` and `executor/` afterwards.
        site: its name.
        names: under which the site's executor reaches its SuperNode.
        terms: how long they last.

    Yields:
        What was done.

    Raises:
        ConfigError: a name is not allowed, or a file is not what it should be.
    """
    check_site(site)
    names = pki.check_names(names)
    node, executor = folder / NODE, folder / EXECUTOR
    key, public = node / "node.key", node / "node.pub"
    if not key.exists():
        private, line = pki.new_node_key()
        pki.write(key, private, pki.PRIVATE)
        pki.write(public, line, pki.PUBLIC)
        yield f"{site}: made a node key; the server's operator registers {public}"
    elif not public.exists():
        pki.write(public, pki.public_of(key.read_bytes()), pki.PUBLIC)
        yield f"{site}: wrote the node key's public half again"
    yield from _site_certificate(folder, site, names, terms)
    yield from _secret(node, executor)


def offer(folder: Path, site: str) -> Iterator[str]:
    """Put a site's public key where the operator registers from; the site is in the same folder.

    Yields:
        What was done.

    Raises:
        ConfigError: another key is known under this name.
    """
    public = (folder / SITES / site / NODE / "node.pub").read_bytes()
    known = folder / OPERATOR / "nodes" / f"{site}.pub"
    if known.exists() and not _same(known, public):
        raise ConfigError(
            f"{known} is another key than the site's own; revoke it first: `llm-qfl deploy revoke {site}`"
        )
    if not known.exists():
        pki.write(known, public, pki.PUBLIC)
        yield f"{site}: its public key waits to be registered"


def renew(folder: Path, terms: Terms) -> Iterator[str]:
    """Make certificates anew that end soon (or all, by force); names, keys of nodes and secrets stay.

    Args:
        folder: of the deployment, or of one site.
        terms: how long they last.

    Yields:
        What was done.

    Raises:
        ConfigError: there is nothing to renew.
    """
    found = list(held(folder))
    if not found:
        raise ConfigError(f"expected the folder of a deployment or of a site, got {folder}: there are no certificates")
    for role in (SUPERLINK, PROXY):
        certificate = folder / role / "tls.crt"
        if certificate.exists():
            yield from _server_certificate(folder, role, pki.names_of(pki.read_certificates(certificate)[0]), terms)
    sites = [path.parent.parent for path in sorted(folder.glob(f"{SITES}/*/{NODE}/runtime.crt"))]
    if (folder / NODE / "runtime.crt").exists():
        sites.append(folder)
    for site in sites:
        names = pki.names_of(pki.read_certificates(site / NODE / "runtime.crt")[0])
        yield from _site_certificate(site, site.name, names, terms)
    ends = next((one for one in found if one.path == folder / CA / "ca.crt"), None)
    if ends is not None and ends.days <= terms.within:
        yield f"the authority itself ends in {ends.days} days: `llm-qfl deploy renew --ca`"


def renew_authority(folder: Path, terms: Terms) -> Iterator[str]:
    """A new authority beside the old one: sites trust both, until certificates are made by the new one.

    Yields:
        What was done, and what is to be done next.

    Raises:
        ConfigError: there is none.
    """
    place = folder / CA
    old = pki.read_authority(place / "ca.crt", place / "ca.key").certificate
    fresh = _new_authority(terms)
    kept = [one for one in pki.read_certificates(place / "ca.crt") if one.not_valid_after_utc > datetime.now(UTC)]
    pki.write(place / "ca.key", pki.key_pem(fresh.key), pki.PRIVATE)
    pki.write(place / "ca.crt", b"".join(pki.to_pem(one) for one in (fresh.certificate, *kept)), pki.PUBLIC)
    yield f"a new authority, beside the one that ends on {old.not_valid_after_utc:%Y-%m-%d}"
    yield from trust(folder)
    yield "next: every site takes the new ca.crt; then `llm-qfl deploy renew --force`, and restart SuperLink and proxy"


def held(folder: Path) -> Iterator[Held]:
    """Every certificate below a folder, once for each file that is not a copy of the authority's."""
    for path in sorted(folder.rglob("*.crt")):
        if path.parent.name == EXECUTOR or (path.name == "ca.crt" and path.parent.name != CA):
            continue  # a copy
        found = pki.read_certificates(path)[0]
        yield Held(path, pki.names_of(found), found.not_valid_after_utc)


def parse_site(given: str) -> tuple[str, str]:
    """`NAME` or `NAME=HOST` as a name and the host under which the site's executor reaches its SuperNode.

    Raises:
        ConfigError: one of them is not allowed.
    """
    name, _, host = given.partition("=")
    check_site(name)
    return name, pki.check_names([host or "127.0.0.1"])[0]


def check_site(site: str) -> None:
    """Is this a name that a site can have?

    Raises:
        ConfigError: no.
    """
    if not _SITE.fullmatch(site):
        raise ConfigError(f"a site's name: expected letters, digits, '.', '_' and '-' (at most 64), got {site!r}")


def forget_site(folder: Path, site: str) -> None:
    """Remove what this folder holds of a site."""
    (folder / OPERATOR / "nodes" / f"{site}.pub").unlink(missing_ok=True)
    shutil.rmtree(folder / SITES / site, ignore_errors=True)


def _new_authority(terms: Terms) -> pki.Authority:
    return pki.new_authority(f"llm-qfl authority {datetime.now(UTC):%Y-%m-%d}", terms.authority_days)


def _authority(place: Path, terms: Terms) -> Iterator[str]:
    certificate, key = place / "ca.crt", place / "ca.key"
    if certificate.exists() and not key.exists():
        raise ConfigError(
            f"{certificate} is there without its key {key.name}: bring the key back, or start a new deployment in "
            "another folder (every site must then get the new ca.crt)"
        )
    if not certificate.exists():
        fresh = _new_authority(terms)
        pki.write(key, pki.key_pem(fresh.key), pki.PRIVATE)
        pki.write(certificate, pki.to_pem(fresh.certificate), pki.PUBLIC)
        yield f"ca: made an authority, valid until {fresh.certificate.not_valid_after_utc:%Y-%m-%d}; keep its key safe"
    pki.read_authority(certificate, key)


def _server_certificate(folder: Path, role: str, names: Sequence[str], terms: Terms) -> Iterator[str]:
    place, trusted = folder / role, folder / CA / "ca.crt"
    certificate, key = place / "tls.crt", place / "tls.key"
    why = pki.flaw(certificate, key, names, trusted, timedelta(days=terms.within))
    if why is None and not terms.force:
        return
    authority = pki.read_authority(trusted, folder / CA / "ca.key")
    _write_pair(certificate, key, *pki.issue(authority, names, terms.days))
    yield f"{role}: made a certificate for {', '.join(names)} ({_because(why)})"


def _site_certificate(folder: Path, site: str, names: Sequence[str], terms: Terms) -> Iterator[str]:
    node = folder / NODE
    certificate, key, trusted = node / "runtime.crt", node / "runtime.key", node / "runtime-ca.crt"
    why = pki.ABSENT
    if trusted.exists() and _same(folder / EXECUTOR / "runtime-ca.crt", trusted.read_bytes()):
        why = pki.flaw(certificate, key, names, trusted, timedelta(days=terms.within)) or ""
    if not why and not terms.force:
        return
    authority = pki.new_authority(f"{site} SuperNode", terms.days)  # its key is never written
    root = pki.to_pem(authority.certificate)
    for place in (trusted, folder / EXECUTOR / "runtime-ca.crt"):
        pki.write(place, root, pki.PUBLIC)
    _write_pair(certificate, key, *pki.issue(authority, names, terms.days))
    yield f"{site}: made the certificate of its SuperNode's own port ({_because(why)})"


def _write_pair(certificate: Path, key: Path, content: bytes, private: bytes) -> None:
    pki.write(key, private, pki.PRIVATE)
    pki.write(certificate, content, pki.PUBLIC)


def _secret(holder: Path, executor: Path) -> Iterator[str]:
    first, second = holder / SECRET, executor / SECRET
    if not first.exists():
        pki.write(first, pki.new_secret(), pki.PRIVATE)
        yield f"{holder}: made the secret of its executor"
    if not _same(second, first.read_bytes()):
        pki.write(second, first.read_bytes(), pki.PRIVATE)


def _because(why: str | None) -> str:
    if why == pki.ABSENT:
        return "there was none"
    return f"the old one {why}" if why else "in place of the old one"


def _same(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content
