"""One round of many clients: the aggregator's memory while their updates come in, and while it merges them.

1,000 simulated clients by default, each with an adapter of 1,048,576 float32 and as much Fisher information: 8.4 MB.
They live in this one process, which lets a few of them upload at a time, and download nothing.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import cpu_s, peak_bytes, resident_bytes
from benchmarks.round_arena import Arena
from benchmarks.round_ours import create_run, run_config, start_aggregator
from benchmarks.round_ours_client import WAIT_S, evaluation_of, header_of, join, link_over, renew, write_update
from benchmarks.round_report import MEGA, conditions, conditions_line
from fednano.config import Security
from fednano.names import ClientName, RoundName, RunName
from fednano.rpc.channels import open_channel
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub
from services.client.aggregator_link import AggregatorLink

if TYPE_CHECKING:
    from fednano.v1.run_service_pb2_grpc import RunServiceAsyncStub

PLAINTEXT = Security(insecure=True)
AT_A_TIME = 4
# Clients come one after the other: those that wait must not be taken for lost.
LEASE_S = 3600
SAMPLE_S = 0.02
UPDATE_BYTES = 2 * 4 * 1024 * 1024
COUNTS = (10, 30, 100, 300, 1000, 3000)


@dataclass(kw_only=True)
class Course:
    """What was seen of the aggregator. ``most_resident_bytes``: by phase, such as "updates 11-30"."""

    clients: int
    most_resident_bytes: dict[str, int] = field(default_factory=dict)
    join_s: float = 0.0
    upload_s: float = 0.0
    upload_cpu_s: float = 0.0
    merge_s: float = 0.0
    merge_cpu_s: float = 0.0
    peak_bytes: int = 0


class Watch:
    """Samples a process's resident memory until the block ends; keeps the most of each phase."""

    def __init__(self, pid: int, course: Course) -> None:
        self.pid, self.phase, self._most = pid, "start", course.most_resident_bytes

    async def sample(self) -> None:
        while True:
            self._most[self.phase] = max(self._most.get(self.phase, 0), resident_bytes(self.pid))
            await asyncio.sleep(SAMPLE_S)


async def measure(arena: Arena) -> Course:
    """Joins all clients, uploads all updates, and waits until they are merged."""
    course = Course(clients=arena.clients)
    address = start_aggregator(arena, "--lease-s", str(LEASE_S))
    run = RunName.parse(await create_run(address, PLAINTEXT, run_config(arena.clients, 1)))
    watch = Watch(arena.servers[0].pid, course)
    sampling = asyncio.create_task(watch.sample())
    async with open_channel(address, PLAINTEXT) as channel:
        link = link_over(channel, address)
        start_s = time.monotonic()
        names = [await join(link, client) for client in range(arena.clients)]
        for name in names:
            await link.report(evaluation_of((await link.poll(name)).evaluate, name))
        joined_s, joined_cpu_s = time.monotonic(), cpu_s([watch.pid])
        await _upload_all(arena.folder, link, names, watch)
        uploaded_s, uploaded_cpu_s = time.monotonic(), cpu_s([watch.pid])
        watch.phase = "merge"
        await _await_merge(RunServiceStub(channel), RoundName(run=run.run, number=1))
        course.merge_s, course.merge_cpu_s = time.monotonic() - uploaded_s, cpu_s([watch.pid]) - uploaded_cpu_s
        course.join_s, course.upload_s = joined_s - start_s, uploaded_s - joined_s
        course.upload_cpu_s = uploaded_cpu_s - joined_cpu_s
    sampling.cancel()
    course.peak_bytes = peak_bytes([watch.pid])
    return course


async def _upload_all(folder: Path, link: AggregatorLink, names: list[ClientName], watch: Watch) -> None:
    waiting = iter(enumerate(names, start=1))
    await asyncio.gather(*(_upload_some(folder, worker, link, waiting, watch) for worker in range(AT_A_TIME)))


async def _upload_some(
    folder: Path, worker: int, link: AggregatorLink, waiting: Iterator[tuple[int, ClientName]], watch: Watch
) -> None:
    files = write_update(folder, worker)
    for number, name in waiting:
        watch.phase = _phase(number)
        task = (await link.poll(name)).train
        renew(files, number)
        await link.upload(await asyncio.to_thread(header_of, task, name, files), files)


def _phase(number: int) -> str:
    last = next((count for count in COUNTS if number <= count), number)
    first = max((count for count in COUNTS if count < number), default=0) + 1
    return f"updates {first}-{last}"


async def _await_merge(stub: "RunServiceAsyncStub", name: RoundName) -> None:
    request = pb.GetRoundRequest(name=str(name))
    async with asyncio.timeout(WAIT_S):
        # The events would tell too, but a thousand clients make megabytes of them.
        while not (await stub.GetRound(request, timeout=WAIT_S)).round.merged_adapter_sha256:  # noqa: ASYNC110
            await asyncio.sleep(SAMPLE_S)


def _print(course: Course) -> None:
    sent_bytes = course.clients * UPDATE_BYTES
    print(f"{course.clients} clients, {sent_bytes / MEGA:.0f} MB in all, {AT_A_TIME} at a time")
    print(f"join and evaluate  {course.join_s:8.1f} s")
    print(f"upload             {course.upload_s:8.1f} s, {course.upload_cpu_s:.1f} CPU s in the aggregator,", end=" ")
    print(f"{sent_bytes / course.upload_s / MEGA:.0f} MB/s")
    print(f"merge              {course.merge_s:8.1f} s, {course.merge_cpu_s:.1f} CPU s")
    print("most memory of the aggregator, MB:")
    for phase, most_bytes in course.most_resident_bytes.items():
        print(f"  {phase:16} {most_bytes / MEGA:8.0f}")
    print(f"  {'peak (VmHWM)':16} {course.peak_bytes / MEGA:8.0f}")
    print(conditions_line())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_clients", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fednano-many-") as name:
        needed_bytes, free_bytes = 2 * given.clients * UPDATE_BYTES, shutil.disk_usage(name).free
        if free_bytes < needed_bytes:
            print(
                f"error: {name} has {free_bytes / MEGA:.0f} MB free, {needed_bytes / MEGA:.0f} are needed",
                file=sys.stderr,
            )
            return 1
        with Arena(folder=Path(name) / "arena", rounds=1, clients=given.clients, certificates=None) as arena:
            course = asyncio.run(measure(arena))
    if given.json:
        print(json.dumps({"conditions": conditions(), **asdict(course)}, indent=2))
    else:
        _print(course)
    return 0


if __name__ == "__main__":
    sys.exit(main())
