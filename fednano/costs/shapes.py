"""The shapes of models, and how many parameters each part has by them."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """A CLIP vision transformer: ``image_token_count`` of its patches become tokens, the class token none.

    The norm behind its last layer is not counted, for LLaVA takes the features before it.
    """

    layer_count: int
    width: int
    mlp_width: int
    patch_px: int
    image_side_px: int

    @property
    def image_token_count(self) -> int:
        return (self.image_side_px // self.patch_px) ** 2

    @property
    def parameter_count(self) -> int:
        embeddings = self.width * (1 + 3 * self.patch_px**2 + self.image_token_count + 1)
        return embeddings + _norm(self.width) + self.layer_count * self._layer

    @property
    def _layer(self) -> int:
        attention = 4 * _linear(self.width, self.width)
        mlp = _linear(self.width, self.mlp_width) + _linear(self.mlp_width, self.width)
        return attention + mlp + 2 * _norm(self.width)


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """A Llama: RMS norms, a gated MLP, no biases."""

    layer_count: int
    hidden_size: int
    mlp_width: int
    head_count: int
    key_value_head_count: int
    vocab_size: int

    @property
    def token_embedding_count(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameter_count(self) -> int:
        """Token embedding and head included, which are two."""
        return 2 * self.token_embedding_count + self.layers_count

    @property
    def layers_count(self) -> int:
        """What a token passes on the server, without embedding and head."""
        key_value_width = self.hidden_size // self.head_count * self.key_value_head_count
        attention = 2 * self.hidden_size * (self.hidden_size + key_value_width)
        layer = attention + 3 * self.hidden_size * self.mlp_width + 2 * self.hidden_size
        return self.layer_count * layer + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A vision encoder, two linear layers as its connector, a language model."""

    name: str
    vision: VisionShape
    language: LanguageShape

    @property
    def connector_count(self) -> int:
        hidden = self.language.hidden_size
        return _linear(self.vision.width, hidden) + _linear(hidden, hidden)

    @property
    def parameter_count(self) -> int:
        return self.vision.parameter_count + self.connector_count + self.language.parameter_count

    def adapter_count(self, rank: int) -> int:
        """A down and an up matrix for each of the two modalities."""
        return 2 * 2 * rank * self.language.hidden_size


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _norm(width: int) -> int:
    return 2 * width


_CLIP_LARGE_336 = VisionShape(layer_count=24, width=1024, mlp_width=4096, patch_px=14, image_side_px=336)


def _vicuna(layer_count: int, hidden_size: int, mlp_width: int, head_count: int) -> LanguageShape:
    return LanguageShape(
        layer_count=layer_count,
        hidden_size=hidden_size,
        mlp_width=mlp_width,
        head_count=head_count,
        key_value_head_count=head_count,
        vocab_size=32_000,
    )


SHAPES = MappingProxyType(
    {
        "llava-1.5-7b": ModelShape(name="llava-1.5-7b", vision=_CLIP_LARGE_336, language=_vicuna(32, 4096, 11_008, 32)),
        "llava-1.5-13b": ModelShape(
            name="llava-1.5-13b", vision=_CLIP_LARGE_336, language=_vicuna(40, 5120, 13_824, 40)
        ),
    }
)
