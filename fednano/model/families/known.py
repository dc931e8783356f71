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
    }
)
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "LlavaForConditionalGeneration": "llava",
    }
)
