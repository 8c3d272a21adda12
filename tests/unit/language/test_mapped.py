"""Frozen layers as pages of their file: the same numbers, given back and read again."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import collate
from llm_qfl.language.client import ClientLanguage, share
from llm_qfl.language.compress import WEIGHTS, load_compressed
from llm_qfl.language.mapped import MappedFile
from llm_qfl.language.route import Route


def resident(address: int) -> int:
    """Kilobytes in this process's memory of the mapping that an address lies in."""
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(end, 16) for end in block.split(maxsplit=1)[0].split("-"))
        if first <= address < last:
            return int(re.findall(r"^Rss: +(\d+) kB", block, re.MULTILINE)[0])
    raise AssertionError(f"{address:x} is not mapped")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mapped_tensor_is_the_file_s(tmp_path, dtype):
    wanted = {"a": torch.randn(3, 5).to(dtype), "b.c": torch.randn(7).to(dtype), "n": torch.arange(4)}
    save_file(wanted, tmp_path / "f.safetensors")
    mapped = MappedFile(tmp_path / "f.safetensors")
    for name in ("a", "b.c"):
        assert torch.equal(mapped.tensor(name), wanted[name])
    mapped.release()
    assert torch.equal(mapped.tensor("a"), wanted["a"])
    assert mapped.tensor("n") is None  # whole numbers are no weights
    assert mapped.tensor("no such") is None


def test_what_cannot_be_mapped_is_named(tmp_path):
    for content in (b"", b"\x08\x00\x00\x00\x00\x00\x00\x00no json!"):
        (tmp_path / "f.safetensors").write_bytes(content)
        with pytest.raises(LanguageError, match=r"f\.safetensors: expected a safetensors file"):
            MappedFile(tmp_path / "f.safetensors")


def test_frozen_layers_are_pages_and_compute_what_copies_compute(make_server, make_rows, tmp_path):
    exported = make_server().export(tmp_path / "models")
    ids = collate(make_rows(1, 5), range(5)).ids
    model, plain = (load_compressed(exported.folder, exported.sha256) for _ in range(2))
    for parameter in plain.stack.model.parameters():
        parameter.data = parameter.data.clone()
    frozen = [i for i, full in enumerate(model.manifest.plan.held) if full < model.manifest.plan.first_trained]
    assert frozen
    file = load_file(exported.folder / WEIGHTS)
    with torch.no_grad():
        wanted, before = (one.stack.model(ids, use_cache=False).logits for one in (plain, model))
        model.stack.release()
        after = share(model).stack.model(ids, use_cache=False).logits
    assert torch.equal(before, wanted)
    assert torch.equal(after, wanted)
    for name, parameter in model.stack.model.named_parameters():
        assert torch.equal(parameter, file[name])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_given_back_before_the_steps(make_server, make_client, make_rows, monkeypatch):
    server = make_server()
    client: ClientLanguage = make_client(server)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    weight = next(parameter for parameter in client.stack.layers[0].parameters() if not parameter.requires_grad)
    seen, tail = [], Route.tail

    def watched(route, boundary):
        seen.append(resident(weight.data_ptr()))
        return tail(route, boundary)

    monkeypatch.setattr(Route, "tail", watched)
    client.train(make_rows(1, 6), seed=0)
    assert seen
    assert set(seen) == {0}
    client.route().boundary(collate(make_rows(2, 2), range(2)).ids)
    assert resident(weight.data_ptr()) > 0
