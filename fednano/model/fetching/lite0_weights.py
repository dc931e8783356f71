"""EfficientNet-Lite0's published weights under the names of our module, batch normalisation folded away."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.families.efficientnet_lite import STAGES

# TensorFlow's, which the network was trained with.
_NORM_EPSILON = 1e-3


def read_lite0(path: Path) -> dict[str, Tensor]:
    """Float32 weights for ``EfficientNetLite0``. The file is a pickle: tensors are all that is let out of it."""
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        return dict(_folded(published))
    except (UnpicklingError, RuntimeError, KeyError, AttributeError) as error:
        message = f"{path} is not EfficientNet-Lite0 as its package publishes it ({error}); fetch it again"
        raise ModelInvalid(message, file=str(path)) from error


def _folded(published: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for ours, convolution, norm in _pairs():
        weight = published[f"{convolution}.weight"]
        scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + _NORM_EPSILON)
        yield f"{ours}.weight", (weight * scale[:, None, None, None]).contiguous()
        yield f"{ours}.bias", published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale


def _pairs() -> Iterator[tuple[str, str, str]]:
    """Of each convolution: our name, its published name, that of the normalisation behind it."""
    yield "stem", "_conv_stem", "_bn0"
    number = 0
    for stage_number, stage in enumerate(STAGES):
        for block_number in range(stage.block_count):
            ours, theirs = f"stages.{stage_number}.{block_number}", f"_blocks.{number}"
            if stage.expansion > 1:
                yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
            yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
            yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
            number += 1
