"""EfficientNet-Lite0 as a vision encoder: a picture's features on a grid, at two scales, one token for each cell.

The network is Tan and Le's (arXiv 1905.11946) in its form for edge devices: no squeeze-and-excitation, ReLU6, and
TensorFlow's padding, which puts the odd row and column at the end. Batch normalisation is folded into the convolutions.

B: batch   C: channels   H, W: height and width   P: image tokens, grid side squared   E: vision width
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one width; the first has the stride."""

    expansion: int
    width: int
    block_count: int
    stride: int
    kernel: int


STEM_WIDTH = 32
STAGES = (
    Stage(expansion=1, width=16, block_count=1, stride=1, kernel=3),
    Stage(expansion=6, width=24, block_count=2, stride=2, kernel=3),
    Stage(expansion=6, width=40, block_count=2, stride=2, kernel=5),
    Stage(expansion=6, width=80, block_count=3, stride=2, kernel=3),
    Stage(expansion=6, width=112, block_count=3, stride=1, kernel=5),
    Stage(expansion=6, width=192, block_count=4, stride=2, kernel=5),
    Stage(expansion=6, width=320, block_count=1, stride=1, kernel=3),
)
# The last stage at 1/16 of the picture's side, of which a token sees four positions; the last of all is at 1/32.
FINE_STAGE = 4
VISION_WIDTH = 4 * STAGES[FINE_STAGE].width + STAGES[-1].width


class EfficientNetLite0(nn.Module):
    """Pixels to features [B, P, E]: of each cell the fine map's four positions, then the coarse map's one, row by row.

    With a grid of 7 and 224 pixels, a cell is one position of the last map; a smaller grid averages.
    """

    def __init__(self, grid_side: int) -> None:
        super().__init__()
        self.grid_side = grid_side
        self.stem = SameConv(3, STEM_WIDTH, kernel=3, stride=2)
        widths = [STEM_WIDTH, *(stage.width for stage in STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(*_blocks(stage, before)) for stage, (before, _) in zip(STAGES, pairwise(widths), strict=True)
        )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        fine_BCHW, coarse_BCHW = self.maps(pixels_BCHW)
        side = self.grid_side
        fine_BCHW = F.pixel_unshuffle(F.adaptive_avg_pool2d(fine_BCHW, 2 * side), 2)
        coarse_BCHW = F.adaptive_avg_pool2d(coarse_BCHW, side)
        return torch.cat([fine_BCHW, coarse_BCHW], dim=1).flatten(2).transpose(1, 2)

    def maps(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The fine stage's map and the last one's, [B, C, H, W] each."""
        x_BCHW = F.relu6(self.stem(pixels_BCHW))
        kept = []
        for number, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW)
            if number == FINE_STAGE:
                kept.append(x_BCHW)
        return kept[0], x_BCHW


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": to ceil(side / stride), with the larger half at the end."""

    def __init__(self, width_in: int, width_out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride=stride, groups=groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x_BCHW.shape[2:]]
        (top, bottom), (left, right) = ((each // 2, each - each // 2) for each in missing)
        return super().forward(F.pad(x_BCHW, (left, right, top, bottom)))


class Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; around it a shortcut where the shapes allow one."""

    def __init__(self, width_in: int, width_out: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = SameConv(width_in, inner, kernel=1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = SameConv(inner, width_out, kernel=1)
        self.has_shortcut = stride == 1 and width_in == width_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner_BCHW = x_BCHW if self.expand is None else F.relu6(self.expand(x_BCHW))
        out_BCHW: Tensor = self.project(F.relu6(self.depthwise(inner_BCHW)))
        return x_BCHW + out_BCHW if self.has_shortcut else out_BCHW


def _blocks(stage: Stage, width_before: int) -> list[Block]:
    widths = [width_before] + [stage.width] * stage.block_count
    return [
        Block(
            width_in,
            width_out,
            expansion=stage.expansion,
            kernel=stage.kernel,
            stride=stage.stride if number == 0 else 1,
        )
        for number, (width_in, width_out) in enumerate(pairwise(widths))
    ]
