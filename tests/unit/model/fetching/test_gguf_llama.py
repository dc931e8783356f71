"""A tiny GGUF file, laid out as llama.cpp's converter does it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fednano.errors import ModelInvalid
from fednano.model.fetching.gguf_llama import read_gguf_llama

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'fednano[gguf]'")

BYTES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"acdehlor0123456789", "Ġ", "Ċ"]
MERGES = ["r e", "re d", "Ġ red", "h e"]
TOKENS = [*BYTES, "re", "red", "Ġred", "he"]
CONTROL, NORMAL = 3, 1
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
)
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval().requires_grad_(False)


def as_llama_cpp(name: str, weight: Tensor) -> np.ndarray:
    """The converter's own permutation: halves of a head become neighbouring rows."""
    heads = {"attn_q": CONFIG.num_attention_heads, "attn_k": CONFIG.num_key_value_heads}.get(name)
    values = weight.numpy()
    if heads is None:
        return values
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def write_gguf(path: Path, model: LlamaForCausalLM, *, architecture: str = "llama", pre: str = "smollm") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.numpy())
    for number, layer in enumerate(model.model.layers):
        for ours, theirs in NAMES.items():
            weight = layer.get_submodule(ours).weight
            writer.add_tensor(f"blk.{number}.{theirs}.weight", as_llama_cpp(theirs, weight).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_and_settings_make_the_model_that_was_written(tmp_path: Path, model: LlamaForCausalLM) -> None:
    found = read_gguf_llama(write_gguf(tmp_path / "m.gguf", model), torch.float32)
    again = LlamaForCausalLM(LlamaConfig(**found.config)).eval().requires_grad_(False)
    again.load_state_dict(dict(found.weights), strict=False)
    ids_BT = torch.tensor([[1, 4, 7, 9, 2]])
    torch.testing.assert_close(again(ids_BT).logits, model(ids_BT).logits, rtol=0, atol=0)


def test_weights_are_rounded_to_the_type_that_is_asked_for(tmp_path: Path, model: LlamaForCausalLM) -> None:
    found = read_gguf_llama(write_gguf(tmp_path / "m.gguf", model), torch.bfloat16)
    assert found.config["dtype"] == "bfloat16"
    torch.testing.assert_close(found.weights["model.norm.weight"], torch.ones(32).bfloat16())
    torch.testing.assert_close(
        found.weights["model.layers.1.mlp.up_proj.weight"], model.model.layers[1].mlp.up_proj.weight.bfloat16()
    )


def test_the_tokenizer_merges_words_splits_digits_and_keeps_turns_whole(
    tmp_path: Path, model: LlamaForCausalLM
) -> None:
    tokenizer = read_gguf_llama(write_gguf(tmp_path / "m.gguf", model), torch.float32).tokenizer
    encoded = tokenizer.encode("<|im_start|>red red 12<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "red", "Ġred", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "red red 12"


@pytest.mark.parametrize(("changes", "why"), [({"architecture": "gemma"}, "gemma"), ({"pre": "qwen2"}, "gpt2/qwen2")])
def test_another_model_is_refused(tmp_path: Path, model: LlamaForCausalLM, changes: dict[str, str], why: str) -> None:
    with pytest.raises(ModelInvalid, match=rf"m\.gguf is no GGUF file of a Llama model.*{why}"):
        read_gguf_llama(write_gguf(tmp_path / "m.gguf", model, **changes), torch.float32)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no such thing" * 100)
    with pytest.raises(ModelInvalid, match=r"m\.gguf is no GGUF file"):
        read_gguf_llama(tmp_path / "m.gguf", torch.float32)
