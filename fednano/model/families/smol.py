"""The family ``smol``: SmolLM2-135M-Instruct, EfficientNet-Lite0 and a connector of ours; 224 pixels, no model hub."""

from pathlib import Path

import torch

from fednano.model.connector import Connector
from fednano.model.families.chat import ChatConfig
from fednano.model.families.edge_folder import EdgeConfig, EdgeModules, load_edge_folder
from fednano.model.families.efficientnet_lite import VISION_WIDTH, EfficientNetLite0
from fednano.model.families.picture import PictureConfig
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts

FAMILY = "smol"
HIDDEN_SIZE, VOCAB_SIZE = 576, 49152
# SmolLM2's turns, without the words about itself that its own template puts in front: a third of a question's tokens.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class SmolConfig(EdgeConfig):
    """config.json of the edge half. A picture has ``grid_side`` squared tokens."""

    grid_side: int
    connector_width: int


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    parts = load_edge_folder(folder, manifest, SmolConfig, build)
    # The layout that depthwise convolutions are quickest in on a CPU.
    parts.vision_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return parts


def build(config: SmolConfig) -> EdgeModules:
    connector = Connector(
        vision_width=VISION_WIDTH, connector_width=config.connector_width, hidden_size=config.hidden_size
    )
    return EdgeModules(EfficientNetLite0(config.grid_side), connector, config)


def smol_config(*, grid_side: int, connector_width: int) -> SmolConfig:
    return SmolConfig(
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        head="tied",
        chat=ChatConfig(image_token="<image>", image_token_count=grid_side**2, eos_token="<|im_end|>"),  # noqa: S106
        picture=PictureConfig(side_px=224, resize_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        grid_side=grid_side,
        connector_width=connector_width,
    )
