"""The race's figures as a table and as JSON: medians over the repeats, with where and when they were taken."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.round_arena import Figures

MEGA = 1e6


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One contestant over one transport: the figures of each repeat, in order."""

    contestant: str
    transport: str
    keeps: str
    repeats: Sequence[Figures]

    @property
    def is_secure(self) -> bool:
        return self.transport != "plaintext"

    def median(self, field: str) -> float:
        return statistics.median(float(getattr(figures, field)) for figures in self.repeats)


def print_table(standings: Sequence[Standing], floor: str) -> None:
    """``floor`` names the contestant that the ratios are to, secure or not."""
    table = Table()
    table.add_column("contestant")
    table.add_column("transport")
    headings = ("s a round", "least-most", "x floor", "server CPU s", "all CPU s", "server peak MB")
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("what outlives a killed server")
    floors = {one.is_secure: one.median("seconds") for one in standings if one.contestant == floor}
    for one in standings:
        table.add_row(one.contestant, one.transport, *_cells(one, floors.get(one.is_secure)), one.keeps)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _cells(one: Standing, floor_s: float | None) -> list[str]:
    each_s = [figures.seconds for figures in one.repeats]
    return [
        f"{one.median('seconds'):.2f}",
        f"{min(each_s):.2f}-{max(each_s):.2f}",
        f"{one.median('seconds') / floor_s:.1f}" if floor_s else "",
        f"{one.median('server_cpu_s'):.2f}",
        f"{one.median('total_cpu_s'):.2f}",
        f"{one.median('server_peak_bytes') / MEGA:.0f}",
    ]


def as_json(standings: Sequence[Standing], absent: Mapping[str, str]) -> str:
    return json.dumps(
        {
            "conditions": conditions(),
            "absent": dict(absent),
            "standings": [dataclasses.asdict(one) for one in standings],
        },
        indent=2,
    )


def conditions() -> dict[str, Any]:
    """The machine, the time and the command."""
    return {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_1_min": os.getloadavg()[0],
        "is_real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def conditions_line() -> str:
    given = conditions()
    words = f"{given['cpu']}, {given['cores']} cores, load {given['load_1_min']:.1f}, {given['system']}"
    words += ", at real-time priority" if given["is_real_time"] else ""
    return f"`{given['command']}` on {given['time']}; {words}"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
