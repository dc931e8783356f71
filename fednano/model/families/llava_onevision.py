"""The family ``llava_onevision``: LLaVA-OneVision, a SigLIP tower, two linear layers and Qwen2.

Every picture is given as this family gives those of a prompt with several: whole, one tile, and a newline behind it.
"""

from pathlib import Path

from fednano.model.cutting.cut import Checkpoint, Cut
from fednano.model.families.edge_folder import load_edge_folder
from fednano.model.families.llava import Defaults, LlavaConfig, build, cut_as
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts

SIGLIP_LARGE = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
DEFAULTS = Defaults(
    vision=SIGLIP_LARGE, feature_layer=-1, feature_strategy="full", language_type="qwen2", image_token_id=151646
)


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    return load_edge_folder(folder, manifest, LlavaConfig, build)


def cut(checkpoint: Checkpoint) -> Cut:
    return cut_as("llava_onevision", checkpoint, DEFAULTS, has_newline=True)
