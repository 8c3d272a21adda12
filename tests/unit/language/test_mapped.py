"""Frozen layers as pages of their file: the same numbers, given back and read again."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import collate
from llm_qfl.language.client import ClientLanguage, share
from llm_qfl.language.compress import WEIGHTS, load_compressed
from llm_qfl.language.mapped import MappedFile, map_layers
from llm_qfl.language.route import Route


def mapping(address: int) -> tuple[str, int]:
    """Of the mapping that an address lies in: where it is, and how many kilobytes of it are in memory."""
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        place = block.split(maxsplit=1)[0]
        first, last = (int(end, 16) for end in place.split("-"))
        if first <= address < last:
            return place, int(re.findall(r"^Rss: +(\d+) kB", block, re.MULTILINE)[0])
    raise AssertionError(f"{address:x} is not mapped")


def stored(layer: nn.Module) -> list[nn.Parameter]:
    """A layer's own weights, without those of adapters."""
    return [parameter for name, parameter in layer.named_parameters() if ".lora_" not in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mapped_tensor_is_the_file_s(tmp_path, dtype):
    wanted = {"a": torch.randn(3, 5).to(dtype), "b.c": torch.randn(7).to(dtype), "n": torch.arange(4)}
    save_file(wanted, tmp_path / "f.safetensors")
    mapped = MappedFile(tmp_path / "f.safetensors")
    for name in ("a", "b.c"):
        assert torch.equal(mapped.tensor(name), wanted[name])
    mapped.release()
    assert torch.equal(mapped.tensor("a"), wanted["a"])
    for name in ("n", "no such"):  # whole numbers are no weights
        with pytest.raises(LanguageError, match=f"expected {name} in one of F32"):
            mapped.tensor(name)


def test_what_cannot_be_mapped_is_named(tmp_path):
    for content in (b"", b"\x08\x00\x00\x00\x00\x00\x00\x00no json!"):
        (tmp_path / "f.safetensors").write_bytes(content)
        with pytest.raises(LanguageError, match=r"f\.safetensors: expected a safetensors file"):
            MappedFile(tmp_path / "f.safetensors")


def test_a_file_of_other_shapes_is_not_mapped(make_server, tmp_path):
    exported = make_server().export(tmp_path / "models")
    model = load_compressed(exported.folder, exported.sha256)
    weights = load_file(exported.folder / WEIGHTS)
    name = next(name for name in weights if ".0." in name)
    save_file({**weights, name: weights[name][..., :1].contiguous()}, tmp_path / "other.safetensors")
    with pytest.raises(LanguageError, match="of layer 0 is not what was loaded"):
        map_layers(model.stack, tmp_path / "other.safetensors", [0])


@pytest.mark.parametrize("kind", ["tiny-6", "tiny-qwen2-6", "tiny-qwen3-6", "tiny-gpt2-6"])
def test_frozen_layers_are_pages_and_compute_what_copies_compute(make_server, make_rows, tmp_path, kind):
    exported = make_server(model=kind).export(tmp_path / "models")
    ids = collate(make_rows(1, 5), range(5)).ids
    model, plain = (load_compressed(exported.folder, exported.sha256) for _ in range(2))
    for parameter in plain.stack.model.parameters():
        parameter.data = parameter.data.clone()
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
@pytest.mark.parametrize("kind", ["tiny-6", "tiny-gpt2-6"])
def test_pages_are_given_back_before_the_steps(make_server, make_rows, tmp_path, monkeypatch, kind):
    server = make_server(model=kind)
    exported = server.export(tmp_path / "models")
    client = ClientLanguage(share(load_compressed(exported.folder, exported.sha256)), server.config)  # as sites do
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    frozen = [weight for number in client._frozen for weight in stored(client.stack.layers[number])]
    assert len(frozen) > 4
    assert len({mapping(weight.data_ptr())[0] for weight in frozen}) == 1
    seen, tail = [], Route.tail

    def watched(route, boundary):
        seen.extend(mapping(weight.data_ptr())[1] for weight in frozen)
        return tail(route, boundary)

    monkeypatch.setattr(Route, "tail", watched)
    client.train(make_rows(1, 6), seed=0)
    assert seen
    assert set(seen) == {0}
    client.route().boundary(collate(make_rows(2, 2), range(2)).ids)
    assert mapping(frozen[0].data_ptr())[1] > 0
