"""Fisher information as a merge reads it: raised to a power, shared within rank components, block by block."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fednano.adapter_layout import Float32Array, adapter_shapes
from fednano.merge.fisher_source import FisherSource, fisher_source
from fednano.merge.shares import FisherWeighting
from fednano.merge.tensor_file import open_tensor_file

D, R = 5, 3
SHAPES = adapter_shapes(["image", "text"], D, R)


def information() -> dict[str, Float32Array]:
    generator = np.random.Generator(np.random.PCG64(1))
    return {name: generator.random(shape, np.float32) for name, shape in SHAPES.items()}


def source(folder: Path, weighting: FisherWeighting) -> FisherSource:
    save_file(information(), folder / "fisher")
    return fisher_source(open_tensor_file(folder / "fisher"), weighting)


def whole(found: FisherSource, name: str, block: int) -> Float32Array:
    """The tensor, read in blocks of so many elements."""
    size = int(np.prod(SHAPES[name]))
    flat_I = np.empty(size, np.float32)
    for start in range(0, size, block):
        found.read(name, start, flat_I[start : start + block])
    return flat_I.reshape(SHAPES[name])


@pytest.mark.parametrize("block", [1, 4, 100])
def test_a_power_is_taken_of_each_element(tmp_path: Path, block: int) -> None:
    found = source(tmp_path, FisherWeighting(power=0.5))
    for name, values in information().items():
        np.testing.assert_allclose(whole(found, name, block), np.sqrt(values), rtol=1e-6)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_a_rank_component_has_one_weight_for_its_up_column_and_its_down_row(tmp_path: Path, block: int) -> None:
    found, values = source(tmp_path, FisherWeighting(by_rank=True)), information()
    for modality in ("image", "text"):
        weight_R = values[f"{modality}.up.weight"].mean(axis=0) + values[f"{modality}.down.weight"].mean(axis=1)
        weight_R = weight_R / weight_R.mean()
        down, up = (whole(found, f"{modality}.{part}.weight", block) for part in ("down", "up"))
        np.testing.assert_allclose(down, np.repeat(weight_R[:, None], D, axis=1), rtol=1e-5)
        np.testing.assert_allclose(up, np.repeat(weight_R[None, :], D, axis=0), rtol=1e-5)


def test_no_information_stays_none(tmp_path: Path) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, tmp_path / "fisher")
    found = fisher_source(open_tensor_file(tmp_path / "fisher"), FisherWeighting(by_rank=True, power=0.5))
    assert not whole(found, "image.up.weight", 4).any()


@pytest.mark.parametrize("power", [2.0, 40.0])
@pytest.mark.parametrize("by_rank", [False, True])
def test_a_power_of_huge_information_stays_finite(tmp_path: Path, power: float, by_rank: bool) -> None:
    huge = {name: np.full(shape, 1e30, np.float32) for name, shape in SHAPES.items()}
    save_file(huge, tmp_path / "fisher")
    found = fisher_source(open_tensor_file(tmp_path / "fisher"), FisherWeighting(power=power, by_rank=by_rank))
    assert np.isfinite(whole(found, "image.up.weight", 4)).all()
    assert (whole(found, "image.up.weight", 4) > 0).all()
