"""An experiment's results: each arm's mean over seeds, its interval, and the paired difference to its baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from experiments.definitions import Arm, Experiment
from experiments.outcomes import Outcome
from experiments.statistics import Estimate, estimate


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracies are parts of one. ``difference`` is seed by seed, to the arm ``baseline``; None where there is none.

    ``same_bits``: in every seed the final adapter is the baseline's, bit for bit. ``sent_bytes`` is a run's mean; None
    where runs were simulated, which send nothing.
    """

    label: str
    curve: str
    x: float
    learning_rate: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    accuracy: Estimate
    per_client: dict[str, Estimate]
    untrained: Estimate
    baseline: str | None
    difference: Estimate | None
    same_bits: bool
    sent_bytes: float | None
    bytes: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """``rates`` has, where they were swept, the validation accuracy of each arm at each learning rate.

    ``simulated`` is the number of runs behind the rows that were not on the services.
    """

    name: str
    title: str
    note: str
    x_label: str
    commits: tuple[str, ...]
    settings: dict[str, object]
    rates: dict[str, dict[float, float]]
    simulated: int = 0
    rows: tuple[Row, ...]


def make_rows(experiment: Experiment, outcomes: Mapping[str, Sequence[Outcome]]) -> tuple[Row, ...]:
    """``outcomes`` has each arm's, by label, one a seed."""
    return tuple(_row(arm, experiment.baseline_of(arm), outcomes) for arm in experiment.arms if arm.label in outcomes)


def _row(arm: Arm, baseline: str | None, outcomes: Mapping[str, Sequence[Outcome]]) -> Row:
    own = outcomes[arm.label]
    sent = [outcome for outcome in own if not outcome.simulated]
    pairs = _pairs(own, outcomes.get(baseline or "", ()))
    names = sorted(own[0].per_client, key=lambda name: (len(name), name))
    return Row(
        label=arm.label,
        curve=arm.curve,
        x=arm.x,
        learning_rate=own[0].cell.learning_rate,
        seeds=tuple(outcome.cell.seed for outcome in own),
        values=tuple(outcome.accuracy for outcome in own),
        accuracy=estimate([outcome.accuracy for outcome in own]),
        per_client={name: estimate([outcome.per_client[name] for outcome in own]) for name in names},
        untrained=estimate([outcome.untrained for outcome in own]),
        baseline=baseline,
        difference=estimate([one.accuracy - other.accuracy for one, other in pairs]) if pairs else None,
        same_bits=bool(pairs) and all(one.adapter_sha256 == other.adapter_sha256 for one, other in pairs),
        sent_bytes=fmean(outcome.sent_bytes for outcome in sent) if sent else None,
        bytes={kind: fmean(one.report["bytes"][kind] for one in sent) for kind in sent[0].report["bytes"]}
        if sent
        else {},
        seconds=fmean(outcome.report["seconds"] for outcome in own),
    )


def _pairs(own: Sequence[Outcome], others: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Two outcomes of one seed, and so of the same examples."""
    by_seed = {other.cell.seed: other for other in others}
    return [(one, by_seed[one.cell.seed]) for one in own if one.cell.seed in by_seed]
