"""The order of examples."""

from itertools import chain

from fednano.v1.run_pb2 import TrainConfig
from services.client.trainer import batches, example_order


def order(config: TrainConfig, *, seed: int = 3, round_number: int = 1, client_id: str = "client-1") -> list[list[int]]:
    return list(batches(10, config, example_order(seed, round_number, client_id)))


def test_every_example_comes_once_an_epoch_and_the_last_batch_is_short() -> None:
    found = order(TrainConfig(local_epochs=2, batch_size=4))
    assert list(map(len, found)) == [4, 4, 2, 4, 4, 2]
    for epoch in (found[:3], found[3:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(10))
    assert found[:3] != found[3:]


def test_local_steps_cut_the_epochs_short() -> None:
    assert len(order(TrainConfig(local_epochs=2, batch_size=4, local_steps=4))) == 4


def test_the_order_depends_on_seed_round_and_client_alone() -> None:
    config = TrainConfig(local_epochs=1, batch_size=4)
    assert order(config) == order(config)
    for other in (order(config, seed=4), order(config, round_number=2), order(config, client_id="client-2")):
        assert other != order(config)


def test_the_order_is_the_same_in_every_process() -> None:
    # A figure from another process: hash() of a text would give each its own.
    assert example_order(0, 1, "client-1").initial_seed() == SEED_OF_0_1_CLIENT_1


SEED_OF_0_1_CLIENT_1 = 4997269556578988990
