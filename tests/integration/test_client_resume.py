"""A client, or the LLM server, that is killed in the middle of an epoch changes no bit of the run's adapter.

Real processes; one client a run, so that the merged adapter is that client's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from safetensors import safe_open

from fednano.cli.processes import Part, Processes, free_address
from fednano.config import Security
from fednano.data.icon_federation import write_icon_federation
from fednano.model.parts import load_edge, resolve_model
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub
from services.client.checkpoint import FILE, HEADER, Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]
PLAINTEXT = Security(insecure=True)
PATIENCE_S = 200.0
# 96 examples in batches of 4, twice.
STEPS = 48


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A server and an aggregator that are running, and the means to run clients."""

    folder: Path
    processes: Processes
    server: Part
    aggregator: Part
    server_address: str
    aggregator_address: str

    def start_client(self, run_id: str) -> Part:
        flags = ["--client-id", "client-1", "--run", f"runs/{run_id}", "--model", "nano"]
        flags += ["--examples", str(self.folder / "icons" / "client-1"), "--listen", "127.0.0.1:0"]
        flags += ["--server", self.server_address, "--aggregator", self.aggregator_address]
        flags += ["--state", str(self.folder / "client-state"), "--checkpoint-every-steps", "1"]
        return self.processes.start(f"client-of-{run_id}", "services.client", flags, may_end=True)

    def client_folder(self, run_id: str) -> Path:
        return self.folder / "client-state" / run_id / "client-1"

    def step_saved(self, run_id: str) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        path = self.client_folder(run_id) / FILE
        if not path.is_file():
            return 0
        with safe_open(path, framework="pt") as file:
            return Checkpoint.model_validate_json(file.metadata()[HEADER]).position.step_count

    async def create(self, run_id: str) -> None:
        async with open_channel(self.aggregator_address, PLAINTEXT) as channel:
            await wait_until_serving(channel, "fednano.v1.RunService", "the aggregator", PATIENCE_S)
            request = pb.CreateRunRequest(run_id=run_id, run=run_pb2.Run(config=run_config()))
            await RunServiceStub(channel).CreateRun(request, timeout=10)

    async def adapter_of(self, run_id: str) -> str:
        """The digest of the run's final adapter, once the run has succeeded."""
        deadline_s = time.monotonic() + PATIENCE_S
        async with open_channel(self.aggregator_address, PLAINTEXT) as channel:
            stub = RunServiceStub(channel)
            while time.monotonic() < deadline_s:
                # Raises, with its log, where a part has ended that should not have.
                self.processes.check()
                run = (await stub.GetRun(pb.GetRunRequest(name=f"runs/{run_id}"), timeout=10)).run
                assert run.state not in (run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED), run
                if run.state == run_pb2.Run.STATE_SUCCEEDED:
                    request = pb.GetRoundRequest(name=f"runs/{run_id}/rounds/1")
                    return (await stub.GetRound(request, timeout=10)).round.merged_adapter_sha256
                await asyncio.sleep(0.1)
        raise AssertionError(f"{run_id} does not end")


def run_config() -> run_pb2.RunConfig:
    return run_pb2.RunConfig(
        model_digest=load_edge(resolve_model("nano") / "edge").manifest.digest,
        round_count=1,
        clients_per_round=1,
        min_updates=1,
        round_timeout=Duration(seconds=180),
        join_timeout=Duration(seconds=180),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=4, alpha=8, modalities=["image", "text"], hidden_size=128),
        train=run_pb2.TrainConfig(local_epochs=2, batch_size=4, learning_rate=8e-3, seed=5),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=0.1),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=2, max_examples=2),
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("resume")
    write_icon_federation(
        folder / "icons", client_count=1, alpha=1.0, seed=0, train_count=96, val_count=1, test_count=2
    )
    server_address, aggregator_address = free_address(), free_address()
    with Processes(folder, print) as processes:
        flags = ["--state", str(folder / "state"), "--listen", aggregator_address, "--lease-s", "20"]
        aggregator = processes.start("aggregator", "services.aggregator", flags)
        server = processes.start("server", "services.server", ["--model", "nano", "--listen", server_address])
        yield Federation(
            folder=folder,
            processes=processes,
            server=server,
            aggregator=aggregator,
            server_address=server_address,
            aggregator_address=aggregator_address,
        )


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> str:
    async def digest() -> str:
        await federation.create("undisturbed")
        client = federation.start_client("undisturbed")
        found = await federation.adapter_of("undisturbed")
        assert client.process.wait(20) == 0
        return found

    return asyncio.run(digest())


async def test_a_client_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(
    federation: Federation, undisturbed: str
) -> None:
    await federation.create("client-killed")
    client = federation.start_client("client-killed")
    await until(lambda: federation.step_saved("client-killed") >= 5)
    kill(client)
    step = federation.step_saved("client-killed")
    assert 5 <= step < STEPS
    client.launch()
    assert await federation.adapter_of("client-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "resumed" in client.log.read_text()
    # The run is over: nothing is left to go on with.
    assert not federation.client_folder("client-killed").exists()


async def test_a_client_killed_while_it_uploads_does_not_train_again(federation: Federation, undisturbed: str) -> None:
    await federation.create("upload-killed")
    client = federation.start_client("upload-killed")
    await until(lambda: federation.step_saved("upload-killed") >= 5)
    # An aggregator that is held takes no update, nor anything else.
    os.kill(federation.aggregator.process.pid, signal.SIGSTOP)
    try:
        await until((federation.client_folder("upload-killed") / "update.json").is_file)
        kill(client)
    finally:
        os.kill(federation.aggregator.process.pid, signal.SIGCONT)
    client.launch()
    assert await federation.adapter_of("upload-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "update_found" in client.log.read_text()


async def test_an_llm_server_killed_in_the_middle_of_an_epoch_changes_no_bit(
    federation: Federation, undisturbed: str
) -> None:
    await federation.create("server-killed")
    client = federation.start_client("server-killed")
    await until(lambda: federation.step_saved("server-killed") >= 5)
    kill(federation.server)
    await asyncio.sleep(0.5)
    federation.server.launch()
    assert await federation.adapter_of("server-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "session_lost" in client.log.read_text()


def kill(part: Part) -> None:
    part.process.kill()
    part.process.wait(10)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.005)
