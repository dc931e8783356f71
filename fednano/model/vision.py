"""The vision encoder of the nano family: four strided convolutions and a small transformer make 16 tokens of a picture.

B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   E: vision width
K: attention heads   F: width of one head
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NanoVisionEncoder(nn.Module):
    """Pixels to one token for each cell of a 4 x 4 grid, row by row. Normalisation is folded into the convolutions."""

    def __init__(self, *, vision_width: int, layer_count: int, head_count: int, image_token_count: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, vision_width)
        self.stem = nn.ModuleList([nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(widths)])
        self.positions_PE = nn.Parameter(torch.zeros(image_token_count, vision_width))
        self.layers = nn.ModuleList([VisionLayer(vision_width, head_count) for _ in range(layer_count)])
        self.norm = nn.LayerNorm(vision_width)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BEHW = pixels_BCHW
        for convolution in self.stem:
            x_BEHW = F.gelu(convolution(x_BEHW))
        x_BPE = x_BEHW.flatten(2).transpose(1, 2) + self.positions_PE
        for layer in self.layers:
            x_BPE = layer(x_BPE)
        features_BPE: Tensor = self.norm(x_BPE)
        return features_BPE


class VisionLayer(nn.Module):
    """Attention of every token to every token, then a perceptron; both residual, both normalised before."""

    def __init__(self, width: int, head_count: int) -> None:
        super().__init__()
        self.head_count = head_count
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BPE: Tensor) -> Tensor:
        x_BPE = x_BPE + self.out(self._attend(self.attention_norm(x_BPE)))
        mlp_BPE: Tensor = self.mlp(self.mlp_norm(x_BPE))
        return x_BPE + mlp_BPE

    def _attend(self, x_BPE: Tensor) -> Tensor:
        q_BKPF, k_BKPF, v_BKPF = (
            part_BPE.unflatten(2, (self.head_count, -1)).transpose(1, 2) for part_BPE in self.qkv(x_BPE).chunk(3, dim=2)
        )
        return F.scaled_dot_product_attention(q_BKPF, k_BKPF, v_BKPF).transpose(1, 2).flatten(2)
