"""Real processes of a federation with one client a run, and the adapter that each run ends with."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from safetensors import safe_open

from fednano.cli.processes import Part, Processes
from fednano.config import Security
from fednano.model.parts import load_edge, resolve_model
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub
from services.client.checkpoint import FILE, HEADER, Checkpoint

PLAINTEXT = Security(insecure=True)
PATIENCE_S = 200.0
# 96 examples in batches of 4, twice.
EXAMPLES = 96
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


def kill(part: Part) -> None:
    part.process.kill()
    part.process.wait(10)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.005)
