"""The properties of Eq. 1 on whole files: two tensors of several elements, clients with random claims."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from update_files import Tensors, write_base, write_update

from fednano.merge.shares import FisherWeighting
from fednano.merge.updates import MergeResult
from fednano.merge.weighted import merge_weighted

SHAPES = {"image.down.weight": (2, 5), "image.up.weight": (5, 2)}
# The paper's formula to the letter.
LITERAL = FisherWeighting(max_share=1.0)
EVERY_KIND = st.sampled_from(
    [
        LITERAL,
        FisherWeighting(normalize_l2=True, max_share=1.0),
        FisherWeighting(by_rank=True, max_share=1.0),
        FisherWeighting(normalize_l2=True, floor=1.0),
        FisherWeighting(power=0.5, max_share=1.0),
    ]
)
many = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 500), min_size=1, max_size=5)


@dataclass(frozen=True, kw_only=True)
class Client:
    name: str
    adapter: Tensors
    fisher: Tensors | None
    count: int


def clients_of(seed: int, counts: Sequence[int]) -> list[Client]:
    """Fisher information over six orders of magnitude, as squared gradients have it."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return [
        Client(
            name=f"client-{index}",
            adapter={name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()},
            fisher={
                name: (10.0 ** generator.uniform(-9, -3, shape)).astype(np.float32) for name, shape in SHAPES.items()
            },
            count=count,
        )
        for index, count in enumerate(counts)
    ]


def merge(folder: Path, clients: Sequence[Client], weighting: FisherWeighting = LITERAL) -> MergeResult:
    updates = [write_update(folder, one.name, one.adapter, one.fisher, example_count=one.count) for one in clients]
    return merge_weighted(updates, write_base(folder, clients[0].adapter), weighting=weighting)


def with_fisher(client: Client, value: float | None) -> Client:
    if value is None:
        return replace(client, fisher=None)
    return replace(client, fisher={name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()})


def mean_of(clients: Sequence[Client]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    total = sum(client.count for client in clients)
    return {
        name: np.sum([client.count / total * client.adapter[name].astype(np.float64) for client in clients], axis=0)
        for name in SHAPES
    }


@many
@given(seed=seeds, weighting=EVERY_KIND)
def test_one_client_is_the_identity(tmp_path: Path, seed: int, weighting: FisherWeighting) -> None:
    (client,) = clients_of(seed, [3])
    for name, tensor in merge(tmp_path, [client], weighting).tensors.items():
        assert np.array_equal(tensor, client.adapter[name])


@many
@given(
    seed=seeds, counts=counts, value=st.floats(1e-9, 1e3), weighting=EVERY_KIND.filter(lambda one: one.max_share == 1)
)
def test_equal_fisher_gives_the_weighted_mean(
    tmp_path: Path, seed: int, counts: list[int], value: float, weighting: FisherWeighting
) -> None:
    alike = [with_fisher(client, value) for client in clients_of(seed, counts)]
    mean = mean_of(alike)
    for name, tensor in merge(tmp_path, alike, weighting).tensors.items():
        np.testing.assert_allclose(tensor, mean[name], rtol=1e-6, atol=1e-6)


@many
@given(seed=seeds, counts=counts, weighting=EVERY_KIND)
def test_each_parameter_lies_within_the_clients_values(
    tmp_path: Path, seed: int, counts: list[int], weighting: FisherWeighting
) -> None:
    made = clients_of(seed, counts)
    for name, tensor in merge(tmp_path, made, weighting).tensors.items():
        values = np.stack([client.adapter[name] for client in made])
        assert (tensor >= values.min(axis=0)).all()
        assert (tensor <= values.max(axis=0)).all()


@many
@given(seed=seeds, counts=counts, weighting=EVERY_KIND, exponent=st.integers(-20, 20))
def test_scaling_everyones_fisher_alike_changes_nothing(
    tmp_path: Path, seed: int, counts: list[int], weighting: FisherWeighting, exponent: int
) -> None:
    made = clients_of(seed, counts)
    scaled = [
        replace(one, fisher={name: values * np.float32(2.0**exponent) for name, values in (one.fisher or {}).items()})
        for one in made
    ]
    before, after = merge(tmp_path, made, weighting).tensors, merge(tmp_path, scaled, weighting).tensors
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, rtol=1e-5, atol=1e-6)


@many
@given(seed=seeds, counts=counts.filter(lambda some: len(some) > 1), weighting=EVERY_KIND)
def test_the_order_of_the_clients_changes_no_bit(
    tmp_path: Path, seed: int, counts: list[int], weighting: FisherWeighting
) -> None:
    """Two clients are huge and cancel: added in another order, the others would be lost to rounding."""
    first, *others = clients_of(seed, counts)
    huge = replace(first, adapter={name: np.float32(2.0**40) * values for name, values in first.adapter.items()})
    opposite = replace(huge, name="client-0b", adapter={name: -values for name, values in huge.adapter.items()})
    made = [huge, opposite, *others]
    forward, backward = (merge(tmp_path, order, weighting).tensors for order in (made, made[::-1]))
    for name, tensor in forward.items():
        assert np.array_equal(tensor, backward[name])


@many
@given(seed=seeds, counts=counts)
def test_fisher_of_ones_is_fedavg_bit_for_bit(tmp_path: Path, seed: int, counts: list[int]) -> None:
    made = clients_of(seed, counts)
    ones, none = ([with_fisher(one, value) for one in made] for value in (1.0, None))
    fedavg = merge(tmp_path, none).tensors
    for name, tensor in merge(tmp_path, ones).tensors.items():
        assert np.array_equal(tensor, fedavg[name])


@many
@given(seed=seeds, counts=counts.filter(lambda some: len(some) > 1))
def test_a_rank_component_keeps_its_weights_together(tmp_path: Path, seed: int, counts: list[int]) -> None:
    """Where every client's up column and down row are constants, so are the merged ones, component for component."""
    made = [
        replace(one, adapter={name: np.full(shape, index + 1, np.float32) for name, shape in SHAPES.items()})
        for index, one in enumerate(clients_of(seed, counts))
    ]
    tensors = merge(tmp_path, made, FisherWeighting(by_rank=True, max_share=1.0)).tensors
    for component in range(2):
        row, column = tensors["image.down.weight"][component], tensors["image.up.weight"][:, component]
        np.testing.assert_allclose(row, row[0], rtol=1e-6)
        np.testing.assert_allclose(column, row[0], rtol=1e-6)


def test_effective_clients_run_from_one_that_owns_every_parameter_to_all(tmp_path: Path) -> None:
    made = clients_of(0, [10, 10, 10, 10])
    alike = [with_fisher(client, 1.0) for client in made]
    assert merge(tmp_path, alike).effective_clients == pytest.approx(4.0)
    owned = [with_fisher(made[0], 1e6), *[with_fisher(client, 1e-6) for client in made[1:]]]
    result = merge(tmp_path, owned)
    assert result.effective_clients == pytest.approx(1.0)
    assert result.parts["client-0"].fisher_share == pytest.approx(1.0)
    capped = merge(tmp_path, owned, FisherWeighting()).parts["client-0"]
    assert (capped.share, capped.fisher_share) == (pytest.approx(0.5), pytest.approx(1.0))


def test_where_nobody_has_information_the_counts_decide_how_many_are_effective(tmp_path: Path) -> None:
    nothing = [with_fisher(client, 0.0) for client in clients_of(0, [1, 3])]
    result = merge(tmp_path, nothing)
    assert result.effective_clients == pytest.approx(1 / (0.25**2 + 0.75**2))
    assert result.parts["client-0"].fisher_share is None
    assert merge(tmp_path, [with_fisher(client, None) for client in nothing]).effective_clients is None
