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

    ``resample`` is Pillow's number of the filter; ``mean`` and ``std`` are for values from 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int
    resize_px: int
    resize: Literal["both", "shorter"] = "both"
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def pixels_of(image: Image.Image, config: PictureConfig) -> Tensor:
    """Float32 [C, H, W] of a picture of any size and mode."""
    resized = image.convert("RGB").resize(_size(image, config), Image.Resampling(config.resample))
    left, top = ((length - config.side_px) // 2 for length in resized.size)
    square = resized.crop((left, top, left + config.side_px, top + config.side_px))
    values_HWC = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
    scaled_HWC = (values_HWC - np.array(config.mean, dtype=np.float32)) / np.array(config.std, dtype=np.float32)
    return torch.from_numpy(scaled_HWC).permute(2, 0, 1).contiguous()


def _size(image: Image.Image, config: PictureConfig) -> tuple[int, int]:
    if config.resize == "both":
        return config.resize_px, config.resize_px
    width, height = image.size
    shorter = min(width, height)
    return int(config.resize_px * width / shorter), int(config.resize_px * height / shorter)
