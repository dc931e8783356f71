"""The operator's command against a real aggregator process on loopback."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aggregator_process import AggregatorProcess, RandomClient, connect
from google.protobuf import json_format
from typer.testing import CliRunner, Result

from fednano.cli.app import app
from fednano.v1 import run_service_pb2

FLAGS = ("--model-digest", "d" * 64, "--hidden-size", "8", "--rank", "2", "--round-timeout", "30")
# Nobody listens on port 1.
NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An aggregator that has done the run ``done`` with two clients in two rounds."""

    address: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"FEDNANO_AGGREGATOR": self.address, "FEDNANO_INSECURE": "1"}

    def fednano(self, *words: str) -> Result:
        return CliRunner().invoke(app, list(words), env=self.environment)

    def json(self, *words: str) -> dict[str, object]:
        done = self.fednano(*words, "--json")
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("operator")
    process = AggregatorProcess(folder / "state")
    scene = Scene(address=asyncio.run(process.start()), folder=folder)
    created = scene.fednano("run", "create", "done", "--rounds", "2", "--title", "two clients", *FLAGS)
    assert created.exit_code == 0, created.output
    asyncio.run(work(scene.address, folder))
    yield scene
    process.kill(signal.SIGTERM)


async def work(address: str, folder: Path, clients: int = 2) -> None:
    """Clients join the newest run and do it to its end."""
    async with connect(address) as channel:
        made = [RandomClient(channel, f"client-{number}", folder) for number in range(1, clients + 1)]
        for client in made:
            await client.join()
        await asyncio.gather(*(client.work() for client in made))


def test_a_run_is_listed_and_read_by_both_its_names(scene: Scene) -> None:
    (listed,) = scene.json("run", "list")["runs"]
    assert listed == scene.json("run", "get", "done") == scene.json("run", "get", "runs/done")
    assert (listed["name"], listed["state"], listed["displayName"]) == ("runs/done", "STATE_SUCCEEDED", "two clients")
    words = scene.fednano("run", "get", "done").stdout
    assert "succeeded" in words
    assert "two clients" in words


def test_rounds_and_clients_are_listed_and_read(scene: Scene) -> None:
    rounds = scene.json("round", "list", "done")["rounds"]
    assert [turn["number"] for turn in rounds] == [0, 1, 2]
    assert scene.json("round", "get", "done", "1") == rounds[1]
    assert scene.json("round", "get", "runs/done/rounds/1") == rounds[1]
    assert scene.json("round", "get", "done") == rounds[2]
    clients = scene.json("client", "list", "done")["clients"]
    assert [client["name"] for client in clients] == [f"runs/done/clients/client-{number}" for number in (1, 2)]
    assert scene.json("client", "get", "done", "client-2") == clients[1]


def test_tables_show_each_round_and_each_client_on_a_line(scene: Scene) -> None:
    rounds = scene.fednano("round", "list", "done").stdout.splitlines()
    assert [line.split()[:2] for line in rounds[1:]] == [[number, "succeeded"] for number in "012"]
    one_round = scene.fednano("round", "get", "done", "1").stdout
    assert "2 of 2" in one_round
    assert "client-2" in scene.fednano("client", "list", "done").stdout


def test_the_exported_adapter_is_the_merged_one_and_can_be_inspected(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "adapter.safetensors"
    exported = scene.json("adapter", "export", "done", "--out", str(out))
    merged = scene.json("round", "get", "done", "2")["mergedAdapterSha256"]
    assert exported["sha256"] == merged == hashlib.sha256(out.read_bytes()).hexdigest()
    assert scene.json("adapter", "inspect", str(out))["ranks"] == [2]
    earlier = scene.json("adapter", "export", "done", "--round", "1", "--out", str(out))
    assert earlier["sha256"] == scene.json("round", "get", "done", "1")["mergedAdapterSha256"] != merged


def test_the_measurements_history_is_exported_whole(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "history.csv"
    facts = scene.json("run", "export", "done", "--out", str(out))
    rows = out.read_text().splitlines()
    assert len(rows) == facts["measurementCount"] + 1
    assert sum(",client-1,train/loss," in row for row in rows) == 2
    printed = scene.fednano("run", "export", "done", "--format", "json", "--out", "-", "--json")
    history = json_format.Parse(printed.stdout, run_service_pb2.ListMeasurementsResponse())
    assert len(history.measurements) == len(rows) - 1


def test_watching_a_run_that_has_ended_shows_it_and_returns(scene: Scene) -> None:
    watched = scene.fednano("run", "watch", "done")
    assert watched.exit_code == 0
    assert [line.split(":")[0] for line in watched.stdout.splitlines() if line.startswith("round")] == [
        f"round {number} succeeded" for number in range(3)
    ]
    newest = scene.fednano("run", "watch", "done", "--json", "--after-sequence", "5")
    assert json.loads(newest.stdout.splitlines()[0])["sequence"] == "6"


def test_a_run_is_paused_resumed_and_cancelled_and_its_client_evicted(scene: Scene) -> None:
    assert scene.json("run", "create", "held", *FLAGS)["state"] == "STATE_PENDING"
    assert scene.json("run", "pause", "held")["state"] == "STATE_PAUSED"
    assert scene.json("run", "resume", "held")["state"] == "STATE_PENDING"
    asyncio.run(join(scene))
    assert scene.json("client", "evict", "held", "client-9")["state"] == "STATE_EVICTED"
    assert scene.json("run", "cancel", "held")["state"] == "STATE_CANCELLED"
    assert scene.fednano("run", "watch", "held").exit_code == 1


async def join(scene: Scene) -> None:
    async with connect(scene.address) as channel:
        await RandomClient(channel, "client-9", scene.folder).join()


def test_the_same_request_id_creates_one_run(scene: Scene) -> None:
    request_id = ("--request-id", "5f5a3c1e-0d0a-4a53-9d0b-3f8d3a1f0c11")
    first, second = (scene.json("run", "create", *request_id, *FLAGS) for _ in range(2))
    assert first["name"] == second["name"]
    scene.json("run", "cancel", first["name"])


def test_status_names_each_service_its_version_and_the_runs_under_way(scene: Scene) -> None:
    scene.json("run", "create", "waiting", *FLAGS)
    facts = scene.json("status")
    assert {service["status"] for service in facts["services"]} == {"SERVING"}
    assert all(service["version"] for service in facts["services"])
    assert [run["name"] for run in facts["runs"]] == ["runs/waiting"]
    scene.json("run", "cancel", "waiting")
    down = scene.fednano("status", "--server", NOWHERE, "--json")
    assert down.exit_code == 1
    assert {one["status"] for one in json.loads(down.stdout)["services"]} == {"SERVING", "UNREACHABLE"}


@pytest.mark.parametrize(
    "words",
    [("run", "get", "nobody"), ("round", "get", "done", "9"), ("client", "get", "done", "nobody")],
)
def test_what_is_not_there_ends_with_3_and_one_line(scene: Scene, words: tuple[str, ...]) -> None:
    done = scene.fednano(*words)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_setting_ends_with_2_and_names_the_field(scene: Scene) -> None:
    done = scene.fednano("run", "create", *FLAGS, "--clients", "2", "--min-updates", "3")
    assert done.exit_code == 2
    assert "config.min_updates must be" in done.stderr


def test_an_aggregator_that_is_not_there_is_named_with_what_to_check() -> None:
    flags = ("--aggregator", NOWHERE, "--insecure", "--timeout", "0.5")
    for words in (("run", "list"), ("run", "watch", "demo"), ("adapter", "export", "demo", "--out", "x")):
        done = CliRunner().invoke(app, [*words, *flags])
        assert done.exit_code == 4
        assert len(done.stderr.splitlines()) == 1
        assert f"the aggregator at {NOWHERE} does not answer (Connection refused); check that it runs" in done.stderr


async def test_a_watch_across_a_killed_aggregator_has_every_event_once(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path / "state")
    address = await process.start()
    scene = Scene(address=address, folder=tmp_path)
    created = await asyncio.to_thread(scene.fednano, "run", "create", "demo", "--rounds", "3", *FLAGS)
    assert created.exit_code == 0, created.output
    watching = watch(scene, "demo")
    assert watching.stdout is not None
    # It has begun once the run's first event is there.
    first = await asyncio.to_thread(watching.stdout.readline)
    async with connect(address) as channel:
        clients = [RandomClient(channel, f"client-{number}", tmp_path) for number in (1, 2)]
        for client in clients:
            await client.join()
        for client in clients:
            await client.evaluate((await client.poll()).evaluate)
        await clients[0].train((await clients[0].poll()).train)
    process.kill()
    await process.start()
    await work(address, tmp_path)
    # Not by communicate() alone, which does not see what readline() has buffered.
    rest = await asyncio.to_thread(watching.stdout.read)
    _, errors = await asyncio.to_thread(watching.communicate, timeout=60)
    process.kill(signal.SIGTERM)
    events = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["run"]["state"] == "STATE_SUCCEEDED"
    assert watching.returncode == 0
    assert f"lost the aggregator at {address} after event" in errors


def watch(scene: Scene, run: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fednano.cli.main", "run", "watch", run, "--json"],
        env=os.environ | scene.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
