"""The experiments by name: the arms that each compares, as changes to one common setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from experiments.cells import Cell

Changes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of the table: ``changes`` are fields of Cell. Where arms are points of curves, ``x`` is the arm's place on
    the curve ``curve``, and ``point`` the axis' name for it. ``rate_of``, where it is not None, are the changes of the
    arm whose learning rate it takes: its own is not swept.
    """

    label: str
    changes: Changes
    # Where more seeds would show nothing more; 0 takes all.
    most_seeds: int = 0
    curve: str = ""
    point: str = ""
    x: float = 0.0
    rate_of: Changes | None = None

    def cell(self, common: Cell) -> Cell:
        return replace(common, **self.changes)

    def swept_cell(self, common: Cell) -> Cell:
        """What its learning rate is chosen by."""
        return replace(common, **(self.changes if self.rate_of is None else self.rate_of))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """``baseline_of`` names the arm that an arm is compared to, seed by seed; None where it is that arm itself.

    ``x_label`` is empty where arms are bars and not places on curves.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    baseline_of: Callable[[Arm], str | None]
    x_label: str = ""
    note: str = ""


def _method(label: str, method: str, fisher: str = "l2-floor-1") -> Arm:
    return Arm(label=label, changes={"method": method, "fisher": fisher})


FEDAVG = _method("FedAvg", "fedavg")
FEDPROX = _method("FedProx", "fedprox")
FEDDPA = _method("FedDPA-F", "feddpa_f")
FEDNANO = _method("FedNano", "fednano")
FEDNANO_EF = _method("FedNano-EF", "fednano_ef")
GRAM = _method("FedNano-Gram (ours)", "fednano_gram")


def _against(label: str) -> Callable[[Arm], str | None]:
    return lambda arm: None if arm.label == label else label


METHODS = Experiment(
    name="methods",
    title="Methods (the paper's Table 2)",
    arms=(
        _method("Centralized", "centralized"),
        _method("Local", "local"),
        FEDAVG,
        FEDPROX,
        FEDDPA,
        FEDNANO_EF,
        FEDNANO,
        GRAM,
    ),
    baseline_of=_against(FEDAVG.label),
    note="FedNano and FedNano-EF divide each client's Fisher information by its L2 norm and add a floor of 1, as"
    " validation chose; the experiment `fisher` has Eq. 1 to the letter.",
)
ADAPTERS = Experiment(
    name="adapters",
    title="Adapters (the paper's Table 3)",
    arms=tuple(
        Arm(label=label, changes={"method": "fednano", "modalities": kept})
        for label, kept in (("A_T alone", ("text",)), ("A_I alone", ("image",)), ("both", ("image", "text")))
    ),
    baseline_of=_against("both"),
)
FISHER = Experiment(
    name="fisher",
    title="Fisher information (the paper's Table 4, and more)",
    arms=(
        _method("FedNano, Eq. 1 to the letter", "fednano", "literal"),
        _method("FedNano, L2 norm and floor 1", "fednano"),
        _method("FedNano-EF, Eq. 1 to the letter", "fednano_ef", "literal"),
        _method("FedNano-EF, L2 norm and floor 1", "fednano_ef"),
        Arm(label="FedNano without Fisher (F = 1)", changes={"method": "fednano", "fisher": "ones"}, most_seeds=1),
        FEDAVG,
        FEDPROX,
        FEDDPA,
    ),
    baseline_of=_against(FEDAVG.label),
    note="F = 1 is FedAvg, bit for bit: it is run for one seed, to see that, and the row of FedAvg is its row.",
)


def _grid(methods: Mapping[str, str], points: Sequence[tuple[str, float, Changes]]) -> tuple[Arm, ...]:
    """Every method at every point of an axis."""
    return tuple(
        Arm(label=f"{label}, {point}", changes={"method": method, **changes}, curve=label, point=point, x=x)
        for point, x, changes in points
        for label, method in methods.items()
    )


def _fedavg_there(arm: Arm) -> str | None:
    return None if arm.curve == FEDAVG.label else f"{FEDAVG.label}, {arm.point}"


MERGES = MappingProxyType({"FedAvg": "fedavg", "FedNano": "fednano", "FedNano-Gram": "fednano_gram"})
# Steps of each client over the whole run.
TOTAL_STEPS = 240
RANK = Experiment(
    name="rank",
    title="Adapter rank (the paper's Fig. 2b)",
    arms=_grid({"FedNano": "fednano"}, [(f"rank {rank}", rank, {"rank": rank}) for rank in (2, 4, 8, 16, 32)]),
    baseline_of=_against("FedNano, rank 16"),
    x_label="adapter rank",
)
FREQUENCY = Experiment(
    name="frequency",
    title="Local steps between merges, at equal total steps (the paper's Fig. 2a)",
    arms=_grid(
        MERGES,
        [
            # As many epochs as steps: epochs never end a round before its steps do.
            (f"{steps} steps", steps, {"local_steps": steps, "local_epochs": steps, "rounds": TOTAL_STEPS // steps})
            for steps in (6, 12, 24, 60, 120)
        ],
    ),
    baseline_of=_fedavg_there,
    x_label=f"local steps between merges, {TOTAL_STEPS} in all",
)
CLIENTS = Experiment(
    name="clients",
    title="Number of clients, over the same examples",
    arms=_grid(MERGES, [(f"K = {count}", count, {"clients": count}) for count in (5, 10, 20)]),
    baseline_of=_fedavg_there,
    x_label="clients",
)
HETEROGENEITY = Experiment(
    name="heterogeneity",
    title="Unlike clients: Dirichlet's alpha",
    arms=_grid(MERGES, [(f"alpha = {alpha:g}", alpha, {"alpha": alpha}) for alpha in (0.1, 1.0, 10.0)]),
    baseline_of=_fedavg_there,
    x_label="Dirichlet's alpha (small is less alike)",
)
GRAM_CASES: Sequence[tuple[str, Changes]] = (
    ("K = 5", {}),
    ("K = 10", {"clients": 10}),
    ("K = 20", {"clients": 20}),
    ("3 epochs", {"local_epochs": 3}),
    ("a noisy client", {"noisy_clients": 1}),
)
# Each arm's rate is chosen at K = 5, one epoch, nobody noisy, at each alpha.
GRAM_STUDY = Experiment(
    name="gram",
    title="Whether the Gram-weighted merge holds (protocol: experiments/GRAM.md)",
    arms=tuple(
        replace(arm, rate_of={name: arm.changes[name] for name in ("method", "alpha")})
        for arm in _grid(
            {"FedAvg": "fedavg", "FedNano-Gram": "fednano_gram"},
            [
                (f"alpha = {alpha:g}, {words}", alpha, {"alpha": alpha, **case})
                for words, case in GRAM_CASES
                for alpha in (1.0, 0.1)
            ],
        )
    ),
    baseline_of=_fedavg_there,
)
COST = Experiment(
    name="cost",
    title="Cost (the paper's Table 1)",
    arms=(FEDAVG, FEDNANO, FEDNANO_EF, GRAM),
    baseline_of=_against(FEDAVG.label),
)
EXPERIMENTS = MappingProxyType(
    {one.name: one for one in (METHODS, ADAPTERS, FISHER, RANK, FREQUENCY, CLIENTS, HETEROGENEITY, GRAM_STUDY, COST)}
)
