"""Checkpoints of each family, made by transformers' own classes with small random weights, saved by save_pretrained.

Tokenizers and templates are small ones of our own, for none can be had without a hub.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

WORDS = re.findall(
    r"\S+",
    "A B C D . : , ? what is the colour of this shape red green blue circle square Context Answer with option 's "
    "letter from given choices directly question using a single word or phrase in",
)
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
VOCAB_SIZE = 96
IMAGE_TOKEN, IMAGE_TOKEN_ID = "<image>", 90

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}


SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
SMOLVLM_VISION = {name: value for name, value in CLIP.items() if name != "model_type"}
EVA = {name: value for name, value in CLIP.items() if name != "model_type"}
QFORMER = {
    "hidden_size": 20,
    "intermediate_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "encoder_hidden_size": 24,
    "vocab_size": 30,
}
QUERY_COUNT = 5


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A model as its family has it, not cut. ``arguments`` makes of pixels what its forward takes for them.

    ``decoder`` is the module that gets the pictures' and the words' embeddings together.
    """

    model: Any
    decoder: nn.Module
    arguments: Callable[[Tensor], dict[str, Any]]
    save: Callable[[Path], None]


def llava() -> WholeModel:
    config = LlavaConfig(vision_config=CLIP, text_config=LLAMA, image_token_index=IMAGE_TOKEN_ID)
    return _whole(LlavaForConditionalGeneration(config), lambda pixels_BCHW: {"pixel_values": pixels_BCHW})


def llava_mistral() -> WholeModel:
    """With a window that a prompt is longer than, and features of two layers."""
    config = LlavaConfig(
        vision_config=CLIP,
        text_config=LLAMA | {"model_type": "mistral", "sliding_window": 24},
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=[-2, -3],
    )
    return _whole(LlavaForConditionalGeneration(config), lambda pixels_BCHW: {"pixel_values": pixels_BCHW})


def llava_siglip_qwen2() -> WholeModel:
    """As LLaVA-Interleave has it, with a tied head."""
    config = LlavaConfig(
        vision_config=SIGLIP,
        text_config=LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _whole(LlavaForConditionalGeneration(config), lambda pixels_BCHW: {"pixel_values": pixels_BCHW})


def llava_next() -> WholeModel:
    config = LlavaNextConfig(
        vision_config=CLIP, text_config=LLAMA, image_token_index=IMAGE_TOKEN_ID, image_grid_pinpoints=[[56, 56]]
    )

    def arguments(pixels_BCHW: Tensor) -> dict[str, Any]:
        tiles = torch.stack(pixels_BCHW.split(28, dim=2), dim=1)
        return {"pixel_values": tiles, "image_sizes": torch.tensor([[56, 56]] * len(tiles))}

    return _whole(LlavaNextForConditionalGeneration(config), arguments)


def llava_onevision() -> WholeModel:
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
        image_token_index=IMAGE_TOKEN_ID,
        video_token_index=IMAGE_TOKEN_ID + 1,
        image_grid_pinpoints=[[56, 56]],
    )

    def arguments(pixels_BCHW: Tensor) -> dict[str, Any]:
        sizes = torch.tensor([[28, 28]] * len(pixels_BCHW))
        return {"pixel_values": pixels_BCHW, "image_sizes": sizes, "batch_num_images": torch.tensor([len(pixels_BCHW)])}

    return _whole(LlavaOnevisionForConditionalGeneration(config), arguments)


def smolvlm() -> WholeModel:
    config = SmolVLMConfig(
        vision_config=SMOLVLM_VISION, text_config=LLAMA, image_token_id=IMAGE_TOKEN_ID, scale_factor=2
    )
    return _joining(SmolVLMForConditionalGeneration(config))


def idefics3() -> WholeModel:
    config = Idefics3Config(
        vision_config=SMOLVLM_VISION, text_config=LLAMA, image_token_id=IMAGE_TOKEN_ID, scale_factor=2
    )
    return _joining(Idefics3ForConditionalGeneration(config))


def _joining(model: Any) -> WholeModel:
    return WholeModel(
        model=model,
        decoder=model.model.text_model,
        arguments=lambda pixels_BCHW: {"pixel_values": pixels_BCHW[None]},
        save=lambda folder: save(model, folder),
    )


class MiniGPT4(nn.Module):
    """Composed by hand of BLIP-2's parts, for transformers lacks it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**EVA))
        self.query_tokens = nn.Parameter(torch.randn(1, QUERY_COUNT, QFORMER["hidden_size"]))
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**QFORMER))
        self.language_projection = nn.Linear(QFORMER["hidden_size"], LLAMA["hidden_size"])
        self.language_model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))

    def inputs_embeds(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        features_BPE = self.vision_model(pixel_values).last_hidden_state
        queries_BQF = self.query_tokens.expand(len(pixel_values), -1, -1)
        looked_BQF = self.qformer(query_embeds=queries_BQF, encoder_hidden_states=features_BPE).last_hidden_state
        is_image_1T = input_ids == VOCAB_SIZE
        embeds_1TD = self.language_model.get_input_embeddings()(input_ids.masked_fill(is_image_1T, 0))
        embeds_1TD[is_image_1T] = self.language_projection(looked_BQF).flatten(0, 1)
        return embeds_1TD

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
        return self.language_model(inputs_embeds=self.inputs_embeds(input_ids, pixel_values))

    def generate(self, input_ids: Tensor, pixel_values: Tensor, **terms: Any) -> Tensor:
        new = self.language_model.generate(inputs_embeds=self.inputs_embeds(input_ids, pixel_values), **terms)
        return torch.cat([input_ids, new], dim=1)


def minigpt4() -> WholeModel:
    model = MiniGPT4()
    return WholeModel(
        model=model,
        decoder=model.language_model.model,
        arguments=lambda pixels_BCHW: {"pixel_values": pixels_BCHW},
        save=lambda folder: save_minigpt4(model, folder),
    )


def _whole(model: Any, arguments: Callable[[Tensor], dict[str, Any]]) -> WholeModel:
    return WholeModel(
        model=model,
        decoder=model.model.language_model,
        arguments=arguments,
        save=lambda folder: save(model, folder),
    )


def save(model: Any, folder: Path, *, max_shard_size: str = "50GB") -> None:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)


def save_minigpt4(model: MiniGPT4, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architectures": ["MiniGPT4ForConditionalGeneration"],
        "vision_config": EVA,
        "qformer_config": QFORMER,
        "num_query_tokens": QUERY_COUNT,
        "text_config": LLAMA,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, "<90>")


FAMILIES: dict[str, Callable[[], WholeModel]] = {
    "idefics3": idefics3,
    "llava": llava,
    "llava_mistral": llava_mistral,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_siglip_qwen2": llava_siglip_qwen2,
    "minigpt4": minigpt4,
    "smolvlm": smolvlm,
}


def write_tokenizer(folder: Path, image_token: str = IMAGE_TOKEN) -> None:
    """Byte-free and word by word, with the first token put in front as Llama's does."""
    words = {word: number for number, word in enumerate([*SPECIALS, *WORDS])}
    words |= {f"<{number}>": number for number in range(len(words), VOCAB_SIZE)}
    words = {word: number for word, number in words.items() if number != IMAGE_TOKEN_ID} | {image_token: IMAGE_TOKEN_ID}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIALS[0]))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([*SPECIALS, image_token])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
