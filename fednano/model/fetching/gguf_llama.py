"""A Llama model and its tokenizer out of a GGUF file, quantised weights multiplied out.

Not through transformers' own reader of such files, which needs one package more; what it makes of a file is what the
tests compare with.

D: hidden size   H: heads   E: width of a head
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fednano.errors import ModelInvalid

EMBEDDING = "model.embed_tokens.weight"
_OUTER = MappingProxyType({"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"})
_INNER = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_CONTROL = 3


@dataclass(frozen=True, kw_only=True)
class GgufLlama:
    """``weights`` under transformers' names. ``template`` is the chat template that the file carries."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    template: str


def read_gguf_llama(path: Path, dtype: torch.dtype) -> GgufLlama:
    """Weights in ``dtype``; each is rounded to it after it was multiplied out in float32."""
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
        weights = {name: tensor.to(dtype) for name, tensor in _weights(reader, config)}
        return GgufLlama(
            config=config | {"dtype": str(dtype).removeprefix("torch.")},
            weights=weights,
            tokenizer=_tokenizer(fields),
            template=fields["tokenizer.chat_template"],
        )
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        message = f"{path} is no GGUF file of a Llama model with its tokenizer ({error}); fetch it again"
        raise ModelInvalid(message, file=str(path)) from error


def _config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    if fields["general.architecture"] != "llama":
        raise ValueError(f"its architecture is {fields['general.architecture']}")
    hidden_size, head_count = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": head_count,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden_size // head_count,
        "max_position_embeddings": fields["llama.context_length"],
        # A float32 in the file; the digits that were meant.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _weights(reader: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    heads_of = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if not name.startswith("blk."):
            yield f"{_OUTER[name]}.weight", values
            continue
        _, layer, kind = name.split(".")
        if kind in heads_of:
            values = _halves_of_heads(values, heads_of[kind])
        yield f"model.layers.{layer}.{_INNER[kind]}.weight", values


def _halves_of_heads(weight: Tensor, head_count: int) -> Tensor:
    """llama.cpp turns neighbouring rows of a head by one angle, transformers those half a head apart."""
    pairs_HE2D = weight.reshape(head_count, -1, 2, weight.shape[1])
    return pairs_HE2D.transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE that splits numbers into digits, as SmolLM's."""
    kind, pre = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if (kind, pre) != ("gpt2", "smollm"):
        raise ValueError(f"its tokenizer is {kind}/{pre}, and only gpt2/smollm is known")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer
