"""Halves of two checkpoints refuse each other, and name both digests."""

from pathlib import Path

import pytest
import torch
from family_parity import Halves, halves_of, split_outcome
from tiny_families import llava

from fednano.errors import ModelDigestMismatch


def cut(folder: Path, seed: int) -> Halves:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    llava().save(folder / "whole")
    return halves_of(folder / "whole", folder / "halves")


async def test_halves_of_two_checkpoints_of_one_shape_refuse_each_other(tmp_path: Path) -> None:
    one, other = cut(tmp_path / "1", 1), cut(tmp_path / "2", 2)
    mixed = Halves(edge=one.edge, language=other.language)
    with pytest.raises(ModelDigestMismatch) as caught:
        await split_outcome(mixed, torch.randn(2, 3, 28, 28))
    assert one.language.manifest.digest in caught.value.message
    assert other.language.manifest.digest in caught.value.message
