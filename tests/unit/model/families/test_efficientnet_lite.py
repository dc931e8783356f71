"""EfficientNet-Lite0 against cases made by hand, and against somebody else's implementation where that is there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.families.efficientnet_lite import STAGES, VISION_WIDTH, EfficientNetLite0, SameConv
from fednano.model.fetching.lite0_weights import read_lite0


def published_weights() -> dict[str, Tensor]:
    """Random ones under the names, and of the shapes, that the package publishes."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        weights[f"{norm}.weight"] = torch.rand(shape[0], generator=generator) + 0.5
        weights[f"{norm}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        weights[f"{norm}.running_mean"] = torch.randn(shape[0], generator=generator) * 0.1
        weights[f"{norm}.running_var"] = torch.rand(shape[0], generator=generator) + 0.5
        weights[f"{norm}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    width, number = 32, 0
    for stage in STAGES:
        for _ in range(stage.block_count):
            inner, name = width * stage.expansion, f"_blocks.{number}"
            if stage.expansion > 1:
                add(f"{name}._expand_conv", f"{name}._bn0", (inner, width, 1, 1))
            add(f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, stage.kernel, stage.kernel))
            add(f"{name}._project_conv", f"{name}._bn2", (stage.width, inner, 1, 1))
            width, number = stage.width, number + 1
    add("_conv_head", "_bn1", (1280, 320, 1, 1))
    return weights | {"_fc.weight": torch.randn(1000, 1280, generator=generator), "_fc.bias": torch.zeros(1000)}


def written(folder: Path, weights: dict[str, Tensor]) -> Path:
    path = folder / "lite0.pth"
    torch.save(weights, path)
    return path


def loaded(path: Path, grid_side: int = 7) -> EfficientNetLite0:
    network = EfficientNetLite0(grid_side)
    network.load_state_dict(read_lite0(path))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(("side", "kernel", "padded"), [(8, 3, (0, 1)), (7, 3, (1, 1)), (8, 5, (1, 2)), (7, 5, (2, 2))])
def test_a_stride_of_two_pads_more_at_the_end_as_tensorflow_does(
    side: int, kernel: int, padded: tuple[int, int]
) -> None:
    convolution = SameConv(1, 1, kernel=kernel, stride=2).requires_grad_(False)
    x_BCHW = torch.randn(1, 1, side, side)
    by_hand_BCHW = nn.functional.pad(x_BCHW, (*padded, *padded))
    expected_BCHW = nn.functional.conv2d(by_hand_BCHW, convolution.weight, convolution.bias, stride=2)
    torch.testing.assert_close(convolution(x_BCHW), expected_BCHW, rtol=0, atol=0)
    assert expected_BCHW.shape[2] == -(-side // 2)


def test_folded_normalisation_computes_what_the_published_layers_do(tmp_path: Path) -> None:
    weights = published_weights()
    network = loaded(written(tmp_path, weights))
    x_BCHW = torch.randn(2, 3, 32, 32)
    unfolded_BCHW = nn.functional.conv2d(
        nn.functional.pad(x_BCHW, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2
    )
    norm = [weights[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    expected_BCHW = nn.functional.batch_norm(unfolded_BCHW, *norm, training=False, eps=1e-3)
    torch.testing.assert_close(network.stem(x_BCHW), expected_BCHW, rtol=1e-5, atol=1e-5)


def test_a_token_sees_four_positions_of_the_fine_map_and_one_of_the_coarse(tmp_path: Path) -> None:
    network = loaded(written(tmp_path, published_weights()))
    pixels_BCHW = torch.rand(1, 3, 224, 224) * 2 - 1
    features_BPE, (fine_BCHW, coarse_BCHW) = network(pixels_BCHW), network.maps(pixels_BCHW)
    assert features_BPE.shape == (1, 49, VISION_WIDTH)
    row, column = 2, 5
    fine = fine_BCHW[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
    torch.testing.assert_close(features_BPE[0, 7 * row + column], torch.cat([fine, coarse_BCHW[0, :, row, column]]))


def test_a_smaller_grid_gives_fewer_tokens_of_the_same_width(tmp_path: Path) -> None:
    network = loaded(written(tmp_path, published_weights()), grid_side=4)
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 16, VISION_WIDTH)


def test_a_file_without_a_layer_is_refused_by_name(tmp_path: Path) -> None:
    weights = published_weights()
    del weights["_blocks.3._project_conv.weight"]
    with pytest.raises(ModelInvalid, match=r"lite0\.pth is not EfficientNet-Lite0.*_blocks\.3\._project_conv"):
        read_lite0(written(tmp_path, weights))


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lite0.pth"
    torch.save({"_conv_stem.weight": Path}, path)
    with pytest.raises(ModelInvalid, match="is not EfficientNet-Lite0"):
        read_lite0(path)


def test_parity_efficientnet_lite0_with_an_independent_implementation(tmp_path: Path) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    weights = published_weights()
    other = theirs.EfficientNet.from_name("efficientnet-lite0")
    other.load_state_dict(weights)
    other.eval().requires_grad_(False)
    # It pads for 224 pixels whatever comes, which is right for powers of two besides.
    pixels_BCHW = torch.rand(2, 3, 64, 64) * 2 - 1
    x_BCHW = nn.functional.relu6(other._bn0(other._conv_stem(pixels_BCHW)))
    expected = {}
    for number, block in enumerate(other._blocks):
        x_BCHW = expected[number] = block(x_BCHW)
    fine_BCHW, coarse_BCHW = loaded(written(tmp_path, weights)).maps(pixels_BCHW)
    torch.testing.assert_close(fine_BCHW, expected[10], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coarse_BCHW, expected[15], rtol=1e-3, atol=1e-3)
