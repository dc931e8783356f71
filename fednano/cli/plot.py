"""The demo's picture: the loss of each round, and each client's accuracy before and after."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fednano.cli.report import Report
from fednano.v1 import run_pb2

BAR_WIDTH = 0.4


def write_plot(path: Path, report: Report, rounds: Sequence[run_pb2.Round]) -> None:
    """Writes a PNG."""
    mpl.use("Agg")
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    trained = sorted((turn for turn in rounds if "train/loss" in turn.metrics), key=lambda turn: turn.number)
    loss_axes.plot([turn.number for turn in trained], [turn.metrics["train/loss"] for turn in trained], marker="o")
    loss_axes.set(
        title="mean loss of local training",
        xlabel="round",
        ylabel="negative log likelihood of an answer, nats",
        ylim=(0, None),
    )
    places = range(len(report.accuracy.per_client))
    before = [100 * one.before for one in report.accuracy.per_client.values()]
    after = [100 * one.after for one in report.accuracy.per_client.values()]
    accuracy_axes.bar([place - BAR_WIDTH / 2 for place in places], before, BAR_WIDTH, label="before")
    accuracy_axes.bar([place + BAR_WIDTH / 2 for place in places], after, BAR_WIDTH, label="after")
    accuracy_axes.set_xticks(list(places), list(report.accuracy.per_client))
    accuracy_axes.set(title=f"accuracy on own test split ({report.method})", ylabel="percent", ylim=(0, 100))
    accuracy_axes.legend()
    figure.savefig(path, dpi=120, format="png")
