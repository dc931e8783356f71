"""Whether the settings of a run's method make sense. Each refusal names the field."""

import math

from fednano.errors import FieldInvalid
from fednano.methods import merges_by_fisher
from fednano.v1 import run_pb2 as pb

# The Gram-weighted merge holds two matrices of so many rows and columns in float64: a gigabyte.
MAX_GRAM_HIDDEN_SIZE = 8192
Fisher = pb.FisherConfig
NORMALIZATIONS = (Fisher.NORMALIZATION_NONE, Fisher.NORMALIZATION_L2, Fisher.NORMALIZATION_RANK)


def check_method_settings(config: pb.RunConfig) -> None:
    """Raises FieldInvalid for a wrong field, also of a method that is not the run's."""
    _check_estimate(config)
    _check_weighting(config)
    mu = config.train.proximal_mu
    require(math.isfinite(mu) and mu >= 0, "train.proximal_mu", "must be a number from 0")
    _check_gram(config)
    personal = config.personal
    require(0 <= personal.global_weight <= 1, "personal.global_weight", "must be 0 to 1")
    require(personal.local_epochs >= 0, "personal.local_epochs", "must not be negative; 0 takes train.local_epochs")
    if config.method == pb.METHOD_CENTRALIZED:
        words = "must be 1 with METHOD_CENTRALIZED: one client holds the pooled examples"
        require(config.clients_per_round == 1, "clients_per_round", words)


def require(holds: bool, field: str, words: str) -> None:
    if not holds:
        raise FieldInvalid(f"config.{field} {words}", field=f"run.config.{field}")


def _check_estimate(config: pb.RunConfig) -> None:
    """How clients estimate Fisher information."""
    fisher = config.fisher
    require(fisher.at in Fisher.Point.values(), "fisher.at", "must be POINT_START, POINT_END or POINT_PATH")
    require(fisher.kind in Fisher.Kind.values(), "fisher.kind", "must be KIND_EMPIRICAL, KIND_MC or KIND_ONES")
    require(fisher.max_examples >= 0, "fisher.max_examples", "must not be negative")
    is_ef = config.method == pb.METHOD_FEDNANO_EF
    require(
        not is_ef or fisher.at in (Fisher.POINT_UNSPECIFIED, Fisher.POINT_PATH),
        "fisher.at",
        "must be POINT_PATH or not set with METHOD_FEDNANO_EF, which estimates while it trains",
    )
    is_along = is_ef or fisher.at == Fisher.POINT_PATH
    words = "must be 0 where it is estimated while training: every example of a step counts there"
    require(not is_along or fisher.max_examples == 0, "fisher.max_examples", words)
    average = fisher.moving_average
    require(0 <= average < 1, "fisher.moving_average", "must be from 0 and below 1")


def _check_weighting(config: pb.RunConfig) -> None:
    """What the merge makes of it."""
    fisher = config.fisher
    require(math.isfinite(fisher.floor) and fisher.floor >= 0, "fisher.floor", "must be a number from 0")
    require(0 <= fisher.max_share <= 1, "fisher.max_share", "must be 0 to 1; 0 takes the default")
    power = fisher.power
    require(math.isfinite(power) and power >= 0, "fisher.power", "must be a number above 0, or 0, which takes 1")
    known = fisher.normalization in NORMALIZATIONS
    *others, last = (Fisher.Normalization.Name(one) for one in NORMALIZATIONS)
    require(known or not merges_by_fisher(config), "fisher.normalization", f"must be {', '.join(others)} or {last}")


def _check_gram(config: pb.RunConfig) -> None:
    gram = config.gram
    require(0 <= gram.step <= 1, "gram.step", "must be 0 to 1")
    damping = gram.damping
    is_positive = math.isfinite(damping) and damping > 0
    require(is_positive or not gram.HasField("damping"), "gram.damping", "must be a number above 0")
    if config.method == pb.METHOD_FEDNANO_GRAM:
        words = f"must be at most {MAX_GRAM_HIDDEN_SIZE} with METHOD_FEDNANO_GRAM"
        require(config.adapter.hidden_size <= MAX_GRAM_HIDDEN_SIZE, "adapter.hidden_size", words)
