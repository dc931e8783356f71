"""How a run estimates and weighs Fisher information, as its report says it."""

from dataclasses import dataclass

from fednano.cli.method_flags import is_literal
from fednano.methods import fisher_point
from fednano.v1 import run_pb2

Fisher = run_pb2.FisherConfig


@dataclass(frozen=True, kw_only=True)
class FisherSettings:
    """Of no effect but with fednano and fednano_ef. ``literal`` is Eq. 1 of the paper, with nothing added.

    ``at`` and ``kind`` are what the clients go by, also where the run does not name them; ``max_examples`` 0 is all of
    them, ``max_share`` 0 the default cap.
    """

    normalization: str
    floor: float
    max_examples: int
    literal: bool
    at: str
    kind: str
    power: float
    max_share: float
    moving_average: float


def fisher_settings(config: run_pb2.RunConfig) -> FisherSettings:
    fisher = config.fisher
    return FisherSettings(
        normalization=_word(Fisher.Normalization.Name(fisher.normalization)),
        floor=fisher.floor,
        max_examples=fisher.max_examples,
        literal=is_literal(config),
        at=_word(Fisher.Point.Name(fisher_point(config))),
        kind=_word(Fisher.Kind.Name(fisher.kind or Fisher.KIND_EMPIRICAL)),
        power=fisher.power or 1.0,
        max_share=fisher.max_share,
        moving_average=fisher.moving_average,
    )


def fisher_words(settings: FisherSettings, method: str) -> str:
    """In words, what is not the default left out; F = 1 makes all else meaningless."""
    if settings.kind == "ones":
        return "F = 1"
    weighed = f"{settings.normalization} normalization, floor {settings.floor:g}"
    words = ["Eq. 1 to the letter"] if settings.literal else [weighed]
    words += [f"power {settings.power:g}"] if settings.power != 1 else []
    # Of Eq. 1 to the letter it goes without saying that there is none.
    words += [f"cap {settings.max_share:g}"] if settings.max_share and not settings.literal else []
    words += [f"moving average {settings.moving_average:g}"] if settings.moving_average else []
    words += [f"at the {settings.at}"] if settings.at != ("path" if method == "fednano_ef" else "end") else []
    words += ["drawn labels"] if settings.kind == "mc" else []
    words += [f"at most {settings.max_examples} examples"] if settings.max_examples else []
    return ", ".join(words)


def _word(name: str) -> str:
    """NORMALIZATION_L2 is l2."""
    return name.partition("_")[2].lower()
