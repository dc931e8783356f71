"""What merging many clients' updates costs, beside copying the same bytes in memory and a plain numpy mean.

Two adapters of rank 64 for a hidden size of 4096 by default: 1,048,576 parameters, 4.2 MB a client, and as much Fisher
information. Updates are read from files that the system has in its cache. There are ``--distinct`` different ones,
more than a processor's caches hold, that take the clients' places in turn: a thousand clients take no more disk.
Contestants take turns, so that a busy machine disturbs all of them alike; memory is that of a process which merges
once.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.processes import peak_bytes
from benchmarks.round_report import MEGA, conditions_line
from fednano.adapter_layout import initial_adapter
from fednano.merge.krum import merge_krum
from fednano.merge.ordered import merge_trimmed
from fednano.merge.shares import FisherWeighting
from fednano.merge.streaming import STREAMING, on_threads
from fednano.merge.updates import MergeUpdate
from fednano.merge.weighted import merge_weighted
from fednano.wire.artifacts import file_sha256

MODALITIES = ("image", "text")
WEIGHTING = FisherWeighting(normalize_l2=True, floor=1.0)
FISHER = "fisher"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Updates of so many clients in ``folder``, which holds ``distinct`` different ones."""

    folder: Path
    clients: int
    distinct: int

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def updates(self, *, with_fisher: bool) -> list[MergeUpdate]:
        return [
            MergeUpdate(
                client=f"client-{index:06}",
                example_count=100 + index % 7,
                adapter=self.folder / f"{index % self.distinct}.adapter",
                fisher=self.folder / f"{index % self.distinct}.fisher" if with_fisher else None,
            )
            for index in range(self.clients)
        ]


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One repeat of one contestant, and of one thread's copy of as many bytes in memory right before."""

    seconds: float
    # Of all threads; what a busy machine changes least.
    cpu_seconds: float
    memcpy_seconds: float
    memcpy_cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over the laps; the ratios' are of each lap's own."""

    clients: int
    contestant: str
    read_bytes: int
    seconds: float
    least_seconds: float
    cpu_seconds: float
    memcpy_ratio: float
    memcpy_cpu_ratio: float
    peak_bytes: int


def write_files(folder: Path, *, rank: int, hidden_size: int, distinct: int) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    base = initial_adapter(MODALITIES, hidden_size, rank, seed=0)
    save_file(base, folder / "base")
    for index in range(distinct):
        noise = {name: generator.standard_normal(tensor.shape, np.float32) for name, tensor in base.items()}
        save_file({name: base[name] + np.float32(0.01) * noise[name] for name in base}, folder / f"{index}.adapter")
        save_file({name: np.square(noise[name]) for name in base}, folder / f"{index}.fisher")


def merge_fisher(case: Case) -> None:
    merge_weighted(case.updates(with_fisher=True), case.base, weighting=WEIGHTING)


def merge_fedavg(case: Case) -> None:
    merge_weighted(case.updates(with_fisher=False), case.base, weighting=WEIGHTING)


def merge_trimmed_mean(case: Case) -> None:
    merge_trimmed(case.updates(with_fisher=False), case.base, dropped=case.clients // 10)


def merge_by_krum(case: Case) -> None:
    merge_krum(case.updates(with_fisher=False), case.base, hostile_count=case.clients // 10)


def mean_in_numpy(case: Case) -> None:
    """What one writes first: all clients' tensors side by side in memory, summed in float32."""
    updates = case.updates(with_fisher=False)
    with safe_open(case.base, framework="np") as base:
        names = list(base.keys())
    for name in names:
        np.stack([_tensor(update.adapter, name) for update in updates]).mean(axis=0)


def _tensor(path: Path, name: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    with safe_open(path, framework="np") as file:
        tensor: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = file.get_tensor(name)
    return tensor


def verify(case: Case) -> None:
    """What comes before a Fisher merge in the aggregator: every file is read and its SHA-256 compared."""
    updates = case.updates(with_fisher=True)
    files = [path for one in updates for path in (one.adapter, one.fisher) if path is not None]
    on_threads(file_sha256, files, STREAMING.threads)


CONTESTANTS: dict[str, Callable[[Case], None]] = {
    FISHER: merge_fisher,
    "fedavg": merge_fedavg,
    "numpy float32 mean": mean_in_numpy,
    "verify": verify,
}
# Slower by nature, so only where asked for.
ROBUST: dict[str, Callable[[Case], None]] = {"trimmed mean": merge_trimmed_mean, "krum": merge_by_krum}
ALL = CONTESTANTS | ROBUST
# These read the Fisher information too.
TWO_FILES = (FISHER, "verify")


class Memcpy:
    """Copies as many bytes as asked for, from and to memory that is larger than any cache and was touched before."""

    def __init__(self, size_bytes: int) -> None:
        self._source, self._target = np.ones(size_bytes, np.uint8), np.ones(size_bytes, np.uint8)

    def copy(self, count_bytes: int) -> None:
        for start in range(0, count_bytes, self._source.size):
            size = min(self._source.size, count_bytes - start)
            np.copyto(self._target[:size], self._source[:size])


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


def measure(case: Case, contestants: Sequence[str], repeats: int) -> list[Row]:
    file_bytes = case.base.stat().st_size
    memcpy = Memcpy(min(256 * 1024 * 1024, 2 * file_bytes * case.clients))
    read_bytes = {one: file_bytes * case.clients * (2 if one in TWO_FILES else 1) for one in contestants}
    laps: dict[str, list[Lap]] = {one: [] for one in contestants}
    for _ in range(repeats):
        for one in contestants:
            copied_s, copied_cpu_s = timed(partial(memcpy.copy, read_bytes[one]))
            seconds, cpu_s = timed(partial(ALL[one], case))
            lap = Lap(seconds=seconds, cpu_seconds=cpu_s, memcpy_seconds=copied_s, memcpy_cpu_seconds=copied_cpu_s)
            laps[one].append(lap)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        peaks = {one: fresh.submit(peak_of, case, one).result() for one in contestants}
    return [_row(case, one, read_bytes[one], laps[one], peaks[one]) for one in contestants]


def peak_of(case: Case, contestant: str) -> int:
    """The peak memory of a fresh process that runs the contestant once; runs in it."""
    ALL[contestant](case)
    return peak_bytes([os.getpid()])


def _row(case: Case, contestant: str, read_bytes: int, laps: Sequence[Lap], peak: int) -> Row:
    return Row(
        clients=case.clients,
        contestant=contestant,
        read_bytes=read_bytes,
        seconds=median(lap.seconds for lap in laps),
        least_seconds=min(lap.seconds for lap in laps),
        cpu_seconds=median(lap.cpu_seconds for lap in laps),
        memcpy_ratio=median(lap.seconds / lap.memcpy_seconds for lap in laps),
        memcpy_cpu_ratio=median(lap.cpu_seconds / lap.memcpy_cpu_seconds for lap in laps),
        peak_bytes=peak,
    )


def main() -> None:
    arguments = _parse_arguments()
    contestants = [*CONTESTANTS, *(ROBUST if arguments.robust else ())]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fednano-merge-") as folder:
        write_files(Path(folder), rank=arguments.rank, hidden_size=arguments.hidden_size, distinct=arguments.distinct)
        # Kernels are compiled when a process first merges.
        for warm_up in (merge_fisher, merge_fedavg):
            warm_up(Case(folder=Path(folder), clients=1, distinct=arguments.distinct))
        for clients in arguments.clients:
            case = Case(folder=Path(folder), clients=clients, distinct=arguments.distinct)
            rows += measure(case, contestants, arguments.repeats)
    if arguments.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        return
    print(conditions_line())
    print("clients  contestant            read MB  s: median   least  CPU s  x memcpy: s  CPU s  peak MB")
    for row in rows:
        print(
            f"{row.clients:>7}  {row.contestant:20} {row.read_bytes / MEGA:>8.0f} {row.seconds:>10.2f}"
            f" {row.least_seconds:>7.2f} {row.cpu_seconds:>6.2f} {row.memcpy_ratio:>12.1f} {row.memcpy_cpu_ratio:>6.1f}"
            f" {row.peak_bytes / MEGA:>8.0f}"
        )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What merging many clients' updates costs.")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--distinct", type=int, default=32, help="different updates on disk")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--robust", action="store_true", help="trimmed mean and Krum too")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
