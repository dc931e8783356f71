"""The Q-Former (BLIP-2): a few learned queries that look at a picture's features, written out in plain torch.

Modules have the names that transformers gives them. What only text would go through is not there.

B: batch   P: features of a picture   E: their width   Q: queries   F: width of a query
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fednano.model.families.activations import activation
from fednano.model.families.vit import attend


class QFormerConfig(BaseModel):
    """Every ``cross_every``-th layer, the first one too, looks at the picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_count: int
    width: int
    mlp_width: int
    layer_count: int
    head_count: int
    feature_width: int
    cross_every: int
    activation: str
    norm_eps: float


class QFormer(nn.Module):
    """Queries [B, Q, F] and features [B, P, E] to [B, Q, F]."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        layers = [_Layer(config, crosses=number % config.cross_every == 0) for number in range(config.layer_count)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, queries_BQF: Tensor, features_BPE: Tensor) -> Tensor:
        x_BQF: Tensor = self.layernorm(queries_BQF)
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x_BQF = layer(x_BQF, features_BPE)
        return x_BQF


class _Layer(nn.Module):
    def __init__(self, config: QFormerConfig, *, crosses: bool) -> None:
        super().__init__()
        self.attention = _Attention(config, config.width)
        self.crossattention = _Attention(config, config.feature_width) if crosses else None
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(config.width, config.mlp_width)})
        self.output_query = _Output(config, config.mlp_width)
        self._activation = activation(config.activation)

    def forward(self, x_BQF: Tensor, features_BPE: Tensor) -> Tensor:
        x_BQF = self.attention(x_BQF, x_BQF)
        if self.crossattention is not None:
            x_BQF = self.crossattention(x_BQF, features_BPE)
        out_BQF: Tensor = self.output_query(self._activation(self.intermediate_query["dense"](x_BQF)), x_BQF)
        return out_BQF


class _Attention(nn.Module):
    """Normalised after what it adds, as in BERT."""

    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.head_count, width = config.head_count, config.width
        projections = {"query": nn.Linear(width, width)}
        projections |= {name: nn.Linear(key_width, width) for name in ("key", "value")}
        self.attention = nn.ModuleDict(projections)
        self.output = _Output(config, width)

    def forward(self, x_BQF: Tensor, seen_BPE: Tensor) -> Tensor:
        project = self.attention
        parts = [project["query"](x_BQF), project["key"](seen_BPE), project["value"](seen_BPE)]
        out_BQF: Tensor = self.output(attend(parts, self.head_count), x_BQF)
        return out_BQF


class _Output(nn.Module):
    def __init__(self, config: QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, h_BQF: Tensor, x_BQF: Tensor) -> Tensor:
        out_BQF: Tensor = self.LayerNorm(self.dense(h_BQF) + x_BQF)
        return out_BQF


class QFormerConnector(nn.Module):
    """features_BPE to image_embeds_BPD, where P is the number of queries."""

    def __init__(self, config: QFormerConfig, hidden_size: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, config.query_count, config.width))
        self.qformer = QFormer(config)
        self.language_projection = nn.Linear(config.width, hidden_size)

    def forward(self, features_BPE: Tensor) -> Tensor:
        queries_BQF = self.query_tokens.expand(len(features_BPE), -1, -1)
        image_embeds_BPD: Tensor = self.language_projection(self.qformer(queries_BQF, features_BPE))
        return image_embeds_BPD
