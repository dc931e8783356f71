"""Each service as a process, scraped as Prometheus does it; and what their logs say at the start and the end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import pytest
import torch
from aggregator_process import AggregatorProcess, RandomClient, connect, run_config
from prometheus_client.parser import text_string_to_metric_families
from split_client import LENGTHS, NANO, inputs, steps

from fednano.cli.processes import free_address
from fednano.data.icon_federation import write_icon_federation
from fednano.model.manifest import read_manifest
from fednano.v1 import run_pb2, run_service_pb2
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.v1.run_service_pb2_grpc import RunServiceStub
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    return samples[metric, frozenset(labels.items())]


@contextmanager
def service(module: str, folder: Path, *flags: str) -> Iterator[Path]:
    """The service's log, once it serves; stopped by SIGTERM, after which it must end well."""
    ready, log = folder / "ready", folder / "log"
    command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--insecure", "--ready-file", str(ready)]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FEDNANO_")}
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *flags], cwd=REPOSITORY, env=environment, stderr=stderr)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def events(log: Path) -> dict[str, dict[str, object]]:
    """The last log line of each event."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["event"]: line for line in lines}


async def test_the_aggregators_runs_survive_a_restart_in_its_metrics(tmp_path: Path) -> None:
    at = free_address()
    process = AggregatorProcess(tmp_path / "state", "--metrics-listen", at)
    async with connect(await process.start()) as channel:
        run = run_pb2.Run(config=run_config())
        await RunServiceStub(channel).CreateRun(run_service_pb2.CreateRunRequest(run_id="a", run=run), timeout=10)
        clients = [RandomClient(channel, f"client-{number}", tmp_path) for number in (1, 2)]
        for client in clients:
            await client.join()
        joined = await asyncio.to_thread(scrape, at)
        assert value(joined, "fednano_clients", state="active") == 2
        assert value(joined, "fednano_client_step", run="a", client="client-1") == 0
        await asyncio.gather(*(client.work() for client in clients))
    ended = await asyncio.to_thread(scrape, at)
    upload = {"service": "fednano.v1.AggregatorService", "method": "UploadUpdate"}
    assert value(ended, "fednano_rpc_requests_total", **upload, code="OK") == 4
    assert value(ended, "fednano_rpc_bytes_total", **upload, direction="received") > 4000
    process.kill()
    await process.start()
    again = await asyncio.to_thread(scrape, at)
    process.kill(signal.SIGTERM)
    for samples in (ended, again):
        assert value(samples, "fednano_runs", state="succeeded") == 1
        assert value(samples, "fednano_updates_accepted_total") == 4
        assert value(samples, "fednano_round_seconds_count") == 3
        assert value(samples, "fednano_merge_seconds_count") == 2
        assert value(samples, "fednano_events_total") > 8
        assert value(samples, "fednano_store_up") == 1


async def test_a_refused_update_is_counted_by_its_reason_and_logged_with_its_names(tmp_path: Path) -> None:
    at = free_address()
    process = AggregatorProcess(tmp_path / "state", "--metrics-listen", at)
    async with connect(await process.start()) as channel:
        run = run_pb2.Run(config=run_config(clients=1, min_updates=1))
        await RunServiceStub(channel).CreateRun(run_service_pb2.CreateRunRequest(run_id="a", run=run), timeout=10)
        client = RandomClient(channel, "client-1", tmp_path)
        await client.join()
        await client.evaluate((await client.poll()).evaluate)
        task = (await client.poll()).train
        with pytest.raises(grpc.aio.AioRpcError):
            await client.train(task, spoil=float("nan"))
    samples = await asyncio.to_thread(scrape, at)
    process.kill(signal.SIGTERM)
    labels = {"service": "fednano.v1.AggregatorService", "method": "UploadUpdate", "reason": "UPDATE_INVALID"}
    assert value(samples, "fednano_rpc_refused_total", **labels) == 1
    assert value(samples, "fednano_updates_accepted_total") == 0
    refused = events(tmp_path / "state.log")["call_refused"]
    names = {"run": "runs/a", "round": "runs/a/rounds/1", "client": "runs/a/clients/client-1"}
    assert {name: refused[name] for name in names} == names


def test_the_server_counts_sessions_passes_and_tokens(tmp_path: Path) -> None:
    at = free_address()
    with service("services.server", tmp_path, "--metrics-listen", at) as log:
        during = asyncio.run(one_step((tmp_path / "ready").read_text(), at))
        after = scrape(at)
        assert events(log)["serving"]["metrics"] == at
    assert value(during, "fednano_server_sessions", kind="steps") == 1
    assert value(after, "fednano_server_sessions", kind="steps") == 0
    assert value(after, "fednano_server_queue_length") == 0
    for kind in ("forward", "backward"):
        assert value(after, "fednano_server_steps_total", kind=kind) == 1
        assert value(after, "fednano_server_tokens_total", kind=kind) == sum(LENGTHS)
        assert value(after, "fednano_server_pass_seconds_count", kind=kind) == 1
    said = events(log)
    assert said["starting"]["settings"]["metrics_listen"] == at
    assert said["session_opened"]["run"] == "runs/test"
    assert said["stopping"]["signal"] == "SIGTERM"
    assert "stopped" in said


async def one_step(address: str, metrics_address: str) -> Samples:
    """A forward and a backward pass; what was counted while the session was open."""
    async with connect(address) as channel:
        client = steps(SplitServiceStub(channel))
        digest = read_manifest(NANO).digest
        await client.send(open_session=pb.OpenSession(model_digest=digest, run="runs/test", encoding=tpb.ENCODING_RAW))
        await client.read()
        outputs_ND = await client.forward(1, inputs(1))
        await client.backward(1, torch.ones_like(outputs_ND))
        samples = await asyncio.to_thread(scrape, metrics_address)
        await client.call.done_writing()
        await client.call.code()
        return samples


def test_a_client_that_waits_for_its_server_can_be_scraped(tmp_path: Path) -> None:
    (examples,) = write_icon_federation(
        tmp_path, client_count=1, alpha=1.0, seed=0, train_count=4, val_count=2, test_count=2
    )
    at, nowhere = free_address(), "127.0.0.1:1"
    flags = ["--client-id", "client-1", "--examples", str(examples), "--server", nowhere, "--aggregator", nowhere]
    with service("services.client", tmp_path, *flags, "--metrics-listen", at):
        samples = scrape(at)
        assert value(samples, "fednano_client_step_seconds_count") == 0
        assert value(samples, "fednano_client_retries_total") == 0


def test_a_metrics_port_in_use_ends_the_service_with_2_and_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "services.aggregator", "--state", str(tmp_path), "--insecure"]
        command += ["--metrics-listen", address]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert f"--metrics-listen: cannot listen on {address}: Address already in use" in done.stderr
