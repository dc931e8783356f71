"""A picture of who has what: clients by topics."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fednano.data.client_folders import ClientFolder


def write_heat_map(path: Path, clients: Sequence[ClientFolder]) -> None:
    """Writes a PNG: the number of examples, over all splits, of each client and topic."""
    mpl.use("Agg")
    topics = sorted({topic for client in clients for topic in client.topics})
    counts = [[client.topics.get(topic, 0) for topic in topics] for client in clients]
    figure = Figure(figsize=(2 + 0.6 * len(topics), 1.5 + 0.4 * len(clients)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(topics)), [topic or "(none)" for topic in topics], rotation=45, ha="right")
    axes.set_yticks(range(len(clients)), [client.path.name for client in clients])
    middle = max(max(row) for row in counts) / 2
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            axes.text(x, y, str(count), ha="center", va="center", color="white" if count > middle else "black")
    axes.set_title("examples by client and topic")
    figure.colorbar(picture, ax=axes)
    figure.savefig(path, dpi=120, format="png")
