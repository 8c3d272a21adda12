"""Fetching a compressed model out of band: from a path, or from any static web server, checked byte by byte."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import urllib.request
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.compress import MANIFEST, Manifest, check_files
from llm_qfl.language.files import CHUNK, file_digest, read_json, write_folder

_LOG = logging.getLogger(__name__)
TIMEOUT = 60.0  # seconds without a byte
BROKEN = (OSError, ValueError, http.client.HTTPException)  # what urllib raises for a server that cannot be read


def fetch_compressed(source: str, sha256: str, cache: Path) -> Path:
    """The local folder of a compressed model: a path is taken where it is, a URL is fetched once.

    Args:
        source: a folder, or the http(s) address of one (`https://server/models/<sha256>`).
        sha256: the model's name.
        cache: where fetched models are kept.

    Raises:
        LanguageError: where it cannot be had, is another model, or does not fit on the disk.
    """
    if not source.startswith(("http://", "https://")):
        folder = Path(source)
        if not (folder / MANIFEST).is_file():
            raise LanguageError(f"compressed model: no {MANIFEST} in {folder}")
        return folder
    target = cache / sha256
    if (target / MANIFEST).is_file():
        if (damage := _damage(target, sha256)) is None:
            return target
        _LOG.warning("%s; the model is fetched again", damage)
    text = _get(f"{source.rstrip('/')}/{MANIFEST}", 1 << 20)
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise LanguageError(f"compressed model at {source}: expected SHA-256 {sha256}, got {found}")
    try:
        manifest = Manifest.parse(json.loads(text))
    except ValueError as error:
        raise LanguageError(f"compressed model at {source}: {MANIFEST} is no JSON: {error}") from error

    def write(folder: Path) -> None:
        for name, (size, _) in manifest.files.items():
            _download(f"{source.rstrip('/')}/{name}", folder / name, size)
        check_files(folder, manifest)
        (folder / MANIFEST).write_bytes(text)

    def whole(folder: Path) -> bool:
        return _damage(folder, sha256) is None

    write_folder(target, write, size=manifest.size, what="the compressed model", whole=whole)
    return target


def _damage(folder: Path, sha256: str) -> str | None:
    """What is wrong with a model that was fetched before, or None."""
    try:
        if (found := file_digest(folder / MANIFEST)) != sha256:
            return f"compressed model in {folder}: expected SHA-256 {sha256}, got {found}"
        check_files(folder, Manifest.parse(read_json(folder / MANIFEST, "compressed model")))
    except (LanguageError, OSError) as error:
        return str(error)
    return None


def _get(url: str, limit: int) -> bytes:
    body = b""
    with closing(_blocks(url)) as blocks:
        for block in blocks:
            body += block
            if len(body) > limit:
                raise LanguageError(f"{url} is larger than {limit} bytes")
    return body


def _download(url: str, path: Path, size: int) -> None:
    done = 0
    with closing(_blocks(url)) as blocks, path.open("wb") as out:
        for block in blocks:
            done += len(block)
            if done > size:
                break
            out.write(block)
    if done != size:
        raise LanguageError(f"{url}: expected {size} bytes, got {done if done < size else 'more'}; try again")


def _blocks(url: str) -> Generator[bytes, None, None]:
    """The bytes of an address; what the caller fails at (a full disk) is not mistaken for the server's fault.

    Raises:
        LanguageError: nobody answers, what answers is no web server, or it stops in the middle.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while block := answer.read(CHUNK):
                yield block
    except BROKEN as error:
        raise LanguageError(f"cannot fetch {url}: {error}") from error
