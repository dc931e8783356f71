"""The output factor's merge, which is tried on validation alone, against the product's and against a dense solution."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save_file

import tools.simulation.gram_variants as tried
from fednano.merge.kernels import Float64Array
from fednano.merge.updates import MergeUpdate
from fednano.v1 import run_pb2
from tools.simulation.federation import merge_by_method

D, R = 6, 2
CONFIG = run_pb2.RunConfig(
    method=run_pb2.METHOD_FEDNANO_GRAM,
    adapter=run_pb2.AdapterConfig(rank=R, alpha=2 * R, modalities=["image"], hidden_size=D),
)


def updates_in(folder: Path) -> list[MergeUpdate]:
    generator = np.random.Generator(np.random.PCG64(5))
    made = []
    for name in "abc":
        x_MD = generator.standard_normal((30, D)) * generator.uniform(0.5, 2.0, D)
        tensors = {"down": generator.standard_normal((R, D)), "up": generator.standard_normal((D, R))}
        adapter = {f"image.{key}.weight": value.astype(np.float32) for key, value in tensors.items()}
        save_file(adapter, folder / f"{name}.adapter")
        gram_DD = x_MD.T @ x_MD / 30
        save_file({"image.gram": gram_DD[np.triu_indices(D)].astype(np.float32)}, folder / f"{name}.gram")
        made.append(
            MergeUpdate(client=name, example_count=7, adapter=folder / f"{name}.adapter", gram=folder / f"{name}.gram")
        )
    save_file({name: np.zeros_like(value) for name, value in adapter.items()}, folder / "base")
    return made


def test_equal_output_factors_give_the_products_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = updates_in(tmp_path)
    monkeypatch.setattr(tried, "output_factors", lambda *_: {"image": 3.0 * np.eye(D)})
    model = tried.Model(parts=None, language=None)  # type: ignore[arg-type]
    holdings = dict.fromkeys("abc")
    found = load(
        tried.with_output_factor(model, holdings, updates, tmp_path / "base", CONFIG, 1, normalizes=False)  # type: ignore[arg-type]
    )
    expected = load(merge_by_method(updates, tmp_path / "base", CONFIG, 1))
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_conjugate_gradients_find_what_a_dense_solution_does() -> None:
    generator = np.random.Generator(np.random.PCG64(6))

    def positive() -> Float64Array:
        factor = generator.standard_normal((D, 2 * D))
        return np.asarray(factor @ factor.T)

    terms = [(1 / 3, positive(), positive()) for _ in range(3)]
    wanted = generator.standard_normal((D, D))
    found = tried._solved(terms, wanted, np.zeros((D, D)))
    # Row by row, vec(G W X) is (G kron X^T) vec(W).
    operator = sum(weight * np.kron(output, given) for weight, output, given in terms)
    expected = np.linalg.solve(operator, wanted.ravel()).reshape(D, D)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
