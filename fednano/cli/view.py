"""The demo as it happens: a live table on a terminal, one line a fact elsewhere."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fednano.v1 import run_pb2


class RunView:
    """What is known of a run from its events, and how it is shown. As a context, it owns the terminal's live area."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run = run_pb2.Run()
        self.rounds: dict[int, run_pb2.Round] = {}
        self.clients: dict[str, run_pb2.Client] = {}
        self.live = Live(console=console, auto_refresh=False, get_renderable=self.render)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def apply(self, event: run_pb2.Event) -> None:
        """Takes an event in; each is the whole subject as it was then, so a repeated one changes nothing."""
        match event.WhichOneof("subject"):
            case "run":
                self.run = event.run
                self._plain(f"run {_words(run_pb2.Run.State.Name(event.run.state))}")
            case "round":
                self.rounds[event.round.number] = event.round
                if event.round.state in (run_pb2.Round.STATE_SUCCEEDED, run_pb2.Round.STATE_FAILED):
                    self._plain(round_line(event.round))
            case "client":
                self._note_client(event.client)
        if self.console.is_terminal:
            self.live.refresh()

    def _note_client(self, client: run_pb2.Client) -> None:
        known = self.clients.get(client.name)
        self.clients[client.name] = client
        if known is None or known.state != client.state:
            state = _words(run_pb2.Client.State.Name(client.state))
            self._plain(f"{_last(client.name)} {state}, {client.example_count} training examples")

    def _plain(self, line: str) -> None:
        if not self.console.is_terminal:
            self.say(line)

    def render(self) -> RenderableType:
        """The live area: a row for each round, then the clients of the newest one."""
        rounds = Table("round", "state", "updates", "loss", "accuracy", "sent", title=f"run {self.run.name}")
        for number in sorted(self.rounds):
            rounds.add_row(*_round_cells(self.rounds[number]))
        clients = Table("client", "examples", "state", "loss", "accuracy", title="clients")
        for participant in self.rounds[max(self.rounds)].participants if self.rounds else []:
            clients.add_row(*_participant_cells(participant))
        waiting = Text(f"{len(self.clients)} clients have joined")
        return Group(rounds, clients if clients.row_count else waiting)


def round_line(turn: run_pb2.Round) -> str:
    """One round as one line."""
    _, state, updates, loss, accuracy, sent = _round_cells(turn)
    return f"round {turn.number} {state}: {updates} updates, loss {loss}, accuracy {accuracy}, {sent}"


def sent_bytes(turn: run_pb2.Round) -> float:
    """All bytes that the round's clients counted."""
    return sum(value for key, value in turn.metrics.items() if key.startswith("bytes/"))


def _round_cells(turn: run_pb2.Round) -> tuple[str, ...]:
    return (
        str(turn.number),
        _words(run_pb2.Round.State.Name(turn.state)),
        str(turn.update_count),
        _figure(turn.metrics, "train/loss", ".3f"),
        _figure(turn.metrics, "test/accuracy", ".1%"),
        f"{sent_bytes(turn) / 1e6:.1f} MB",
    )


def _participant_cells(participant: run_pb2.Participant) -> tuple[str, ...]:
    return (
        _last(participant.client),
        str(participant.example_count),
        _words(run_pb2.Participant.State.Name(participant.state)),
        _figure(participant.metrics, "train/loss", ".3f"),
        _figure(participant.metrics, "test/accuracy", ".1%"),
    )


def _figure(metrics: Mapping[str, float], key: str, form: str) -> str:
    return format(metrics[key], form) if key in metrics else "-"


def _words(state: str) -> str:
    return state.removeprefix("STATE_").lower()


def _last(name: str) -> str:
    return name.rpartition("/")[2]
