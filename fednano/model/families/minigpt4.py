"""The family ``minigpt4``: MiniGPT-4, EVA-CLIP and a Q-Former as BLIP-2 has them, a linear layer, Vicuna or Llama-2.

A checkpoint is what ``minigpt4_authors`` makes of the authors' files: transformers' names for all of it, and in
config.json ``vision_config`` (BLIP-2's), ``qformer_config`` (BLIP-2's), ``num_query_tokens`` and ``text_config``.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, Cut, Rule
from fednano.model.families.chat import ChatConfig
from fednano.model.families.edge_folder import EdgeConfig, EdgeModules, load_edge_folder
from fednano.model.families.qformer import QFormerConfig, QFormerConnector
from fednano.model.families.source_settings import (
    CLIP_MEAN,
    CLIP_STD,
    eva_tower,
    language_config,
    picture_config,
    special_token,
    template_of,
    vision_settings,
)
from fednano.model.families.vit import VisionTransformer, VitConfig
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts

RULES = (
    Rule(prefix="language_model.model.", half="server", becomes="model."),
    Rule(prefix="language_model.lm_head.", half="server", becomes="lm_head."),
    Rule(prefix="model.", half="server", becomes="model."),
    Rule(prefix="lm_head.", half="server", becomes="lm_head."),
    Rule(prefix="vision_model.", half="edge", becomes="vision_encoder."),
    Rule(prefix="query_tokens", half="edge", becomes="connector.query_tokens"),
    Rule(prefix="qformer.", half="edge", becomes="connector.qformer."),
    Rule(prefix="language_projection.", half="edge", becomes="connector.language_projection."),
)
VISION = {"model_type": "blip_2_vision_model"}
# No token of the language model's; it is split off before the words around it are.
PLACEHOLDER = "<ImageHere>"
VICUNA_TEMPLATE = (
    "{% for message in messages %}###Human: {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}###Assistant: {% endif %}"
)
LLAMA2_TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"


class QFormerSettings(BaseModel):
    """qformer_config, with what transformers takes where it is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12


class MiniGPT4Config(EdgeConfig):
    vision: VitConfig
    qformer: QFormerConfig


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    return load_edge_folder(folder, manifest, MiniGPT4Config, build)


def build(config: MiniGPT4Config) -> EdgeModules:
    connector = QFormerConnector(config.qformer, config.hidden_size)
    return EdgeModules(VisionTransformer(config.vision), connector, config)


def cut(checkpoint: Checkpoint) -> Cut:
    language = language_config(checkpoint, model_type="llama", architectures={"llama": "LlamaForCausalLM"})
    vision = eva_tower(vision_settings(checkpoint, VISION))
    qformer = _qformer_config(checkpoint)
    return Cut(
        family="minigpt4",
        rules=RULES,
        edge_config=MiniGPT4Config(
            hidden_size=0,
            vocab_size=0,
            chat=_chat_config(checkpoint, qformer.query_count),
            picture=picture_config(checkpoint, vision.side_px, mean=CLIP_MEAN, std=CLIP_STD),
            vision=vision,
            qformer=qformer,
        ),
        build=build,
        language_config=language,
        template=template_of(checkpoint, VICUNA_TEMPLATE),
        tied_head=language["tie_word_embeddings"],
    )


def _chat_config(checkpoint: Checkpoint, image_token_count: int) -> ChatConfig:
    return ChatConfig(
        image_token=PLACEHOLDER,
        image_token_count=image_token_count,
        before_image="<Img>",
        after_image="</Img>",
        gap=" ",
        bos_token=special_token(checkpoint, "bos_token"),
        eos_token=special_token(checkpoint, "eos_token"),
    )


def _qformer_config(checkpoint: Checkpoint) -> QFormerConfig:
    try:
        said = QFormerSettings.model_validate(checkpoint.config.get("qformer_config", {}))
    except ValidationError as error:
        message = f"{checkpoint.name}: config.json: qformer_config: {error.errors(include_input=False)[0]['msg']}"
        raise ModelInvalid(message, file="config.json") from error
    return QFormerConfig(
        query_count=checkpoint.config.get("num_query_tokens", 32),
        width=said.hidden_size,
        mlp_width=said.intermediate_size,
        layer_count=said.num_hidden_layers,
        head_count=said.num_attention_heads,
        feature_width=said.encoder_hidden_size,
        cross_every=said.cross_attention_frequency,
        activation=said.hidden_act,
        norm_eps=said.layer_norm_eps,
    )
