"""Several addresses in one setting, and the first server behind them that serves."""

import asyncio

import pytest

from fednano.config import Security
from fednano.errors import PeerUnavailable, SettingsInvalid
from fednano.rpc.replicas import first_serving, open_replicas, replica_addresses
from fednano.rpc.server import serving

PLAINTEXT = Security(insecure=True)


def test_clients_begin_at_different_replicas_and_know_all_of_them() -> None:
    lists = {tuple(replica_addresses("a:1, b:2,c:3", f"client-{number}")) for number in range(20)}
    assert lists == {("a:1", "b:2", "c:3"), ("b:2", "c:3", "a:1"), ("c:3", "a:1", "b:2")}


def test_a_client_begins_at_the_same_replica_each_time() -> None:
    assert replica_addresses("a:1,b:2", "client-1") == replica_addresses("a:1,b:2", "client-1")


def test_a_setting_without_an_address_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="--server"):
        replica_addresses(" , ", "client-1")


async def test_the_one_that_serves_is_found_among_those_that_do_not() -> None:
    async with (
        serving({}, "127.0.0.1:0", PLAINTEXT, grace_s=0.1) as running,
        open_replicas(["127.0.0.1:1", running.address], PLAINTEXT) as channels,
    ):
        found = await asyncio.wait_for(first_serving(channels, "", "the servers", 10.0), 10.0)
    assert found == running.address


async def test_where_none_serves_the_failure_says_so() -> None:
    async with open_replicas(["127.0.0.1:1", "127.0.0.1:2"], PLAINTEXT) as channels:
        with pytest.raises(PeerUnavailable, match="the servers does not serve"):
            await first_serving(channels, "", "the servers", 0.3)
