import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.stack import Stack, family_of
from llm_qfl.language.tiny import byte_tokenizer, tiny_model

KINDS = ("llama", "qwen2", "qwen3", "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_one_by_one_are_the_model(kind: str) -> None:
    model = tiny_model(5, kind)
    stack = Stack(model)
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids, use_cache=False, output_hidden_states=True)
        boundary = stack.run(stack.embed(ids), range(3))
        logits = stack.head(stack.run(boundary, range(3, 5)))
    torch.testing.assert_close(boundary, whole.hidden_states[3], rtol=0, atol=0)
    torch.testing.assert_close(logits, whole.logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_is_not_seen(kind: str) -> None:
    stack = Stack(tiny_model(4, kind))
    ids = torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.full((1, 5), 3)], dim=1)
    with torch.no_grad():
        short, long = (stack.run(stack.embed(x), range(4)) for x in (ids, padded))
    torch.testing.assert_close(short, long[:, :12], rtol=1e-5, atol=1e-5)


def test_everything_is_frozen_and_in_eval_mode() -> None:
    stack = Stack(tiny_model(3, "gpt2"))
    assert not stack.model.training
    assert not any(p.requires_grad for p in stack.model.parameters())


def test_unknown_stack_is_refused_by_name() -> None:
    with pytest.raises(LanguageError, match=r"'opt'.*gpt2, llama"):
        family_of(OPTConfig())


def test_variants_that_cannot_be_cut() -> None:
    with pytest.raises(LanguageError, match="scales attention"):
        family_of(GPT2Config(scale_attn_by_inverse_layer_idx=True))


def test_config_that_hides_layers() -> None:
    model = tiny_model(4)
    model.config.num_hidden_layers = 3  # transformers would run three of the four and say nothing
    with pytest.raises(LanguageError, match="config says 3 layers, it has 4"):
        Stack(model)


def test_rows_longer_than_the_positions() -> None:
    stack = Stack(tiny_model(2))
    with pytest.raises(LanguageError, match="longer than the model's 512"):
        stack.embed(torch.zeros((1, 513), dtype=torch.int64))


def test_tiny_is_the_same_each_time_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    a, b = tiny_model(3).state_dict(), tiny_model(3).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(LanguageError, match="2 to 8"):
        tiny_model(9)
    with pytest.raises(LanguageError, match="'opt'"):
        tiny_model(2, "opt")


def test_byte_tokenizer_round_trip() -> None:
    tokenizer = byte_tokenizer()
    text = "A cat, wörld é 日本"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_gpt2_positions_are_added() -> None:
    ends = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=2, n_head=2, n_positions=16, **ends)).eval()
    same = Stack(model).embed(torch.zeros((1, 4), dtype=torch.int64))
    torch.testing.assert_close(
        same[0, 2] - same[0, 1], model.transformer.wpe.weight[2] - model.transformer.wpe.weight[1]
    )
