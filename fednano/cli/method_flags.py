"""Flags of `run create` and `demo` for what a method can be told: proximal term, Fisher information, refits."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from typer import Option

from fednano.v1 import run_pb2

PANEL = "Settings of the method"
Fisher = run_pb2.FisherConfig


class MethodName(StrEnum):
    """The federated algorithms, as the command line writes them."""

    FEDNANO = "fednano"
    FEDNANO_EF = "fednano_ef"
    FEDNANO_GRAM = "fednano_gram"
    FEDAVG = "fedavg"
    FEDPROX = "fedprox"
    FEDDPA_F = "feddpa_f"
    LOCAL = "local"
    CENTRALIZED = "centralized"
    TRIMMED_MEAN = "trimmed-mean"
    MEDIAN = "median"
    KRUM = "krum"


class FisherPoint(StrEnum):
    START = "start"
    END = "end"
    PATH = "path"


class FisherKind(StrEnum):
    EMPIRICAL = "empirical"
    MC = "mc"
    ONES = "ones"


class FisherNormalization(StrEnum):
    NONE = "none"
    L2 = "l2"
    RANK = "rank"


@dataclass(frozen=True, kw_only=True)
class MethodFlags:
    """None where a flag was not given."""

    proximal_mu: Annotated[float | None, Option(help="fedprox: weight of its term. (0)", rich_help_panel=PANEL)] = None
    fisher_at: Annotated[
        FisherPoint | None,
        Option(help="When it is estimated. (end; fednano_ef: path)", rich_help_panel=PANEL),
    ] = None
    fisher_kind: Annotated[
        FisherKind | None,
        Option(help="Of true labels, of drawn ones, or F = 1. (empirical)", rich_help_panel=PANEL),
    ] = None
    fisher_normalization: Annotated[
        FisherNormalization | None,
        Option(help="Of each client's: none, by its L2 norm, or by rank component. (l2)", rich_help_panel=PANEL),
    ] = None
    fisher_power: Annotated[float | None, Option(help="It is raised to this first. (1)", rich_help_panel=PANEL)] = None
    fisher_floor: Annotated[
        float | None, Option(help="Added, in means over all clients. (1)", rich_help_panel=PANEL)
    ] = None
    fisher_max_share: Annotated[
        float | None,
        Option(help="Most of a tensor's mass for one client; 1: no cap. (half, or 2/clients)", rich_help_panel=PANEL),
    ] = None
    fisher_max_examples: Annotated[
        int | None, Option(min=0, help="Random examples it is estimated on. (all)", rich_help_panel=PANEL)
    ] = None
    fisher_moving_average: Annotated[
        float | None, Option(help="Part of a client's earlier rounds in it. (0)", rich_help_panel=PANEL)
    ] = None
    gram_step: Annotated[
        float | None, Option(help="fednano_gram: from the mean to the refit. (0.5)", rich_help_panel=PANEL)
    ] = None
    gram_damping: Annotated[
        float | None, Option(help="fednano_gram: added, in mean diagonals. (0.1)", rich_help_panel=PANEL)
    ] = None
    global_weight: Annotated[
        float | None, Option(help="feddpa_f: the global adapter's in inference. (0.5)", rich_help_panel=PANEL)
    ] = None
    personal_epochs: Annotated[
        int | None, Option(min=0, help="feddpa_f: of its second stage. (local epochs)", rich_help_panel=PANEL)
    ] = None


NO_METHOD_FLAGS = MethodFlags()


def set_method_settings(config: run_pb2.RunConfig, flags: MethodFlags) -> None:
    """The aggregator judges what comes of it."""
    if flags.proximal_mu is not None:
        config.train.proximal_mu = flags.proximal_mu
    _set_estimate(config.fisher, flags)
    _set_weighting(config.fisher, flags)
    if flags.gram_step is not None:
        config.gram.step = flags.gram_step
    if flags.gram_damping is not None:
        config.gram.damping = flags.gram_damping
    if flags.global_weight is not None:
        config.personal.global_weight = flags.global_weight
    if flags.personal_epochs is not None:
        config.personal.local_epochs = flags.personal_epochs


def is_literal(config: run_pb2.RunConfig) -> bool:
    """Whether the merge is the paper's Eq. 1 to the letter: no normalization, power, floor, cap or average."""
    fisher = config.fisher
    if fisher.kind == Fisher.KIND_ONES:
        return False
    changes = (fisher.floor, fisher.moving_average, fisher.power not in (0.0, 1.0))
    return fisher.normalization == Fisher.NORMALIZATION_NONE and fisher.max_share == 1 and not any(changes)


def _set_estimate(fisher: run_pb2.FisherConfig, flags: MethodFlags) -> None:
    if flags.fisher_at is not None:
        fisher.at = Fisher.Point.Value(f"POINT_{flags.fisher_at.name}")
    if flags.fisher_kind is not None:
        fisher.kind = Fisher.Kind.Value(f"KIND_{flags.fisher_kind.name}")
    if flags.fisher_max_examples is not None:
        fisher.max_examples = flags.fisher_max_examples
    if flags.fisher_moving_average is not None:
        fisher.moving_average = flags.fisher_moving_average


def _set_weighting(fisher: run_pb2.FisherConfig, flags: MethodFlags) -> None:
    if flags.fisher_normalization is not None:
        fisher.normalization = Fisher.Normalization.Value(f"NORMALIZATION_{flags.fisher_normalization.name}")
    if flags.fisher_power is not None:
        fisher.power = flags.fisher_power
    if flags.fisher_floor is not None:
        fisher.floor = flags.fisher_floor
    if flags.fisher_max_share is not None:
        fisher.max_share = flags.fisher_max_share
