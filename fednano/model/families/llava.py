"""The family ``llava``: LLaVA-1.5, a CLIP (or SigLIP) tower, two linear layers and a Llama-like language model.

B: batch   P: image tokens   E: vision width   D: hidden size
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, Cut, Rule
from fednano.model.families.activations import activation
from fednano.model.families.chat import ChatConfig
from fednano.model.families.edge_folder import EdgeConfig, EdgeModules, load_edge_folder
from fednano.model.families.source_settings import (
    CLIP_MEAN,
    CLIP_STD,
    clip_tower,
    language_config,
    picture_config,
    siglip_tower,
    special_token,
    template_of,
    token_of,
    vision_settings,
)
from fednano.model.families.vit import VisionTransformer, VitConfig
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts

LANGUAGES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# As transformers has written them, the newest first.
RULES = (
    Rule(prefix="language_model.model.", half="server", becomes="model."),
    Rule(prefix="language_model.lm_head.", half="server", becomes="lm_head."),
    Rule(prefix="model.language_model.", half="server", becomes="model."),
    Rule(prefix="lm_head.", half="server", becomes="lm_head."),
    *(
        Rule(prefix=f"{outer}{inner}", half="edge", becomes="vision_encoder.")
        for outer in ("", "model.")
        for inner in ("vision_tower.vision_model.", "vision_tower.")
    ),
    *(Rule(prefix=f"{outer}multi_modal_projector.", half="edge", becomes="connector.") for outer in ("", "model.")),
    *(Rule(prefix=f"{outer}image_newline", half="edge", becomes="connector.image_newline") for outer in ("", "model.")),
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class LlavaConfig(EdgeConfig):
    vision: VitConfig
    connector_bias: bool
    connector_activation: str
    # Whether a learned token ends each picture.
    has_newline: bool = False


class LlavaConnector(nn.Module):
    """features_BPE to image_embeds_BPD."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision.feature_width, config.hidden_size, bias=config.connector_bias)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size, bias=config.connector_bias)
        self.image_newline = nn.Parameter(torch.zeros(config.hidden_size)) if config.has_newline else None
        self._activation = activation(config.connector_activation)

    def forward(self, features_BPE: Tensor) -> Tensor:
        embeds_BPD = self.project(features_BPE)
        if self.image_newline is None:
            return embeds_BPD
        return torch.cat([embeds_BPD, self.image_newline.expand(len(embeds_BPD), 1, -1)], dim=1)

    def project(self, features_BPE: Tensor) -> Tensor:
        embeds_BPD: Tensor = self.linear_2(self._activation(self.linear_1(features_BPE)))
        return embeds_BPD


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    return load_edge_folder(folder, manifest, LlavaConfig, build)


def build(config: LlavaConfig) -> EdgeModules:
    return EdgeModules(VisionTransformer(config.vision), LlavaConnector(config), config)


def cut(checkpoint: Checkpoint) -> Cut:
    return cut_as("llava", checkpoint, LLAVA_DEFAULTS)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What transformers takes where a checkpoint's settings say nothing."""

    vision: Mapping[str, Any]
    feature_layer: int
    feature_strategy: str
    language_type: str
    image_token_id: int


LLAVA_DEFAULTS = Defaults(
    vision=CLIP_LARGE, feature_layer=-2, feature_strategy="default", language_type="llama", image_token_id=32000
)


def cut_as(family: str, checkpoint: Checkpoint, defaults: Defaults, *, has_newline: bool = False) -> Cut:
    """The cut of one of LLaVA's kin. A newline is one token more for a picture."""
    language = language_config(checkpoint, model_type=defaults.language_type, architectures=LANGUAGES)
    vision = tower(checkpoint, defaults)
    return Cut(
        family=family,
        rules=RULES,
        edge_config=LlavaConfig(
            # The sizes are those of the weights: who cuts the checkpoint knows them.
            hidden_size=0,
            vocab_size=0,
            chat=chat_config(checkpoint, vision.token_count + has_newline, defaults.image_token_id),
            picture=picture_config(checkpoint, vision.side_px, mean=CLIP_MEAN, std=CLIP_STD),
            vision=vision,
            connector_bias=checkpoint.config.get("multimodal_projector_bias", True),
            connector_activation=checkpoint.config.get("projector_hidden_act", "gelu"),
            has_newline=has_newline,
        ),
        build=build,
        language_config=language,
        template=template_of(checkpoint, TEMPLATE),
        tied_head=language["tie_word_embeddings"],
    )


def chat_config(checkpoint: Checkpoint, image_token_count: int, default_token_id: int) -> ChatConfig:
    config = checkpoint.config
    image_token_id = config.get("image_token_index", config.get("image_token_id", default_token_id))
    return ChatConfig(
        image_token=token_of(checkpoint, image_token_id, "pictures"),
        image_token_count=image_token_count,
        bos_token=special_token(checkpoint, "bos_token"),
        eos_token=special_token(checkpoint, "eos_token"),
    )


def tower(checkpoint: Checkpoint, defaults: Defaults) -> VitConfig:
    """The tower down to the layers whose features are taken."""
    settings = vision_settings(checkpoint, defaults.vision)
    said = checkpoint.config.get("vision_feature_layer", defaults.feature_layer)
    layers = _counted([said] if isinstance(said, int) else said, settings.num_hidden_layers)
    strategy = checkpoint.config.get("vision_feature_select_strategy", defaults.feature_strategy)
    match settings.model_type:
        case "clip_vision_model":
            return clip_tower(settings, layers, keeps_class_token=strategy == "full")
        case "siglip_vision_model" if strategy == "full":
            return siglip_tower(settings, layers, final_norm=False)
    message = f"{checkpoint.name}: a vision tower of type {settings.model_type}, which this family does not know"
    raise ModelInvalid(message, file="config.json")


def _counted(layers: Sequence[int], layer_count: int) -> list[int]:
    """From the front: -1 is the last layer's output, 0 what the first layer gets."""
    counted = [layer if layer >= 0 else layer_count + 1 + layer for layer in layers]
    if not counted or not all(0 <= layer <= layer_count for layer in counted):
        message = f"vision_feature_layer is {layers}, of {layer_count} layers"
        raise ModelInvalid(message, file="config.json", field="vision_feature_layer")
    return counted
