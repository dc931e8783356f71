"""What a demo reports: computed from the run's rounds and clients as the aggregator keeps them, written as JSON and
Markdown, shown as a table."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from rich.table import Column, Table

from fednano.cli.fisher_settings import FisherSettings, fisher_settings, fisher_words
from fednano.cli.options import DemoMethod
from fednano.cli.socket_meter import SocketBytes
from fednano.errors import PartFailed
from fednano.v1 import run_pb2, split_service_pb2

PASS_BYTES = ("bytes/activations", "bytes/gradients")


@dataclass(frozen=True, kw_only=True)
class ClientAccuracy:
    """Share of one client's own test split that was answered exactly right, with the initial and the final adapter."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Means over clients, and each client."""

    before: float
    after: float
    per_client: dict[str, ClientAccuracy]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters that one client holds, and those of them that it uploads each round."""

    edge: int
    adapter: int


@dataclass(frozen=True, kw_only=True)
class WireBytes:
    """Bytes on the wire, summed over clients and rounds: artifacts both ways, and the tensors of the split passes."""

    adapters: int
    fisher: int
    gram: int
    activations: int
    gradients: int


@dataclass(frozen=True, kw_only=True)
class SocketLedger:
    """Bytes that passed the clients' sockets, framing and health checks included, summed over clients and rounds."""

    server: SocketBytes
    aggregator: SocketBytes


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What training took of all clients together. A step is a forward and a backward pass on the LLM server."""

    steps: int
    train_tensor_bytes_per_step: float
    socket: SocketLedger | None


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """The language model that served all clients."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The fields of report.json, by their names there."""

    accuracy: Accuracy
    rounds: int
    clients: int
    method: str
    seed: int
    seconds: float
    parameters: Parameters
    bytes: WireBytes
    ledger: Ledger
    fisher: FisherSettings
    learning_rate: float
    adapter_sha256: str
    model: ModelName


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What the services said of a run that has ended."""

    run: run_pb2.Run
    rounds: Sequence[run_pb2.Round]
    clients: Sequence[run_pb2.Client]
    model: split_service_pb2.Model
    seconds: float
    # None where nobody has counted.
    socket: SocketLedger | None = None


def make_report(finished: FinishedRun, *, split: str = "test") -> Report:
    """The report of a run whose round 0 and last round were evaluated, on ``split``, by all clients."""
    config = finished.run.config
    return Report(
        accuracy=accuracy_of(finished.rounds, split),
        rounds=config.round_count,
        clients=len(finished.clients),
        method=run_pb2.Method.Name(config.method).removeprefix("METHOD_").lower(),
        seed=config.train.seed,
        seconds=round(finished.seconds, 1),
        parameters=parameters_of(finished.clients),
        bytes=wire_bytes_of(finished.rounds),
        ledger=ledger_of(finished),
        fisher=fisher_settings(config),
        learning_rate=config.train.learning_rate,
        adapter_sha256=max(finished.rounds, key=lambda turn: turn.number).merged_adapter_sha256,
        model=ModelName(name=finished.model.name, digest=finished.model.digest),
    )


def accuracy_of(rounds: Iterable[run_pb2.Round], split: str = "test") -> Accuracy:
    """Accuracy in the first and the last round; PartFailed where a client's evaluation is missing."""
    ordered = sorted(rounds, key=lambda turn: turn.number)
    before, after = _accuracies(ordered[0], split), _accuracies(ordered[-1], split)
    if not before or set(before) != set(after):
        raise PartFailed(
            f"clients evaluated in round {ordered[0].number}: {sorted(before)}, in round {ordered[-1].number}: "
            f"{sorted(after)}; both must name all clients: see the clients' logs"
        )
    per_client = {client: ClientAccuracy(before=before[client], after=after[client]) for client in sorted(before)}
    return Accuracy(before=fmean(before.values()), after=fmean(after.values()), per_client=per_client)


def parameters_of(clients: Iterable[run_pb2.Client]) -> Parameters:
    """The largest counts of any client; in the demo all are the same."""
    counts = [dict(client.parameter_counts) for client in clients]
    return Parameters(
        edge=max((count.get("edge", 0) for count in counts), default=0),
        adapter=max((count.get("adapter", 0) for count in counts), default=0),
    )


def wire_bytes_of(rounds: Sequence[run_pb2.Round]) -> WireBytes:
    """Sums of the rounds' "bytes/..." metrics."""

    def total(kind: str) -> int:
        return round(sum(turn.metrics[f"bytes/{kind}"] for turn in rounds if f"bytes/{kind}" in turn.metrics))

    return WireBytes(
        adapters=total("adapters"),
        fisher=total("fisher"),
        gram=total("gram"),
        activations=total("activations"),
        gradients=total("gradients"),
    )


def ledger_of(finished: FinishedRun) -> Ledger:
    """Tensor bytes of training rounds by step; the passes of a Fisher estimate are in them, evaluations are not."""
    trained = [part for turn in finished.rounds for part in turn.participants if "train/steps" in part.metrics]
    steps = round(sum(part.metrics["train/steps"] for part in trained))
    moved = sum(part.metrics[key] for part in trained for key in PASS_BYTES if key in part.metrics)
    return Ledger(steps=steps, train_tensor_bytes_per_step=moved / max(steps, 1), socket=finished.socket)


def to_json(report: Report) -> str:
    return json.dumps(asdict(report), indent=2) + "\n"


def accuracy_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Client, before, after, gain; the mean over clients last."""
    every = [*report.accuracy.per_client.items()]
    mean = ClientAccuracy(before=report.accuracy.before, after=report.accuracy.after)
    return [
        (name, f"{one.before:.1%}", f"{one.after:.1%}", f"{100 * (one.after - one.before):+.1f} points")
        for name, one in [*every, ("mean over clients", mean)]
    ]


def figure_rows(report: Report) -> list[tuple[str, str]]:
    """Everything else that a reader wants to know, in words."""
    fisher = fisher_words(report.fisher, report.method)
    merges_by_fisher = report.method in (DemoMethod.FEDNANO, DemoMethod.FEDNANO_EF)
    return [
        ("method", report.method + (f" ({fisher})" if merges_by_fisher else "")),
        ("rounds, clients, seed", f"{report.rounds}, {report.clients}, {report.seed}"),
        ("parameters on the edge", f"{report.parameters.edge:,}"),
        ("parameters uploaded by a client each round", f"{report.parameters.adapter:,}"),
        ("adapters on the wire", _megabytes(report.bytes.adapters)),
        ("Fisher information on the wire", _megabytes(report.bytes.fisher)),
        ("Gram matrices on the wire", _megabytes(report.bytes.gram)),
        ("activations on the wire", _megabytes(report.bytes.activations)),
        ("gradients on the wire", _megabytes(report.bytes.gradients)),
        *_ledger_rows(report.ledger),
        ("seconds", f"{report.seconds:.1f}"),
        ("adapter SHA-256", report.adapter_sha256),
        ("model", f"{report.model.name} {report.model.digest[:12]}"),
    ]


def to_markdown(report: Report) -> str:
    lines = ["# A federated run on this machine", "", "![accuracy and loss](plot.png)", ""]
    lines += ["| client | before | after | gain |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(row)} |" for row in accuracy_rows(report)]
    lines += ["", "| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in figure_rows(report)]
    return "\n".join(lines) + "\n"


def to_tables(report: Report) -> list[Table]:
    """The two tables that end the demo on a terminal."""
    accuracies = Table("client", "before", "after", "gain", title="accuracy on each client's own test split")
    for row in accuracy_rows(report):
        accuracies.add_row(*row)
    figures = Table("figure", Column("value", overflow="fold"))
    for name, value in figure_rows(report):
        figures.add_row(name, value)
    return [accuracies, figures]


def _accuracies(turn: run_pb2.Round, split: str) -> dict[str, float]:
    """By client; a participant that holds several clients' examples has measured each one's apart."""
    whole = f"{split}/accuracy"
    accuracies: dict[str, float] = {}
    for participant in turn.participants:
        metrics = participant.metrics
        apart = {key.removeprefix(f"{whole}/"): metrics[key] for key in metrics if key.startswith(f"{whole}/")}
        if apart:
            accuracies |= apart
        elif whole in metrics:
            accuracies[participant.client.rpartition("/")[2]] = metrics[whole]
    return accuracies


def _ledger_rows(ledger: Ledger) -> list[tuple[str, str]]:
    rows = [
        ("steps of all clients, two server passes each", f"{ledger.steps:,}"),
        ("tensors on the wire, a step", f"{ledger.train_tensor_bytes_per_step / 1e3:,.1f} kB"),
    ]
    if ledger.socket is None:
        return rows
    counted = {"LLM server": ledger.socket.server, "aggregator": ledger.socket.aggregator}
    return rows + [
        (f"on the sockets to the {name}", f"{_megabytes(one.up)} up, {_megabytes(one.down)} down")
        for name, one in counted.items()
    ]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
