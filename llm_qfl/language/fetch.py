"""Fetching a compressed model out of band: from a path, or from any static web server, checked byte by byte."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.compress import MANIFEST, Manifest, check_files
from llm_qfl.language.files import CHUNK, write_folder

TIMEOUT = 60.0  # seconds without a byte


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
        return target
    text = _get(f"{source.rstrip('/')}/{MANIFEST}", 1 << 20)
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise LanguageError(f"compressed model at {source}: expected SHA-256 {sha256}, got {found}")
    manifest = Manifest.parse(json.loads(text))

    def write(folder: Path) -> None:
        for name, (size, _) in manifest.files.items():
            _download(f"{source.rstrip('/')}/{name}", folder / name, size)
        check_files(folder, manifest)
        (folder / MANIFEST).write_bytes(text)

    write_folder(target, write, size=manifest.size, what="the compressed model")
    return target


def _get(url: str, limit: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            body: bytes = answer.read(limit + 1)
    except (OSError, ValueError) as error:
        raise LanguageError(f"cannot fetch {url}: {error}") from error
    if len(body) > limit:
        raise LanguageError(f"{url} is larger than {limit} bytes")
    return body


def _download(url: str, path: Path, size: int) -> None:
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as out:
            while block := answer.read(CHUNK):
                done += len(block)
                if done > size:
                    break
                out.write(block)
    except urllib.error.URLError as error:
        raise LanguageError(f"cannot fetch {url}: {error.reason}") from error
    if done != size:
        raise LanguageError(f"{url}: expected {size} bytes, got {done if done < size else 'more'}; try again")
