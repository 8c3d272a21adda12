"""What a site does with a model server that is broken, and with a folder that is not what its name promises."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language import fetch
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.fetch import fetch_compressed

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that answers its connections with these bytes, one after another, and hangs up (or hangs)."""
    listeners, threads, done = [], [], threading.Event()

    def start(*payloads: bytes, hang: bool = False) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(10)

        def answer() -> None:
            for payload in payloads:
                with listener.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(payload)
                    if hang and payload is payloads[-1]:
                        done.wait(10)

        threads.append(threading.Thread(target=answer, daemon=True))
        threads[-1].start()
        listeners.append(listener)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/model"

    yield start
    done.set()
    for thread, listener in zip(threads, listeners, strict=True):
        thread.join(10)
        listener.close()


@pytest.fixture
def exported(make_server, tmp_path):
    return make_server().export(tmp_path / "models")


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nab"  # 80 bytes were promised, 2 came
NO_HTTP = b"SSH-2.0-OpenSSH_9\r\n"


@pytest.mark.parametrize("broken", [CUT, NO_HTTP], ids=["cut", "no http"])
def test_a_broken_server_is_a_failure_of_the_language_part(serve, exported, tmp_path, broken) -> None:
    """Anything but a LanguageError would take the site's QNN out of the round, too."""
    with pytest.raises(LanguageError, match=r"cannot fetch .*/manifest\.json"):
        fetch_compressed(serve(broken), exported.sha256, tmp_path / "cache")
    manifest = (exported.folder / "manifest.json").read_bytes()
    with pytest.raises(LanguageError, match=r"cannot fetch .*/model/"):
        fetch_compressed(serve(whole(manifest), broken), exported.sha256, tmp_path / "cache")
    assert not any((tmp_path / "cache").iterdir())  # nothing half fetched stays


def test_a_server_that_hangs_is_not_a_disk_that_is_full(serve, exported, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    manifest = (exported.folder / "manifest.json").read_bytes()
    stuck = b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n{"
    with pytest.raises(LanguageError, match=r"cannot fetch .*timed out"):
        fetch_compressed(serve(whole(manifest), stuck, hang=True), exported.sha256, tmp_path / "cache")


def test_a_disk_that_is_full_is_not_a_broken_server(serve, exported, tmp_path, monkeypatch) -> None:
    manifest = (exported.folder / "manifest.json").read_bytes()

    def full(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.Path, "open", full)
    with pytest.raises(LanguageError, match=r"cannot write the compressed model .*No space left"):
        fetch_compressed(serve(whole(manifest)), exported.sha256, tmp_path / "cache")


def test_what_is_loaded_is_hashed_whatever_a_note_says(exported) -> None:
    load_compressed(exported.folder, exported.sha256)
    path = exported.folder / "model.safetensors"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-5] ^= 0x55
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time: the note still fits
    with pytest.raises(LanguageError, match=r"model\.safetensors is not the file that the manifest names"):
        load_compressed(exported.folder, exported.sha256)


@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja", "pytorch_model.bin"])
def test_a_file_that_the_manifest_does_not_list(exported, name) -> None:
    """transformers looks for such files, so they would take part in what is loaded."""
    (exported.folder / name).write_text(json.dumps({"base_model_name_or_path": "another/model", "peft_type": "LORA"}))
    with pytest.raises(LanguageError, match=f"{name} is not among the files of the manifest"):
        load_compressed(exported.folder, exported.sha256)
    (exported.folder / name).rename(exported.folder / f".{name}")  # notes of ours begin with a dot
    load_compressed(exported.folder, exported.sha256)
