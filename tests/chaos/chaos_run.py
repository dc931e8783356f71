"""A run from its creation to its end under a plan of kills, and all that is asked of it afterwards."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from killing import Disturbance, kill, meet
from paced_client import HIDDEN, MODALITIES, MODEL_DIGEST, PLAINTEXT, RANK, RUN, PacedClient
from service import PATIENCE_S, Service, killed_at_the_end
from sight import Phase, Shape

from fednano.cli.operator import Operator
from fednano.rpc.channels import open_channel
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

ENDED = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)
RUN_TIMEOUT_S = 240.0
# Rounds enough that a phase of milliseconds, missed on a busy machine, is met in a later one.
SHAPE = Shape(clients=2, rounds=5)


def chaos_config(shape: Shape) -> run_pb2.RunConfig:
    """Every client in every round: whoever is counted twice or left out changes the adapter."""
    return run_pb2.RunConfig(
        model_digest=MODEL_DIGEST,
        round_count=shape.rounds,
        clients_per_round=shape.clients,
        min_updates=shape.clients,
        round_timeout=Duration(seconds=int(RUN_TIMEOUT_S)),
        join_timeout=Duration(seconds=int(RUN_TIMEOUT_S)),
        method=run_pb2.METHOD_FEDNANO,
        adapter=run_pb2.AdapterConfig(rank=RANK, alpha=2 * RANK, modalities=MODALITIES, hidden_size=HIDDEN),
        train=run_pb2.TrainConfig(local_epochs=1, batch_size=8, learning_rate=1e-3, seed=7),
        fisher=run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_L2, floor=1.0),
        evaluate=run_pb2.EvaluateConfig(max_new_tokens=4),
    )


@dataclass(kw_only=True)
class Watch:
    """Whoever watches the run from its first event to its last, over as many streams as it takes."""

    address: str
    sequences: list[int] = field(default_factory=list)

    async def follow(self) -> None:
        """Raw streams that go on after the last sequence seen: nothing hides a gap or a repeat."""
        async with open_channel(self.address, PLAINTEXT) as channel:
            while not await self._one_stream(channel):
                await asyncio.sleep(0.1)

    async def _one_stream(self, channel: grpc.aio.Channel) -> bool:
        """Whether the run has ended."""
        request = pb.WatchEventsRequest(run=RUN, after_sequence=self.sequences[-1] if self.sequences else 0)
        with suppress(grpc.aio.AioRpcError):
            async for response in RunServiceStub(channel).WatchEvents(request, timeout=PATIENCE_S):
                self.sequences.append(response.event.sequence)
                if response.event.run.state in ENDED:
                    return True
        return False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is left of a run."""

    run: run_pb2.Run
    rounds: list[run_pb2.Round]
    sequences: list[int]
    journal: list[tuple[str, str]]

    @property
    def digest(self) -> str:
        return self.rounds[-1].merged_adapter_sha256


async def create(address: str, config: run_pb2.RunConfig) -> None:
    async with open_channel(address, PLAINTEXT) as channel:
        request = pb.CreateRunRequest(run_id="chaos", run=run_pb2.Run(config=config), request_id="chaos")
        await Operator(channel=channel, peer="the aggregator").create(request)


async def run_of(address: str) -> tuple[run_pb2.Run, list[run_pb2.Round]]:
    async with open_channel(address, PLAINTEXT) as channel:
        operator = Operator(channel=channel, peer="the aggregator")
        return await operator.run(RUN), await operator.rounds(RUN)


async def run_federation(
    folder: Path, plan: Sequence[Phase] = (), *, act: Disturbance = kill, state: Path | None = None
) -> Outcome:
    """Does ``act`` at each phase of ``plan``, one after the other."""
    shape, state = SHAPE, state or folder / "state"
    aggregator = Service.aggregator(folder, state=state)
    async with killed_at_the_end(aggregator), asyncio.timeout(RUN_TIMEOUT_S):
        address = await aggregator.start()
        await create(address, chaos_config(shape))
        watch = Watch(address=address)
        # One after the other, so that there is a time at which some have answered and some have not.
        clients = [
            PacedClient(client_id=f"c{n}", address=address, folder=folder, think_s=0.2 + 0.3 * n)
            for n in range(shape.clients)
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(watch.follow())
            group.create_task(clients[0].live())
            for phase in plan:
                if phase is not Phase.WAITING:
                    _join_rest(group, clients)
                await meet(phase, aggregator, state, shape)
                await act(aggregator, state)
            _join_rest(group, clients)
        return await outcome(address, watch, clients)


async def outcome(address: str, watch: Watch, clients: Sequence[PacedClient]) -> Outcome:
    run, rounds = await run_of(address)
    journal = [line for client in clients for line in client.journal.lines()]
    return Outcome(run=run, rounds=rounds, sequences=watch.sequences, journal=journal)


def _join_rest(group: asyncio.TaskGroup, clients: list[PacedClient]) -> None:
    """The first one waits alone, so that a run that waits for clients can be met."""
    for client in clients[1:]:
        if not client.is_living:
            client.is_living = True
            group.create_task(client.live())


def assert_undisturbed(outcome: Outcome, digest: str, shape: Shape = SHAPE) -> None:
    """The run has ended well: nothing was lost, counted twice or repeated, and the adapter has the very bits."""
    assert outcome.run.state == run_pb2.Run.STATE_SUCCEEDED, outcome.run
    assert [found.number for found in outcome.rounds] == list(range(shape.rounds + 1))
    for found in outcome.rounds[1:]:
        assert (found.update_count, found.attempt) == (shape.clients, 1), found
        assert len({part.client for part in found.participants}) == len(found.participants) == shape.clients, found
    # The last one told of the run's end; clients that leave afterwards add others.
    assert outcome.sequences == list(range(1, len(outcome.sequences) + 1))
    assert [of for what, of in outcome.journal if what == "asked again"] == []
    assert outcome.digest == digest
