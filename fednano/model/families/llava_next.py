"""The family ``llava_next``: LLaVA-1.6, which sees a picture whole and in tiles, with a newline behind each row.

Every picture is made a square: as many tiles as the family's largest square has, two times two in what was published.

B: pictures   G: tiles a side   T: tiles of all pictures   C: colour channels   H, W: height and width in pixels
P: image tokens   Q: tokens a side of one tile   R: rows of tokens   E: vision width   D: hidden size
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, Cut
from fednano.model.families.edge_folder import EdgeModules, load_edge_folder
from fednano.model.families.llava import LLAVA_DEFAULTS, LlavaConfig, LlavaConnector, cut_as
from fednano.model.families.vit import VisionTransformer, VitConfig
from fednano.model.manifest import Manifest
from fednano.model.parts import EdgeParts

_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


class TiledVision(VisionTransformer):
    """pixels_BCHW, the whole picture and its tiles below each other, to the features of all of them, [B, P, E]."""

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        tiles_BGCHW = torch.stack(torch.split(pixels_BCHW, self.config.side_px, dim=2), dim=1)
        features_TPE = super().forward(tiles_BGCHW.flatten(0, 1))
        return features_TPE.reshape(len(pixels_BCHW), -1, features_TPE.shape[-1])


class TiledConnector(LlavaConnector):
    """The whole picture's tokens, then those of the tiles, row by row of the picture that they make together."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self._grid = config.picture.grid
        self._side = config.vision.side_px // config.vision.patch_px

    def forward(self, features_BPE: Tensor) -> Tensor:
        assert self.image_newline is not None
        embeds_BPD = self.project(features_BPE)
        whole_BPD, tiles_BPD = embeds_BPD[:, : self._side**2], embeds_BPD[:, self._side**2 :]
        grid, side, batch = self._grid, self._side, len(embeds_BPD)
        tiles_BGGQQD = tiles_BPD.reshape(batch, grid, grid, side, side, -1)
        rows_BRQD = tiles_BGGQQD.transpose(2, 3).reshape(batch, grid * side, grid * side, -1)
        newlines_BRQD = self.image_newline.expand(batch, grid * side, 1, -1)
        return torch.cat([whole_BPD, torch.cat([rows_BRQD, newlines_BRQD], dim=2).flatten(1, 2)], dim=1)


def load(folder: Path, manifest: Manifest) -> EdgeParts:
    return load_edge_folder(folder, manifest, LlavaConfig, build)


def build(config: LlavaConfig) -> EdgeModules:
    vision: nn.Module = TiledVision(config.vision)
    return EdgeModules(vision, TiledConnector(config), config)


def cut(checkpoint: Checkpoint) -> Cut:
    plain = cut_as("llava_next", checkpoint, LLAVA_DEFAULTS, has_newline=True)
    config: LlavaConfig = plain.edge_config
    grid = _grid(checkpoint, config.vision)
    side = config.vision.side_px // config.vision.patch_px
    tokens = {"image_token_count": side**2 + (grid * side) * (grid * side + 1)}
    changes = {
        "chat": config.chat.model_copy(update=tokens),
        # Tiles are not cut to their middle, and neither is the whole beside them.
        "picture": config.picture.model_copy(
            update={"grid": grid, "resize": "both", "resize_px": config.vision.side_px}
        ),
    }
    return replace(plain, edge_config=config.model_copy(update=changes), build=build)


def _grid(checkpoint: Checkpoint, vision: VitConfig) -> int:
    """How many tiles the largest square has, a side."""
    pinpoints = checkpoint.config.get("image_grid_pinpoints") or _PINPOINTS
    squares = [height // vision.side_px for height, width in pinpoints if height == width]
    if not squares or vision.keeps_class_token:
        message = f"{checkpoint.name}: config.json has no square in image_grid_pinpoints, or takes the class token too"
        raise ModelInvalid(message, file="config.json")
    return max(squares)
