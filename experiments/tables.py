"""Results as Markdown."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from experiments.markdown import markdown_table
from experiments.results import Results, Row
from experiments.statistics import Estimate

# Where clients are many, their columns say nothing that a reader could hold.
MOST_CLIENT_COLUMNS = 5


def to_markdown(results: Results, plots: Iterable[str]) -> str:
    rows = results.rows
    clients = _client_columns(rows)
    header = ["", *(f"C{number}" for number in range(1, len(clients) + 1)), "average, %", "difference", "to", "seeds"]
    # A simulated run sends nothing.
    sends = any(row.sent_bytes is not None for row in rows)
    header += ["MB a run", "learning rate"] if sends else ["learning rate"]
    lines = [f"# {results.title}", ""]
    lines += ["Accuracy in percent on each client's own test split, mean over seeds ± half a 95 % Student-t interval;"]
    lines += ["`difference` is paired by seed, in points. Its interval holds zero unless it is bold.", ""]
    lines += markdown_table(header, [_cells(row, clients, sends) for row in rows])
    lines += ["", f"Before training: {_percent(rows[0].untrained)} %.", "", results.note, ""]
    lines += [f"![{plot}]({plot})" for plot in plots]
    if results.rates:
        lines += [
            "",
            "Mean accuracy on validation seeds by learning rate; each arm takes its best:",
            "",
            *_rates(results),
        ]
    commits = ", ".join(f"`{commit}`" for commit in results.commits) or "(unknown)"
    lines += ["", f"Run with commit {commits}. {_simulated(results)}Settings that all rows share:", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in results.settings.items()]
    return "\n".join(lines) + "\n"


def to_table(results: Results) -> Table:
    """The same, shorter, for a terminal."""
    table = Table("", "average, %", "difference", "to", "seeds", title=results.title)
    for row in results.rows:
        # Bold in Markdown is no bold in a terminal.
        table.add_row(*(cell.replace("**", "") for cell in _cells(row, [], sends=False)[:5]))
    return table


def _client_columns(rows: Sequence[Row]) -> list[str]:
    names = [list(row.per_client) for row in rows]
    return names[0] if all(each == names[0] for each in names) and len(names[0]) <= MOST_CLIENT_COLUMNS else []


def _cells(row: Row, clients: Sequence[str], sends: bool) -> list[str]:
    difference = _points(row.difference) if row.difference else ""
    megabytes = "" if row.sent_bytes is None else f"{row.sent_bytes / 1e6:.1f}"
    return [
        row.label,
        *(f"{100 * row.per_client[name].mean:.1f}" for name in clients),
        _percent(row.accuracy),
        f"{difference}, same bits" if row.same_bits else difference,
        row.baseline or "" if row.difference else "",
        str(row.accuracy.count),
        *([megabytes] if sends else []),
        f"{row.learning_rate:g}",
    ]


def _percent(found: Estimate) -> str:
    width = "" if found.half_width is None else f" ± {100 * found.half_width:.1f}"
    return f"{100 * found.mean:.1f}{width}"


def _points(found: Estimate) -> str:
    width = "" if found.half_width is None else f" ± {100 * found.half_width:.1f}"
    text = f"{100 * found.mean:+.1f}{width}"
    return f"**{text}**" if found.excludes_zero else text


def _simulated(results: Results) -> str:
    if not results.simulated:
        return ""
    runs = sum(len(row.seeds) for row in results.rows)
    return f"{results.simulated} of the {runs} runs in one process (`python -m tools.simulate`): the services' bits. "


def _rates(results: Results) -> list[str]:
    rates = sorted({rate for each in results.rates.values() for rate in each})
    rows = [
        [label, *(f"{100 * each[rate]:.1f}" if rate in each else "" for rate in rates)]
        for label, each in results.rates.items()
    ]
    return markdown_table(["", *(f"{rate:g}" for rate in rates)], rows)
