"""Light clients beside a heavy one, over real gRPC: 7 clients with a session each, and one with 64 sessions.

All train without a pause, with steps of the same size; the heavy client's sessions come and go in rounds of a fixed
time, between rounds in which the light ones have the server to themselves.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve
from benchmarks.split_steps import ragged_passes, train
from fednano.model.manifest import Manifest, read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

LIGHT, HEAVY_SESSIONS = 7, 64


@dataclass(kw_only=True)
class Client:
    """The sessions of one client over one connection, and what it has had of each kind of round."""

    sessions: list[StepSession]
    step: Pass
    next_step_id: int = 1
    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)

    def step_ids(self) -> int:
        self.next_step_id += 1
        return self.next_step_id - 1


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Tokens of each client beside the others, the heavy one last; seconds of the light ones' steps."""

    model: str
    tokens: list[int]
    light_alone_s: list[float]
    light_beside_s: list[float]

    @property
    def jain_index(self) -> float:
        return sum(self.tokens) ** 2 / (len(self.tokens) * sum(count**2 for count in self.tokens))

    @property
    def p95_ratio(self) -> float:
        return _p95(self.light_beside_s) / _p95(self.light_alone_s)


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def keep_training(client: Client, session: StepSession, until_s: float, taken_s: list[float]) -> None:
    while (start_s := time.perf_counter()) < until_s:
        await train(session, client.step, client.step_ids(), 1)
        if time.perf_counter() <= until_s:
            # What ends later ran when others had stopped: 64 last steps would count for much.
            taken_s.append(time.perf_counter() - start_s)


async def race(address: str, manifest: Manifest, rounds: int, round_s: float) -> list[Client]:
    """The light clients, then the heavy one."""
    terms = SessionTerms(manifest=manifest, run="runs/fairness", peer=address)
    async with AsyncExitStack() as stack:
        clients = []
        for step, count in zip(
            ragged_passes(LIGHT + 1, manifest.hidden_size), [1] * LIGHT + [HEAVY_SESSIONS], strict=True
        ):
            stub = SplitServiceStub(await stack.enter_async_context(open_channel(address, PLAINTEXT)))
            client = Client(sessions=[await StepSession.open(stub, terms, Traffic()) for _ in range(count)], step=step)
            for session in client.sessions:
                stack.callback(session.cancel)
            clients.append(client)
        for round_number in range(rounds + 1):
            for taking_part in (clients[:-1], clients):
                until_s = time.perf_counter() + round_s
                # The first round warms up.
                works = [
                    keep_training(client, session, until_s, _list_for(client, round_number, len(taking_part)))
                    for client in taking_part
                    for session in client.sessions
                ]
                await asyncio.gather(*works)
    return clients


def _list_for(client: Client, round_number: int, client_count: int) -> list[float]:
    if round_number == 0:
        return []
    return client.beside_s if client_count > LIGHT else client.alone_s


def measure(name: str, *, rounds: int, round_s: float) -> Figures:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fednano-fairness-") as scratch:
        folder = model_folder(name, Path(scratch))
        room = str(LIGHT + HEAVY_SESSIONS)
        with serve(folder, Path(scratch), "--max-sessions", room, "--max-queued-passes", room) as address:
            clients = asyncio.run(race(address, read_manifest(folder / "server"), rounds, round_s))
    return Figures(
        model=name,
        tokens=[len(client.step.inputs_embeds_SD) * len(client.beside_s) for client in clients],
        light_alone_s=[taken_s for client in clients[:-1] for taken_s in client.alone_s],
        light_beside_s=[taken_s for client in clients[:-1] for taken_s in client.beside_s],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--model", default="nano", help="nano, 5M, 30M, 110M, or a folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-s", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.model, rounds=given.rounds, round_s=given.round_s)
    if given.json:
        print(json.dumps({"conditions": conditions(), **asdict(figures)}, indent=2))
        return 0
    light = figures.tokens[:-1]
    print(f"tokens beside each other: light {min(light)} to {max(light)}, heavy {figures.tokens[-1]}")
    print(f"Jain index of the tokens {figures.jain_index:.3f}")
    for words, taken_s in (("without", figures.light_alone_s), ("with", figures.light_beside_s)):
        print(f"a light step {words} the heavy client: median {1e3 * statistics.median(taken_s):.1f} ms, ", end="")
        print(f"p95 {1e3 * _p95(taken_s):.1f} ms")
    print(f"ratio of the p95 {figures.p95_ratio:.2f}")
    print(conditions_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
