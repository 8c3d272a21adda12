import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language import files
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import MANIFEST, Manifest, load_compressed
from llm_qfl.language.fetch import fetch_compressed
from llm_qfl.language.tiny import tiny_model


@pytest.fixture
def exported(make_server, tmp_path):
    return make_server().export(tmp_path / "models")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_it_holds_the_kept_layers_alone(make_server, tmp_path, kind) -> None:
    server = make_server(model=f"tiny-{kind}-6")
    out = server.export(tmp_path / "models")
    loaded = load_compressed(out.folder, out.sha256)
    core = "transformer.h" if kind == "gpt2" else "model.layers"
    tensors = load_file(out.folder / "model.safetensors")
    assert {int(k.split(".")[2]) for k in tensors if k.startswith(core)} == {0, 1, 2, 3}
    assert not any("lora" in k for k in tensors)
    assert "lm_head.weight" not in tensors  # tied: shipped once
    full = tiny_model(6, kind).state_dict()
    for compressed, number in enumerate(server.plan.held):
        for key in (k for k in tensors if k.startswith(f"{core}.{compressed}.")):
            assert torch.equal(tensors[key], full[key.replace(f"{core}.{compressed}.", f"{core}.{number}.")])
    assert out.parameters == sum(p.numel() for p in loaded.stack.model.parameters())
    assert out.size == sum(p.stat().st_size for p in out.folder.iterdir() if not p.name.startswith("."))
    if kind.startswith("qwen"):  # each layer keeps its own kind of attention and its own window
        kinds = tiny_model(6, kind).config.layer_types
        assert loaded.stack.config.layer_types == [kinds[i] for i in server.plan.held]
        windows = [layer.self_attn.sliding_window for layer in loaded.stack.layers]
        assert windows == [8 if kinds[i] == "sliding_attention" else None for i in server.plan.held]


def test_cached_generation_is_uncached_generation(make_server, make_client, shake) -> None:
    server = make_server()
    client = make_client(server)
    shake(client.adapter, 1)
    shake(client.emulator, 2)
    ids = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    model = client.stack.model
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


def test_same_model_same_name(make_server, tmp_path) -> None:
    one, two = (make_server(seed=s).export(tmp_path / "models") for s in (1, 2))
    assert one == two  # LoRA values are not in it
    assert make_server(beta=0.2).export(tmp_path / "models").sha256 != one.sha256
    assert sorted(p.name for p in (tmp_path / "models").iterdir() if len(p.name) != 64) == []


def test_wrong_name(exported) -> None:
    with pytest.raises(LanguageError, match=f"expected SHA-256 {'0' * 64}, got {exported.sha256}"):
        load_compressed(exported.folder, "0" * 64)


def test_truncated_and_changed_files(exported, tmp_path) -> None:
    path = exported.folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(LanguageError, match="cut short"):
        load_compressed(exported.folder, exported.sha256)
    path.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.raises(LanguageError, match="not the file that the manifest names"):
        load_compressed(exported.folder, exported.sha256)
    path.unlink()
    with pytest.raises(LanguageError, match="is missing"):
        load_compressed(exported.folder, exported.sha256)
    with pytest.raises(LanguageError, match="expected a JSON file"):
        load_compressed(tmp_path / "nowhere", exported.sha256)


def test_manifest_is_read_strictly(exported) -> None:
    data = json.loads((exported.folder / "manifest.json").read_text())
    assert Manifest.parse(data).text() == (exported.folder / "manifest.json").read_text()
    for change, match in (
        ({"format": 2}, "expected format 1, got 2"),
        ({"files": {"../../evil": {"size": 1, "sha256": ""}}}, "may not be called"),
        ({"files": {".hidden": {"size": 1, "sha256": ""}}}, "may not be called"),
        ({"base": {}}, "missing"),
        ({"lora": {"adapter": {"rank": 1}}}, "missing"),
        ({"plan": {**data["plan"], "kept": [0, 1]}}, "this release computes"),
    ):
        with pytest.raises(LanguageError, match=match):
            Manifest.parse({**data, **change})


def test_run_config_and_model_must_agree(make_server, make_config, exported) -> None:
    loaded = load_compressed(exported.folder, exported.sha256)
    with pytest.raises(LanguageError, match="another run's model"):
        ClientLanguage(loaded, make_config(beta=0.2))
    with pytest.raises(LanguageError, match="made for LoRAs"):
        ClientLanguage(loaded, make_config(rank=5))


def test_no_room(make_server, make_client, make_rows, monkeypatch, tmp_path) -> None:
    server = make_server()
    client = make_client(server, "site")
    monkeypatch.setattr(files, "SPARE", 1 << 60)
    with pytest.raises(LanguageError, match="no room on disk for the compressed model"):
        server.export(tmp_path / "other")
    with pytest.raises(LanguageError, match="no room on disk for boundary states"):
        client.route().cache(make_rows(0, 3), tmp_path / "states")
    sent = server.broadcast(emulator=True)
    with pytest.raises(LanguageError, match="no room on disk for emulator"):
        client.receive(sent.arrays, sent.emulator_digest)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(exported):
    handler = functools.partial(Quiet, directory=str(exported.folder.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetched_over_http(exported, address, tmp_path) -> None:
    cache = tmp_path / "cache"
    source = f"{address}/{exported.sha256}"
    folder = fetch_compressed(source, exported.sha256, cache)
    assert folder == cache / exported.sha256
    assert len(load_compressed(folder, exported.sha256).stack) == 4
    shutil.rmtree(exported.folder)
    assert fetch_compressed(source, exported.sha256, cache) == folder  # once


@pytest.mark.parametrize("left", [0, 100])
@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST])
def test_what_was_fetched_and_is_damaged_is_fetched_again(exported, address, tmp_path, caplog, name, left) -> None:
    source = f"{address}/{exported.sha256}"
    folder = fetch_compressed(source, exported.sha256, tmp_path / "cache")
    (folder / name).write_bytes((folder / name).read_bytes()[:left])
    if not left:
        (folder / name).unlink()  # as after a kill in the middle of a removal
    assert fetch_compressed(source, exported.sha256, tmp_path / "cache") == folder
    assert ("fetched again" in caplog.text) == (bool(left) or name != MANIFEST)
    assert len(load_compressed(folder, exported.sha256).stack) == 4


def test_fetching_what_is_not_there(exported, address, tmp_path) -> None:
    cache = tmp_path / "cache"
    source = f"{address}/{exported.sha256}"
    with pytest.raises(LanguageError, match="expected SHA-256 0000"):
        fetch_compressed(source, "0" * 64, cache)
    with pytest.raises(LanguageError, match=r"cannot fetch .*404"):
        fetch_compressed(f"{address}/nothing", exported.sha256, cache)
    with pytest.raises(LanguageError, match="no manifest"):
        fetch_compressed(str(tmp_path), exported.sha256, cache)
    path = exported.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LanguageError, match=r"expected .* bytes, got"):
        fetch_compressed(source, exported.sha256, cache)
    path.write_bytes(path.read_bytes() + b"1234567890")
    with pytest.raises(LanguageError, match="got more"):
        fetch_compressed(source, exported.sha256, cache)
    assert not any(Path(cache).iterdir())  # nothing half fetched stays
