"""The Gram-weighted merge keeps what its definition promises, read from files as the aggregator reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fednano.gram_layout import gram_shapes
from fednano.merge.gram import GramRefit, merge_gram
from fednano.merge.kernels import Float64Array
from fednano.merge.updates import MergeResult, MergeUpdate

D, R = 6, 2
FULL = GramRefit(step=1.0, damping=0.0)
NEAR = GramRefit(step=0.5, damping=0.1)
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client's factors, the second moments of what it sees, and how many examples it has."""

    up_DR: Float64Array
    down_RD: Float64Array
    gram_DD: Float64Array
    count: int

    @property
    def product_DD(self) -> Float64Array:
        return self.up_DR @ self.down_RD


def clients_of(seed: int, counts: Sequence[int], rank: int = R) -> list[Client]:
    """Near a common adapter, as after a round of local training; the inputs fill all directions."""
    generator = np.random.Generator(np.random.PCG64(seed))
    common_DR, common_RD = generator.standard_normal((D, rank)), generator.standard_normal((rank, D))
    made = []
    for count in counts:
        x_MD = generator.standard_normal((20, D)) * generator.uniform(0.5, 2.0, D)
        made.append(
            Client(
                up_DR=common_DR + 0.3 * generator.standard_normal((D, rank)),
                down_RD=common_RD + 0.3 * generator.standard_normal((rank, D)),
                gram_DD=x_MD.T @ x_MD / 20,
                count=count,
            )
        )
    return made


def merge(folder: Path, clients: Sequence[Client], refit: GramRefit, names: str = "abcde") -> MergeResult:
    updates, rank = [], len(clients[0].down_RD)
    for name, client in zip(names, clients, strict=False):
        adapter, gram = folder / f"{name}.adapter", folder / f"{name}.gram"
        save_file({"image.down.weight": _narrow(client.down_RD), "image.up.weight": _narrow(client.up_DR)}, adapter)
        save_file({"image.gram": _narrow(client.gram_DD[np.triu_indices(D)])}, gram)
        updates.append(MergeUpdate(client=name, example_count=client.count, adapter=adapter, gram=gram))
    zeros = {"image.down.weight": np.zeros((rank, D), np.float32), "image.up.weight": np.zeros((D, rank), np.float32)}
    save_file(zeros, folder / "base")
    return merge_gram(updates, folder / "base", refit=refit)


def product(result: MergeResult) -> Float64Array:
    up, down = (result.tensors[f"image.{part}.weight"].astype(np.float64) for part in ("up", "down"))
    return np.asarray(up @ down, np.float64)


def _narrow(values: Float64Array) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.ascontiguousarray(values, np.float32)


def least_squares(clients: Sequence[Client]) -> Float64Array:
    """The W nearest to every client's product on that client's inputs, solved as one stacked problem."""
    rows, targets = [], []
    for client in clients:
        root_DD = np.sqrt(client.count) * np.linalg.cholesky(client.gram_DD).T
        rows.append(root_DD)
        targets.append(root_DD @ client.product_DD.T)
    return np.asarray(np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0].T, np.float64)


@many
@given(seed=seeds, refit=st.sampled_from([FULL, NEAR]))
def test_one_client_is_the_identity_in_product_space(tmp_path: Path, seed: int, refit: GramRefit) -> None:
    (client,) = clients_of(seed, [7])
    np.testing.assert_allclose(product(merge(tmp_path, [client], refit)), client.product_DD, rtol=1e-4, atol=1e-4)


@many
@given(seed=seeds, counts=counts)
def test_equal_grams_give_the_weighted_mean_of_the_products(tmp_path: Path, seed: int, counts: list[int]) -> None:
    made = clients_of(seed, counts, rank=D)
    alike = [replace(client, gram_DD=made[0].gram_DD) for client in made]
    mean_DD = sum(client.count * client.product_DD for client in alike) / sum(counts)
    np.testing.assert_allclose(product(merge(tmp_path, alike, FULL)), mean_DD, rtol=1e-3, atol=1e-3)


@many
@given(seed=seeds, counts=counts)
def test_at_full_rank_it_is_the_least_squares_solution(tmp_path: Path, seed: int, counts: list[int]) -> None:
    made = clients_of(seed, counts, rank=D)
    np.testing.assert_allclose(product(merge(tmp_path, made, FULL)), least_squares(made), rtol=1e-3, atol=1e-3)


@many
@given(seed=seeds, counts=counts)
def test_no_clients_division_into_factors_changes_the_product_at_full_rank(
    tmp_path: Path, seed: int, counts: list[int]
) -> None:
    made, generator = clients_of(seed, counts, rank=D), np.random.Generator(np.random.PCG64([seed, 1]))
    divided = [_divided(client, np.eye(D) + 0.2 * generator.standard_normal((D, D)) / D) for client in made]
    np.testing.assert_allclose(
        product(merge(tmp_path, divided, FULL)), product(merge(tmp_path, made, FULL)), rtol=1e-3, atol=1e-3
    )


@many
@given(seed=seeds, counts=counts, refit=st.sampled_from([FULL, NEAR]))
def test_a_rotation_of_everyones_rank_components_changes_no_product(
    tmp_path: Path, seed: int, counts: list[int], refit: GramRefit
) -> None:
    made, generator = clients_of(seed, counts), np.random.Generator(np.random.PCG64([seed, 2]))
    rotation_RR = np.linalg.qr(generator.standard_normal((R, R)))[0]
    rotated = [_divided(client, rotation_RR) for client in made]
    np.testing.assert_allclose(
        product(merge(tmp_path, rotated, refit)), product(merge(tmp_path, made, refit)), rtol=1e-3, atol=1e-3
    )


def _divided(client: Client, between_RR: Float64Array) -> Client:
    """The same product: U -> U A, D -> A^-1 D."""
    down_RD = np.linalg.solve(between_RR, client.down_RD)
    return replace(client, up_DR=client.up_DR @ between_RR, down_RD=np.asarray(down_RD, np.float64))


@many
@given(seed=seeds, counts=counts)
def test_it_is_what_the_equations_give_in_plain_matrices(tmp_path: Path, seed: int, counts: list[int]) -> None:
    made = clients_of(seed, counts)
    result = merge(tmp_path, made, NEAR)
    up_DR, down_RD = _by_the_equations(made, NEAR)
    np.testing.assert_allclose(result.tensors["image.up.weight"], up_DR, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(result.tensors["image.down.weight"], down_RD, rtol=1e-3, atol=1e-3)


def _by_the_equations(clients: Sequence[Client], refit: GramRefit) -> tuple[Float64Array, Float64Array]:
    """The definition, with every matrix written out; no cap on a trace is reached here."""
    weights = np.array([client.count for client in clients]) / sum(client.count for client in clients)
    added = refit.damping * np.mean([np.trace(client.gram_DD) for client in clients]) / D
    grams = [client.gram_DD + added * np.eye(D) for client in clients]
    s_DD = sum(w * x for w, x in zip(weights, grams, strict=True))
    b_DD = sum(w * one.product_DD @ x for w, one, x in zip(weights, clients, grams, strict=True))
    down0 = sum(w * one.down_RD for w, one in zip(weights, clients, strict=True))
    up0 = sum(w * one.up_DR for w, one in zip(weights, clients, strict=True))
    up = b_DD @ down0.T @ np.linalg.inv(down0 @ s_DD @ down0.T)
    g = 0.01 * np.trace(up.T @ up) / R
    down1 = np.linalg.inv(up.T @ up + g * np.eye(R)) @ (up.T @ b_DD @ np.linalg.inv(s_DD) + g * down0)
    up1 = b_DD @ down1.T @ np.linalg.inv(down1 @ s_DD @ down1.T)
    return refit.step * up1 + (1 - refit.step) * up0, refit.step * down1 + (1 - refit.step) * down0


def test_the_order_of_the_clients_changes_no_bit(tmp_path: Path) -> None:
    """The first two cancel: added in another order, the third would be lost to rounding."""
    first, _, third = clients_of(3, [4, 4, 1])
    huge = replace(first, up_DR=2.0**40 * first.up_DR)
    made = [huge, replace(huge, up_DR=-huge.up_DR), third]
    forward, backward = (merge(tmp_path, *order) for order in ((made, NEAR), (made[::-1], NEAR, "cba")))
    for name, tensor in forward.tensors.items():
        assert np.array_equal(tensor, backward.tensors[name])


def test_a_client_that_multiplies_its_gram_by_a_million_gets_no_more_than_four_times_anothers(tmp_path: Path) -> None:
    made = clients_of(5, [1, 1, 1])
    lie = replace(made[2], gram_DD=1e6 * made[2].gram_DD)
    shares = merge(tmp_path, [*made[:2], lie], replace(NEAR, damping=0.0)).parts
    assert shares["c"].share < 0.8
    assert sum(part.share for part in shares.values()) == pytest.approx(1.0)


def test_adapters_that_no_round_has_trained_and_inputs_that_nobody_has_merge_to_their_mean(tmp_path: Path) -> None:
    untrained = [replace(client, up_DR=np.zeros((D, R))) for client in clients_of(1, [1, 1])]
    assert not product(merge(tmp_path, untrained, NEAR)).any()
    blind = [replace(client, gram_DD=np.zeros((D, D))) for client in clients_of(1, [1, 3])]
    assert np.isfinite(product(merge(tmp_path, blind, NEAR))).all()


def test_a_low_rank_with_a_diagonal_merges_as_the_whole_that_it_stands_for(tmp_path: Path) -> None:
    hidden, rank, generator = 40, 1, np.random.Generator(np.random.PCG64(8))
    shapes = gram_shapes(["image"], hidden, rank)
    assert set(shapes) == {"image.gram.diagonal", "image.gram.factor"}
    results = []
    for form in ("whole", "low rank"):
        updates = []
        generator = np.random.Generator(np.random.PCG64(8))
        for name in "ab":
            adapter, gram = tmp_path / f"{name}.adapter", tmp_path / f"{name}.gram"
            down, up = generator.standard_normal((rank, hidden)), generator.standard_normal((hidden, rank))
            save_file({"image.down.weight": _narrow(down), "image.up.weight": _narrow(up)}, adapter)
            factor = generator.standard_normal(shapes["image.gram.factor"])
            diagonal = generator.random(hidden)
            whole = (factor @ factor.T + np.diag(diagonal))[np.triu_indices(hidden)]
            parts = {"image.gram.factor": _narrow(factor), "image.gram.diagonal": _narrow(diagonal)}
            save_file({"image.gram": _narrow(whole)} if form == "whole" else parts, gram)
            updates.append(MergeUpdate(client=name, example_count=1, adapter=adapter, gram=gram))
        results.append(merge_gram(updates, tmp_path / "a.adapter", refit=NEAR).tensors)
    for name, tensor in results[0].items():
        np.testing.assert_allclose(tensor, results[1][name], rtol=1e-4, atol=1e-5)
