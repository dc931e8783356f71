"""Every family, cut in two and trained over the network, gives what transformers gives of the whole model.

B: batch   C: colour channels   H, W: height and width in pixels
"""

from pathlib import Path

import pytest
import torch
from family_parity import IMAGE_COUNT, halves_of, split_outcome, whole_outcome
from tiny_families import FAMILIES
from torch import nn

from fednano.model.packing import DEFAULT_ROW_TILE

# The server pads to whole tiles of rows, so that a pass of another length may be computed by other kernels.
CLOSE = 1e-5
COMPARED = ("logits_NV", "loss", "image_grad_PD", "text_grad_TD")


@pytest.mark.parametrize("with_head", [False, True], ids=["logits", "hidden_states"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_parity_of_logits_gradients_and_answers(family: str, with_head: bool, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    whole = FAMILIES[family]()
    strengthen(whole.model.eval().requires_grad_(False))
    whole.save(tmp_path / "whole")
    halves = halves_of(tmp_path / "whole", tmp_path / "halves", with_head=with_head)
    side_px = 28
    height_px = side_px * (5 if family == "llava_next" else 1)
    pixels_BCHW = torch.randn(IMAGE_COUNT, 3, height_px, side_px)
    expected = whole_outcome(whole, halves, pixels_BCHW)
    found = await split_outcome(halves, pixels_BCHW)
    assert torch.equal(found.inputs_embeds_TD, expected.inputs_embeds_TD)
    same_kernels = len(expected.inputs_embeds_TD) % DEFAULT_ROW_TILE == 0
    for name in COMPARED:
        theirs, ours = getattr(expected, name), getattr(found, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if same_kernels else CLOSE)
        assert theirs.abs().max() > 200 * CLOSE, name
    assert found.generated == expected.generated


def strengthen(model: nn.Module) -> None:
    """As they are made, weights are so small that a picture hardly matters."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
