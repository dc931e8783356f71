"""What a command prints: protobuf JSON alone where that was asked for, tables and lines otherwise."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednano.cli.exits import printable

# Off a terminal nothing is cut: whoever reads a pipe sees whole names.
PIPE_WIDTH = 10_000


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command's result goes."""

    as_json: bool

    def message(self, message: Message, rows: Sequence[tuple[str, str]]) -> None:
        """One resource: as JSON, or as rows of a name and a value."""
        if self.as_json:
            typer.echo(to_json(message))
        else:
            self.pairs(rows)

    def facts(self, facts: Mapping[str, object], rows: Sequence[tuple[str, str]]) -> None:
        """The same for what no message of the contract carries."""
        if self.as_json:
            typer.echo(json.dumps(facts, indent=2))
        else:
            self.pairs(rows)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, cell(value))
        _console().print(table)

    def listing(self, message: Message, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A list: as JSON, or as a table, whose header is there also when no row is."""
        if self.as_json:
            typer.echo(to_json(message))
            return
        self.table(header, rows)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(cell(value) for value in row))
        _console().print(table)


def to_json(message: Message, *, indent: int | None = 2) -> str:
    """Protobuf JSON with every field of one value present, so that a reader finds the same names each time."""
    return json_format.MessageToJson(
        message, indent=indent, always_print_fields_with_no_presence=True, preserving_proto_field_name=False
    )


def cell(text: str) -> Text:
    """The text as it is: no markup, nothing that steers a terminal."""
    return Text(printable(text), overflow="fold")


def when(stamp: Timestamp) -> str:
    """UTC to the second, or "-" for a time that never came."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") if stamp.seconds else "-"


def words(state: str) -> str:
    """An enum value's name as people read it: STATE_RUNNING is running."""
    return state.removeprefix("STATE_").removeprefix("METHOD_").lower()


def last(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def figure(metrics: Mapping[str, float], key: str, form: str) -> str:
    """The metric in its form, or "-" where it was not measured."""
    return format(metrics[key], form) if key in metrics else "-"


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console
