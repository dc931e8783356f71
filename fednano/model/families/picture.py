"""How a picture becomes pixels: resized, cut to its middle, scaled; as transformers' image processors do it.

C: colour channels   H, W: height and width in pixels
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class PictureConfig(BaseModel):
    """``resize`` says what gets ``resize_px``: both sides, or the shorter one, before the middle square is cut out.

    ``resample`` is Pillow's number of the filter; ``mean`` and ``std`` are for values from 0 to 1. With a ``grid`` of
    G, G x G tiles of the picture at G times the side stand below the whole, row by row: H is (1 + G * G) * side_px.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int
    resize_px: int
    resize: Literal["both", "shorter"] = "both"
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: int = 0


def pixels_of(image: Image.Image, config: PictureConfig) -> Tensor:
    """Float32 [C, H, W] of a picture of any size and mode."""
    picture, side_px = image.convert("RGB"), config.side_px
    whole = picture.resize(_size(image, config), Image.Resampling(config.resample))
    left, top = ((length - side_px) // 2 for length in whole.size)
    squares = [_square(whole, left, top, side_px)]
    if config.grid:
        large = picture.resize((config.grid * side_px,) * 2, Image.Resampling(config.resample))
        steps = range(0, config.grid * side_px, side_px)
        squares += [_square(large, left, top, side_px) for top in steps for left in steps]
    return torch.cat([_scaled(square, config) for square in squares], dim=1)


def _square(image: Image.Image, left: int, top: int, side_px: int) -> Image.Image:
    return image.crop((left, top, left + side_px, top + side_px))


def _scaled(square: Image.Image, config: PictureConfig) -> Tensor:
    values_HWC = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
    scaled_HWC = (values_HWC - np.array(config.mean, dtype=np.float32)) / np.array(config.std, dtype=np.float32)
    return torch.from_numpy(scaled_HWC).permute(2, 0, 1).contiguous()


def _size(image: Image.Image, config: PictureConfig) -> tuple[int, int]:
    if config.resize == "both":
        return config.resize_px, config.resize_px
    width, height = image.size
    shorter = min(width, height)
    return int(config.resize_px * width / shorter), int(config.resize_px * height / shorter)
