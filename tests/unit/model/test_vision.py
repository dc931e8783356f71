"""B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   E: vision width"""

import torch

from fednano.model.vision import NanoVisionEncoder


def encoder(seed: int = 0) -> NanoVisionEncoder:
    torch.manual_seed(seed)
    result = NanoVisionEncoder(vision_width=32, layer_count=2, head_count=4, image_token_count=16)
    torch.nn.init.normal_(result.positions_PE)
    return result


def test_a_picture_becomes_one_token_a_cell() -> None:
    pixels_BCHW = torch.randn(3, 3, 64, 64)
    assert encoder()(pixels_BCHW).shape == (3, 16, 32)


def test_a_picture_is_encoded_alone_as_in_a_batch_and_in_training_mode_too() -> None:
    module, pixels_BCHW = encoder(), torch.randn(3, 3, 64, 64)
    alone_BPE = module.eval()(pixels_BCHW[1:2])
    together_BPE = module.train()(pixels_BCHW)[1:2]
    torch.testing.assert_close(alone_BPE, together_BPE)


def test_every_token_sees_the_whole_picture() -> None:
    pixels_BCHW = torch.zeros(1, 3, 64, 64, requires_grad=True)
    encoder()(pixels_BCHW)[0, 0, :16].sum().backward()
    assert pixels_BCHW.grad is not None
    assert pixels_BCHW.grad[0, :, 56:, 56:].abs().sum() > 0


def test_tokens_know_their_place() -> None:
    features_BPE = encoder()(torch.zeros(1, 3, 64, 64))
    assert len({tuple(token.tolist()) for token in features_BPE[0]}) == 16
