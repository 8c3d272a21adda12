"""Certificates, node keys and secrets of a deployment: made, read, and judged; nothing here knows who gets which.

Keys are elliptic: P-256 for certificates, P-384 for nodes (Flower takes the NIST curves and no Ed25519).
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llm_qfl.federation.errors import ConfigError

SKEW = timedelta(minutes=10)  # a certificate is valid since before it was made: clocks differ
PRIVATE, PUBLIC = 0o600, 0o644
ABSENT = "is not there"
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True)
class Authority:
    """Signs certificates.

    Attributes:
        certificate: its own.
        key: its private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Host names and IP addresses, as a certificate holds them.

    Raises:
        ConfigError: one of them is neither, or there is none.
    """
    if wrong := [name for name in names if not _is_address(name) and not _HOST.fullmatch(name)]:
        raise ConfigError([f"expected a host name or an IP address without a port, got {name!r}" for name in wrong])
    if not names:
        raise ConfigError("expected at least one host name or IP address under which the server is reached, got none")
    return tuple(dict.fromkeys(str(ipaddress.ip_address(name)) if _is_address(name) else name for name in names))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def new_authority(name: str, days: int) -> Authority:
    """A certificate authority of its own.

    Args:
        name: its common name.
        days: how long its certificate is valid.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, names: Sequence[str], days: int) -> tuple[bytes, bytes]:
    """A server's certificate and its new private key.

    Args:
        authority: who signs; the certificate never outlives it.
        names: under which the server is reached; the first is its common name.
        days: how long it is valid.

    Returns:
        Certificate and key, PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name) for name in names
    ]
    issuer = authority.certificate
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(subject, issuer.subject, key.public_key(), days, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return to_pem(builder.sign(authority.key, hashes.SHA256())), key_pem(key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def to_pem(certificate: x509.Certificate) -> bytes:
    """PEM of a certificate."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM of a private key, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_node_key() -> tuple[bytes, bytes]:
    """A SuperNode's private and public key, in OpenSSH's format as `ssh-keygen -t ecdsa -b 384` writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    """The public key, one line in OpenSSH's format, of a node's private key.

    Raises:
        ValueError: it is no such key.
    """
    key = load_ssh_private_key(private, None)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def read_public(path: Path) -> bytes:
    """A node's public key as Flower sends it.

    Raises:
        ConfigError: the file cannot be read or holds no key on a NIST curve.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"expected a node's public key (one line `ecdsa-sha2-...`) in {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{path}: expected an ECDSA key, got {type(key).__name__}; `llm-qfl deploy site` makes the right kind"
        )
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def new_secret() -> bytes:
    """A shared secret; Flower takes the file's bytes as they are, so it ends in no newline."""
    return secrets.token_hex(32).encode()


def read_authority(certificates: Path, key: Path) -> Authority:
    """The authority whose certificate is the first in a file.

    Raises:
        ConfigError: they cannot be read, or do not belong together.
    """
    certificate = read_certificates(certificates)[0]
    private = read_key(key)
    if certificate.public_key() != private.public_key():
        raise ConfigError(f"{key} is not the key of the first certificate in {certificates}; restore the pair")
    return Authority(certificate, private)


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file.

    Raises:
        ConfigError: it cannot be read or holds none.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected certificates (PEM) in {path}: {_reason(error)}") from error


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key on an elliptic curve.

    Raises:
        ConfigError: it cannot be read or is another kind.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"expected a private key (PEM, not encrypted) in {path}: {_reason(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: expected a key on an elliptic curve, got {type(key).__name__}")
    return key


def flaw(certificate: Path, key: Path, names: Sequence[str] | None, trusted: Path, within: timedelta) -> str | None:
    """Why a server's certificate must be made anew; None where it may stay.

    Args:
        certificate: its file.
        key: file of its private key.
        names: that it must hold; None asks for none.
        trusted: file of the authorities' certificates that its clients hold.
        within: it must be valid this long.

    Raises:
        ConfigError: a file is there but is not what it should be.
    """
    if not certificate.exists() or not key.exists():
        return ABSENT
    found = read_certificates(certificate)[0]
    if read_key(key).public_key() != found.public_key():
        return "does not fit its key"
    if not any(signed_by(found, authority) for authority in read_certificates(trusted)):
        return "is signed by another authority"
    left = found.not_valid_after_utc - datetime.now(UTC)
    if left <= within:
        return "has expired" if left <= timedelta() else f"expires in {left.days} days"
    if names is not None and (missing := [name for name in names if name not in names_of(found)]):
        return f"is not for {', '.join(missing)}"
    return None


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Has the authority signed it?"""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Host names and addresses that a certificate holds."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all; nobody else can read a private one at any moment.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {_reason(error)}; run as the user that owns the folder") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
