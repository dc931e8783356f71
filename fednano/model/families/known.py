"""Which families of models there are, and which module each is.

A family's module has ``load(folder, manifest) -> EdgeParts``. One whose checkpoints can be cut has
``cut(source: Checkpoint) -> Cut`` besides, and its architecture's name (``architectures`` in a checkpoint's
config.json) is in the second table. Families are imported when they are asked for.
"""

from collections.abc import Mapping
from types import MappingProxyType

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "nano": "fednano.model.nano",
        "llava": "fednano.model.families.llava",
        "llava_next": "fednano.model.families.llava_next",
        "llava_onevision": "fednano.model.families.llava_onevision",
        "minigpt4": "fednano.model.families.minigpt4",
        "smol": "fednano.model.families.smol",
        "smolvlm": "fednano.model.families.smolvlm",
    }
)
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "LlavaForConditionalGeneration": "llava",
        "LlavaNextForConditionalGeneration": "llava_next",
        "LlavaOnevisionForConditionalGeneration": "llava_onevision",
        "MiniGPT4ForConditionalGeneration": "minigpt4",
        "SmolVLMForConditionalGeneration": "smolvlm",
        "Idefics3ForConditionalGeneration": "smolvlm",
    }
)
