"""Vision transformers that families have in common: CLIP's, SigLIP's and EVA's (as BLIP-2 has it).

Written out, so that an edge needs no transformers; modules have the names that transformers gives them, so that
weights load as they are.

B: batch   C: colour channels   H, W: height and width in pixels   P: tokens   E: width   K: heads   G: width of a head
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fednano.model.families.activations import activation


class VitConfig(BaseModel):
    """``feature_layers``: after how many layers to take features; several lie beside each other in E.

    ``final_norm`` normalises them; ``keeps_class_token`` says whether the first token, the picture's own, is one.
    ``positions``: an embedding, or one parameter with a batch of one. ``fused_qkv``: one matrix for query, key, value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int
    patch_px: int
    width: int
    mlp_width: int
    head_count: int
    feature_layers: tuple[int, ...]
    activation: str
    norm_eps: float
    class_token: bool
    keeps_class_token: bool = False
    patch_bias: bool
    first_norm: bool = False
    final_norm: bool = False
    fused_qkv: bool = False
    qkv_bias: bool = True

    @property
    def patch_count(self) -> int:
        return (self.side_px // self.patch_px) ** 2

    @property
    def token_count(self) -> int:
        return self.patch_count + (self.class_token and self.keeps_class_token)

    @property
    def feature_width(self) -> int:
        return self.width * len(self.feature_layers)


class VisionTransformer(nn.Module):
    """pixels_BCHW to features_BPE. Layers behind the last whose features are taken do not exist."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        # The name is as misspelt as in CLIP's weights.
        self.pre_layrnorm = _norm(config) if config.first_norm else None
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList([_Layer(config) for _ in range(max(config.feature_layers))])}
        )
        self.post_layernorm = _norm(config) if config.final_norm else None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BPE = self.embeddings(pixels_BCHW)
        if self.pre_layrnorm is not None:
            x_BPE = self.pre_layrnorm(x_BPE)
        after_BPE = self._after_each_layer(x_BPE)
        features_BPE = torch.cat([after_BPE[count] for count in self.config.feature_layers], dim=-1)
        if self.post_layernorm is not None:
            features_BPE = self.post_layernorm(features_BPE)
        drops_class = self.config.class_token and not self.config.keeps_class_token
        return features_BPE[:, 1:] if drops_class else features_BPE

    def _after_each_layer(self, x_BPE: Tensor) -> Sequence[Tensor]:
        kept = [x_BPE]
        layers = self.encoder["layers"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            kept.append(layer(kept[-1]))
        return kept


class _Embeddings(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        patch_px, width = config.patch_px, config.width
        self.patch_embedding = nn.Conv2d(3, width, patch_px, stride=patch_px, bias=config.patch_bias)
        count = config.patch_count + config.class_token
        self.class_embedding = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.position_embedding: nn.Embedding | nn.Parameter
        if config.fused_qkv:
            # As EVA's are laid out: with a batch of one in front.
            self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
            self.position_embedding = nn.Parameter(torch.zeros(1, count, width))
        else:
            self.position_embedding = nn.Embedding(count, width)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BPE = self.patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x_BPE = torch.cat([self.class_embedding.expand(len(x_BPE), 1, -1), x_BPE], dim=1)
        positions = self.position_embedding
        embeds_BPE: Tensor = x_BPE + (positions.weight if isinstance(positions, nn.Embedding) else positions)
        return embeds_BPE


class _Layer(nn.Module):
    """Attention of every token to every token, then a perceptron; both residual, both normalised before."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.layer_norm1 = _norm(config)
        self.self_attn = _FusedAttention(config) if config.fused_qkv else _Attention(config)
        self.layer_norm2 = _norm(config)
        self.mlp = _Perceptron(config)

    def forward(self, x_BPE: Tensor) -> Tensor:
        x_BPE = x_BPE + self.self_attn(self.layer_norm1(x_BPE))
        mlp_BPE: Tensor = self.mlp(self.layer_norm2(x_BPE))
        return x_BPE + mlp_BPE


class _Attention(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.head_count, width = config.head_count, config.width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=config.qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BPE: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        out_BPE: Tensor = self.out_proj(attend([project(x_BPE) for project in projections], self.head_count))
        return out_BPE


class _FusedAttention(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.head_count, width = config.head_count, config.width
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.projection = nn.Linear(width, width)

    def forward(self, x_BPE: Tensor) -> Tensor:
        out_BPE: Tensor = self.projection(attend(self.qkv(x_BPE).chunk(3, dim=2), self.head_count))
        return out_BPE


class _Perceptron(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self._activation = activation(config.activation)

    def forward(self, x_BPE: Tensor) -> Tensor:
        out_BPE: Tensor = self.fc2(self._activation(self.fc1(x_BPE)))
        return out_BPE


def attend(query_key_value: Sequence[Tensor], head_count: int) -> Tensor:
    """Every query to every key, in ``head_count`` heads: [B, P, E]. There may be more keys than queries."""
    q_BKPG, k_BKPG, v_BKPG = (_in_heads(part_BPE, head_count) for part_BPE in query_key_value)
    return F.scaled_dot_product_attention(q_BKPG, k_BKPG, v_BKPG).transpose(1, 2).flatten(2)


def _in_heads(x_BPE: Tensor, head_count: int) -> Tensor:
    return x_BPE.view(*x_BPE.shape[:2], head_count, -1).transpose(1, 2)


def _norm(config: VitConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=config.norm_eps)
