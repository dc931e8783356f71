"""A run as it happens: a live table on a terminal, one line a fact elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fednano.cli.exits import printable
from fednano.cli.output import figure, last, megabytes, words
from fednano.v1 import run_pb2

# The live area shows the newest rounds; all of them are lines elsewhere and in `round list`.
SHOWN_ROUNDS = 12
SHOWN_CLIENTS = 30
# Of more clients than this, a line about Fisher information has the smallest and the largest mass alone.
SHOWN_MASSES = 10
BAR_WIDTH = 30


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
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def apply(self, event: run_pb2.Event) -> None:
        """Takes an event in; each is the whole subject as it was then, so a repeated one changes nothing."""
        match event.WhichOneof("subject"):
            case "run":
                self._note_run(event.run)
            case "round":
                self._note_round(event.round)
            case "client":
                self._note_client(event.client)
        if self.console.is_terminal:
            self.live.refresh()

    def _note_run(self, run: run_pb2.Run) -> None:
        known, self.run = self.run, run
        # A line for each kind of wait, not for each of a thousand clients that it is about.
        waits_anew = run.waiting_for and run.waiting_for.split()[0] not in known.waiting_for.split()[:1]
        if run.state != known.state or waits_anew:
            self._plain(run_line(run))

    def _note_round(self, turn: run_pb2.Round) -> None:
        known = self.rounds.get(turn.number, run_pb2.Round())
        self.rounds[turn.number] = turn
        if turn.state in (run_pb2.Round.STATE_SUCCEEDED, run_pb2.Round.STATE_FAILED):
            self._plain(round_line(turn))
        refused = {part.client: part.refusal for part in known.participants}
        for part in turn.participants:
            if part.refusal and refused.get(part.client) != part.refusal:
                self._plain(f"round {turn.number}: the update of {last(part.client)} was refused: {part.refusal}")

    def _note_client(self, client: run_pb2.Client) -> None:
        known = self.clients.get(client.name)
        self.clients[client.name] = client
        if known is None or known.state != client.state:
            state = words(run_pb2.Client.State.Name(client.state))
            self._plain(f"{last(client.name)} {state}, {client.example_count} training examples")

    def _plain(self, line: str) -> None:
        if not self.console.is_terminal:
            self.say(line)

    def render(self) -> RenderableType:
        """The live area: the run and its progress, the newest rounds, and the clients of the newest one."""
        numbers = sorted(self.rounds)
        rounds = Table("round", "state", "updates", "loss", "accuracy", "sent")
        for number in numbers[-SHOWN_ROUNDS:]:
            rounds.add_row(*round_cells(self.rounds[number]))
        clients = Table("client", "examples", "state", "loss", "accuracy", "sent", Column("refused", max_width=40))
        for participant in self.rounds[numbers[-1]].participants[:SHOWN_CLIENTS] if numbers else []:
            clients.add_row(*self._participant_cells(participant))
        waiting = Text(f"{len(self.clients)} clients have joined")
        merged = [fisher_words(self.rounds[number]) for number in numbers]
        newest = Text(next((line for line in reversed(merged) if line), ""))
        return Group(self._progress(), rounds, newest, clients if clients.row_count else waiting)

    def _progress(self) -> RenderableType:
        # Round 0, which only evaluates, counts as well.
        done = sum(turn.state == run_pb2.Round.STATE_SUCCEEDED for turn in self.rounds.values())
        total = self.run.config.round_count + 1
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(printable(run_line(self.run))),
            ProgressBar(total=total, completed=done, width=BAR_WIDTH),
            Text(f"{max(done - 1, 0)} of {total - 1} rounds"),
        )
        return bar

    def _participant_cells(self, participant: run_pb2.Participant) -> tuple[Text, ...]:
        client = self.clients.get(participant.client, run_pb2.Client())
        state = words(run_pb2.Participant.State.Name(participant.state))
        away = client.state not in (run_pb2.Client.STATE_UNSPECIFIED, run_pb2.Client.STATE_ACTIVE)
        gone = f", {words(run_pb2.Client.State.Name(client.state))}" if away else ""
        cells = (
            last(participant.client),
            str(participant.example_count),
            state + gone,
            figure(participant.metrics, "train/loss", ".3f"),
            figure(participant.metrics, "test/accuracy", ".1%"),
            megabytes(sum(value for key, value in participant.metrics.items() if key.startswith("bytes/"))),
            participant.refusal,
        )
        return tuple(Text(printable(text)) for text in cells)


def run_line(run: run_pb2.Run) -> str:
    """A run as one line: its state, what it waits for, why it failed."""
    line = f"run {words(run_pb2.Run.State.Name(run.state))}"
    if run.waiting_for:
        line += f", waiting for {run.waiting_for}"
    return f"{line}: {run.failure.message}" if run.failure.message else line


def round_line(turn: run_pb2.Round) -> str:
    """One round as one line."""
    _, state, updates, loss, accuracy, sent = round_cells(turn)
    line = f"round {turn.number} {state}: {updates} updates, loss {loss}, accuracy {accuracy}, {sent}"
    return f"{line}; {fisher_words(turn)}" if fisher_words(turn) else line


def fisher_words(turn: run_pb2.Round) -> str:
    """How far a Fisher merge was from a mean, and how far its weights can be trusted; empty where there is none."""
    if "fisher/effective_clients" not in turn.metrics:
        return ""
    effective = turn.metrics["fisher/effective_clients"]
    words_ = f"Fisher: {effective:.1f} of {turn.update_count} clients decide a parameter"
    reliability = figure(turn.metrics, "fisher/reliability", ".2f")
    return f"{words_}{_mass_words(turn)}, reliability {reliability}"


def _mass_words(turn: run_pb2.Round) -> str:
    """Each client's part of the Fisher mass."""
    masses = {
        last(part.client): part.metrics["fisher/share"] for part in turn.participants if "fisher/share" in part.metrics
    }
    if not masses:
        return ""
    if len(masses) > SHOWN_MASSES:
        return f", mass {min(masses.values()):.0%} to {max(masses.values()):.0%} a client"
    return ", mass " + " ".join(f"{client} {mass:.0%}" for client, mass in masses.items())


def round_cells(turn: run_pb2.Round) -> tuple[str, str, str, str, str, str]:
    """Number, state, updates, loss, accuracy, bytes sent."""
    return (
        str(turn.number),
        words(run_pb2.Round.State.Name(turn.state)),
        str(turn.update_count),
        figure(turn.metrics, "train/loss", ".3f"),
        figure(turn.metrics, "test/accuracy", ".1%"),
        megabytes(sent_bytes(turn)),
    )


def sent_bytes(turn: run_pb2.Round) -> float:
    """All bytes that the round's clients counted."""
    return sum(value for key, value in turn.metrics.items() if key.startswith("bytes/"))
