"""The family ``smolvlm``: SmolVLM (Idefics3), a SigLIP tower, neighbouring tokens joined, and a Llama-like model.

Every picture is given whole, as one tile, as the family does where it does not split pictures.

B: batch   P: image tokens   Q: tokens a side of the picture   R: of these, how many are joined a side   E: vision width
D: hidden size
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, Cut, Rule
from fednano.model.families.chat import ChatConfig
from fednano.model.families.edge_folder import EdgeConfig, EdgeModules, load_edge_folder
from fednano.model.families.llava import LANGUAGES
from fednano.model.families.source_settings import (
    MIDDLE,
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

RULES = (
    Rule(prefix="model.text_model.", half="server", becomes="model."),
    Rule(prefix="lm_head.", half="server", becomes="lm_head."),
    Rule(prefix="model.vision_model.", half="edge", becomes="vision_encoder."),
    Rule(prefix="model.connector.", half="edge", becomes="connector."),
)
VISION = {"model_type": "smolvlm_vision"}
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Around a picture's tokens, where the tokenizer has them.
FRAME, WHOLE = "<fake_token_around_image>", "<global-img>"


class SmolVLMConfig(EdgeConfig):
    vision: VitConfig
    # How many tokens a side of the picture become one.
    joined: int


class JoiningConnector(nn.Module):
    """features_BPE to image_embeds_BPD, R x R features becoming one token."""

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__()
        self._joined = config.joined
        width = config.vision.feature_width * config.joined**2
        projection = nn.Linear(width, config.hidden_size, bias=False)
        self.modality_projection = nn.ModuleDict({"proj": projection})

    def forward(self, features_BPE: Tensor) -> Tensor:
        joined, side = self._joined, int(features_BPE.shape[1] ** 0.5)
        x_BQRQRE = features_BPE.reshape(len(features_BPE), side // joined, joined, side // joined, joined, -1)
        x_BQQRRE = x_BQRQRE.transpose(2, 3).reshape(len(features_BPE), (side // joined) ** 2, -1)
        image_embeds_BPD: Tensor = self.modality_projection["proj"](x_BQQRRE)
        return image_embeds_BPD


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    return load_edge_folder(folder, manifest, SmolVLMConfig, build)


def build(config: SmolVLMConfig) -> EdgeModules:
    return EdgeModules(VisionTransformer(config.vision), JoiningConnector(config), config)


def cut(checkpoint: Checkpoint) -> Cut:
    language = language_config(checkpoint, model_type="llama", architectures=LANGUAGES)
    vision = _tower(checkpoint)
    joined = checkpoint.config.get("scale_factor", 2)
    return Cut(
        family="smolvlm",
        rules=RULES,
        edge_config=SmolVLMConfig(
            hidden_size=0,
            vocab_size=0,
            chat=_chat_config(checkpoint, vision.token_count // joined**2),
            picture=picture_config(checkpoint, vision.side_px, mean=MIDDLE, std=MIDDLE).model_copy(
                update={"resize": "both", "resize_px": vision.side_px}
            ),
            vision=vision,
            joined=joined,
        ),
        build=build,
        language_config=language,
        template=template_of(checkpoint, TEMPLATE),
        tied_head=language["tie_word_embeddings"],
    )


def _chat_config(checkpoint: Checkpoint, image_token_count: int) -> ChatConfig:
    frame, whole = (
        token if f'"{token}"' in checkpoint.need("tokenizer.json").decode() else "" for token in (FRAME, WHOLE)
    )
    return ChatConfig(
        image_token=token_of(checkpoint, checkpoint.config.get("image_token_id", 128257), "pictures"),
        image_token_count=image_token_count,
        before_image=frame + whole,
        after_image=frame,
        gap="",
        bos_token=special_token(checkpoint, "bos_token"),
        eos_token=special_token(checkpoint, "eos_token"),
    )


def _tower(checkpoint: Checkpoint) -> VitConfig:
    settings = vision_settings(checkpoint, VISION)
    side = settings.image_size // settings.patch_size
    if side % checkpoint.config.get("scale_factor", 2):
        raise ModelInvalid(
            f"{checkpoint.name}: {side} tokens a side cannot be joined by scale_factor", file="config.json"
        )
    if not _stands_in_order(side):
        message = f"{checkpoint.name}: {side} tokens a side, of which the family gives two the same position"
        raise ModelInvalid(message, file="config.json")
    return siglip_tower(settings, [settings.num_hidden_layers], final_norm=True)


def _stands_in_order(side: int) -> bool:
    """Whether each token of a whole picture has a position of its own, which the family finds by dividing."""
    places = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    found = torch.bucketize(places.clamp(max=1 - 1e-6), torch.arange(1 / side, 1.0, 1 / side), right=True)
    return found.tolist() == list(range(side))
