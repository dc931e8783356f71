"""Results as a picture: bars, or curves over the experiment's axis, both with intervals and every seed as a point."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results import Results, Row

POINT_SIZE = 12


def write_plots(folder: Path, results: Results) -> list[str]:
    """The names of the PNG files written to ``folder``."""
    mpl.use("Agg")
    figure = Figure(
        figsize=(8, 0.45 * len(results.rows) + 1.6) if not results.x_label else (8, 4.5), layout="constrained"
    )
    axes = figure.subplots()
    if results.x_label:
        _draw_curves(axes, results)
    else:
        _draw_bars(axes, results)
    figure.savefig(folder / "accuracy.png", dpi=120, format="png")
    return ["accuracy.png"]


def _draw_bars(axes: Axes, results: Results) -> None:
    rows = results.rows[::-1]
    places = range(len(rows))
    axes.barh(
        places, [100 * row.accuracy.mean for row in rows], xerr=[_error(row) for row in rows], capsize=3, alpha=0.5
    )
    for place, row in zip(places, rows, strict=True):
        axes.scatter([100 * value for value in row.values], [place] * len(row.values), s=POINT_SIZE, zorder=3)
    axes.set_yticks(places, [row.label for row in rows])
    low = min(min(row.values) for row in rows)
    axes.set(title=results.title, xlabel="accuracy on own test split, percent", xlim=(max(0.0, 100 * low - 5), None))


def _draw_curves(axes: Axes, results: Results) -> None:
    for curve in dict.fromkeys(row.curve for row in results.rows):
        rows = sorted((row for row in results.rows if row.curve == curve), key=lambda row: row.x)
        means, errors = [100 * row.accuracy.mean for row in rows], [_error(row) for row in rows]
        axes.errorbar([row.x for row in rows], means, yerr=errors, marker="o", capsize=3, label=curve)
    ticks = sorted({row.x for row in results.rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=results.title, xlabel=results.x_label, ylabel="accuracy on own test split, percent")
    axes.legend()


def _error(row: Row) -> float:
    return 100 * (row.accuracy.half_width or 0.0)
