import math
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednano.data.partition import partition_by_topic
from fednano.errors import ExamplesInvalid

SKILLS = ("counting", "scene", "spatial", "time")


def skills(count: int) -> list[str]:
    return [SKILLS[i % len(SKILLS)] for i in range(count)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.sampled_from([0.5, 1.0, 100.0]), st.integers(0, 2**32))
def test_every_example_goes_to_exactly_one_client(client_count: int, alpha: float, seed: int) -> None:
    sets = {"train": skills(400), "test": skills(240)}
    clients = partition_by_topic(sets, client_count=client_count, alpha=alpha, seed=seed, minimum_share=0.05)
    for split, each in sets.items():
        assert sorted(chain.from_iterable(client[split] for client in clients)) == list(range(len(each)))


def test_the_same_seed_gives_the_same_partition_and_another_seed_another() -> None:
    sets = {"train": skills(400)}
    first, again, other = (partition_by_topic(sets, client_count=5, alpha=1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_client_has_the_same_part_of_a_skill_in_every_split() -> None:
    sets = {"train": skills(4000), "test": skills(2000)}
    for client in partition_by_topic(sets, client_count=5, alpha=1.0, seed=0):
        for skill in SKILLS:
            train, test = (sum(sets[split][i] == skill for i in client[split]) for split in ("train", "test"))
            assert train / 1000 == pytest.approx(test / 500, abs=0.004)


def test_a_small_alpha_splits_less_evenly_than_a_large_one() -> None:
    sets = {"train": skills(4000)}

    def largest_share(alpha: float) -> float:
        clients = partition_by_topic(sets, client_count=4, alpha=alpha, seed=1, minimum_share=0.1)
        shares = [
            sum(sets["train"][i] == skill for i in client["train"]) / 1000 for client in clients for skill in SKILLS
        ]
        return max(shares)

    assert largest_share(0.2) > 0.7
    assert largest_share(1000.0) < 0.3


def test_every_client_gets_its_minimum_in_every_split() -> None:
    sets = {"train": skills(1000), "val": skills(300), "test": skills(600)}
    for seed in range(20):
        for client in partition_by_topic(sets, client_count=5, alpha=0.3, seed=seed, minimum_share=0.3):
            assert len(client["train"]) >= 60
            assert len(client["val"]) >= 18
            assert len(client["test"]) >= 36


def test_more_clients_than_examples_is_refused_with_a_way_out() -> None:
    with pytest.raises(ExamplesInvalid, match="use more examples, fewer clients"):
        partition_by_topic({"train": skills(4)}, client_count=5, alpha=1.0, seed=0)


@pytest.mark.parametrize(("client_count", "alpha"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, math.inf), (3, math.nan)])
def test_arguments_without_a_meaning_are_refused(client_count: int, alpha: float) -> None:
    with pytest.raises(ExamplesInvalid, match="clients >= 1 and alpha > 0"):
        partition_by_topic({"train": skills(40)}, client_count=client_count, alpha=alpha, seed=0)
