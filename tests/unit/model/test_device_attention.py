"""The kernels for a GPU give what attention sequence by sequence gives, to rounding.

Flex attention is tried here without its compiler, which a CPU can do; the kernels themselves need CUDA.

H: query heads   K: key heads   S: packed positions   E: width of a head
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from fednano.errors import ModelInvalid
from fednano.model.attention import packed_attention
from fednano.model.device_attention import PackedLayout, attention_name, choose_kernel, device_attention

LENGTHS = (7, 1, 130, 12)
SCALE = 0.3
CUDA = torch.device("cuda")
CPU = torch.device("cpu")
Attend = Callable[[Sequence[Tensor], int | None], Tensor]
SHAPES = {"a key head for each query head": (4, None), "shared key heads": (2, None), "a window": (2, 5)}
# What docs/llm-server.md promises of a GPU: the largest difference as a share of the largest number.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def heads(key_heads: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), 16) for count in (4, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def segments(inputs: Sequence[Tensor], window: int | None) -> Tensor:
    query, key, value = inputs
    return packed_attention(
        nn.Module(), query, key, value, None, sequence_lengths=LENGTHS, scaling=SCALE, sliding_window=window
    )[0]


def together(inputs: Sequence[Tensor], window: int | None) -> Tensor:
    query, key, value = inputs
    layout = PackedLayout(LENGTHS, query.device)
    return device_attention(nn.Module(), query, key, value, None, layout=layout, scaling=SCALE, sliding_window=window)[
        0
    ]


def share(difference: Tensor, of: Tensor) -> float:
    return float(difference.abs().max() / of.abs().max())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", SHAPES)
def test_one_call_for_all_sequences_gives_what_a_call_for_each_gives(name: str) -> None:
    key_heads, window = SHAPES[name]
    inputs = heads(key_heads, torch.float32, CPU)
    wanted = segments(inputs, window)
    assert share(together(inputs, window) - wanted, wanted) < TOLERANCES[torch.float32]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_of_a_gpu_give_what_a_call_for_each_sequence_gives(name: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    key_heads, window = SHAPES[name]
    wanted = both_passes(segments, heads(key_heads, torch.float32, CPU), window)
    found = both_passes(together, heads(key_heads, dtype, CUDA), window)
    for own, reference in zip(found, wanted, strict=True):
        assert share(own.float().cpu() - reference, reference) < TOLERANCES[dtype]


def both_passes(attend: Attend, inputs: Sequence[Tensor], window: int | None) -> list[Tensor]:
    """The output and the gradients of the sum of its squares."""
    leaves = [each.requires_grad_() for each in inputs]
    output = attend(leaves, window)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def test_a_mask_is_made_once_for_all_layers_with_one_window() -> None:
    layout = PackedLayout(LENGTHS, CPU)
    assert layout.block_mask(None) is layout.block_mask(None)
    assert layout.block_mask(3) is not layout.block_mask(None)
    assert layout.starts.tolist() == [0, 7, 8, 138, 150]
    assert layout.longest == 130


def test_the_kernel_is_chosen_by_device_and_type() -> None:
    assert choose_kernel(CUDA, torch.bfloat16, 128) == "varlen"
    assert choose_kernel(CUDA, torch.float32, 128) == "flex"
    assert choose_kernel(CUDA, torch.float16, 512) == "flex"
    assert attention_name(CUDA) != attention_name(CPU)


def test_attention_that_would_be_computed_wrongly_is_refused_on_a_gpu_too() -> None:
    query, key, value = heads(4, torch.float32, CPU)
    layout = PackedLayout(LENGTHS, CPU)
    with pytest.raises(ModelInvalid, match="softcap"):
        device_attention(nn.Module(), query, key, value, None, layout=layout, softcap=30.0)
