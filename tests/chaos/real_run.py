"""A federation of the real services on the nano model: the server, the aggregator and two clients, each a process."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos_run import Outcome, Watch, create, outcome
from google.protobuf.duration_pb2 import Duration
from paced_client import RUN
from proxy import Proxy
from service import Service, killed_at_the_end
from sight import Shape, Sight, look

from fednano.model.parts import load_edge, resolve_model
from fednano.v1 import run_pb2

SHAPE = Shape(clients=2, rounds=2)
# Large enough for an upload that takes a while over a slow connection.
RANK = 128
TIMEOUT_S = 900


def real_config() -> run_pb2.RunConfig:
    return run_pb2.RunConfig(
        model_digest=load_edge(resolve_model("nano") / "edge").manifest.digest,
        round_count=SHAPE.rounds,
        clients_per_round=SHAPE.clients,
        min_updates=SHAPE.clients,
        round_timeout=Duration(seconds=TIMEOUT_S),
        join_timeout=Duration(seconds=TIMEOUT_S),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=RANK, alpha=2 * RANK, modalities=["image", "text"], hidden_size=128),
        train=run_pb2.TrainConfig(local_epochs=2, batch_size=4, learning_rate=1e-3, seed=7),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


@dataclass(frozen=True, kw_only=True)
class RealRun:
    """A run under way. The clients reach server and aggregator through the proxies."""

    folder: Path
    aggregator: Service
    server: Service
    clients: Sequence[Service]
    to_aggregator: Proxy
    to_server: Proxy
    watch: Watch

    @property
    def sight(self) -> Sight | None:
        return look(self.folder / "state")

    def kept(self, number: int) -> set[str]:
        """The files that client ``number`` keeps for a process after it."""
        return {path.name for path in (self.folder / "clients").glob(f"*/client-{number}/*")}

    @property
    def uploading(self) -> set[str]:
        """The clients of whose updates a part is on the aggregator's disk."""
        return {Path(place).parent.name for place, _, names in os.walk(self.folder / "state" / "incoming") if names}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Raises AssertionError where the run ends before."""
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                sight = self.sight
                assert sight is None or not sight.is_ended, "the run ended before"
                await asyncio.sleep(0.01)

    async def finish(self) -> Outcome:
        async with asyncio.timeout(TIMEOUT_S):
            for client in self.clients:
                assert await client.ended() == 0, client.last_words
            await self.watch.follow()
        return await outcome(self.aggregator.address, self.watch, [])


@asynccontextmanager
async def real_run(folder: Path, examples: Path) -> AsyncIterator[RealRun]:
    """All of its processes end with the block."""
    server = Service("server", ["-m", "services.server", "--model", "nano"], folder)
    aggregator = Service.aggregator(folder)
    async with killed_at_the_end(server, aggregator):
        server.launch()
        address = await aggregator.start()
        await create(address, real_config())
        async with Proxy(address) as to_aggregator, Proxy(await server.serving()) as to_server:
            peers = ["--aggregator", to_aggregator.address, "--server", to_server.address]
            clients = [_client(number, folder, examples, peers) for number in (1, 2)]
            async with killed_at_the_end(*clients):
                for client in clients:
                    client.launch()
                yield RealRun(
                    folder=folder,
                    aggregator=aggregator,
                    server=server,
                    clients=clients,
                    to_aggregator=to_aggregator,
                    to_server=to_server,
                    watch=Watch(address=address),
                )


def _client(number: int, folder: Path, examples: Path, peers: Sequence[str]) -> Service:
    name = f"client-{number}"
    flags = ["--client-id", name, "--run", RUN, "--model", "nano", "--examples", str(examples / name), *peers]
    flags += ["--state", str(folder / "clients"), "--checkpoint-every-steps", "1"]
    return Service(name, ["-m", "services.client", *flags], folder)
