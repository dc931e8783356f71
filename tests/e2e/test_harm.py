"""Harm done to each service while a run goes on: killed, paused, cut off, blackholed. The run loses nothing.

Every round needs the updates of both clients, so that a round that has succeeded is one that lost none. The tests
follow one run, and each leaves it going.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from federation import Federation

SERVICES = ("server", "aggregator", "client")
RUN = {"FEDNANO_RUN": "harmed", "FEDNANO_ROUNDS": "60"}
# The service's process and not the init that watches over it: what a crash is.
KILL = """
import os, signal
for entry in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{entry}/cmdline", "rb") as file:
        if int(entry) > 1 and int(entry) != os.getpid() and b"services." in file.read():
            os.kill(int(entry), signal.SIGKILL)
"""
SHORT_S = 5.0
# Longer than a lease: the aggregator has given the client up by then.
LONG_S = 25.0


@pytest.fixture(scope="module")
def harmed(federation: Federation) -> Federation:
    """The federation with a long run under way."""
    federation.environment.update(RUN)
    federation.up()
    federation.wait_for_round(1)
    return federation


@contextmanager
def paused(federation: Federation, service: str) -> Iterator[None]:
    container = federation.container(service)
    container.pause()
    try:
        yield
    finally:
        container.unpause()


@contextmanager
def cut_off(federation: Federation, service: str) -> Iterator[None]:
    """Out of the network of clients, as by a cable that was pulled."""
    container, network = federation.container(service), federation.engine.networks.get(f"{federation.project}_edge")
    network.disconnect(container)
    try:
        yield
    finally:
        network.connect(container, aliases=[service])


@contextmanager
def blackholed(federation: Federation, service: str) -> Iterator[None]:
    """Packets to the service vanish: nothing is refused, nobody is told."""
    process = str(federation.container(service).attrs["State"]["Pid"])

    def rule(action: str) -> None:
        command = ["nsenter", "--target", process, "--net", "iptables", action, "INPUT", "!", "-i", "lo", "-j", "DROP"]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    rule("--append")
    try:
        yield
    finally:
        rule("--delete")


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back_and_the_run_goes_on(harmed: Federation, service: str) -> None:
    before = harmed.container(service).attrs["RestartCount"]
    assert harmed.python_in(service, KILL).code in (0, 137)
    harmed.wait_for_more_rounds(2)
    assert harmed.container(service).attrs["RestartCount"] == before + 1


@pytest.mark.parametrize("service", SERVICES)
def test_the_run_outlives_a_pause(harmed: Federation, service: str) -> None:
    goes_on_after(harmed, paused, service, LONG_S if service == "client" else SHORT_S)


@pytest.mark.parametrize("service", SERVICES)
def test_the_run_outlives_a_cut_network(harmed: Federation, service: str) -> None:
    goes_on_after(harmed, cut_off, service, SHORT_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="entering a container's network takes root")
@pytest.mark.skipif(not (shutil.which("nsenter") and shutil.which("iptables")), reason="needs nsenter and iptables")
@pytest.mark.parametrize("service", SERVICES)
def test_the_run_outlives_a_blackhole(harmed: Federation, service: str) -> None:
    goes_on_after(harmed, blackholed, service, LONG_S if service == "server" else SHORT_S)


def goes_on_after(
    federation: Federation, harm: Callable[[Federation, str], "contextmanager[None]"], service: str, seconds: float
) -> None:
    """Two more rounds succeed after the harm, in the same process of the service."""
    before = federation.container(service).attrs["State"]["StartedAt"]
    with harm(federation, service):
        time.sleep(seconds)
    federation.wait_for_more_rounds(2)
    assert federation.container(service).attrs["State"]["StartedAt"] == before


def test_volumes_keep_a_run_over_down_and_up(harmed: Federation) -> None:
    """Last, for all containers are others afterwards. The rounds of before are there, and none is done again."""
    done = max(harmed.rounds())
    created = harmed.json("run", "get", "harmed")["createTime"]
    harmed.down()
    assert not harmed.containers()
    harmed.up()
    harmed.wait_for_round(done + 2)
    assert harmed.rounds() == list(range(len(harmed.rounds())))
    run = harmed.json("run", "get", "harmed")
    assert run["createTime"] == created
    assert run["config"]["minUpdates"] == 2
    rounds = harmed.json("round", "list", "harmed")["rounds"]
    assert all(each["state"] != "STATE_FAILED" for each in rounds)
    assert {each.get("updateCount", 0) for each in rounds if each["state"] == "STATE_SUCCEEDED" and each["number"]} == {
        2
    }
    # The run of before is there as well, and is shown again without being done again.
    assert harmed.json("run", "get", "demo")["state"] == "STATE_SUCCEEDED"
