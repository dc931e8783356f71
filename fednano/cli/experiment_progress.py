"""How far an experiment is: a bar on a terminal, one line a cell elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.cells import Cell
from fednano.cli.exits import printable
from fednano.cli.report import Report
from fednano.v1 import run_pb2


class ExperimentProgress:
    """What is told of cells as they run."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.console = console
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.cells = self.bar.add_task("cells", total=None)
        self.rounds = self.bar.add_task("rounds", total=None, visible=False)
        self.count, self.done, self.seconds = 0, 0, 0.0

    def say(self, line: str) -> None:
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Shows ``count`` cells while the block lasts."""
        self.count, self.done, self.seconds = count, 0, 0.0
        self.bar.reset(self.cells, total=count)
        self.say(f"{count} cells to run; starting the LLM server and the aggregator")
        with self.bar:
            yield

    def begin(self, cell: Cell) -> None:
        self._begin_s = time.monotonic()
        # Round 0, which only evaluates, counts as well.
        self.bar.reset(self.rounds, total=cell.rounds + 1, visible=True, description=cell.name)

    def apply(self, event: run_pb2.Event) -> None:
        """An event of the run under way."""
        if event.round.state == run_pb2.Round.STATE_SUCCEEDED:
            self.bar.update(self.rounds, completed=event.round.number + 1)

    def end(self, cell: Cell, report: Report) -> None:
        self.done += 1
        self.seconds += time.monotonic() - self._begin_s
        left_s = (self.count - self.done) * self.seconds / self.done
        self.bar.update(self.cells, completed=self.done)
        self.say(
            f"{self.done}/{self.count} {cell.name}: {cell.split} accuracy {report.accuracy.after:.1%} in"
            f" {report.seconds:.0f} s; about {left_s / 60:.0f} min left"
        )
