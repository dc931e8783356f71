"""Pixels are those that transformers' own image processors make.

C: colour channels   H, W: height and width in pixels
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fednano.model.families.picture import PictureConfig, pixels_of
from fednano.model.families.source_settings import CLIP_MEAN, CLIP_STD, MIDDLE


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values_HWC = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values_HWC).convert(mode)


@pytest.mark.parametrize("size", [(90, 50), (50, 91), (28, 28), (20, 33)])
def test_the_shorter_side_is_resized_and_the_middle_cut_out_as_clips_processor_does(size: tuple[int, int]) -> None:
    config = PictureConfig(side_px=28, resize_px=30, resize="shorter", mean=CLIP_MEAN, std=CLIP_STD)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28})
    expected_CHW = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels_of(picture(*size), config), expected_CHW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(90, 50), (28, 28)])
def test_both_sides_are_resized_as_siglips_processor_does(size: tuple[int, int]) -> None:
    config = PictureConfig(side_px=28, resize_px=28, mean=MIDDLE, std=MIDDLE)
    theirs = SiglipImageProcessorPil(size={"height": 28, "width": 28}, resample=3)
    expected_CHW = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels_of(picture(*size), config), expected_CHW, rtol=0, atol=1e-6)


def test_a_picture_of_any_mode_has_three_channels() -> None:
    config = PictureConfig(side_px=28, resize_px=28, mean=MIDDLE, std=MIDDLE)
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert pixels_of(picture(40, 30, mode), config).shape == (3, 28, 28)


def test_tiles_stand_below_the_whole_row_by_row() -> None:
    config = PictureConfig(side_px=4, resize_px=4, mean=MIDDLE, std=MIDDLE, grid=2)
    plain = config.model_copy(update={"grid": 0})
    image = picture(8, 8)
    corners = [image.crop((left, top, left + 4, top + 4)) for top in (0, 4) for left in (0, 4)]
    expected_CHW = torch.cat([pixels_of(each, plain) for each in (image, *corners)], dim=1)
    assert torch.equal(pixels_of(image, config), expected_CHW)
