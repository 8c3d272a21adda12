from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language import device
from llm_qfl.language.device import cast_layers, cast_rest, choose_device, choose_frozen_dtype, measure
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import tiny_model


def test_device() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(LanguageError, match=r"language\.device: cuda was asked for"):
            choose_device("cuda")


def test_the_faster_numbers_win_and_a_tie_goes_to_the_exact_ones(monkeypatch) -> None:
    stack = Stack(tiny_model(2))
    layer = stack.layers[0]
    for bf16, expected in ((0.5, torch.bfloat16), (0.9, torch.float32), (5.0, torch.float32)):
        monkeypatch.setattr(device, "_layer_seconds", lambda _, dtype, b=bf16: b if dtype == torch.bfloat16 else 1.0)
        assert choose_frozen_dtype("auto", stack) == expected
    monkeypatch.undo()
    assert choose_frozen_dtype("auto", stack) in (torch.float32, torch.bfloat16)
    assert stack.layers[0] is layer  # the probe leaves no trace
    assert layer.self_attn.q_proj.weight.dtype == torch.float32
    assert choose_frozen_dtype("bfloat16", stack) == torch.bfloat16


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_sites_get_the_stored_weights_whatever_the_server_s_device_rounds(
    make_config, tmp_path, monkeypatch, stored
) -> None:
    def served() -> ServerLanguage:
        base = load_base("tiny-6", tmp_path)
        base.model.to(stored)
        return ServerLanguage(base, make_config(), seed=7)

    exported = served().export(tmp_path / "plain")
    monkeypatch.setattr(ServerLanguage, "_dtype", lambda self, device: torch.bfloat16)  # as on a GPU
    rounded = served()
    assert rounded.stack.dtype_of(0) == torch.bfloat16
    again = rounded.export(tmp_path / "rounded")
    assert (again.sha256, again.size) == (exported.sha256, exported.size)


def test_frozen_layers_in_bfloat16_trained_ones_in_float32(make_server, make_client, make_rows) -> None:
    server = make_server(dtype="bfloat16")
    client = make_client(server)
    assert [client.stack.dtype_of(i) for i in range(4)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    rows = make_rows(0, 6)
    update = client.train(rows, seed=0)
    assert all(p.dtype == torch.float32 for p in client.adapter.parameters.values())
    assert all(p.dtype == torch.float32 for p in client.emulator.parameters.values())
    assert update.report.cache_bytes == int(rows.lengths.sum()) * 32 * 2
    with server.using(server.receive(update.arrays, sent.adapter_digest)):
        exact = np.concatenate(server.score("adap-emu", rows))
    assert np.abs(np.concatenate(client.score(rows)) - exact).mean() < 0.05


def test_casting_leaves_tied_weights_tied() -> None:
    stack = Stack(tiny_model(2))
    cast_layers(stack, [0], torch.bfloat16)
    cast_rest(stack, torch.bfloat16)
    assert stack.dtype_of(1) == torch.float32
    assert stack.model.lm_head.weight is stack.core.embed_tokens.weight
    assert stack.model.lm_head.weight.dtype == torch.bfloat16


def test_peak_memory_of_a_block() -> None:
    with measure(torch.device("cpu")) as small:
        pass
    with measure(torch.device("cpu")) as large:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        del block
    with measure(torch.device("cpu")) as after:
        pass
    assert large.seconds > 0
    assert large.peak_bytes > 32 << 20
    if large.exact:
        assert large.peak_bytes - small.peak_bytes > 50 << 20
        assert after.peak_bytes < large.peak_bytes - (50 << 20)  # each block's own, not the life of the process


def test_room(make_server, tmp_path, monkeypatch) -> None:
    from llm_qfl.language import room
    from llm_qfl.language.compress import load_compressed

    server = make_server()
    exported = server.export(tmp_path)
    loaded = load_compressed(exported.folder, exported.sha256)
    need = room.client_memory(loaded.manifest, loaded.stack.config, server.config)
    assert exported.size < need < 1 << 30
    more = server.config.model_copy(update={"batch_size": 64})
    assert room.client_memory(loaded.manifest, loaded.stack.config, more) > need
    ends = make_server(placement="ends")
    ends_loaded = load_compressed((found := ends.export(tmp_path)).folder, found.sha256)
    assert room.client_memory(ends_loaded.manifest, ends_loaded.stack.config, ends.config) > need  # gradients cross all
    large = SimpleNamespace(hidden_size=1024, vocab_size=1000, dtype="bfloat16")
    manifest = SimpleNamespace(plan=loaded.manifest.plan, size=10 << 30)
    plain, quantized = (
        room.client_memory(manifest, large, server.config.model_copy(update={"quantization": kind}))
        for kind in ("none", "nf4")
    )
    assert quantized < 0.3 * plain  # half a byte a number and scales for two bytes, here held as four
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (123, 456))
    assert room.available_memory("cuda") == 123
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(room, "_MEMINFO", meminfo)
    monkeypatch.setattr(room, "_CGROUP", group)
    assert room.available_memory() is None
    assert room.room_problem(loaded.manifest, loaded.stack.config, server.config) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 2000000 kB\n")
    assert room.available_memory() == 2_048_000_000
    (group / "memory.max").write_text("max\n")
    assert room.available_memory() == 2_048_000_000
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("400000\n")
    assert room.available_memory() == 600_000
    assert "needs about" in room.room_problem(loaded.manifest, loaded.stack.config, server.config)
