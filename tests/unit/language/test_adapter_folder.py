import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import collate
from llm_qfl.language.export import export_adapter, load_tuned, merge_adapter, read_adapter
from llm_qfl.language.models import load_base
from llm_qfl.language.route import score

# peft 0.21 asks transformers 5.23 for a property by its old name
OLD_NAME = "ignore:`is_gradient_checkpointing`:FutureWarning"


@pytest.fixture
def folder(make_server, shake, tmp_path):
    def make(**changes: object):
        server = make_server(**changes)
        shake(server.adapter, 1)
        server.set_adapter(server.adapter.arrays())
        out = tmp_path / "adapter"
        export_adapter(out, server.base, server.adapter, server.adapter.arrays(), {"rounds": "3"})
        return server, out

    return make


@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"method": "fedlora-all"}, {"modules": "attention"}, {"placement": "ends"}])
def test_peft_loads_it_on_the_full_model(folder, make_rows, tmp_path, kind, changes) -> None:
    name = f"tiny-{kind}-6"
    server, out = folder(model=name, **changes)
    batch = collate(make_rows(0, 3), range(3))
    peft = PeftModel.from_pretrained(load_base(name, tmp_path).model, out)
    loaded = {k for k, _ in peft.named_parameters() if ".lora_" in k}
    assert len(loaded) == len(load_file(out / "adapter_model.safetensors"))
    route = server.route("adap-fu")
    with torch.no_grad(), route.adapting():
        ours = server.stack.head(route.tail(route.boundary_here(batch.ids)))
        theirs = peft(batch.ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_merged_is_unmerged(folder, make_rows, tmp_path) -> None:
    server, out = folder()
    merge_adapter(load_base("tiny-6", tmp_path), out, tmp_path / "merged")
    merged = load_base(str(tmp_path / "merged"), tmp_path)
    ids = collate(make_rows(0, 3), range(3)).ids
    route = server.route("adap-fu")
    with torch.no_grad(), route.adapting():
        ours = server.stack.head(route.tail(route.boundary_here(ids)))
    torch.testing.assert_close(merged.model(ids, use_cache=False).logits, ours, rtol=1e-4, atol=1e-5)


def test_load_tuned_scores_as_adap_fu(folder, make_rows, tmp_path) -> None:
    server, out = folder()
    rows = make_rows(0, 4)
    route = load_tuned(load_base("tiny-6", tmp_path), out)
    for a, b in zip(score(route, rows), server.score("adap-fu", rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_card_and_base(folder) -> None:
    server, out = folder()
    card = (out / "README.md").read_text()
    assert server.base.digest in card
    assert "| rounds | 3 |" in card
    assert json.loads((out / "adapter_config.json").read_text())["layers_to_transform"] == [4, 5]
    assert read_adapter(out).layers == (4, 5)


def test_another_base_model(folder, tmp_path) -> None:
    _, out = folder()
    for act in (lambda b: load_tuned(b, out), lambda b: merge_adapter(b, out, tmp_path / "merged")):
        with pytest.raises(LanguageError, match=r"made for tiny-6 .* the model given is tiny-5"):
            act(load_base("tiny-5", tmp_path))


def test_damaged_folder(folder, tmp_path) -> None:
    _, out = folder()
    path = out / "adapter_model.safetensors"
    tensors = load_file(path)
    short = dict(list(tensors.items())[:-1])
    save_file(short, path)
    with pytest.raises(LanguageError, match="missing"):
        load_tuned(load_base("tiny-6", tmp_path), out)
    with pytest.raises(LanguageError, match="27 matrices, 28 expected"):
        merge_adapter(load_base("tiny-6", tmp_path), out, tmp_path / "merged")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LanguageError, match="cut short"):
        read_adapter(out)
    (out / "base.json").write_text("{}")
    with pytest.raises(LanguageError, match="lacks a field"):
        read_adapter(out)
    (out / "base.json").unlink()
    with pytest.raises(LanguageError, match="expected a JSON file"):
        read_adapter(out)
